//! Whether a container is well: what its probes say, and one answer to one of them.
//!
//! Owns: reading Kubernetes' probes, and making one over a connection. Must not know: how a container is reached, when it
//! is asked, or what follows.

mod ask;
mod check;

pub use ask::{Connect, ask};
pub use check::{Check, How};
