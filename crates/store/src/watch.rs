//! Watches, and the recent history that they resume from.
//!
//! A watch first drains what the history held when it began, then a bounded queue that every later write feeds
//! under the same lock: no gap, no duplicate. A watch that is read too slowly loses its place and is told so. What waits
//! in a watch is kept alive by the history alone, so however many watches nobody reads, the history bounds what they hold.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;

use crate::error::StoreError;
use crate::options::{Counting, Options};
use crate::store::{Change, Revision};

/// The changes below one prefix, in order. Dropping it ends it.
pub struct Watch<I> {
    start: Revision,
    backlog: VecDeque<Weak<Change<I>>>,
    queue: mpsc::Receiver<Weak<Change<I>>>,
    capacity: usize,
    overflowed: Arc<AtomicBool>,
    revision: Arc<AtomicU64>,
    counting: Arc<Counting>,
}

impl<I> Watch<I> {
    /// The next change. `None` when the store was closed, or after an error, which is always the last item.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Arc<Change<I>>, StoreError>> {
        let next = match self.backlog.pop_front() {
            Some(change) => Some(change),
            None => self.queue.recv().await,
        };
        match next.map(|change| change.upgrade()) {
            Some(Some(change)) => Some(Ok(change)),
            Some(None) => {
                Counting::add(&self.counting.overflowed);
                self.overflowed.store(false, Ordering::Release);
                self.end();
                Some(Err(StoreError::Overflowed { queue: self.capacity }))
            }
            None if self.overflowed.swap(false, Ordering::AcqRel) => {
                Some(Err(StoreError::Overflowed { queue: self.capacity }))
            }
            None => None,
        }
    }

    /// Nothing more comes out of it.
    fn end(&mut self) {
        self.backlog.clear();
        self.queue.close();
        while self.queue.try_recv().is_ok() {}
    }

    /// Every change after this revision is delivered.
    pub fn start_revision(&self) -> Revision {
        self.start
    }

    /// The revision up to which everything was taken from this watch, when nothing waits in it. A client that
    /// knows it may resume from there, even when its own prefix did not change for long.
    pub fn caught_up(&self) -> Option<Revision> {
        // The order matters: changes are queued before the revision moves.
        let revision = self.revision.load(Ordering::Acquire);
        let idle = self.backlog.is_empty() && self.queue.is_empty() && !self.queue.is_closed();
        idle.then_some(revision)
    }
}

/// The ring of recent changes, and the watches that follow.
pub(crate) struct Feed<I> {
    history: VecDeque<Arc<Change<I>>>,
    history_bytes: usize,
    /// Watches from before this are refused.
    oldest: Revision,
    watchers: Vec<Watcher<I>>,
}

struct Watcher<I> {
    prefix: Box<str>,
    queue: mpsc::Sender<Weak<Change<I>>>,
    overflowed: Arc<AtomicBool>,
}

impl<I> Feed<I> {
    pub fn starting_at(oldest: Revision) -> Self {
        Self { history: VecDeque::new(), history_bytes: 0, oldest, watchers: vec![] }
    }

    pub fn oldest(&self) -> Revision {
        self.oldest
    }

    /// Whether all changes after the revision are known, of which `current` is the last.
    pub fn check(&self, requested: Revision, current: Revision) -> Result<(), StoreError> {
        if requested < self.oldest {
            return Err(StoreError::Compacted { requested, oldest: self.oldest });
        }
        if requested > current {
            return Err(StoreError::Ahead { requested, current });
        }
        Ok(())
    }

    /// The changes after the revision, oldest first.
    pub fn since(&self, revision: Revision) -> impl Iterator<Item = &Arc<Change<I>>> {
        let after = self.history.partition_point(|change| change.revision <= revision);
        self.history.range(after..)
    }

    pub fn publish(&mut self, change: Arc<Change<I>>, options: &Options, counting: &Counting) {
        self.watchers.retain(|watcher| {
            if !change.key.starts_with(&*watcher.prefix) {
                return true;
            }
            match watcher.queue.try_send(Arc::downgrade(&change)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    Counting::add(&counting.overflowed);
                    watcher.overflowed.store(true, Ordering::Release);
                    false
                }
            }
        });
        self.history_bytes += change.kept_bytes();
        self.history.push_back(change);
        while self.history.len() > options.history || self.history_bytes > options.history_bytes {
            let Some(dropped) = self.history.pop_front() else { break };
            self.history_bytes -= dropped.kept_bytes();
            self.oldest = dropped.revision;
        }
    }

    pub fn watch(
        &mut self,
        prefix: &str,
        from: Option<Revision>,
        revision: &Arc<AtomicU64>,
        capacity: usize,
        counting: &Arc<Counting>,
    ) -> Result<Watch<I>, StoreError> {
        let current = revision.load(Ordering::Acquire);
        let start = from.unwrap_or(current);
        self.check(start, current)?;
        let backlog = self.since(start).filter(|change| change.key.starts_with(prefix)).map(Arc::downgrade).collect();
        let (sender, queue) = mpsc::channel(capacity.max(1));
        let overflowed = Arc::new(AtomicBool::new(false));
        // Those whose prefix is never written to would otherwise stay for ever.
        self.watchers.retain(|watcher| !watcher.queue.is_closed());
        self.watchers.push(Watcher { prefix: prefix.into(), queue: sender, overflowed: overflowed.clone() });
        let (capacity, revision, counting) = (capacity.max(1), revision.clone(), counting.clone());
        Ok(Watch { start, backlog, queue, capacity, overflowed, revision, counting })
    }

    /// Ends every watch, after what it has queued.
    pub fn close(&mut self) {
        self.watchers.clear();
    }
}
