//! The one thread that writes to the disk, and the bounded queue in front of it.
//!
//! Group commit: the thread takes everything that waits, writes it in one transaction with one fsync, and then
//! tells those who waited for it. When many write at once it gives them a moment to come back with their next write:
//! it waits for as many as last time, but not for long. It also reserves blocks of revisions, before they are given out. The first failure is the
//! last: after a failed fsync nobody knows what the disk holds, so nothing more is written or promised.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::checkpoint::Checkpoints;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::options::{Counting, Options};
use crate::store::Revision;

/// How long a commit waits for those who wrote the last time.
const GATHER: Duration = Duration::from_millis(1);

/// Lets go of all who still wait when the thread is at its end.
struct Ended(Arc<Pending>);

/// What one write does to the disk.
pub(crate) enum Operation {
    Put { key: Arc<str>, value: Bytes, created: Revision, modified: Revision },
    Delete { key: Arc<str> },
}

pub(crate) struct Writer {
    pending: Arc<Pending>,
    progress: watch::Receiver<Progress>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Default)]
struct Progress {
    failed: Option<Arc<str>>,
    closed: bool,
}

struct Pending {
    queue: Mutex<Queue>,
    wake: Condvar,
    synced: Mutex<Synced>,
    max_operations: usize,
    max_bytes: usize,
    block: u64,
}

/// How far the disk is, and who is told when it has come as far as they wait for. A failure drops them.
#[derive(Default)]
struct Synced {
    /// Every durable write up to this revision is on disk.
    to: Revision,
    waiting: BTreeMap<Revision, Vec<oneshot::Sender<()>>>,
}

#[derive(Default)]
struct Queue {
    operations: Vec<Operation>,
    /// The writer is woken when there are as many.
    wanted: usize,
    bytes: usize,
    /// The highest durable revision that was queued.
    last: Revision,
    /// The highest revision that was admitted, durable or not.
    admitted: Revision,
    /// Revisions up to this may be given out: the disk knows.
    reserved: Revision,
    stop: bool,
    failed: Option<Arc<str>>,
}

struct Batch {
    operations: Vec<Operation>,
    last: Revision,
    reserve: Option<Revision>,
    stop: bool,
}

impl Writer {
    pub fn start(
        disk: Disk,
        path: &Path,
        reserved: Revision,
        options: &Options,
        counting: Arc<Counting>,
    ) -> Result<Self, StoreError> {
        let pending = Arc::new(Pending {
            queue: Mutex::new(Queue { reserved, ..Queue::default() }),
            wake: Condvar::new(),
            synced: Mutex::default(),
            max_operations: options.writer_queue,
            max_bytes: options.writer_queue_bytes,
            block: options.block(),
        });
        let (sender, progress) = watch::channel(Progress::default());
        let checkpoints = Checkpoints::start(path, options, counting.clone())?;
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn({
                let pending = pending.clone();
                move || {
                    // Dropped after the sender, whatever ends the thread.
                    let ended = Ended(pending);
                    let sender = sender;
                    run(disk, checkpoints, &ended.0, &sender, &counting);
                }
            })
            .map_err(|source| StoreError::Io { path: path.into(), source })?;
        Ok(Self { pending, progress, thread: Mutex::new(Some(thread)) })
    }

    /// Whether a write may have this revision now. The caller holds the store's turn until it has queued the write.
    pub fn admit(&self, revision: Revision) -> Result<(), StoreError> {
        let mut queue = self.pending.lock();
        if let Some(reason) = &queue.failed {
            return Err(StoreError::Failed { reason: reason.clone() });
        }
        if queue.stop {
            return Err(StoreError::Closed);
        }
        let full = queue.operations.len() >= self.pending.max_operations || queue.bytes >= self.pending.max_bytes;
        if full || revision > queue.reserved {
            return Err(StoreError::Overloaded);
        }
        queue.admitted = revision;
        if queue.wants_block(self.pending.block) {
            self.pending.wake.notify_one();
        }
        Ok(())
    }

    pub fn queue(&self, revision: Revision, operation: Operation) {
        let mut queue = self.pending.lock();
        queue.bytes += operation.bytes();
        queue.operations.push(operation);
        queue.last = revision;
        if queue.operations.len() >= queue.wanted {
            self.pending.wake.notify_one();
        }
    }

    pub async fn durable(&self, revision: Revision) -> Result<(), StoreError> {
        // Memory-only writes after the last durable one have nothing to wait for.
        let target = self.pending.lock().last.min(revision);
        let told = {
            let mut synced = self.pending.synced();
            if synced.to >= target {
                return Ok(());
            }
            let (tell, told) = oneshot::channel();
            synced.waiting.entry(target).or_default().push(tell);
            told
        };
        // Whoever comes after the end is told by nobody.
        let ended = self.progress.borrow().failed.is_some() || self.progress.has_changed().is_err();
        if !ended && told.await.is_ok() {
            return Ok(());
        }
        self.wait_for(|progress| progress.closed).await
    }

    pub async fn failed(&self) -> StoreError {
        match self.wait_for(|_| false).await {
            Err(error @ StoreError::Failed { .. }) => error,
            // Closed in good order: it cannot fail any more.
            _ => std::future::pending().await,
        }
    }

    pub async fn close(&self) -> Result<(), StoreError> {
        self.pending.stop();
        let result = self.wait_for(|progress| progress.closed).await;
        // It has said its last word, so this does not wait.
        self.join();
        result
    }

    async fn wait_for(&self, reached: impl Fn(&Progress) -> bool) -> Result<(), StoreError> {
        let mut progress = self.progress.clone();
        let progress = progress.wait_for(|p| reached(p) || p.failed.is_some()).await.map(|p| p.clone());
        match progress {
            Ok(Progress { failed: None, .. }) => Ok(()),
            Ok(Progress { failed: Some(reason), .. }) => Err(StoreError::Failed { reason }),
            Err(_) if self.progress.borrow().closed => Err(StoreError::Closed),
            Err(_) => Err(StoreError::Failed { reason: "the writer thread ended".into() }),
        }
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.pending.stop();
        self.join();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.synced().waiting.clear();
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synced(&self) -> MutexGuard<'_, Synced> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    /// Waits for work, and takes all of it; `None` when there is none and `now` it is wanted. Before that it waits a moment
    /// for as many writes as the last batch had.
    fn take(&self, last: usize, now: bool) -> Option<Batch> {
        let mut queue = self.lock();
        if now && queue.is_idle(self.block) {
            return None;
        }
        queue.wanted = 1;
        let idle = |queue: &mut Queue| queue.is_idle(self.block);
        queue = self.wake.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        queue.wanted = last;
        let few = |queue: &mut Queue| (1..last).contains(&queue.operations.len()) && !queue.stop;
        let (mut queue, _) = self.wake.wait_timeout_while(queue, GATHER, few).unwrap_or_else(PoisonError::into_inner);
        Some(queue.take(self.block))
    }
}

impl Synced {
    fn reach(&mut self, revision: Revision) {
        self.to = revision;
        let later = self.waiting.split_off(&(revision + 1));
        let reached = std::mem::replace(&mut self.waiting, later);
        for tell in reached.into_values().flatten() {
            // It may have stopped waiting.
            let _ = tell.send(());
        }
    }
}

impl Queue {
    fn is_idle(&self, block: u64) -> bool {
        self.operations.is_empty() && !self.stop && !self.wants_block(block)
    }

    fn take(&mut self, block: u64) -> Batch {
        self.bytes = 0;
        Batch {
            operations: std::mem::take(&mut self.operations),
            last: self.last,
            reserve: self.wants_block(block).then_some(self.admitted + block),
            stop: self.stop,
        }
    }

    /// With half a block left there is time to reserve the next one before anybody has to wait for it.
    fn wants_block(&self, block: u64) -> bool {
        self.admitted + block / 2 > self.reserved
    }
}

impl Operation {
    fn bytes(&self) -> usize {
        match self {
            Operation::Put { key, value, .. } => key.len() + value.len(),
            Operation::Delete { key } => key.len(),
        }
    }

    /// About how many pages of the log it takes: one of the tree, one that its value ends in, and those that it fills.
    fn pages(&self) -> u64 {
        2 + self.bytes() as u64 / 4096
    }
}

fn run(
    mut disk: Disk,
    mut checkpoints: Checkpoints,
    pending: &Pending,
    progress: &watch::Sender<Progress>,
    counting: &Counting,
) {
    // What a file had free when it was opened is looked at, too.
    let mut untidy = true;
    let mut last = 1;
    let failed = loop {
        let batch = match pending.take(last, untidy) {
            Some(batch) => batch,
            None => match tidy(&mut disk, &checkpoints) {
                Ok(more) => {
                    untidy = more;
                    continue;
                }
                Err(error) => break abandon(disk, checkpoints, &error),
            },
        };
        if !batch.operations.is_empty() || batch.reserve.is_some() {
            let committed = {
                let _turn = checkpoints.turn();
                disk.commit(&batch.operations, batch.reserve)
            };
            if let Err(error) = committed {
                break abandon(disk, checkpoints, &error);
            }
            Counting::add(&counting.commits);
            if let Some(reserved) = batch.reserve {
                pending.lock().reserved = reserved;
            }
            last = batch.operations.len();
            pending.synced().reach(batch.last);
            // And two that keep the file in order.
            checkpoints.committed(2 + batch.operations.iter().map(Operation::pages).sum::<u64>());
            untidy = true;
        }
        if batch.stop {
            // The last to close a file moves all of its log.
            checkpoints.stop();
            match disk.close() {
                Ok(()) => {
                    progress.send_modify(|progress| progress.closed = true);
                    return;
                }
                Err(error) => break error.to_string(),
            }
        }
    };
    let reason: Arc<str> = failed.into();
    tracing::error!(%reason, "the store failed");
    pending.lock().failed = Some(reason.clone());
    progress.send_modify(|progress| progress.failed = Some(reason));
}

/// Nothing touches the file from here on, the checkpoints first.
fn abandon(disk: Disk, checkpoints: Checkpoints, error: &rusqlite::Error) -> String {
    drop(checkpoints);
    disk.abandon(error)
}

/// With nothing to write, one small step of tidying. Whether there is more to do.
fn tidy(disk: &mut Disk, checkpoints: &Checkpoints) -> rusqlite::Result<bool> {
    let more = {
        let _turn = checkpoints.turn();
        disk.reclaim()?
    };
    if more {
        checkpoints.committed(Disk::RECLAIM_PAGES);
    }
    Ok(more)
}
