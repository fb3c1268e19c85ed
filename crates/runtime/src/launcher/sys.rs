//! The system calls that no safe wrapper offers, each as a small safe function.
//!
//! Owns every `unsafe` block of the launcher. Must not know sandboxes. The surprise: [`fork`] is safe to call
//! because the launcher has exactly one thread, which is the reason why it is a process of its own.
#![allow(unsafe_code, reason = "the kernel's newer calls are reached through libc::syscall")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use libc::{c_int, c_long, pid_t};

use super::seccomp::Instruction;

/// Turns the -1 of a system call into the error that goes with it.
fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: c_long) -> io::Result<OwnedFd> {
    let fd = check(result)? as RawFd;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes ownership of descriptors that arrived in a control message.
pub fn adopt(fds: &[RawFd]) -> Vec<OwnedFd> {
    // SAFETY: the kernel made these descriptors for this process when the message was received.
    fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect()
}

pub fn c_string(text: impl AsRef<[u8]>) -> io::Result<CString> {
    CString::new(text.as_ref()).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "contains a zero byte"))
}

pub fn c_path(path: &Path) -> io::Result<CString> {
    c_string(path.as_os_str().as_encoded_bytes())
}

pub enum Forked {
    Parent { pid: pid_t, pidfd: OwnedFd },
    Child,
}

/// Forks this single-threaded process with `flags` such as `CLONE_NEWPID`; the parent gets a pidfd.
pub fn fork(flags: c_int) -> io::Result<Forked> {
    let mut pidfd: c_int = -1;
    // SAFETY: all-zero is a valid clone_args: "nothing asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM and without a stack this is fork; there is no second thread whose locks could be
    // left held in the child.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    Ok(Forked::Parent { pid: pid as pid_t, pidfd: owned(pidfd.into())? })
}

pub fn pidfd_open(pid: pid_t) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, ptr::null::<libc::siginfo_t>(), 0)
    };
    check(sent).map(drop)
}

/// How a path may be resolved.
#[derive(Clone, Copy)]
pub enum Resolve {
    /// No link anywhere in the path.
    NoLinks,
    /// No link, and never out of the folder it starts from.
    Beneath,
}

/// Opens the folder or file as a mere handle (`O_PATH`), following no link.
pub fn open_handle(at: Option<BorrowedFd<'_>>, path: &Path, resolve: Resolve) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: all-zero is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
    how.resolve = libc::RESOLVE_NO_SYMLINKS
        | libc::RESOLVE_NO_MAGICLINKS
        | if matches!(resolve, Resolve::Beneath) { libc::RESOLVE_BENEATH } else { 0 };
    let at = at.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    // SAFETY: path and how live across the call.
    owned(unsafe { libc::syscall(libc::SYS_openat2, at, path.as_ptr(), &raw const how, size_of::<libc::open_how>()) })
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

pub const RDONLY: u64 = 0x1;
pub const NOSUID: u64 = 0x2;
pub const NODEV: u64 = 0x4;
pub const NOEXEC: u64 = 0x8;

/// A detached copy of the mount tree at `handle`, mounted with `attributes` and without propagation.
pub fn clone_tree(handle: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the empty string lives for ever.
    let tree = owned(unsafe { libc::syscall(libc::SYS_open_tree, handle.as_raw_fd(), c"".as_ptr(), flags) })?;
    let set = MountAttr { set: attributes, clear: 0, propagation: libc::MS_PRIVATE, userns: 0 };
    mount_setattr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &set)?;
    Ok(tree)
}

/// Changes the attributes of the one mount at `path`.
pub fn change_mount(path: &CStr, attributes: u64) -> io::Result<()> {
    let set = MountAttr { set: attributes, clear: 0, propagation: 0, userns: 0 };
    mount_setattr(libc::AT_FDCWD, path, 0, &set)
}

/// Makes the files of a detached tree appear as the user namespace `users` maps their owners.
pub fn map_owners(tree: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    const IDMAP: u64 = 0x0010_0000;
    let set = MountAttr { set: IDMAP, clear: 0, propagation: 0, userns: users.as_raw_fd() as u64 };
    mount_setattr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH, &set)
}

fn mount_setattr(at: c_int, path: &CStr, flags: c_int, attributes: &MountAttr) -> io::Result<()> {
    // SAFETY: path and attributes live across the call, and the size is theirs.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    check(done).map(drop)
}

/// Attaches a detached tree on top of the folder `target` is a handle of.
pub fn move_mount(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const FROM_EMPTY_PATH: c_int = 0x4;
    const TO_EMPTY_PATH: c_int = 0x40;
    // SAFETY: the empty strings live for ever.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            FROM_EMPTY_PATH | TO_EMPTY_PATH,
        )
    };
    check(moved).map(drop)
}

/// Asks the kernel to keep moving processes between cgroups cheap for as long as the answer is open. Otherwise each
/// move may wait for a grace period, several milliseconds, which would be the largest part of a start. It is a
/// property of any hierarchy, so this makes one of its own that is mounted nowhere. Linux 6.0.
pub fn favour_cgroup_moves(name: &CStr) -> io::Result<OwnedFd> {
    mount_nowhere(c"cgroup", &[(c"none", None), (c"name", Some(name)), (c"favordynmods", None)], 0)
}

/// A new file system of this kind, mounted with `attributes`, but not anywhere yet.
pub fn mount_nowhere(kind: &CStr, options: &[(&CStr, Option<&CStr>)], attributes: u64) -> io::Result<OwnedFd> {
    const SET_FLAG: c_int = 0;
    const SET_STRING: c_int = 1;
    const CREATE: c_int = 6;
    const CLOEXEC: c_int = 1;
    // SAFETY: the strings live across the calls; absent ones are null, as the commands want.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC))?;
        let set = |command: c_int, key: Option<&CStr>, value: Option<&CStr>| {
            let [key, value] = [key, value].map(|text| text.map_or(ptr::null(), CStr::as_ptr));
            check(libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0))
        };
        for (key, value) in options {
            set(if value.is_some() { SET_STRING } else { SET_FLAG }, Some(key), *value)?;
        }
        set(CREATE, None, None)?;
        owned(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, attributes))
    }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: the caller is about to replace this process or has moved what it keeps below `first`.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) }).map(drop)
}

/// Moves descriptors to 0, 1, 2... in order; `None` leaves that number closed. Every other one is closed.
pub fn arrange(wanted: &[Option<RawFd>]) -> io::Result<()> {
    let floor = wanted.len() as RawFd;
    let mut parked = Vec::with_capacity(wanted.len());
    for fd in wanted {
        // Parked above every target first, so that no target overwrites a source that is still needed.
        // SAFETY: fcntl with an int argument touches no memory.
        let park = |fd: &RawFd| check(unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, floor) }.into());
        parked.push(fd.as_ref().map(park).transpose()?);
    }
    for (target, fd) in parked.iter().enumerate() {
        // SAFETY: these numbers belong to nobody in this process any more; it is about to exec.
        match fd {
            Some(fd) => check(unsafe { libc::dup2(*fd as c_int, target as c_int) }.into())?,
            None => unsafe { libc::close(target as c_int) }.into(),
        };
    }
    close_from(floor)
}

pub fn set_death_signal(signal: c_int) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64)
}

pub fn become_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

pub fn forbid_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn prctl(option: c_int, value: u64) -> io::Result<()> {
    // SAFETY: the options used here take numbers only.
    check(unsafe { libc::prctl(option, value, 0u64, 0u64, 0u64) }.into()).map(drop)
}

/// Empties the bounding set, so that no later exec can gain a capability.
pub fn drop_bounding_set() -> io::Result<()> {
    for capability in 0.. {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // Past the last capability this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Clears the effective, permitted, inheritable and ambient sets.
pub fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let data = [0u32; 6];
    // SAFETY: version 3 reads two blocks of three words, which is what data holds.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    // SAFETY: the option takes numbers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into()).map(drop)
}

/// Takes this user and group, and no other group.
pub fn become_user(user: u32, group: u32) -> io::Result<()> {
    // SAFETY: an empty list of groups may be null; the others take numbers.
    unsafe {
        check(libc::setgroups(0, ptr::null()).into())?;
        check(libc::setresgid(group, group, group).into())?;
        check(libc::setresuid(user, user, user).into()).map(drop)
    }
}

pub fn install_filter(program: &[Instruction]) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: c_int = 1;
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    let program = Program { length: program.len() as u16, filter: program.as_ptr() };
    // SAFETY: Instruction has the layout of sock_filter, and the slice outlives the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}

/// Sets both limits of a resource, never above the present hard limit.
pub fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    // SAFETY: both calls are given a valid rlimit.
    unsafe {
        let mut now: libc::rlimit = std::mem::zeroed();
        check(libc::getrlimit(resource, &raw mut now).into())?;
        let value = value.min(now.rlim_max);
        let new = libc::rlimit { rlim_cur: value, rlim_max: value };
        check(libc::setrlimit(resource, &raw const new).into()).map(drop)
    }
}

/// Gives every signal its default action and unblocks all: Rust ignores SIGPIPE and the launcher blocks SIGCHLD.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is valid for every signal; the kernel refuses those that cannot be changed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an empty set is valid.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Ends this process at once, running no destructor of the process it was forked from.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// Makes a terminal the controlling one of this session, which has none.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes a number only.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

pub fn resize_terminal(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: size is what the request reads, and lives across the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

pub fn execve(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    fn pointers(of: &[CString]) -> Vec<*const libc::c_char> {
        of.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    }
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in null, and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// A node such as `/dev/null`.
pub fn make_device(path: &CStr, major: u32, minor: u32) -> io::Result<()> {
    // SAFETY: the path lives across the call.
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor)) }.into())?;
    // SAFETY: as above; mknod's mode is cut by the umask.
    check(unsafe { libc::chmod(path.as_ptr(), 0o666) }.into()).map(drop)
}

/// Milliseconds of a clock that only goes forward.
pub fn monotonic_ms() -> u64 {
    // SAFETY: all-zero is a valid timespec, and the clock exists on every Linux.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: now is a valid timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Waits; only for the launcher's last steps, when nobody else waits for it.
pub fn pause_ms(milliseconds: c_int) {
    // SAFETY: no descriptors are passed.
    unsafe { libc::poll(ptr::null_mut(), 0, milliseconds) };
}

/// Ignores what a terminal or a service manager sends to everybody: the launcher ends when its socket does.
pub fn ignore_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGPIPE] {
        // SAFETY: SIG_IGN is valid for these.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The name `ps` shows.
pub fn set_name(name: &CStr) {
    // SAFETY: the name lives across the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}
