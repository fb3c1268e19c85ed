//! Slots: the right to the names and ranges of one [`Ground`], and the duty to clean it.
//!
//! Owns the lock files. Must not know sandboxes. The launcher alone holds a slot's lock, and it is the last to go,
//! so a free lock means that nobody is left who would clean: whoever finds one does it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::cgroup::Tree;
use super::plan::{Ground, SLOTS};
use super::{net, sys};

const FOLDER: &str = "/run/dhow/slots";
/// How long dead processes may take to leave their cgroups.
const SWEEP_MS: u64 = 5_000;

pub struct Slot {
    pub number: u32,
    lock: Flock<File>,
}

/// Takes the lowest free slot, and cleans it and every other one whose owner is dead.
pub fn take(ground: impl Fn(u32) -> Ground) -> io::Result<Slot> {
    fs::create_dir_all(FOLDER)?;
    let mut mine = None;
    for number in 0..SLOTS {
        let Some(lock) = try_lock(number)? else { continue };
        if lock.metadata()?.len() > 0 {
            clean(&ground(number))?;
            lock.set_len(0)?;
        }
        if mine.is_none() {
            // Not empty: from now on there is something to clean.
            (&*lock).write_all(b"used\n")?;
            mine = Some(Slot { number, lock });
        }
    }
    mine.ok_or_else(|| io::Error::other(format!("all {SLOTS} slots of this machine are taken")))
}

/// Removes whatever carries the slot's names.
pub fn clean(ground: &Ground) -> io::Result<()> {
    let tree = Tree::find(&ground.cgroup)?;
    let deadline = sys::monotonic_ms() + SWEEP_MS;
    while !tree.clear() {
        if sys::monotonic_ms() > deadline {
            return Err(io::Error::other(format!("processes in the cgroup {} do not end", ground.cgroup)));
        }
        sys::pause_ms(2);
    }
    net::sweep(ground)?;
    match net::remove_firewall(ground, no_other(ground.slot)) {
        // Without the program nothing was put up either.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Slot {
    /// Cleans the slot and leaves it to the next.
    pub fn release(self, ground: &Ground) -> io::Result<()> {
        clean(ground)?;
        self.lock.set_len(0)
    }
}

/// Whether no other slot has an owner.
fn no_other(slot: u32) -> bool {
    let held = |n: &u32| Path::new(&file(*n)).exists() && matches!(try_lock(*n), Ok(None));
    !(0..SLOTS).filter(|n| *n != slot).any(|n| held(&n))
}

fn file(slot: u32) -> PathBuf {
    Path::new(FOLDER).join(format!("{slot}.lock"))
}

fn try_lock(slot: u32) -> io::Result<Option<Flock<File>>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file(slot))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e.into()),
    }
}
