//! Where uploaded sources go: the built-in registry, or another one.
//!
//! The surprise: another registry gets a source while it still comes in. Nothing of it is kept here, so an upload costs
//! this process neither disk nor memory, and one that breaks off is the client's to send again.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use registry::image::Reference;
use registry::remote::{Location, Prefix, Remote, RemoteError, keep_blob};
use registry::{Digest, Registry, RegistryError};

use crate::answer::Refusal;

/// Chunks on their way from the one side to the other.
const AHEAD: usize = 4;

#[derive(Clone)]
pub enum Sink {
    BuiltIn(Registry),
    /// Repositories lie below the prefix.
    Remote {
        remote: Remote,
        prefix: Prefix,
    },
}

impl From<Registry> for Sink {
    fn from(registry: Registry) -> Self {
        Self::BuiltIn(registry)
    }
}

impl Sink {
    /// Whether the source is there, and will be for a while.
    pub(crate) async fn has(&self, repository: &str, digest: &Digest) -> Result<bool, Refusal> {
        match self {
            Sink::BuiltIn(registry) => Ok(registry.has_blob(repository, digest).await?),
            Sink::Remote { remote, prefix } => {
                let at = prefix.location(repository);
                // One that nothing names may be collected before it is built.
                let named = match remote.manifest(&at, &Reference::Tag(digest.hex())).await {
                    Err(error) if error.is_not_found() => false,
                    named => named.map(|_| true)?,
                };
                Ok(named && remote.has_blob(&at, digest).await?.is_some())
            }
        }
    }

    /// Stores all of `body`, which must be `digest` and no longer than `limit`, and returns its size.
    pub(crate) async fn put(
        &self,
        repository: &str,
        digest: &Digest,
        limit: u64,
        body: Pin<&mut (impl Stream<Item = Result<Bytes, String>> + Send)>,
    ) -> Result<u64, Refusal> {
        match self {
            Sink::BuiltIn(registry) => Ok(registry.put_blob_stream(repository, Some(digest), limit, body).await?.1),
            Sink::Remote { remote, prefix } => {
                let at = prefix.location(repository);
                let size = pass_on(remote, &at, digest, limit, body).await?;
                keep_blob(remote, &at, digest, size).await?;
                Ok(size)
            }
        }
    }
}

async fn pass_on(
    remote: &Remote,
    at: &Location,
    digest: &Digest,
    limit: u64,
    mut body: Pin<&mut (impl Stream<Item = Result<Bytes, String>> + Send)>,
) -> Result<u64, RemoteError> {
    let (sender, receiver) = tokio::sync::mpsc::channel(AHEAD);
    let feed = async move {
        while let Some(chunk) = body.next().await {
            // Nobody takes it any more once the upload has failed; the caller reads what is left.
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
    };
    let chunks = futures::stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    });
    let (pushed, ()) = tokio::join!(remote.push_stream(at, digest, limit, chunks), feed);
    pushed
}

impl From<RemoteError> for Refusal {
    /// What is wrong with the upload is told in the same words, wherever it was to go.
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::TooLarge { limit } => Refusal::Registry(RegistryError::TooLarge { limit }),
            RemoteError::DigestMismatch { expected, actual } => {
                Refusal::Registry(RegistryError::DigestMismatch { expected, actual })
            }
            RemoteError::Body { reason } => Refusal::Registry(RegistryError::Body { reason }),
            other => Refusal::Remote(other),
        }
    }
}
