//! Being a good process: named tasks that drain in phases, listeners, TLS, telemetry, readiness, the clock.
//!
//! Owns: everything that any long-running program needs and nothing that only this one does.
//! Must not know: any domain word, any object, any other room.

pub mod clock;
pub mod files;
pub mod listener;
pub mod readiness;
pub mod supervisor;
pub mod telemetry;
pub mod tls;

pub use clock::{Clock, system_clock};
pub use supervisor::{OnExit, Supervisor};

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("cannot listen on {address}: {source}; choose another with {flag}")]
    Listen {
        address: String,
        flag: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{action} {path}: {source}")]
    File {
        action: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("TLS: {0}")]
    Tls(String),
    #[error("task {name} ended unexpectedly: {reason}")]
    TaskEnded { name: String, reason: String },
}
