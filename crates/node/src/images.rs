//! Images of pods, unpacked. Remembers the latest, since a cold start has no time to look at a disk.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use api::image::DEPS_DIR;
use registry::Registry;
use registry::image::{ImageError, ImageRef, ensure_unpacked};

use crate::translate::Image;

/// Images remembered; beyond it all are forgotten, and found again on disk.
const REMEMBERED: usize = 4096;

pub struct Images {
    registry: Registry,
    cache_dir: PathBuf,
    known: Mutex<HashMap<ImageRef, Image>>,
}

impl Images {
    pub fn new(registry: Registry, cache_dir: PathBuf) -> Self {
        Self { registry, cache_dir, known: Mutex::default() }
    }

    /// The image, and whether it is new to this node.
    pub async fn get(&self, name: &ImageRef) -> Result<(Image, bool), ImageError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        // One look at a folder whose entry is cached: it may have been pruned since.
        if let Some(image) = known.filter(|image| image.root.is_dir()) {
            return Ok((image, false));
        }
        let unpacked = ensure_unpacked(&self.registry, name, &self.cache_dir).await?;
        let deps = unpacked.root.join(DEPS_DIR.trim_start_matches('/'));
        let has_deps = tokio::fs::symlink_metadata(deps).await.is_ok_and(|m| m.is_dir());
        let image = Image { root: unpacked.root, config: unpacked.config, has_deps };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(name.clone(), image.clone());
        Ok((image, true))
    }
}
