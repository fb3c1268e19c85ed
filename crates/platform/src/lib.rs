//! The public API beside Kubernetes': source upload.
//!
//! Owns: the HTTP surface, its bounds, and which hosts and origins may use it. Must not know: how callers are
//! authenticated, or what becomes of a source. The surprise: it checks Host and Origin, because a browser on this
//! machine can be talked into sending requests here by any page (DNS rebinding), loopback or not.

mod answer;
mod guard;
mod service;
mod sink;

pub use answer::Body;
pub use service::{Authorization, Authorize, Limits, Service, service, sources_repository};
pub use sink::Sink;
