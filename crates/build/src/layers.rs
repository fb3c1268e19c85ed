//! What a build made becomes layers, and installed packages are found again.
//!
//! Owns the index of installed packages: a small file per key, naming a layer that lies in the registry. Losing any of
//! it costs an installation. What a sandbox wrote is a stranger's: no link of it is followed.

use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use registry::image::{ImageError, Layer, LayerInfo, layer_from_dir};
use registry::{Digest, Registry};
use serde::{Deserialize, Serialize};

use crate::BuildError;

/// Below the namespace: the repository that holds layers of installed packages until an image needs them again.
const CACHE_REPOSITORY: &str = "build-cache";
/// Keys remembered; the oldest is forgotten for a new one.
const KEYS: usize = 10_000;

pub struct LayerIndex {
    folder: PathBuf,
    registry: Registry,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    digest: Digest,
    diff_id: Digest,
    size: u64,
}

impl LayerIndex {
    pub fn new(folder: PathBuf, registry: Registry) -> Self {
        Self { folder, registry }
    }

    /// Puts the layer of this key into the repository of an image, if it is still there.
    pub async fn find(&self, namespace: &str, key: &str, repository: &str) -> Result<Option<Layer>, BuildError> {
        let path = self.folder.join(key);
        let Ok(bytes) = tokio::fs::read(&path).await else { return Ok(None) };
        let Ok(entry) = serde_json::from_slice::<Entry>(&bytes) else { return Ok(None) };
        let cache = cache_repository(namespace);
        if !self.registry.mount_blob(&cache, repository, &entry.digest).await? {
            return Ok(None);
        }
        let path = self.registry.blob_path(repository, &entry.digest).await?;
        let info = LayerInfo { digest: entry.digest, diff_id: entry.diff_id, size: entry.size };
        Ok(Some(Layer { info, path }))
    }

    pub async fn keep(&self, namespace: &str, key: &str, layer: &Layer) -> Result<(), BuildError> {
        let file = tokio::fs::File::open(&layer.path).await.map_err(BuildError::io(&layer.path))?;
        let chunks = futures::stream::try_unfold(file, |mut file| async move {
            use tokio::io::AsyncReadExt;
            let mut chunk = bytes::BytesMut::with_capacity(64 << 10);
            let count = file.read_buf(&mut chunk).await?;
            Ok::<_, std::io::Error>((count > 0).then(|| (chunk.freeze(), file)))
        });
        let (cache, info) = (cache_repository(namespace), layer.info);
        self.registry.put_blob_stream(&cache, Some(&info.digest), info.size, chunks).await?;
        let entry = Entry { digest: info.digest, diff_id: info.diff_id, size: info.size };
        let bytes = serde_json::to_vec(&entry).expect("an entry is JSON");
        // One rename: a reader sees all of it or none.
        let (path, draft) = (self.folder.join(key), self.folder.join(format!("{key}.new")));
        tokio::fs::create_dir_all(&self.folder).await.map_err(BuildError::io(&self.folder))?;
        let folder = self.folder.clone();
        crate::blocking(move || forget_oldest(&folder)).await?;
        tokio::fs::write(&draft, bytes).await.map_err(BuildError::io(&draft))?;
        tokio::fs::rename(&draft, &path).await.map_err(BuildError::io(&path))
    }
}

fn forget_oldest(folder: &Path) {
    let entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
    if entries.len() < KEYS {
        return;
    }
    let oldest = entries.iter().min_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok());
    if let Some(entry) = oldest {
        // It is only a cache: what cannot be removed now is removed for the next key.
        let _ = fs::remove_file(entry.path());
    }
}

fn cache_repository(namespace: &str) -> String {
    format!("{namespace}/{CACHE_REPOSITORY}")
}

/// A folder that the sandbox made, as a layer whose entries lie below `prefix`. `None` when it made none. Blocks.
pub fn from_result(result: &Path, folder: &str, prefix: &str, file: PathBuf) -> Result<Option<Layer>, BuildError> {
    let mut path = result.to_owned();
    for part in folder.split('/') {
        path.push(part);
        // A link in place of a folder would lead the trusted side wherever it likes.
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(ImageError::Forbidden { entry: folder.to_owned(), kind: "no folder" }.into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(BuildError::io(&path)(error)),
        }
    }
    from_folder(&path, prefix, file).map(Some)
}

/// Blocks.
pub fn from_folder(folder: &Path, prefix: &str, path: PathBuf) -> Result<Layer, BuildError> {
    let file = fs::File::create(&path).map_err(BuildError::io(&path))?;
    let info = layer_from_dir(folder, prefix, BufWriter::new(file))?;
    Ok(Layer { info, path })
}
