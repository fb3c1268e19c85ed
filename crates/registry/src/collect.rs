//! Collecting garbage: reads what lies on disk, asks the plan, removes links and then content without links.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::blobs::blocking;
use crate::digest::Digest;
use crate::error::RegistryError;
use crate::names::Repository;
use crate::plan::{Inventory, Used, plan};
use crate::registry::{Inner, References, Registry, list};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub manifests: usize,
    pub blobs: usize,
    pub bytes: u64,
}

impl Registry {
    /// Removes what no manifest or blob in `keep`, and no tag, reaches, unless it was used within `older_than` of
    /// `now`. Writing waits meanwhile; reading goes on.
    pub async fn collect(
        &self,
        keep: &HashSet<Digest>,
        older_than: Duration,
        now: SystemTime,
    ) -> Result<Collected, RegistryError> {
        let gate = self.inner.clone();
        let _alone = gate.gate.write().await;
        let (inner, keep) = (self.inner.clone(), keep.clone());
        blocking(move || collect(&inner, &keep, older_than, now)).await
    }
}

fn collect(
    inner: &Arc<Inner>,
    keep: &HashSet<Digest>,
    older_than: Duration,
    now: SystemTime,
) -> Result<Collected, RegistryError> {
    let mut collected = Collected::default();
    let mut linked = HashSet::new();
    for repository in repositories(inner)? {
        let inventory = inventory(inner, &repository, now)?;
        let doomed = plan(&inventory, keep, older_than);
        for digest in &doomed.manifests {
            remove(&inner.manifest_link(&repository, digest))?;
        }
        for digest in &doomed.blobs {
            remove(&inner.blob_link(&repository, digest))?;
        }
        collected.manifests += doomed.manifests.len();
        linked.extend(inventory.blobs.iter().map(|used| used.digest).filter(|d| !doomed.blobs.contains(d)));
        linked.extend(inventory.manifests.iter().map(|(u, _)| u.digest).filter(|d| !doomed.manifests.contains(d)));
    }
    for blob in used(inner.blobs.folder(), now)? {
        let path = inner.blobs.path(&blob.digest);
        if !linked.contains(&blob.digest) && blob.ago >= older_than {
            collected.bytes += std::fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or_default();
            collected.blobs += 1;
            remove(&path)?;
        }
    }
    Ok(collected)
}

fn repositories(inner: &Inner) -> Result<Vec<Repository>, RegistryError> {
    let mut found = vec![];
    for namespace in list(&inner.repositories)? {
        for name in list(&inner.repositories.join(&namespace))? {
            found.extend(Repository::parse(&format!("{namespace}/{name}")));
        }
    }
    Ok(found)
}

fn inventory(inner: &Inner, repository: &Repository, now: SystemTime) -> Result<Inventory, RegistryError> {
    let folder = inner.repository(repository);
    let mut inventory = Inventory { blobs: used(&folder.join("_blobs"), now)?, ..Inventory::default() };
    for manifest in used(&folder.join("_manifests"), now)? {
        let path = inner.blobs.path(&manifest.digest);
        // One that cannot be read names nothing; it goes like the rest unless it is kept.
        let references = std::fs::read(path).ok().and_then(|bytes| References::parse(&bytes).ok());
        inventory.manifests.push((manifest, references.unwrap_or_default()));
    }
    for tag in list(&folder.join("_tags"))? {
        let link = inner.tag_link(repository, &tag);
        let text = std::fs::read_to_string(&link).map_err(RegistryError::io(link))?;
        inventory.tagged.extend(text.parse::<Digest>());
    }
    Ok(inventory)
}

/// The digests in a folder. A link from the future was used just now.
fn used(folder: &Path, now: SystemTime) -> Result<Vec<Used>, RegistryError> {
    let mut found = vec![];
    for name in list(folder)? {
        let Some(digest) = Digest::from_hex(&name) else { continue };
        let path = folder.join(name);
        let modified = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
        let modified = modified.map_err(RegistryError::io(path))?;
        found.push(Used { digest, ago: now.duration_since(modified).unwrap_or_default() });
    }
    Ok(found)
}

fn remove(path: &Path) -> Result<(), RegistryError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RegistryError::io(path)(error)),
        _ => Ok(()),
    }
}
