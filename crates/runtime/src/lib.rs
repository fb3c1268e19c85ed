//! Running pods: the Provider port, its conformance suite, and the process provider.
//!
//! Owns sandboxes and the processes in them. Must not know Kubernetes objects, image registries or requests.
//! [`process`] is the provider as the platform sees it; [`launcher`] is a process of its own that does the work.

pub mod access;
pub mod assets;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod launcher;
pub mod process;
pub mod provider;
mod wire;

pub use access::*;
pub use launcher::Cidr;
pub use process::{EgressPolicy, ProcessConfig, ProcessProvider};
pub use provider::*;
