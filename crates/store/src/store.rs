//! The store itself: entries in memory, one writer at a time, readers never behind a `make` or an fsync.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::disk::Disk;
use crate::error::StoreError;
use crate::list::{Listing, Past, Range, undone};
use crate::options::{Counters, Counting, Options};
use crate::watch::{Feed, Watch};
use crate::writer::{Operation, Writer};

/// Orders all writes of one store, across restarts. 0 is never given out.
pub type Revision = u64;

/// Computes the index of a value again when the file is opened.
pub type Indexer<I> = fn(key: &str, value: &[u8]) -> I;

/// One key with its value. Cheap to clone.
#[derive(Debug)]
pub struct Entry<I> {
    pub key: Arc<str>,
    pub value: Bytes,
    pub index: Arc<I>,
    pub created: Revision,
    pub modified: Revision,
}

/// Whether an entry survives a restart. The last write of a key decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Durable,
    /// Never reaches the disk; gone after a restart.
    Ephemeral,
}

/// What a write expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Any,
    Absent,
    Present,
    At(Revision),
}

/// What a key becomes.
#[derive(Clone, Debug)]
pub enum Write<I> {
    Put {
        value: Bytes,
        index: I,
    },
    /// `last` is what watches see as the value that was deleted, so that it can carry the revision of its deletion.
    Delete {
        last: Bytes,
    },
}

/// One write, as watches see it.
#[derive(Debug)]
pub struct Change<I> {
    pub revision: Revision,
    pub key: Arc<str>,
    /// `None`: deleted.
    pub current: Option<Entry<I>>,
    /// What was there before.
    pub previous: Option<Entry<I>>,
    /// Of a deletion: what it says of the value that was deleted, the `last` of [`Write::Delete`].
    pub last: Option<Bytes>,
}

/// A handle; all clones are the same store. The writer thread ends with [`Store::close`] or with the last clone,
/// which then waits for it.
pub struct Store<I: Send + Sync + 'static> {
    shared: Arc<Shared<I>>,
}

struct Shared<I> {
    /// Held by the one writer, across `make`. Readers do not need it.
    turn: Mutex<()>,
    state: RwLock<State<I>>,
    /// Moves under the state's write lock, after the change was handed to watches.
    revision: Arc<AtomicU64>,
    /// `None`: memory only.
    writer: Option<Writer>,
    options: Options,
    counting: Arc<Counting>,
}

struct State<I> {
    entries: BTreeMap<Arc<str>, Slot<I>>,
    feed: Feed<I>,
    closed: bool,
}

struct Slot<I> {
    entry: Entry<I>,
    on_disk: bool,
}

impl<I: Send + Sync + 'static> Store<I> {
    /// The twin without a disk: `durable` is immediate and nothing survives.
    pub fn memory(_index: Indexer<I>, options: Options) -> Self {
        // Revision 1, not 0, so that a watch from "before everything" can be told apart.
        Self::start(BTreeMap::new(), 1, None, options, Arc::default())
    }

    /// Opens the SQLite file, or makes it. Its folder must exist. Revisions jump past all that were ever given out.
    pub fn open(path: &Path, index: Indexer<I>, options: Options) -> Result<Self, StoreError> {
        let (mut disk, contents) = Disk::open(path)?;
        let start = contents.reserved + 1;
        let reserved = start + options.block();
        disk.begin(path, reserved)?;
        let slots = contents.rows.into_iter().map(|row| {
            let key: Arc<str> = row.key.into();
            let entry = Entry {
                key: key.clone(),
                index: Arc::new(index(&key, &row.value)),
                value: row.value.into(),
                created: row.created,
                modified: row.modified,
            };
            (key, Slot { entry, on_disk: true })
        });
        let entries = slots.collect();
        let counting = Arc::<Counting>::default();
        let writer = Writer::start(disk, path, reserved, &options, counting.clone())?;
        Ok(Self::start(entries, start, Some(writer), options, counting))
    }

    pub fn revision(&self) -> Revision {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// Watches from before this are refused with `Compacted`.
    pub fn oldest_revision(&self) -> Revision {
        self.shared.read().feed.oldest()
    }

    pub fn get(&self, key: &str) -> Option<Entry<I>> {
        self.shared.read().entries.get(key).map(|slot| slot.entry.clone())
    }

    /// All entries below the prefix, as they are now.
    pub fn list(&self, prefix: &str) -> Listing<I> {
        self.select(Range { prefix, ..Range::default() }, |_| true)
    }

    /// The entries of the range that are `wanted`, as they are now. Writers wait while `wanted` is asked.
    pub fn select(&self, range: Range<'_>, wanted: impl Fn(&Entry<I>) -> bool) -> Listing<I> {
        let state = self.shared.read();
        let entries = range.of(&state.entries).map(|(_, slot)| &slot.entry);
        range.take(self.revision(), entries, wanted)
    }

    /// The same as of a revision of the past: `Compacted` when it is not kept any more, `Ahead` when it is to come.
    pub fn select_at(
        &self,
        revision: Revision,
        range: Range<'_>,
        wanted: impl Fn(&Entry<I>) -> bool,
    ) -> Result<Listing<I>, StoreError> {
        let state = self.shared.read();
        state.feed.check(revision, self.revision())?;
        let undone = undone(&state.feed, revision, range.prefix);
        let past = Past {
            present: range.of(&state.entries).map(|(_, slot)| &slot.entry).peekable(),
            undone: range.of(&undone).map(|(key, was)| (key, *was)).peekable(),
        };
        Ok(range.take(revision, past, wanted))
    }

    /// One atomic write of one key.
    ///
    /// `make` is called with the revision that the write will have, so that the value can carry it, and with the
    /// current entry, which meets `expect`. It runs while all other writers wait: it must be quick, and must not write
    /// to this store. Its error aborts the write and is handed back. The new value is visible, and its change queued
    /// to watches, when this returns; it is on disk once [`Store::durable`] says so.
    ///
    /// Deleting a key that is not there is a `Conflict`. A durable key that is deleted or overwritten with an
    /// ephemeral value leaves the disk durably, whatever `durability` says.
    pub fn write<E: From<StoreError>>(
        &self,
        key: &str,
        expect: Expect,
        durability: Durability,
        make: impl FnOnce(Revision, Option<&Entry<I>>) -> Result<Write<I>, E>,
    ) -> Result<Change<I>, E> {
        let shared = &*self.shared;
        let _turn = shared.turn();
        let (current, was_on_disk) = shared.current(key)?;
        expect.check(key, current.as_ref())?;
        let revision = shared.revision.load(Ordering::Acquire) + 1;
        shared.admit(revision)?;

        let change = match make(revision, current.as_ref())? {
            Write::Put { value, index } => {
                let key = current.as_ref().map_or_else(|| Arc::from(key), |entry| entry.key.clone());
                let created = current.as_ref().map_or(revision, |entry| entry.created);
                let entry = Entry { key: key.clone(), value, index: Arc::new(index), created, modified: revision };
                Change { revision, key, current: Some(entry), previous: current, last: None }
            }
            Write::Delete { last } => {
                let Some(previous) = current else {
                    return Err(E::from(Expect::Present.conflict(key, None)));
                };
                let key = previous.key.clone();
                Change { revision, key, current: None, previous: Some(previous), last: Some(last) }
            }
        };
        let on_disk = change.current.is_some() && durability == Durability::Durable && shared.writer.is_some();
        // Queued before it is visible: whoever sees the revision can wait for it.
        shared.queue(&change, on_disk, was_on_disk);
        shared.apply(&change, on_disk);
        Ok(change)
    }

    /// Waits until every durable write up to `revision` is on disk.
    pub async fn durable(&self, revision: Revision) -> Result<(), StoreError> {
        match &self.shared.writer {
            Some(writer) => writer.durable(revision).await,
            None => Ok(()),
        }
    }

    /// Resolves with the reason when the disk fails. What was not acknowledged may be lost then, and every later
    /// write is refused: the program should stop.
    pub async fn failed(&self) -> StoreError {
        match &self.shared.writer {
            Some(writer) => writer.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Every change below `prefix` strictly after `from`, or from now on.
    pub fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch<I>, StoreError> {
        let mut state = self.shared.modify();
        if state.closed {
            return Err(StoreError::Closed);
        }
        let Shared { revision, options, counting, .. } = &*self.shared;
        state.feed.watch(prefix, from, revision, options.watch_queue, counting)
    }

    pub fn counters(&self) -> Counters {
        self.shared.counting.totals()
    }

    /// Takes no more writes, ends all watches, and waits until everything is on disk and the file is closed.
    pub async fn close(&self) -> Result<(), StoreError> {
        {
            // The turn, so that no write is between its admission and its place in the queue.
            let _turn = self.shared.turn();
            let mut state = self.shared.modify();
            state.closed = true;
            state.feed.close();
        }
        match &self.shared.writer {
            Some(writer) => writer.close().await,
            None => Ok(()),
        }
    }

    fn start(
        entries: BTreeMap<Arc<str>, Slot<I>>,
        revision: Revision,
        writer: Option<Writer>,
        options: Options,
        counting: Arc<Counting>,
    ) -> Self {
        let state = State { entries, feed: Feed::starting_at(revision), closed: false };
        Self {
            shared: Arc::new(Shared {
                turn: Mutex::new(()),
                state: RwLock::new(state),
                revision: Arc::new(AtomicU64::new(revision)),
                writer,
                options,
                counting,
            }),
        }
    }
}

impl<I> Shared<I> {
    fn current(&self, key: &str) -> Result<(Option<Entry<I>>, bool), StoreError> {
        let state = self.read();
        if state.closed {
            return Err(StoreError::Closed);
        }
        let slot = state.entries.get(key);
        Ok((slot.map(|slot| slot.entry.clone()), slot.is_some_and(|slot| slot.on_disk)))
    }

    /// Refuses before anything is changed.
    fn admit(&self, revision: Revision) -> Result<(), StoreError> {
        let Some(writer) = &self.writer else { return Ok(()) };
        writer.admit(revision).inspect_err(|error| {
            if matches!(error, StoreError::Overloaded) {
                Counting::add(&self.counting.overloaded);
            }
        })
    }

    fn queue(&self, change: &Change<I>, on_disk: bool, was_on_disk: bool) {
        let Some(writer) = &self.writer else { return };
        match &change.current {
            Some(entry) if on_disk => writer.queue(
                change.revision,
                Operation::Put {
                    key: entry.key.clone(),
                    value: entry.value.clone(),
                    created: entry.created,
                    modified: entry.modified,
                },
            ),
            _ if was_on_disk => writer.queue(change.revision, Operation::Delete { key: change.key.clone() }),
            _ => {}
        }
    }

    fn apply(&self, change: &Change<I>, on_disk: bool) {
        let published = Arc::new(change.clone());
        let mut state = self.modify();
        match &change.current {
            Some(entry) => {
                state.entries.insert(change.key.clone(), Slot { entry: entry.clone(), on_disk });
            }
            None => {
                state.entries.remove(&change.key);
            }
        }
        state.feed.publish(published, &self.options, &self.counting);
        self.revision.store(change.revision, Ordering::Release);
        Counting::add(&self.counting.writes);
    }

    // A `make` that panics poisons the turn, but has changed nothing by then; no other code panics under these.

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State<I>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn modify(&self) -> RwLockWriteGuard<'_, State<I>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expect {
    fn check<I>(self, key: &str, current: Option<&Entry<I>>) -> Result<(), StoreError> {
        let actual = current.map(|entry| entry.modified);
        let met = match self {
            Expect::Any => true,
            Expect::Absent => actual.is_none(),
            Expect::Present => actual.is_some(),
            Expect::At(revision) => actual == Some(revision),
        };
        if met { Ok(()) } else { Err(self.conflict(key, actual)) }
    }

    fn conflict(self, key: &str, actual: Option<Revision>) -> StoreError {
        StoreError::Conflict { key: key.into(), expected: self, actual }
    }
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Expect::Any => f.write_str("anything"),
            Expect::Absent => f.write_str("nothing"),
            Expect::Present => f.write_str("something"),
            Expect::At(revision) => write!(f, "revision {revision}"),
        }
    }
}

impl<I> Change<I> {
    /// What keeping this change in the history may keep alive.
    pub(crate) fn kept_bytes(&self) -> usize {
        let value = |entry: &Option<Entry<I>>| entry.as_ref().map_or(0, |entry| entry.value.len());
        let last = self.last.as_ref().map_or(0, Bytes::len);
        self.key.len() + value(&self.current) + value(&self.previous) + last
    }
}

// Derived impls would ask for `I: Clone`.

impl<I> Clone for Entry<I> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            value: self.value.clone(),
            index: self.index.clone(),
            created: self.created,
            modified: self.modified,
        }
    }
}

impl<I> Clone for Change<I> {
    fn clone(&self) -> Self {
        Self {
            revision: self.revision,
            key: self.key.clone(),
            current: self.current.clone(),
            previous: self.previous.clone(),
            last: self.last.clone(),
        }
    }
}

impl<I: Send + Sync + 'static> Clone for Store<I> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}
