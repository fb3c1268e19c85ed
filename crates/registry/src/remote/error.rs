//! What can go wrong with a registry of somebody else's.

use std::path::PathBuf;

use crate::digest::Digest;

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A file that the client is configured with.
    #[error("{path}: {reason}", path = .path.display())]
    Config { path: PathBuf, reason: String },
    #[error("the registry {registry} cannot be reached: {reason}")]
    Unreachable { registry: String, reason: String },
    #[error("the registry {registry} refused the credentials for {what}: {reason}")]
    Denied { registry: String, what: String, reason: String },
    #[error("{what} is not in the registry {registry}")]
    NotFound { registry: String, what: String },
    #[error("the registry {registry} answered {status} for {what}: {reason}")]
    Answer { registry: String, what: String, status: u16, reason: String },
    /// What it sent, or what was to be sent, is not what its name says.
    #[error("the content is {actual}, not {expected}: it was damaged on the way, or named wrongly")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("more than the {limit} bytes that are allowed")]
    TooLarge { limit: u64 },
    #[error("{what} is not valid: {reason}")]
    Invalid { what: String, reason: String },
    /// The source of an upload, not the registry.
    #[error("the sender broke off: {reason}")]
    Body { reason: String },
    #[error("{path}: {source}", path = .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl RemoteError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the same request may go well a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Answer { status, .. } => is_passing(*status),
            _ => false,
        }
    }
}

pub(super) fn is_passing(status: u16) -> bool {
    status == 408 || status == 429 || status >= 500
}

/// An error with its causes, which HTTP libraries keep to themselves.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut words: Vec<String> = causes.map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}
