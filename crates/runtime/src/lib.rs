//! Running pods: the Provider port, its conformance suite, and the process provider.

#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod provider;

pub use provider::*;
