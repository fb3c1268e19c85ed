//! The folder of content-addressed files, and how bytes get into it: all of them, checked and durable, or none.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;

use crate::digest::Digest;
use crate::error::RegistryError;

pub(crate) struct Blobs {
    /// `blobs/sha256`
    folder: PathBuf,
    /// Unfinished files; emptied at start.
    partial: PathBuf,
}

impl Blobs {
    pub fn open(root: &Path) -> Result<Self, RegistryError> {
        let blobs = Self { folder: root.join("blobs/sha256"), partial: root.join("uploads") };
        match std::fs::remove_dir_all(&blobs.partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(RegistryError::io(&blobs.partial)(error));
            }
            _ => {}
        }
        for folder in [&blobs.folder, &blobs.partial] {
            make_folders(folder)?;
        }
        Ok(blobs)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    /// Begins a blob of at most `limit` bytes.
    pub async fn begin(&self, limit: u64) -> Result<Ingest, RegistryError> {
        let partial = self.partial.clone();
        let (file, path) = blocking(move || {
            tempfile::NamedTempFile::with_prefix_in("", &partial)
                .map(tempfile::NamedTempFile::into_parts)
                .map_err(RegistryError::io(partial))
        })
        .await?;
        let file = tokio::fs::File::from_std(file);
        Ok(Ingest { file, path, hasher: Sha256::new(), size: 0, limit, folder: self.folder.clone() })
    }

    /// Replaces a small file durably: after this returns it is there whole, before it is there as it was.
    pub fn write_small(&self, path: &Path, content: &[u8]) -> Result<(), RegistryError> {
        let folder = path.parent().expect("only called with paths below the registry's folder");
        make_folders(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.partial).map_err(RegistryError::io(&self.partial))?;
        file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(RegistryError::io(path))?;
        file.persist(path).map_err(|error| RegistryError::io(path)(error.error))?;
        sync_folder(folder)
    }
}

/// A blob on its way in. Dropped before [`Ingest::finish`], it leaves nothing.
pub(crate) struct Ingest {
    file: tokio::fs::File,
    path: TempPath,
    hasher: Sha256,
    size: u64,
    limit: u64,
    folder: PathBuf,
}

impl Ingest {
    pub fn size(&self) -> u64 {
        self.size
    }

    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), RegistryError> {
        self.size += chunk.len() as u64;
        if self.size > self.limit {
            return Err(RegistryError::TooLarge { limit: self.limit });
        }
        self.hasher.update(chunk);
        self.file.write_all(chunk).await.map_err(RegistryError::io(&*self.path))
    }

    /// Checks the digest and makes the blob durable under it.
    pub async fn finish(mut self, expected: Option<&Digest>) -> Result<(Digest, u64), RegistryError> {
        let actual = Digest::finish(self.hasher);
        if let Some(expected) = expected.copied().filter(|expected| *expected != actual) {
            return Err(RegistryError::DigestMismatch { expected, actual });
        }
        let target = self.folder.join(actual.hex());
        self.file.flush().await.map_err(RegistryError::io(&target))?;
        self.file.sync_all().await.map_err(RegistryError::io(&target))?;
        let (path, folder) = (self.path, self.folder);
        blocking(move || {
            // The same content may be there already; replacing it with itself is harmless, and its new age
            // protects it from being collected now.
            path.persist(&target).map_err(|error| RegistryError::io(&target)(error.error))?;
            sync_folder(&folder)
        })
        .await?;
        Ok((actual, self.size))
    }
}

/// Creates a folder and those above it, and makes each new one durable in its parent.
fn make_folders(folder: &Path) -> Result<(), RegistryError> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folders(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(RegistryError::io(folder)(error)),
        _ => sync_folder(parent),
    }
}

fn sync_folder(folder: &Path) -> Result<(), RegistryError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(RegistryError::io(folder))
}

/// Runs file work off the async threads. It goes on to its end when the caller is dropped, so it must be whole.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
