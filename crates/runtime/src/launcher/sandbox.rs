//! What the launcher remembers of a sandbox.
//!
//! Owns the state of its containers. Must not know how they are made.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::isolation::Cell;
use super::net::Net;
use super::sys;
use super::volumes::Held;
use super::zygote::Key;
use crate::provider::{Address, ContainerSpec, Network};
use crate::wire::Report;

pub struct Sandbox {
    pub address: Option<Address>,
    pub members: Vec<Member>,
    pub holdings: Holdings,
    /// What is started once the last member has ended, if anything is left to start.
    pub rest: Option<Rest>,
    /// Whether its creation has been reported.
    pub announced: bool,
    /// Containers that ended before that, to be reported after it.
    pub early: Vec<Report>,
    /// When to kill what is left, if it was asked to stop.
    pub stopping: Option<u64>,
    pub killed: bool,
}

/// Containers that are not started yet, and what they need for it.
pub struct Rest {
    /// The tenant, and the pod's name.
    pub namespace: String,
    pub name: String,
    pub containers: VecDeque<(ContainerSpec, Pipes)>,
    pub net: Option<Net>,
    pub listener: Option<OwnedFd>,
}

/// A container's descriptors.
pub struct Pipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub ready: Option<OwnedFd>,
}

/// What is given back when the sandbox goes.
pub struct Holdings {
    pub network: Network,
    /// The number of its address, and the address if it has one.
    pub net: Option<(u32, Option<Ipv4Addr>)>,
    pub socket: Option<PathBuf>,
    pub volumes: Held,
    /// The user of all its containers and its number, where there are several.
    pub user: Option<(u32, u32)>,
}

/// A container.
pub struct Member {
    pub state: State,
    /// Absent where there is no isolation, and after the end.
    pub cell: Option<Cell>,
}

pub enum State {
    /// A zygote was asked to fork it.
    Asked {
        request: u64,
        key: Key,
    },
    Running {
        pid: i32,
        pidfd: Option<OwnedFd>,
        key: Option<Key>,
    },
    Ended,
}

impl Sandbox {
    /// A zygote has forked a container.
    pub fn started(&mut self, place: usize, pid: i32, key: &Key) {
        // It may have ended already: then its end is on its way, and there is nothing left to signal.
        let pidfd = sys::pidfd_open(pid).ok();
        let member = &mut self.members[place];
        member.state = State::Running { pid, pidfd, key: Some(key.clone()) };
        if let Some(cell) = &mut member.cell {
            cell.started();
        }
        if self.stopping.is_some() {
            self.signal(if self.killed { libc::SIGKILL } else { libc::SIGTERM });
        }
    }

    pub fn signal(&self, signal: i32) {
        self.members.iter().for_each(|m| m.signal(signal));
    }

    /// The processes a zygote forked for it.
    pub fn children_of(&self, zygote: &Key) -> Vec<i32> {
        let of = |m: &Member| match &m.state {
            State::Running { pid, key: Some(key), .. } if key == zygote => Some(*pid),
            _ => None,
        };
        self.members.iter().filter_map(of).collect()
    }

    /// The zygotes that have something to say about it.
    pub fn zygotes(&self) -> Vec<Key> {
        let of = |m: &Member| match &m.state {
            State::Running { key, .. } => key.clone(),
            State::Asked { key, .. } => Some(key.clone()),
            State::Ended => None,
        };
        self.members.iter().filter_map(of).collect()
    }
}

impl Member {
    pub fn signal(&self, signal: i32) {
        match &self.state {
            State::Running { pid, pidfd: Some(pidfd), .. } => {
                if signal == libc::SIGKILL && self.cell.is_none() {
                    // Without a process namespace the session is the best there is.
                    let _ = killpg(Pid::from_raw(*pid), Signal::SIGKILL);
                }
                let _ = sys::pidfd_signal(pidfd.as_fd(), signal);
            }
            State::Asked { .. } if signal == libc::SIGKILL => self.kill(),
            _ => {}
        }
    }

    /// Kills whatever is in its cgroup.
    pub fn kill(&self) {
        if let Some(cell) = &self.cell {
            cell.cgroup.kill();
        }
    }
}
