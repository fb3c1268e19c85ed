//! Checkpoints: what was committed moves from the log into the file, beside the writer and not in its way.
//!
//! A checkpoint that nobody is kept waiting for cannot begin the log anew while somebody writes, so under a steady
//! load the log grows. Once it is too long the writer pauses for one checkpoint that can. Whoever reads the file
//! (a backup) is never waited for: the log is longer until then.
//!
//! The surprise: until it begins anew the log also holds what the file has by now, and is believed first. A crash harms
//! neither; a log that is damaged in its middle can bring back what was there before.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::disk::{classify, connect};
use crate::error::StoreError;
use crate::options::{Counting, Options};

/// What a page and its head take in the log.
const FRAME: u64 = 4096 + 24;

pub(crate) struct Checkpoints {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes of log after which a checkpoint begins.
    every: u64,
    /// Bytes of log that the writer pauses for.
    longest: u64,
}

#[derive(Default)]
struct State {
    /// Bytes that came to the log since the last checkpoint began; an estimate.
    written: u64,
    writing: bool,
    pausing: bool,
    stop: bool,
}

/// The writer's right to write, until it is dropped.
pub(crate) struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().writing = false;
        self.0.changed.notify_all();
    }
}

impl Checkpoints {
    pub fn start(path: &Path, options: &Options, counting: Arc<Counting>) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            every: options.checkpoint_bytes,
            longest: options.log_bytes,
        });
        let connect = || {
            let connection = connect(path)?;
            // Nobody is waited for but the writer, and that by other means.
            connection.busy_timeout(Duration::ZERO)?;
            // After a failure nothing more is written; in good order the writer is the last to close.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            Ok(connection)
        };
        let connection = connect().map_err(|error| classify(path, error))?;
        let worker = Worker { connection, path: path.into(), shared: shared.clone(), counting };
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".into())
            .spawn(move || worker.run())
            .map_err(|source| StoreError::Io { path: path.into(), source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits while the log is cut, and until it is not too long by far.
    pub fn turn(&self) -> Turn<'_> {
        let shared = &*self.shared;
        let busy = |state: &mut State| !state.stop && (state.pausing || state.written > shared.longest);
        let mut state = shared.changed.wait_while(shared.lock(), busy).unwrap_or_else(PoisonError::into_inner);
        state.writing = true;
        Turn(shared)
    }

    /// Tells about a commit of so many pages.
    pub fn committed(&self, pages: u64) {
        let mut state = self.shared.lock();
        state.written += pages * FRAME;
        if state.written >= self.shared.every {
            self.shared.changed.notify_all();
        }
    }

    /// Waits for the checkpoint at work and ends its thread.
    pub fn stop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's checkpoint thread panicked");
            // Nobody would end its pause.
            self.shared.lock().pausing = false;
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_while(self.lock(), |state| condition(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    connection: Connection,
    path: PathBuf,
    shared: Arc<Shared>,
    counting: Arc<Counting>,
}

impl Worker {
    fn run(self) {
        loop {
            {
                let mut state = self.shared.wait_while(|state| !state.stop && state.written < self.shared.every);
                if state.stop {
                    return;
                }
                state.written = 0;
                // The writer may have waited for that.
                self.shared.changed.notify_all();
            }
            // What could not be moved stays in the log, where it is as safe.
            match self.checkpoint("PASSIVE") {
                Ok(log) if log > self.shared.longest => self.pause(),
                Ok(_) => {}
                Err(error) => self.complain(&error),
            }
        }
    }

    /// Keeps the writer waiting for what it wrote during the last checkpoint, so that the log begins anew.
    fn pause(&self) {
        self.shared.lock().pausing = true;
        drop(self.shared.wait_while(|state| state.writing));
        if let Err(error) = self.checkpoint("RESTART") {
            self.complain(&error);
        }
        Counting::add(&self.counting.pauses);
        self.shared.lock().pausing = false;
        self.shared.changed.notify_all();
    }

    /// How long the log is then, all told.
    fn checkpoint(&self, mode: &str) -> rusqlite::Result<u64> {
        let pragma = format!("PRAGMA wal_checkpoint({mode})");
        let (log, moved): (i64, i64) = self.connection.query_row(&pragma, [], |row| Ok((row.get(1)?, row.get(2)?)))?;
        Counting::add(&self.counting.checkpoints);
        tracing::debug!(mode, log, moved, "checkpoint");
        Ok(u64::try_from(log).unwrap_or(0) * FRAME)
    }

    fn complain(&self, error: &rusqlite::Error) {
        tracing::warn!(path = %self.path.display(), %error, "a checkpoint failed; the log stays longer until one works");
    }
}
