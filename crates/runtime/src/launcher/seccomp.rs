//! The system calls a sandboxed program may not make, as one short program for the kernel.
//!
//! Owns the list and its translation. Must not know processes. Everything not named is allowed: the sandbox's
//! walls are namespaces, capabilities and cgroups, and this filter takes away the parts of the kernel that have
//! most often let somebody through them. It is kept short because the kernel compiles it at every start.

use libc::c_long;

/// One instruction of classic BPF, with the layout of the kernel's `sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u16,
    on_true: u8,
    on_false: u8,
    value: u32,
}

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const REFUSE: u32 = ERRNO | libc::EPERM as u32;
const NOT_KNOWN: u32 = ERRNO | libc::ENOSYS as u32;
const NO_FAMILY: u32 = ERRNO | libc::EAFNOSUPPORT as u32;

/// Offsets in the kernel's `seccomp_data`; the low half of an argument, on a little-endian machine.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT: [u32; 3] = [16, 24, 32];

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// Numbers from here on are the x32 calls, a second way to everything.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Refused whatever the arguments.
const REFUSED: &[c_long] = &[
    // Mounts and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Large, young or often broken parts of the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The machine.
    libc::SYS_kexec_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// The whole filter.
pub fn filter() -> Vec<Instruction> {
    let mut program = vec![load(ARCHITECTURE), skip_unless_not(NATIVE), give(KILL), load(NUMBER)];
    #[cfg(target_arch = "x86_64")]
    program.extend([Instruction { code: JUMP_AT_LEAST, on_true: 0, on_false: 1, value: X32 }, give(REFUSE)]);
    // Calls that every program makes all the time leave first.
    let common = [libc::SYS_read, libc::SYS_write, libc::SYS_futex, libc::SYS_epoll_pwait];
    for (left, number) in common.iter().enumerate().map(|(i, n)| (common.len() - 1 - i, n)) {
        let on_false = if left == 0 { 1 } else { 0 };
        program.push(Instruction { code: JUMP_EQUAL, on_true: left as u8, on_false, value: *number as u32 });
    }
    program.push(give(ALLOW));
    program.extend(for_call(libc::SYS_clone3, &[give(NOT_KNOWN)]));
    let namespaces = [
        load(ARGUMENT[0]),
        Instruction { code: JUMP_ANY_BIT, on_true: 0, on_false: 1, value: NAMESPACES },
        give(REFUSE),
        give(ALLOW),
    ];
    program.extend(for_call(libc::SYS_clone, &namespaces));
    program.extend(for_call(libc::SYS_socket, &sockets()));
    for (left, number) in REFUSED.iter().enumerate().map(|(i, n)| (REFUSED.len() - 1 - i, n)) {
        // A hit jumps over the checks that are left and over the verdict for everything else.
        let on_true = left as u8 + 1;
        program.push(Instruction { code: JUMP_EQUAL, on_true, on_false: 0, value: *number as u32 });
    }
    program.extend([give(ALLOW), give(REFUSE)]);
    program
}

/// Unix and internet sockets, and of the netlink family only the one that lists one's own addresses.
fn sockets() -> Vec<Instruction> {
    let equal =
        |value: i32, on_true, on_false| Instruction { code: JUMP_EQUAL, on_true, on_false, value: value as u32 };
    vec![
        load(ARGUMENT[0]),
        equal(libc::AF_UNIX, 5, 0),
        equal(libc::AF_INET, 4, 0),
        equal(libc::AF_INET6, 3, 0),
        equal(libc::AF_NETLINK, 0, 3),
        load(ARGUMENT[2]),
        equal(libc::NETLINK_ROUTE, 0, 1),
        give(ALLOW),
        give(NO_FAMILY),
    ]
}

fn for_call(number: c_long, body: &[Instruction]) -> Vec<Instruction> {
    let test = Instruction { code: JUMP_EQUAL, on_true: 0, on_false: body.len() as u8, value: number as u32 };
    std::iter::once(test).chain(body.iter().copied()).collect()
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, on_true: 0, on_false: 0, value: offset }
}

fn skip_unless_not(value: u32) -> Instruction {
    Instruction { code: JUMP_EQUAL, on_true: 1, on_false: 0, value }
}

fn give(value: u32) -> Instruction {
    Instruction { code: RETURN, on_true: 0, on_false: 0, value }
}

/// The bytes as the kernel reads them, for the zygote, which installs the same filter.
pub fn bytes(program: &[Instruction]) -> Vec<u8> {
    let one = |i: &Instruction| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&i.code.to_ne_bytes());
        bytes[2] = i.on_true;
        bytes[3] = i.on_false;
        bytes[4..].copy_from_slice(&i.value.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer to a call.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let branch = |yes: bool| usize::from(if yes { i.on_true } else { i.on_false });
            match i.code {
                LOAD => {
                    accumulator = match i.value {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        offset => arguments[(offset as usize - 16) / 8] as u32,
                    }
                }
                JUMP_EQUAL => at += branch(accumulator == i.value),
                JUMP_AT_LEAST => at += branch(accumulator >= i.value),
                JUMP_ANY_BIT => at += branch(accumulator & i.value != 0),
                RETURN => return i.value,
                code => panic!("unknown code {code}"),
            }
        }
    }

    #[test]
    fn verdicts() {
        let program = filter();
        assert!(program.len() < 100, "{} instructions", program.len());
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
        let rows: &[(c_long, [u64; 3], u32)] = &[
            (libc::SYS_read, [0, 0, 0], ALLOW),
            (libc::SYS_write, [0, 0, 0], ALLOW),
            (libc::SYS_futex, [0, 0, 0], ALLOW),
            (libc::SYS_epoll_pwait, [0, 0, 0], ALLOW),
            (libc::SYS_openat, [0, 0, 0], ALLOW),
            (libc::SYS_execve, [0, 0, 0], ALLOW),
            (libc::SYS_clone, [thread, 0, 0], ALLOW),
            (libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0], REFUSE),
            (libc::SYS_clone, [libc::CLONE_NEWNET as u64 | thread, 0, 0], REFUSE),
            (libc::SYS_clone3, [0, 0, 0], NOT_KNOWN),
            (libc::SYS_socket, [libc::AF_INET as u64, 1, 0], ALLOW),
            (libc::SYS_socket, [libc::AF_INET6 as u64, 1, 0], ALLOW),
            (libc::SYS_socket, [libc::AF_UNIX as u64, 1, 0], ALLOW),
            (libc::SYS_socket, [libc::AF_NETLINK as u64, 3, libc::NETLINK_ROUTE as u64], ALLOW),
            (libc::SYS_socket, [libc::AF_NETLINK as u64, 3, libc::NETLINK_NETFILTER as u64], NO_FAMILY),
            (libc::SYS_socket, [libc::AF_PACKET as u64, 3, 0], NO_FAMILY),
            (libc::SYS_socket, [libc::AF_ALG as u64, 5, 0], NO_FAMILY),
            (libc::SYS_socket, [libc::AF_VSOCK as u64, 1, 0], NO_FAMILY),
        ];
        for (number, [a, b, c], want) in rows {
            assert_eq!(run(&program, NATIVE, *number as u32, [*a, *b, *c, 0, 0, 0]), *want, "{number} {a} {b} {c}");
        }
        for number in REFUSED {
            assert_eq!(run(&program, NATIVE, *number as u32, [0; 6]), REFUSE, "{number}");
        }
        assert_eq!(run(&program, 0x4000_0003, libc::SYS_read as u32, [0; 6]), KILL, "32-bit calls");
        #[cfg(target_arch = "x86_64")]
        assert_eq!(run(&program, NATIVE, X32 + libc::SYS_read as u32, [0; 6]), REFUSE, "x32 calls");
    }
}
