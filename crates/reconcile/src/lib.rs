//! Watch, plan, apply behind an equality gate, write one status: the machine every controller runs on.
//!
//! Owns: shared caches of watched kinds, the keyed work queue, the applier, finalizer verbs, leases and the
//! table-test harness. Must not know: what any kind means. The surprise: caches also learn from the answers to our own
//! writes, so a controller reads what it has just written and its children's controllers start at once.

pub mod apply;
pub mod cache;
pub mod caches;
mod error;
pub mod finalizer;
mod foreign;
pub mod gate;
pub mod lease;
pub mod plan;
pub mod queue;
mod refusal;
pub mod runner;
pub mod table;
pub mod view;

pub use apply::Applier;
pub use cache::{Cache, Change};
pub use caches::{Caches, Held, HeldChange};
pub use error::{Class, Error};
pub use foreign::{Foreign, ForeignKind};
pub use plan::{Plan, Propagation, Target, Write};
pub use queue::Queue;
pub use refusal::Refusal;
pub use runner::{Controller, Requeue};
pub use view::{Key, Kind, View};
