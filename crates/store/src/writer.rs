//! The one thread that writes to the disk, and the bounded queue in front of it.
//!
//! Group commit: the thread takes everything that waits, writes it in one transaction with one fsync, and then
//! tells all who waited. It also reserves blocks of revisions, before they are given out. The first failure is the
//! last: after a failed fsync nobody knows what the disk holds, so nothing more is written or promised.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::watch;

use crate::checkpoint::Checkpoints;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::options::{Counting, Options};
use crate::store::Revision;

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
    /// Every durable write up to this revision is on disk.
    synced: Revision,
    failed: Option<Arc<str>>,
    closed: bool,
}

struct Pending {
    queue: Mutex<Queue>,
    wake: Condvar,
    max_operations: usize,
    max_bytes: usize,
    block: u64,
}

#[derive(Default)]
struct Queue {
    operations: Vec<Operation>,
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
                move || run(disk, checkpoints, &pending, &sender, &counting)
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
        self.pending.wake.notify_one();
    }

    pub async fn durable(&self, revision: Revision) -> Result<(), StoreError> {
        // Memory-only writes after the last durable one have nothing to wait for.
        let target = self.pending.lock().last.min(revision);
        if self.progress.borrow().synced >= target {
            return Ok(());
        }
        self.wait_for(|progress| progress.synced >= target).await
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

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    /// Waits for work, and takes all of it.
    fn take(&self) -> Batch {
        let idle = |queue: &mut Queue| queue.is_idle(self.block);
        let mut queue = self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        queue.take(self.block)
    }

    /// Takes what there is to do, if there is anything.
    fn take_now(&self) -> Option<Batch> {
        let mut queue = self.lock();
        (!queue.is_idle(self.block)).then(|| queue.take(self.block))
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
    let failed = loop {
        let batch = match if untidy { pending.take_now() } else { Some(pending.take()) } {
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
            progress.send_modify(|progress| progress.synced = batch.last);
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
