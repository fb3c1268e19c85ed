//! The launcher: a small process of one thread that makes sandboxes and starts programs in them.
//!
//! Owns every process, namespace, cgroup, link and firewall rule of the process provider. Must not know pods or
//! tokio. It is a process of its own because only a process of one thread can fork and change namespaces safely.
//! It lives exactly as long as its control socket: when that closes, for whatever reason, it kills all it started.

mod cgroup;
mod enter;
mod image;
mod isolation;
mod net;
mod netlink;
mod place;
mod plan;
mod root;
mod sandbox;
mod seccomp;
mod site;
mod slot;
mod stages;
mod sys;
mod visit;
mod volumes;
mod zygote;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

pub use self::plan::{Cidr, on_host, refusal};
pub(crate) use self::sys::{NODEV, NOSUID, adopt, mount_nowhere, resize_terminal};

use self::sandbox::{Sandbox, State};
use self::site::Site;
use self::visit::Visits;
use self::zygote::{Key, News, Zygotes};
use crate::provider::SandboxSpec;
use crate::wire::{self, MESSAGE_BYTES, Refusal, Report, Request, Status};

/// How long a killed container may take to be reported before its zygote is taken for dead.
const DEATH_MS: u64 = 3_000;
/// How soon to look again after a cgroup could not be removed.
const TIDY_MS: u64 = 5;

/// How long nothing must have happened before stock is made.
const QUIET_MS: u64 = 10;

/// Runs the launcher; to be called before any thread exists. The control socket arrives as standard input.
pub fn main(control: OwnedFd) -> ! {
    let code = match run(control) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("dhow: the launcher failed: {e}");
            1
        }
    };
    std::process::exit(code)
}

fn run(control: OwnedFd) -> io::Result<()> {
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    // Not a death signal: that would come when the thread that started the launcher ends, not the process.
    let _ = nix::unistd::setsid();
    sys::ignore_signals();
    sys::set_name(c"dhow-launcher");
    sys::become_subreaper()?;
    // As many as there may be: a few for each sandbox.
    sys::limit(libc::RLIMIT_NOFILE, u64::MAX)?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut buffer = vec![0; MESSAGE_BYTES];
    let Some((Request::Start(start), _)) = wire::receive(&control, &mut buffer)? else {
        return Ok(());
    };
    let site = match Site::set_up(*start) {
        Ok(site) => site,
        Err(e) => return wire::send(&control, &Report::Failed { reason: e.to_string() }),
    };
    wire::send(&control, &Report::Hello(site.hello()))?;
    let mut launcher = Launcher {
        control,
        signals,
        site,
        zygotes: Zygotes::new(),
        sandboxes: BTreeMap::new(),
        pids: HashMap::new(),
        requests: HashMap::new(),
        visits: Visits::default(),
        untidy: false,
    };
    // Whatever ends the loop, everything is torn down.
    let result = launcher.serve(&mut buffer);
    launcher.site.tear_down().and(result)
}

/// A container: its sandbox's uid and its place among the sandbox's containers.
type Place = (String, usize);

struct Launcher {
    control: OwnedFd,
    signals: SignalFd,
    site: Site,
    zygotes: Zygotes,
    sandboxes: BTreeMap<String, Sandbox>,
    pids: HashMap<i32, Place>,
    /// What zygotes were asked for and have not answered.
    requests: HashMap<u64, Place>,
    visits: Visits,
    /// Whether a cgroup waits to be removed.
    untidy: bool,
}

/// What woke the launcher up.
struct Woken {
    control: bool,
    children: bool,
    zygotes: Vec<(Key, bool)>,
}

impl Launcher {
    /// Serves until the control socket closes or says so.
    fn serve(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let woken = self.wait()?;
            for (key, readable) in woken.zygotes {
                if let Some(news) = self.zygotes.serve(&key, readable, buffer) {
                    self.hear(&key, news)?;
                }
            }
            if woken.children {
                self.reap()?;
            }
            if woken.control {
                match wire::receive(&self.control, buffer)? {
                    None | Some((Request::Shutdown, _)) => return Ok(()),
                    Some((request, fds)) => self.obey(request, fds)?,
                }
            }
            self.expire();
        }
    }

    /// Waits for something to do, making stock while there is nothing.
    fn wait(&mut self) -> io::Result<Woken> {
        let mut quiet = false;
        loop {
            let mut fds = vec![
                PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            let mut keys = vec![];
            for (key, socket, waiting) in self.zygotes.sockets() {
                let out = if waiting { PollFlags::POLLOUT } else { PollFlags::empty() };
                fds.push(PollFd::new(socket, PollFlags::POLLIN | out));
                keys.push(key.clone());
            }
            // Nothing wakes it but work: it costs nothing while idle. Stock is made when nobody seems to be waiting:
            // right after a start, the processors belong to what was started.
            let stocked = self.site.is_stocked();
            let most = match (stocked, quiet) {
                (true, _) => None,
                (false, true) => Some(0),
                (false, false) => Some(QUIET_MS),
            };
            let wait = self.due_in().into_iter().chain(most).min();
            let timeout = wait.map(|ms| i32::try_from(ms).unwrap_or(i32::MAX)).map(PollTimeout::try_from);
            let timeout = timeout.transpose().unwrap_or(Some(PollTimeout::MAX)).unwrap_or(PollTimeout::NONE);
            match poll(&mut fds, timeout) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            let events: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
            let woken = Woken {
                control: !events[0].is_empty(),
                children: !events[1].is_empty(),
                zygotes: keys
                    .into_iter()
                    .zip(&events[2..])
                    .filter(|(_, e)| !e.is_empty())
                    .map(|(key, e)| (key, e.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)))
                    .collect(),
            };
            let idle = !woken.control && !woken.children && woken.zygotes.is_empty();
            if idle && !stocked && self.due_in() != Some(0) {
                quiet = true;
                if let Err(e) = self.site.refill() {
                    self.notice(format!("cannot prepare sandboxes ahead: {e}"))?;
                }
                continue;
            }
            return Ok(woken);
        }
    }

    /// In how many milliseconds something is due, if anything is.
    fn due_in(&self) -> Option<u64> {
        let now = sys::monotonic_ms();
        let stops = self.sandboxes.values().filter_map(|s| s.stopping);
        let tidy = self.untidy.then_some(now + TIDY_MS);
        stops.chain(self.zygotes.deadline()).chain(tidy).min().map(|at| at.saturating_sub(now))
    }

    fn report(&self, report: &Report) -> io::Result<()> {
        wire::send(&self.control, report)
    }

    fn notice(&self, text: String) -> io::Result<()> {
        self.report(&Report::Notice { text })
    }

    fn obey(&mut self, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        match request {
            Request::Create(spec) => self.create(*spec, fds),
            Request::Stop { uid, grace_ms } => self.stop(uid, grace_ms),
            Request::Permit { address } => {
                if let Err(e) = self.site.permit(address) {
                    self.notice(format!("pods cannot be let through to {address}: {e}"))?;
                }
                self.report(&Report::Permitted { address })
            }
            Request::Visit(visit) => {
                let begun = self.visits.begin(&self.site, self.sandboxes.get(&visit.uid), &visit, fds);
                self.answer(visit.visit, begun.map(|()| vec![]))
            }
            Request::Leave { visit } => {
                self.visits.end(visit, &self.sandboxes);
                Ok(())
            }
            Request::Sockets { visit, uid } => {
                let made = visit::sockets(&self.site, self.sandboxes.get(&uid));
                self.answer(visit, made)
            }
            Request::Start(_) | Request::Shutdown => Ok(()),
        }
    }

    /// Says what became of a visit.
    fn answer(&self, visit: u64, entered: Result<Vec<OwnedFd>, Refusal>) -> io::Result<()> {
        match entered {
            Ok(fds) => {
                let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
                wire::send_with(&self.control, &Report::Entered { visit }, &raw)
            }
            Err(refusal) => self.report(&Report::NotEntered { visit, refusal }),
        }
    }

    fn create(&mut self, spec: SandboxSpec, fds: Vec<OwnedFd>) -> io::Result<()> {
        let uid = spec.uid.clone();
        if let Some(sandbox) = self.sandboxes.get(&uid) {
            return self.report(&Report::Created { uid, address: sandbox.address.clone() });
        }
        let made = self.site.make(spec, fds, &mut self.zygotes);
        match made {
            Ok(sandbox) => {
                self.sandboxes.insert(uid.clone(), sandbox);
                self.register(&uid, 0);
                self.announce(&uid)
            }
            Err(refusal) => self.report(&Report::Refused { uid, refusal }),
        }
    }

    /// Remembers whose the processes of a sandbox's members are, from this one on.
    fn register(&mut self, uid: &str, first: usize) {
        let members = self.sandboxes.get(uid).into_iter().flat_map(|sandbox| sandbox.members.iter().enumerate());
        for (place, member) in members.skip(first) {
            let place = (uid.to_owned(), place);
            match &member.state {
                State::Running { pid, .. } => drop(self.pids.insert(*pid, place)),
                State::Asked { request, .. } => drop(self.requests.insert(*request, place)),
                State::Ended => {}
            }
        }
    }

    /// Says that a sandbox exists once all its processes do.
    fn announce(&mut self, uid: &str) -> io::Result<()> {
        let Some(sandbox) = self.sandboxes.get_mut(uid) else { return Ok(()) };
        if sandbox.announced || sandbox.members.iter().any(|m| matches!(m.state, State::Asked { .. })) {
            return Ok(());
        }
        sandbox.announced = true;
        let created = Report::Created { uid: uid.to_owned(), address: sandbox.address.clone() };
        let early = std::mem::take(&mut sandbox.early);
        [created].iter().chain(&early).try_for_each(|report| self.report(report))
    }

    fn stop(&mut self, uid: String, grace_ms: u64) -> io::Result<()> {
        self.abandon(&uid)?;
        let Some(sandbox) = self.sandboxes.get_mut(&uid) else { return self.report(&Report::Stopped { uid }) };
        let kill_at = sys::monotonic_ms() + grace_ms;
        sandbox.stopping = Some(sandbox.stopping.map_or(kill_at, |at| at.min(kill_at)));
        sandbox.signal(if grace_ms == 0 { libc::SIGKILL } else { libc::SIGTERM });
        self.finish(&uid)
    }

    /// Removes a sandbox that was asked to stop once nothing of it runs.
    fn finish(&mut self, uid: &str) -> io::Result<()> {
        let done = |s: &Sandbox| s.stopping.is_some() && s.members.iter().all(|m| matches!(m.state, State::Ended));
        if !self.sandboxes.get(uid).is_some_and(done) {
            return Ok(());
        }
        let sandbox = self.sandboxes.remove(uid).expect("it was there a line ago");
        self.release(sandbox)?;
        self.report(&Report::Stopped { uid: uid.to_owned() })
    }

    fn release(&mut self, sandbox: Sandbox) -> io::Result<()> {
        self.untidy = true;
        match self.site.release(sandbox) {
            Ok(()) => Ok(()),
            Err(e) => self.notice(format!("a sandbox was not removed completely: {e}")),
        }
    }

    /// Something a zygote said.
    fn hear(&mut self, key: &Key, news: News) -> io::Result<()> {
        match news {
            News::Started { request, pid } => {
                let Some((uid, place)) = self.requests.remove(&request) else { return Ok(()) };
                let Some(sandbox) = self.sandboxes.get_mut(&uid) else { return Ok(()) };
                self.pids.insert(pid, (uid.clone(), place));
                sandbox.started(place, pid, key);
                if sandbox.announced {
                    return self.report(&Report::Started { uid, container: place });
                }
                self.announce(&uid)
            }
            News::Failed { request, error } => self.fail(request, &error),
            News::Exited { pid, status } => self.ended(pid, status),
        }
    }

    /// A zygote did not make what it was asked for: the whole sandbox is undone.
    fn fail(&mut self, request: u64, error: &str) -> io::Result<()> {
        let Some((uid, place)) = self.requests.remove(&request) else { return Ok(()) };
        let Some(sandbox) = self.sandboxes.get_mut(&uid) else { return Ok(()) };
        sandbox.members[place].state = State::Ended;
        sandbox.members[place].kill();
        if !sandbox.announced {
            sandbox.announced = true;
            let (action, text) = ("start the runtime".to_owned(), error.to_owned());
            self.report(&Report::Refused { uid: uid.clone(), refusal: Refusal::Failed { action, errno: None, text } })?;
        }
        self.stop(uid, 0)
    }

    /// Takes note of every child that has ended: containers, zygotes, and orphans of either.
    fn reap(&mut self) -> io::Result<()> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let ended = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), Status::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), Status::Signal(signal as i32)),
                Ok(_) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            if let Some(visit) = self.visits.ended(ended.0) {
                self.report(&Report::Left { visit, status: ended.1 })?;
                continue;
            }
            match self.zygotes.bury(ended.0) {
                Some((key, unanswered)) => self.mourn(&key, unanswered, ended.1)?,
                None => self.ended(ended.0, ended.1)?,
            }
        }
    }

    /// A zygote has ended: its children have been killed, and some of them may already have been reaped by it.
    fn mourn(&mut self, key: &Key, unanswered: Vec<u64>, status: Status) -> io::Result<()> {
        self.untidy = true;
        let (namespace, runtime) = key;
        self.notice(format!("the {runtime} zygote of namespace {namespace} ended with {status:?}"))?;
        for request in unanswered {
            self.fail(request, &format!("the {runtime} zygote ended with {status:?}"))?;
        }
        let orphans: Vec<i32> = self.sandboxes.values().flat_map(|s| s.children_of(key)).collect();
        for pid in orphans {
            // The zygote's own end made its children ours, so one that is not ours is one it had reaped.
            let ours = waitid(
                Id::Pid(nix::unistd::Pid::from_raw(pid)),
                WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT,
            );
            if ours == Err(nix::errno::Errno::ECHILD) {
                self.ended(pid, Status::Signal(libc::SIGKILL))?;
            }
        }
        Ok(())
    }

    /// A container's first process has ended, and with it everything else in its process namespace.
    fn ended(&mut self, pid: i32, status: Status) -> io::Result<()> {
        let Some((uid, container)) = self.pids.remove(&pid) else { return Ok(()) };
        self.visits.end_all_of(&uid, container);
        let Some(sandbox) = self.sandboxes.get_mut(&uid) else { return Ok(()) };
        let member = &mut sandbox.members[container];
        member.state = State::Ended;
        member.kill();
        let cell = member.cell.take();
        let out_of_memory = status != Status::Code(0) && cell.as_ref().is_some_and(|c| c.cgroup.ran_out_of_memory());
        if let Some(cell) = cell {
            self.untidy = true;
            self.site.release_cell(cell);
        }
        let exited = Report::Exited { uid: uid.clone(), container, status, out_of_memory };
        let last = match self.sandboxes.get_mut(&uid) {
            Some(sandbox) if !sandbox.announced => {
                sandbox.early.push(exited);
                false
            }
            other => {
                let last = other.is_some_and(|sandbox| sandbox.members.len() == container + 1);
                self.report(&exited)?;
                last
            }
        };
        if last {
            self.go_on(&uid, status == Status::Code(0))?;
        }
        self.finish(&uid)
    }

    /// Does what has become due.
    fn expire(&mut self) {
        let now = sys::monotonic_ms();
        self.zygotes.expire(now);
        let mut hung = vec![];
        for sandbox in self.sandboxes.values_mut().filter(|s| s.stopping.is_some_and(|at| at <= now)) {
            if sandbox.killed {
                // Killed a while ago and still not reported: whoever should have reported it hangs.
                hung.extend(sandbox.zygotes());
            }
            sandbox.signal(libc::SIGKILL);
            sandbox.killed = true;
            sandbox.stopping = Some(now + DEATH_MS);
        }
        for key in hung {
            self.zygotes.kill(&key);
        }
        if self.untidy {
            let cells = self.site.tidy();
            self.untidy = !(self.zygotes.tidy() && cells);
        }
    }
}
