//! Zygotes: processes that have loaded a runtime once and fork for every instance.
//!
//! Owns their start, the messages to them, and their death. Must not know sandboxes beyond a number that stands for
//! a request. There is one per tenant namespace and runtime, since forks of one process share its hash seed and its
//! address layout. A zygote that does not answer in time is killed, and its children with it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cgroup::{self, Cgroup};
use super::seccomp::{self, Instruction};
use super::sys::{self, Forked};
use crate::wire::{self, Status};

/// How long a zygote may take from a request to its answer, its own start included.
const ANSWER_MS: u64 = 15_000;
/// How long a zygote without children is kept.
const IDLE_MS: u64 = 15 * 60 * 1000;
/// Zygotes alive at once; each holds some ten megabytes.
const MOST: usize = 128;

/// Tenant namespace and runtime.
pub type Key = (String, String);

#[derive(Serialize)]
pub enum Order<'a> {
    Boot { filter: &'a [u8], masked: &'a [&'a str] },
    Spawn(&'a Spawn<'a>),
}

/// Beside it: standard output, standard error, then the listener, the pipe for readiness, the four namespaces (net,
/// ipc, uts, mnt) and the cgroups' doors, as far as they are declared here.
#[derive(Serialize)]
pub struct Spawn<'a> {
    pub request: u64,
    pub env: &'a [(String, String)],
    pub working_dir: &'a str,
    pub open_files: u64,
    pub listener: bool,
    pub ready: bool,
    /// The user to become; absent where there is no isolation to enter.
    pub user: Option<u32>,
    pub doors: usize,
    /// Folders to import from, in order, after the runtime's own.
    pub assets: &'a str,
}

#[derive(Deserialize)]
enum Answer {
    Started { request: u64, pid: i32 },
    Failed { request: u64, error: String },
    Exited { pid: i32, status: i32 },
}

/// What became of requests and children.
#[derive(Debug)]
pub enum News {
    Started { request: u64, pid: i32 },
    Failed { request: u64, error: String },
    Exited { pid: i32, status: Status },
}

struct Zygote {
    pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
    cgroup: Option<Cgroup>,
    /// Requests without an answer, and when it is due.
    pending: HashMap<u64, u64>,
    children: usize,
    idle_since: u64,
    /// What its socket had no room for.
    unsent: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

pub struct Zygotes {
    zygotes: BTreeMap<Key, Zygote>,
    next: u64,
    /// Cgroups of dead zygotes that were not empty yet.
    leftovers: Vec<Cgroup>,
}

/// What starting one takes.
pub struct Recipe<'a> {
    pub program: &'a Path,
    pub script: &'a Path,
    pub filter: &'a [Instruction],
}

impl Zygotes {
    pub fn new() -> Self {
        Self { zygotes: BTreeMap::new(), next: 0, leftovers: vec![] }
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.zygotes.contains_key(key)
    }

    pub fn request_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Starts a zygote; it may be asked at once.
    pub fn start(&mut self, key: Key, recipe: &Recipe<'_>, cgroup: Option<Cgroup>) -> io::Result<()> {
        if self.zygotes.len() >= MOST {
            return Err(io::Error::other(format!("{MOST} zygotes are running, which is the most")));
        }
        let (ours, theirs) = wire::pair()?;
        let (pid, pidfd) = match sys::fork(0)? {
            Forked::Child => become_zygote(recipe, cgroup.as_ref(), &theirs),
            Forked::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(theirs);
        let mut zygote = Zygote {
            pid,
            pidfd,
            socket: ours,
            cgroup,
            pending: HashMap::new(),
            children: 0,
            idle_since: sys::monotonic_ms(),
            unsent: VecDeque::new(),
        };
        let filter = seccomp::bytes(recipe.filter);
        zygote.send(wire::encode(&Order::Boot { filter: &filter, masked: super::enter::MASKED }, 0)?, vec![])?;
        self.zygotes.insert(key, zygote);
        Ok(())
    }

    /// Asks for a child. The answer comes as news.
    pub fn spawn(&mut self, key: &Key, spawn: &Spawn<'_>, fds: Vec<OwnedFd>) -> io::Result<()> {
        let bytes = wire::encode(&Order::Spawn(spawn), fds.len())?;
        let zygote = self.zygotes.get_mut(key).ok_or(io::ErrorKind::NotFound)?;
        zygote.send(bytes, fds)?;
        zygote.pending.insert(spawn.request, sys::monotonic_ms() + ANSWER_MS);
        Ok(())
    }

    /// What to wait for: each zygote's socket, and whether there is something to send.
    pub fn sockets(&self) -> impl Iterator<Item = (&Key, BorrowedFd<'_>, bool)> {
        self.zygotes.iter().map(|(key, z)| (key, z.socket.as_fd(), !z.unsent.is_empty()))
    }

    /// Reads one message of a zygote and sends it what is waiting.
    pub fn serve(&mut self, key: &Key, readable: bool, buffer: &mut [u8]) -> Option<News> {
        let zygote = self.zygotes.get_mut(key)?;
        if zygote.flush().is_err() {
            self.kill(key);
            return None;
        }
        if !readable {
            return None;
        }
        match wire::receive::<Answer>(&zygote.socket, buffer) {
            Ok(Some((answer, _))) => Some(zygote.note(answer)),
            Ok(None) | Err(_) => {
                self.kill(key);
                None
            }
        }
    }

    /// The next moment at which something is overdue.
    pub fn deadline(&self) -> Option<u64> {
        let idle = |z: &Zygote| (z.children == 0 && z.pending.is_empty()).then_some(z.idle_since + IDLE_MS);
        self.zygotes.values().flat_map(|z| z.pending.values().copied().chain(idle(z))).min()
    }

    /// Kills the zygotes that are overdue or have been idle for long. Their end is noticed as any child's.
    pub fn expire(&mut self, now: u64) {
        for zygote in self.zygotes.values_mut() {
            let late = zygote.pending.values().any(|due| *due <= now);
            let idle = zygote.children == 0 && zygote.pending.is_empty() && zygote.idle_since + IDLE_MS <= now;
            if late || idle {
                let _ = sys::pidfd_signal(zygote.pidfd.as_fd(), libc::SIGKILL);
                // Once is enough, and the deadline must not come again before the death is noticed.
                zygote.idle_since = now;
                zygote.pending.values_mut().for_each(|due| *due = now + ANSWER_MS);
            }
        }
    }

    pub fn kill(&mut self, key: &Key) {
        if let Some(zygote) = self.zygotes.get(key) {
            let _ = sys::pidfd_signal(zygote.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Forgets a zygote that has ended, and names the requests nobody will answer.
    pub fn bury(&mut self, pid: i32) -> Option<(Key, Vec<u64>)> {
        let key = self.zygotes.iter().find(|(_, z)| z.pid == pid).map(|(key, _)| key.clone())?;
        let mut zygote = self.zygotes.remove(&key)?;
        if let Some(cgroup) = zygote.cgroup.take() {
            self.leftovers.push(cgroup);
        }
        Some((key, zygote.pending.into_keys().collect()))
    }

    /// `true` when no cgroup of a dead zygote is left.
    pub fn tidy(&mut self) -> bool {
        self.leftovers.retain_mut(|cgroup| {
            cgroup.kill();
            !cgroup.remove()
        });
        self.leftovers.is_empty()
    }
}

impl Zygote {
    fn send(&mut self, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> io::Result<()> {
        self.unsent.push_back((bytes, fds));
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some((bytes, fds)) = self.unsent.front() {
            let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            match wire::send_now(&self.socket, bytes, &raw) {
                Ok(()) => drop(self.unsent.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn note(&mut self, answer: Answer) -> News {
        match answer {
            Answer::Started { request, pid } => {
                self.pending.remove(&request);
                self.children += 1;
                News::Started { request, pid }
            }
            Answer::Failed { request, error } => {
                self.pending.remove(&request);
                News::Failed { request, error }
            }
            Answer::Exited { pid, status } => {
                self.children = self.children.saturating_sub(1);
                self.idle_since = sys::monotonic_ms();
                let status = if status < 0 { Status::Signal(-status) } else { Status::Code(status) };
                News::Exited { pid, status }
            }
        }
    }
}

fn become_zygote(recipe: &Recipe<'_>, cgroup: Option<&Cgroup>, socket: &OwnedFd) -> ! {
    let program = recipe.program.to_string_lossy();
    let arguments = ["-I", "-S", "-X", "frozen_modules=on"].map(str::to_owned);
    let argv: Vec<String> =
        [program.to_string()].into_iter().chain(arguments).chain([recipe.script.to_string_lossy().into()]).collect();
    let attempt = || -> io::Result<std::convert::Infallible> {
        sys::reset_signals();
        nix::unistd::setsid()?;
        cgroup::enter(cgroup.map_or(&[], |c| &c.doors))?;
        let null = std::fs::File::open("/dev/null")?;
        sys::arrange(&[Some(null.as_raw_fd()), Some(2), Some(2), Some(socket.as_raw_fd())])?;
        std::mem::forget(null);
        sys::set_death_signal(libc::SIGKILL)?;
        let argv = argv.iter().map(sys::c_string).collect::<io::Result<Vec<_>>>()?;
        Err(sys::execve(&argv[0], &argv, &[sys::c_string("PATH=/usr/bin:/bin")?, sys::c_string("LANG=C.UTF-8")?]))
    };
    let Err(error) = attempt();
    eprintln!("dhow: cannot start {program}: {error}");
    sys::exit_now(127)
}
