//! The public API beside Kubernetes': source upload, and backups of a platform that runs on one machine.
//!
//! Owns: the HTTP surface, its bounds, and which hosts and origins may use it. Must not know: how callers are
//! authenticated, what becomes of a source, or what is in a backup. The surprise: it checks Host and Origin, because a browser on this
//! machine can be talked into sending requests here by any page (DNS rebinding), loopback or not.

mod answer;
mod backup;
mod guard;
mod service;
mod sink;

pub use answer::Body;
pub use backup::Backup;
pub use service::{Authorization, Authorize, Limits, Service, service, sources_repository};
pub use sink::Sink;
