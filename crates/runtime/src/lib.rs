//! Running pods: the Provider port, its conformance suite, and the process provider.

pub mod provider;

pub use provider::*;
