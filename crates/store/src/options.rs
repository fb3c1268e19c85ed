//! The bounds of a store, and the counters that tell when one was hit.

use std::sync::atomic::{AtomicU64, Ordering};

/// Every bound of a store. What happens at each is said beside it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Revisions reserved on disk at a time. A restart skips what is left of a block. At least 64.
    pub revision_block: u64,
    /// Changes kept for watches to resume from; the oldest go first.
    pub history: usize,
    /// Bytes of values that the history may keep alive; the oldest go first. A watch that still had to deliver one of
    /// them is ended with `Overflowed`.
    pub history_bytes: usize,
    /// Changes one watch may be behind before it is ended with `Overflowed`.
    pub watch_queue: usize,
    /// Writes that may wait for the disk; more are refused with `Overloaded`.
    pub writer_queue: usize,
    /// Bytes that may wait for the disk; more are refused with `Overloaded`.
    pub writer_queue_bytes: usize,
    /// Bytes of log after which a checkpoint moves them into the file.
    pub checkpoint_bytes: u64,
    /// Bytes of log that the writer pauses for, until a checkpoint has begun the log anew.
    pub log_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // Half a block must last longer than one fsync takes at full speed; a million does by far.
            revision_block: 1_000_000,
            history: 20_000,
            history_bytes: 64 << 20,
            watch_queue: 8_192,
            writer_queue: 65_536,
            writer_queue_bytes: 64 << 20,
            checkpoint_bytes: 4 << 20,
            log_bytes: 64 << 20,
        }
    }
}

impl Options {
    /// A tiny block would make writes wait for its reservation.
    pub(crate) fn block(&self) -> u64 {
        self.revision_block.max(64)
    }
}

/// Totals since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub writes: u64,
    /// Writes refused because the disk did not keep up.
    pub overloaded: u64,
    /// Watches ended because they were read too slowly.
    pub overflowed: u64,
    /// Transactions, each one fsync.
    pub commits: u64,
    /// How often the log was moved into the file, or some of it.
    pub checkpoints: u64,
    /// How often the writer waited for that.
    pub pauses: u64,
}

#[derive(Default)]
pub(crate) struct Counting {
    pub writes: AtomicU64,
    pub overloaded: AtomicU64,
    pub overflowed: AtomicU64,
    pub commits: AtomicU64,
    pub checkpoints: AtomicU64,
    pub pauses: AtomicU64,
}

impl Counting {
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn totals(&self) -> Counters {
        Counters {
            writes: self.writes.load(Ordering::Relaxed),
            overloaded: self.overloaded.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            checkpoints: self.checkpoints.load(Ordering::Relaxed),
            pauses: self.pauses.load(Ordering::Relaxed),
        }
    }
}
