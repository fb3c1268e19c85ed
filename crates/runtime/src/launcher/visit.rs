//! Visits: programs that people start beside a container's own, and sockets made in its network.
//!
//! Owns the processes of visits. Must not know who visits. A visitor's program is a child of the launcher that is born
//! in the container's process namespace, so the kernel ends it with the container; it goes through the same door as
//! the container did ([`super::enter`]), so it has what the container has and nothing more.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use super::enter::{Entry, Walls, Way, enter};
use super::sandbox::{Member, Sandbox, State};
use super::site::{Site, failed};
use super::sys::{self, Forked};
use crate::wire::{Refusal, SOCKETS, Visit};

/// Processes of a session that fork while they are killed leave children for the next round.
const KILL_ROUNDS: usize = 16;

/// A program that visits.
struct Visitor {
    uid: String,
    place: usize,
    /// Also the number of its session.
    pid: i32,
    pidfd: OwnedFd,
}

#[derive(Default)]
pub struct Visits {
    visitors: BTreeMap<u64, Visitor>,
}

impl Visits {
    /// Starts a visitor's program.
    pub fn begin(
        &mut self,
        site: &Site,
        sandbox: Option<&Sandbox>,
        visit: &Visit,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let member = sandbox.and_then(|s| s.members.get(visit.place)).ok_or(Refusal::NotRunning)?;
        let (pid, pidfd) = start(site, member, visit, &fds)?;
        let visitor = Visitor { uid: visit.uid.clone(), place: visit.place, pid, pidfd };
        self.visitors.insert(visit.visit, visitor);
        Ok(())
    }

    /// Kills a visitor's program and what shares its session. One that left its session stays inside the limits of
    /// the container, and ends with it.
    pub fn end(&self, visit: u64, sandboxes: &BTreeMap<String, Sandbox>) {
        let Some(visitor) = self.visitors.get(&visit) else { return };
        let member = sandboxes.get(&visitor.uid).and_then(|s| s.members.get(visitor.place));
        visitor.kill(member);
    }

    /// A container has ended. Where it had no process namespace, nobody has ended those who visited it.
    pub fn end_all_of(&self, uid: &str, place: usize) {
        self.visitors.values().filter(|v| v.uid == uid && v.place == place).for_each(|v| v.kill(None));
    }

    /// A child of the launcher has ended; gives the number of the visit it was, if it was one.
    pub fn ended(&mut self, pid: i32) -> Option<u64> {
        let visit = self.visitors.iter().find(|(_, v)| v.pid == pid).map(|(visit, _)| *visit)?;
        self.visitors.remove(&visit);
        Some(visit)
    }
}

impl Visitor {
    fn kill(&self, member: Option<&Member>) {
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let Some(cell) = member.and_then(|m| m.cell.as_ref()) else { return };
        // A shell gives each of its jobs a group of its own.
        for _ in 0..KILL_ROUNDS {
            let alive = cell.cgroup.processes().into_iter().filter(|pid| kill_in_session(*pid, self.pid)).count();
            if alive == 0 {
                break;
            }
        }
    }
}

/// Kills a process if it belongs to the session; `true` if it did and was alive.
fn kill_in_session(pid: i32, session: i32) -> bool {
    // The handle first: what is read after it is about the same process, or the signal reaches nobody.
    let Ok(handle) = sys::pidfd_open(pid) else { return false };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything: state, parent, group, session.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(vec![], |(_, rest)| rest.split(' ').take(4).collect());
    let alive = fields.first().is_some_and(|state| !matches!(*state, "Z" | "X"));
    let here = fields.get(3).and_then(|s| s.parse().ok()) == Some(session);
    alive && here && sys::pidfd_signal(handle.as_fd(), libc::SIGKILL).is_ok()
}

fn start(site: &Site, member: &Member, visit: &Visit, fds: &[OwnedFd]) -> Result<(i32, OwnedFd), Refusal> {
    let State::Running { pid, pidfd: Some(pidfd), .. } = &member.state else { return Err(Refusal::NotRunning) };
    let isolated = member.cell.as_ref().zip(site.isolation());
    let (argv, env, working_dir) = site.seen(&visit.container, &visit.argv, isolated.is_some());
    let (stdin, stdout, stderr) = match (visit.terminal, visit.input, fds) {
        (true, _, [terminal]) => (Some(terminal), terminal, terminal),
        (false, true, [stdin, stdout, stderr]) => (Some(stdin), stdout, stderr),
        (false, false, [stdout, stderr]) => (None, stdout, stderr),
        // The kernel drops descriptors that this process has no room for.
        _ => return Err(Refusal::Exhausted { what: crate::wire::Resource::Descriptors }),
    };
    let doors = isolated.map(|(cell, _)| cell.cgroup.open_doors()).transpose().map_err(failed("open the cgroup"))?;
    let entry = Entry {
        argv: &argv,
        env: &env,
        working_dir: &working_dir,
        open_files: visit.container.limits.open_files,
        filter: site.filter(),
        stdin,
        stdout,
        stderr,
        listener: None,
        ready: None,
        walls: isolated.zip(doors.as_ref()).map(|((cell, _), doors)| Walls {
            user: cell.user,
            seen: visit.container.user.map(|user| (user, pidfd)),
            doors,
            way: Way::Beside(pidfd),
        }),
        terminal: visit.terminal,
        visits: true,
    };
    let fork = || match sys::fork(0)? {
        Forked::Child => enter(&entry),
        Forked::Parent { pid, pidfd } => Ok((pid, pidfd)),
    };
    match isolated {
        None => fork().map_err(failed("fork")),
        Some((_, isolation)) => isolation.beside((*pid, pidfd), CloneFlags::CLONE_NEWPID, fork).map_err(beside("fork")),
    }
}

/// Sockets that belong to a sandbox's network, for whoever wants to connect to something there.
pub fn sockets(site: &Site, sandbox: Option<&Sandbox>) -> Result<Vec<OwnedFd>, Refusal> {
    let sandbox = sandbox.ok_or(Refusal::NotRunning)?;
    let Some(isolation) = site.isolation() else {
        let reason = "sandboxes share the host's network here, and nobody may be let into that".to_owned();
        return Err(Refusal::Unsupported { reason });
    };
    let running = sandbox.members.iter().find_map(|member| match &member.state {
        State::Running { pid, pidfd: Some(pidfd), .. } => Some((*pid, pidfd)),
        _ => None,
    });
    let make = || {
        (0..SOCKETS)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
                socket.set_nonblocking(true)?;
                socket.set_tcp_nodelay(true)?;
                Ok(socket.into())
            })
            .collect()
    };
    let running = running.ok_or(Refusal::NotRunning)?;
    isolation.beside(running, CloneFlags::CLONE_NEWNET, make).map_err(beside("make a socket"))
}

/// A container that is not there is no failure.
fn beside(action: &str) -> impl Fn(io::Error) -> Refusal {
    move |e| match e.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => Refusal::NotRunning,
        None if e.kind() == io::ErrorKind::NotFound => Refusal::NotRunning,
        _ => failed(action)(e),
    }
}
