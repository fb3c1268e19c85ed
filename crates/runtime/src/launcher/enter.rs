//! From a fork of the launcher to a program in its sandbox.
//!
//! Owns the order of the steps. Must not know anything that outlives the fork. Whatever goes wrong here is printed
//! where the program's own errors would be, since that is where a person looks, and ends the container.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Uid, chdir, fchown, setsid};

use super::cgroup;
use super::seccomp::Instruction;
use super::sys;
use crate::provider::User;

/// The exit code of a container whose sandbox could not be entered, as container runtimes use it.
pub const COULD_NOT_START: i32 = 128;
/// The exit codes of a visitor's program that is not there, or is no program, as shells use them.
const NOT_FOUND: i32 = 127;
const NOT_A_PROGRAM: i32 = 126;
/// Where a program without a slash is looked for if the container has no `PATH`.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Under pressure the kernel takes a sandbox before it takes the platform.
const OOM_SCORE: &str = "500";
/// Files of `/proc` that say something about the host, or do something to it.
pub const MASKED: &[&str] =
    &["/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/kallsyms"];

/// Everything the child needs; the descriptors are its own copies.
pub struct Entry<'a> {
    pub argv: &'a [String],
    pub env: &'a [(String, String)],
    pub working_dir: &'a str,
    pub open_files: u64,
    pub filter: &'a [Instruction],
    /// Absent: there is nothing to read.
    pub stdin: Option<&'a OwnedFd>,
    pub stdout: &'a OwnedFd,
    pub stderr: &'a OwnedFd,
    pub listener: Option<&'a OwnedFd>,
    pub ready: Option<&'a OwnedFd>,
    /// Absent where there is no isolation to enter.
    pub walls: Option<Walls<'a>>,
    /// Whether standard input, output and error are a terminal, to be the program's own.
    pub terminal: bool,
    /// Whether it visits a container: what cannot be run is then the visitor's mistake, not the container's.
    pub visits: bool,
}

/// What keeps the sandbox apart.
pub struct Walls<'a> {
    pub user: u32,
    /// Who the program takes itself for, and a handle of the user namespace in which it is that.
    pub seen: Option<(User, &'a OwnedFd)>,
    pub doors: &'a [OwnedFd],
    pub way: Way<'a>,
}

/// How the namespaces are reached, the process namespace aside: that is chosen by whoever forks.
pub enum Way<'a> {
    /// Nobody is in them yet.
    First { net: &'a OwnedFd, ipc: &'a OwnedFd, uts: &'a OwnedFd, mnt: &'a OwnedFd },
    /// Where this process is.
    Beside(&'a OwnedFd),
}

/// Enters the sandbox and becomes the program. Called in the child of a fork.
pub fn enter(entry: &Entry<'_>) -> ! {
    let Err((step, error)) = attempt(entry);
    let mut stderr = io::stderr();
    if !entry.visits {
        let _ = writeln!(stderr, "dhow: cannot start the container: {step}: {error}");
        sys::exit_now(COULD_NOT_START)
    }
    let _ = writeln!(stderr, "dhow: cannot run the program: {step}: {error}");
    sys::exit_now(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_A_PROGRAM })
}

type Step = (String, io::Error);

/// Names the step an error belongs to.
fn at<E: Into<io::Error>>(step: &str) -> impl FnOnce(E) -> Step {
    move |e| (step.to_owned(), e.into())
}

fn attempt(entry: &Entry<'_>) -> Result<std::convert::Infallible, Step> {
    // From here on, errors go to the container's own log.
    nix::unistd::dup2_stderr(entry.stderr).map_err(at("standard error"))?;
    sys::reset_signals();
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    setsid().map_err(at("new session"))?;
    if entry.terminal {
        sys::take_terminal(entry.stdout.as_fd()).map_err(at("terminal"))?;
        if let Some(walls) = &entry.walls {
            fchown(entry.stdout, Some(Uid::from_raw(walls.user)), None).map_err(at("owner of the terminal"))?;
        }
    }
    umask(Mode::from_bits_truncate(0o022));
    if let Some(walls) = &entry.walls {
        enter_walls(walls)?;
    }
    let seen = entry.walls.as_ref().and_then(|walls| walls.seen);
    if let Some((_, users)) = seen {
        // The last of the namespaces: in it there is no right over the others. It gives back what was dropped, too.
        setns(users, CloneFlags::CLONE_NEWUSER).map_err(at("user namespace"))?;
    }
    let null = fs::File::open("/dev/null").map_err(at("/dev/null"))?;
    let fd = |fd: &OwnedFd| fd.as_raw_fd();
    sys::arrange(&[
        Some(entry.stdin.map_or(null.as_raw_fd(), fd)),
        Some(fd(entry.stdout)),
        Some(fd(entry.stderr)),
        entry.listener.map(fd),
        entry.ready.map(fd),
    ])
    .map_err(at("descriptors"))?;
    // What is above is closed now; the owners must not close those numbers again, and never do: this ends in exec.
    std::mem::forget(null);
    sys::limit(libc::RLIMIT_NOFILE, entry.open_files).map_err(at("limit of open files"))?;
    sys::limit(libc::RLIMIT_CORE, 0).map_err(at("limit of core files"))?;
    let bounded = sys::drop_bounding_set();
    if let Some(walls) = &entry.walls {
        // Not permitted without privileges, which is where there are no walls and nothing to drop.
        bounded.map_err(at("bounding set"))?;
        let User { user, group } = seen.map_or(User { user: walls.user, group: walls.user }, |(user, _)| user);
        sys::become_user(user, group).map_err(at("user"))?;
    }
    sys::drop_capabilities().map_err(at("capabilities"))?;
    chdir(entry.working_dir).map_err(at(&format!("working folder {}", entry.working_dir)))?;
    let program = entry.argv.first().map_or("", String::as_str);
    let (argv, env) = strings(entry).map_err(at(program))?;
    let places = places(entry).map_err(at(program))?;
    // After the change of user, which clears it.
    sys::set_death_signal(libc::SIGKILL).map_err(at("death signal"))?;
    sys::forbid_new_privileges().map_err(at("no new privileges"))?;
    sys::install_filter(entry.filter).map_err(at("system call filter"))?;
    Err((program.to_owned(), run_first(&places, &argv, &env)))
}

/// Becomes the first of these programs that can be run. A file that may not be run says more than one that is missing.
fn run_first(places: &[CString], argv: &[CString], env: &[CString]) -> io::Error {
    let mut worst = io::Error::from_raw_os_error(libc::ENOENT);
    for place in places {
        let error = sys::execve(place, argv, env);
        if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) {
            worst = error;
        }
    }
    worst
}

/// Where the program may be.
fn places(entry: &Entry<'_>) -> io::Result<Vec<CString>> {
    let program = entry.argv.first().map_or("", String::as_str);
    if program.is_empty() || program.contains('/') {
        return Ok(vec![sys::c_string(program)?]);
    }
    let path = entry.env.iter().find(|(name, _)| name == "PATH").map_or(PATH, |(_, value)| value);
    path.split(':').filter(|folder| !folder.is_empty()).map(|f| sys::c_string(format!("{f}/{program}"))).collect()
}

fn enter_walls(walls: &Walls<'_>) -> Result<(), Step> {
    cgroup::enter(walls.doors).map_err(at("cgroups"))?;
    let (net, ipc, uts, mnt) = match &walls.way {
        Way::First { net, ipc, uts, mnt } => (net, ipc, uts, mnt),
        Way::Beside(process) => {
            let all = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
            return setns(process, all | CloneFlags::CLONE_NEWNS).map_err(at("namespaces"));
        }
    };
    for (name, namespace, kind) in [
        ("network", net, CloneFlags::CLONE_NEWNET),
        ("ipc", ipc, CloneFlags::CLONE_NEWIPC),
        ("host name", uts, CloneFlags::CLONE_NEWUTS),
        ("mounts", mnt, CloneFlags::CLONE_NEWNS),
    ] {
        setns(namespace, kind).map_err(at(&format!("{name} namespace")))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("proc"), "/proc", Some("proc"), flags, Some("hidepid=2")).map_err(at("/proc"))?;
    for path in MASKED {
        match mount(Some("/dev/null"), *path, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
            // This kernel has no such file.
            Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
            Err(e) => return Err(at(path)(e)),
        }
    }
    Ok(())
}

fn strings(entry: &Entry<'_>) -> io::Result<(Vec<CString>, Vec<CString>)> {
    let argv = entry.argv.iter().map(sys::c_string).collect::<io::Result<_>>()?;
    let env = entry.env.iter().map(|(k, v)| sys::c_string(format!("{k}={v}"))).collect::<io::Result<_>>()?;
    Ok((argv, env))
}
