//! What can go wrong in the store of blobs.

use std::path::PathBuf;

use crate::digest::Digest;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{text:?} is not a digest: sha256: and 64 lower-case hex digits are expected")]
    InvalidDigest { text: String },
    #[error("{name:?} is not a repository: <namespace>/<name> in lower case is expected")]
    InvalidName { name: String },
    #[error("{tag:?} is not a tag: up to 128 letters, digits, '_', '.' and '-' are expected")]
    InvalidTag { tag: String },
    #[error("the content is {actual}, not {expected}: it was damaged on the way, or named wrongly")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("more than the {limit} bytes that are allowed")]
    TooLarge { limit: u64 },
    #[error("{digest} is not in {repository}")]
    BlobUnknown { repository: String, digest: Digest },
    #[error("{reference} is not in {repository}")]
    ManifestUnknown { repository: String, reference: String },
    /// A manifest may only name what its repository holds.
    #[error("the manifest names {digest}, which is not in {repository}: push it first")]
    ReferenceUnknown { repository: String, digest: Digest },
    #[error("the manifest is not valid: {reason}")]
    InvalidManifest { reason: String },
    #[error("the sender broke off: {reason}")]
    Body { reason: String },
    #[error("{path}", path = .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl RegistryError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
