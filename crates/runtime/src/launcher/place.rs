//! Moving the launcher between namespaces and back.
//!
//! Owns the handles of the launcher's own namespaces. Must not know what is done elsewhere. The launcher has one
//! thread, so it can work inside a sandbox's namespace without forking; if the way back fails, it must not go on.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;

use super::sys;

/// The namespaces the launcher was started in.
pub struct Home {
    mnt: OwnedFd,
    net: OwnedFd,
    ipc: OwnedFd,
    uts: OwnedFd,
    /// Where its children are born.
    pid: OwnedFd,
}

/// A handle of the namespace this process is in now.
pub fn current(kind: &str) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/ns/{kind}"))?.into())
}

impl Home {
    pub fn remember() -> io::Result<Self> {
        Ok(Self {
            mnt: current("mnt")?,
            net: current("net")?,
            ipc: current("ipc")?,
            uts: current("uts")?,
            pid: current("pid")?,
        })
    }

    /// Whether a process has gone from here into all of a sandbox's namespaces: the one of mounts is the last.
    pub fn is_left_by(&self, pid: i32) -> io::Result<bool> {
        let here = fstat(&self.mnt)?;
        let there = fs::metadata(format!("/proc/{pid}/ns/mnt"))?;
        Ok((here.st_dev, here.st_ino) != (there.dev(), there.ino()))
    }

    pub fn net(&self) -> &OwnedFd {
        &self.net
    }

    /// Runs `work` in new namespaces of these kinds.
    pub fn in_new<T>(&self, kinds: CloneFlags, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        unshare(kinds)?;
        let result = work();
        self.return_from(kinds);
        result
    }

    /// Runs `work` in a namespace that exists.
    pub fn within<T>(
        &self,
        namespace: impl AsFd,
        kind: CloneFlags,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        setns(namespace, kind)?;
        let result = work();
        self.return_from(kind);
        result
    }

    fn return_from(&self, kinds: CloneFlags) {
        let ways = [
            (CloneFlags::CLONE_NEWNS, &self.mnt),
            (CloneFlags::CLONE_NEWNET, &self.net),
            (CloneFlags::CLONE_NEWIPC, &self.ipc),
            (CloneFlags::CLONE_NEWUTS, &self.uts),
            (CloneFlags::CLONE_NEWPID, &self.pid),
        ];
        for (kind, home) in ways.into_iter().filter(|(kind, _)| kinds.contains(*kind)) {
            if setns(home, kind).is_err() {
                // Whatever is done next would be done in a sandbox. The platform notices and ends.
                sys::exit_now(70);
            }
        }
    }
}
