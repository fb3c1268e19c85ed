//! Repositories: which of them holds which blob, manifest and tag.
//!
//! On disk a repository is a folder of small files: an empty one per blob, one per manifest holding its media type,
//! one per tag holding its digest. The bytes lie once in the folder of blobs. A link's age is when it was last used.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::sync::RwLock;

use crate::blobs::{Blobs, blocking};
use crate::digest::Digest;
use crate::error::RegistryError;
use crate::image::Unpacking;
use crate::names::{Reference, Repository};
use crate::service::{Authorize, Service};
use crate::uploads::Uploads;

/// As large as a layer may be that is pushed through the API.
pub const MAX_BLOB_BYTES: u64 = 8 << 30;
/// What the specification asks a registry to accept at least.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// A handle; clones share the same store.
#[derive(Clone)]
pub struct Registry {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub blobs: Blobs,
    pub repositories: PathBuf,
    /// Held shared from the moment that content is looked at until it is linked, alone while collecting.
    pub gate: RwLock<()>,
    pub uploads: Uploads,
    pub unpacking: Unpacking,
}

/// A stored manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Bytes,
}

pub struct BlobReader {
    pub file: tokio::fs::File,
    pub size: u64,
}

/// What of any manifest concerns the store: what it names.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct References {
    pub media_type: Option<String>,
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
    pub manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Platform {
    pub architecture: String,
    pub os: String,
}

impl Registry {
    /// Opens the folder, or makes it, and removes what was left half-written.
    pub fn open(dir: &Path) -> Result<Self, RegistryError> {
        let inner = Inner {
            blobs: Blobs::open(dir)?,
            repositories: dir.join("repositories"),
            gate: RwLock::default(),
            uploads: Uploads::default(),
            unpacking: Unpacking::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Streams a blob into a repository. It is durable when this returns; after an error nothing of it is left.
    pub async fn put_blob_stream<E: std::fmt::Display>(
        &self,
        repository: &str,
        expected: Option<&Digest>,
        max_bytes: u64,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(Digest, u64), RegistryError> {
        let repository = Repository::parse(repository)?;
        let mut ingest = self.inner.blobs.begin(max_bytes).await?;
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| RegistryError::Body { reason: error.to_string() })?;
            ingest.write(&chunk).await?;
        }
        self.finish_blob(&repository, ingest, expected).await
    }

    pub async fn put_blob(&self, repository: &str, bytes: Bytes) -> Result<Digest, RegistryError> {
        let limit = bytes.len() as u64;
        let body = futures::stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
        self.put_blob_stream(repository, None, limit, body).await.map(|(digest, _)| digest)
    }

    /// Whether the repository holds the blob. Asking counts as using it: it will not be collected for a while.
    pub async fn has_blob(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        let repository = Repository::parse(repository)?;
        let _open = self.inner.gate.read().await;
        let (inner, digest) = (self.inner.clone(), *digest);
        blocking(move || {
            let link = inner.blob_link(&repository, &digest);
            if !link.exists() || !inner.blobs.path(&digest).exists() {
                return Ok(false);
            }
            // Truncating the empty file renews its age.
            std::fs::write(&link, b"").map(|()| true).map_err(RegistryError::io(link))
        })
        .await
    }

    /// Where the blob lies. Not to be written to, nor kept longer than something references the blob.
    pub async fn blob_path(&self, repository: &str, digest: &Digest) -> Result<PathBuf, RegistryError> {
        if self.has_blob(repository, digest).await? {
            Ok(self.inner.blobs.path(digest))
        } else {
            Err(RegistryError::BlobUnknown { repository: repository.into(), digest: *digest })
        }
    }

    pub async fn open_blob(&self, repository: &str, digest: &Digest) -> Result<BlobReader, RegistryError> {
        let path = self.blob_path(repository, digest).await?;
        let file = tokio::fs::File::open(&path).await.map_err(RegistryError::io(&path))?;
        let size = file.metadata().await.map_err(RegistryError::io(&path))?.len();
        Ok(BlobReader { file, size })
    }

    /// The whole blob, if it is no larger than `max_bytes`.
    pub async fn read_blob(&self, repository: &str, digest: &Digest, max_bytes: u64) -> Result<Bytes, RegistryError> {
        let mut blob = self.open_blob(repository, digest).await?;
        if blob.size > max_bytes {
            return Err(RegistryError::TooLarge { limit: max_bytes });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or_default());
        blob.file.read_to_end(&mut bytes).await.map_err(RegistryError::io(self.inner.blobs.path(digest)))?;
        Ok(bytes.into())
    }

    /// Makes one repository hold what another holds. `false` when the other does not.
    pub async fn mount_blob(&self, from: &str, into: &str, digest: &Digest) -> Result<bool, RegistryError> {
        let into = Repository::parse(into)?;
        if !self.has_blob(from, digest).await? {
            return Ok(false);
        }
        let _open = self.inner.gate.read().await;
        if !self.inner.blobs.path(digest).exists() {
            return Ok(false);
        }
        self.link_blob(&into, digest).await.map(|()| true)
    }

    /// Stores a manifest under its digest, and under the tag if `reference` is one. All it names must be there.
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let repository = Repository::parse(repository)?;
        let reference = Reference::parse(reference)?;
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(RegistryError::TooLarge { limit: MAX_MANIFEST_BYTES });
        }
        let actual = Digest::of(&bytes);
        if let Reference::Digest(expected) = reference
            && expected != actual
        {
            return Err(RegistryError::DigestMismatch { expected, actual });
        }
        let references = References::parse(&bytes)?;
        if media_type.is_empty() || media_type.len() > 255 || !media_type.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(RegistryError::InvalidManifest { reason: "it has no media type".into() });
        }
        let _open = self.inner.gate.read().await;
        self.check_references(&repository, references).await?;

        let mut ingest = self.inner.blobs.begin(MAX_MANIFEST_BYTES).await?;
        ingest.write(&bytes).await?;
        ingest.finish(Some(&actual)).await?;
        let (inner, media_type) = (self.inner.clone(), media_type.to_owned());
        blocking(move || {
            inner.blobs.write_small(&inner.manifest_link(&repository, &actual), media_type.as_bytes())?;
            match &reference {
                Reference::Tag(tag) => {
                    inner.blobs.write_small(&inner.tag_link(&repository, tag), actual.to_string().as_bytes())
                }
                Reference::Digest(_) => Ok(()),
            }
        })
        .await?;
        Ok(actual)
    }

    pub async fn get_manifest(&self, repository: &str, reference: &str) -> Result<Manifest, RegistryError> {
        let unknown = || RegistryError::ManifestUnknown { repository: repository.into(), reference: reference.into() };
        let repository = Repository::parse(repository)?;
        let digest = match Reference::parse(reference)? {
            Reference::Digest(digest) => digest,
            Reference::Tag(tag) => {
                let text = read_text(self.inner.tag_link(&repository, &tag)).await?.ok_or_else(unknown)?;
                text.parse()?
            }
        };
        let link = self.inner.manifest_link(&repository, &digest);
        let media_type = read_text(link).await?.ok_or_else(unknown)?;
        let path = self.inner.blobs.path(&digest);
        let bytes = tokio::fs::read(&path).await.map_err(RegistryError::io(path))?;
        Ok(Manifest { media_type, digest, bytes: bytes.into() })
    }

    /// Removes a tag, or a manifest with all its tags. The blobs go when they are collected.
    pub async fn delete_manifest(&self, repository: &str, reference: &str) -> Result<(), RegistryError> {
        let manifest = self.get_manifest(repository, reference).await?;
        let mut doomed = vec![];
        let parsed = Repository::parse(repository)?;
        match Reference::parse(reference)? {
            Reference::Tag(tag) => doomed.push(self.inner.tag_link(&parsed, &tag)),
            Reference::Digest(digest) => {
                for tag in self.tags(repository).await? {
                    let link = self.inner.tag_link(&parsed, &tag);
                    if read_text(link.clone()).await?.as_deref() == Some(&digest.to_string()) {
                        doomed.push(link);
                    }
                }
                doomed.push(self.inner.manifest_link(&parsed, &manifest.digest));
            }
        }
        for link in doomed {
            remove(link).await?;
        }
        Ok(())
    }

    /// All tags of a repository, sorted.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>, RegistryError> {
        let folder = self.inner.repository(&Repository::parse(repository)?).join("_tags");
        blocking(move || list(&folder)).await
    }

    /// The distribution API. Reading is open to whoever can connect; `authorize` decides about everything else.
    pub fn service(&self, authorize: Authorize) -> Service {
        Service::new(self.clone(), authorize)
    }

    pub(crate) async fn finish_blob(
        &self,
        repository: &Repository,
        ingest: crate::blobs::Ingest,
        expected: Option<&Digest>,
    ) -> Result<(Digest, u64), RegistryError> {
        let _open = self.inner.gate.read().await;
        let (digest, size) = ingest.finish(expected).await?;
        self.link_blob(repository, &digest).await?;
        Ok((digest, size))
    }

    async fn link_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), RegistryError> {
        let (inner, link) = (self.inner.clone(), self.inner.blob_link(repository, digest));
        blocking(move || inner.blobs.write_small(&link, b"")).await
    }

    async fn check_references(&self, repository: &Repository, named: References) -> Result<(), RegistryError> {
        let inner = self.inner.clone();
        let repository = repository.clone();
        blocking(move || {
            let blobs = named.config.iter().chain(&named.layers).map(|d| (inner.blob_link(&repository, &d.digest), d));
            let manifests = named.manifests.iter().map(|d| (inner.manifest_link(&repository, &d.digest), d));
            for (link, descriptor) in blobs.chain(manifests) {
                if !link.exists() {
                    let (repository, digest) = (repository.as_str().to_owned(), descriptor.digest);
                    return Err(RegistryError::ReferenceUnknown { repository, digest });
                }
            }
            Ok(())
        })
        .await
    }
}

impl Inner {
    pub fn repository(&self, repository: &Repository) -> PathBuf {
        self.repositories.join(repository.as_str())
    }

    pub fn blob_link(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.repository(repository).join("_blobs").join(digest.hex())
    }

    pub fn manifest_link(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.repository(repository).join("_manifests").join(digest.hex())
    }

    pub fn tag_link(&self, repository: &Repository, tag: &str) -> PathBuf {
        self.repository(repository).join("_tags").join(tag)
    }
}

impl References {
    pub fn parse(bytes: &[u8]) -> Result<Self, RegistryError> {
        let invalid = |error: serde_json::Error| RegistryError::InvalidManifest { reason: error.to_string() };
        serde_json::from_slice(bytes).map_err(invalid)
    }
}

async fn read_text(path: PathBuf) -> Result<Option<String>, RegistryError> {
    match tokio::fs::read_to_string(&path).await {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RegistryError::io(path)(error)),
    }
}

async fn remove(path: PathBuf) -> Result<(), RegistryError> {
    match tokio::fs::remove_file(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RegistryError::io(path)(error)),
        _ => Ok(()),
    }
}

/// The names in a folder, sorted; none when it does not exist.
pub(crate) fn list(folder: &Path) -> Result<Vec<String>, RegistryError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(RegistryError::io(folder)(error)),
    };
    let mut names = vec![];
    for entry in entries {
        let name = entry.map_err(RegistryError::io(folder))?.file_name();
        names.extend(name.into_string());
    }
    names.sort_unstable();
    Ok(names)
}
