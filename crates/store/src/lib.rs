//! Every durable object byte: a revisioned key-value store with compare-and-set, ordered lists and watches.
//!
//! Owns: the one revision counter, the entries, the recent history that watches resume from, and the SQLite file
//! that durable entries survive in. Must not know: Kubernetes, or what a value means; the caller hands in an index
//! with each value and a function that computes it again when the file is opened.
//!
//! The surprise: a write is visible before it is durable. Whoever promises it to an outsider first awaits
//! [`Store::durable`]; whoever only acts on it does not, so that no fsync stands in the way of a request.
//! Reads never touch the disk.

mod backup;
mod checkpoint;
mod disk;
mod error;
mod list;
mod options;
mod rows;
mod schema;
mod store;
mod watch;
mod writer;

pub use backup::{Restored, backup, restore};
pub use error::StoreError;
pub use list::{Listing, Range};
pub use options::{Counters, Options};
pub use rows::{Report, check};
pub use store::{Change, Durability, Entry, Expect, Indexer, Revision, Store, Write};
pub use watch::Watch;
