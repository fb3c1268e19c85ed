//! The one error type of the store.

use std::path::PathBuf;
use std::sync::Arc;

use crate::store::{Expect, Revision};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not as the writer expected it. Nothing was changed.
    #[error("{key} is not as expected: wanted {expected}, found {}", found(.actual))]
    Conflict { key: String, expected: Expect, actual: Option<Revision> },
    /// The history before `oldest` is gone: list again and watch from the list's revision.
    #[error("the changes since revision {requested} are no longer kept (oldest: {oldest})")]
    Compacted { requested: Revision, oldest: Revision },
    /// A revision that this store never gave out, such as one from before a backup was restored: list again.
    #[error("revision {requested} is ahead of the store, which is at {current}")]
    Ahead { requested: Revision, current: Revision },
    /// The watch was read too slowly and ended: list again.
    #[error("the watch fell more than {queue} changes behind, or behind all that are kept, and was ended")]
    Overflowed { queue: usize },
    /// The disk does not keep up. Nothing was changed; try again later.
    #[error("too many writes wait for the disk")]
    Overloaded,
    #[error("the store is closed")]
    Closed,
    /// What was acknowledged before is safe, what was not may be lost: the program must stop.
    #[error("the store failed and takes no more writes: {reason}")]
    Failed { reason: Arc<str> },
    #[error(
        "the data file {path} cannot be used: {reason}. Move it and the files whose names begin with its name away \
         to start empty, or restore them from a backup",
        path = .path.display()
    )]
    Corrupt { path: PathBuf, reason: String },
    #[error(
        "the data file {path} was written by a newer version (schema {found}, this program knows {known}); \
         start that version, or restore a backup made before the upgrade",
        path = .path.display()
    )]
    TooNew { path: PathBuf, found: i64, known: i64 },
    #[error("the data file {path} is in use by another process; stop it first", path = .path.display())]
    Locked { path: PathBuf },
    #[error("cannot open {path}", path = .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn found(actual: &Option<Revision>) -> String {
    match actual {
        Some(revision) => format!("revision {revision}"),
        None => "nothing".into(),
    }
}
