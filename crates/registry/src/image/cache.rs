//! Images unpacked on disk, once each, shared by all that run them.
//!
//! A folder appears under its image's digest by one rename, complete. It is a cache: nothing is fsynced, so a folder
//! made before the machine last started may have holes after a power cut, and is made again.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::layer::Hashing;
use super::{ImageConfig, ImageError, ImageRef, Links, UnpackLimits, architecture, unpack};
use crate::blobs::blocking;
use crate::digest::Digest;
use crate::registry::{Descriptor, MAX_MANIFEST_BYTES, References, Registry};

/// An image in the cache. The root is shared: mount it read-only.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// All layers, merged.
    pub root: PathBuf,
    pub config: ImageConfig,
}

/// One lock per image that somebody waits for, so that concurrent callers share one unpack.
#[derive(Default)]
pub(crate) struct Unpacking(Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>);

const ROOT: &str = "rootfs";
const CONFIG: &str = "config.json";
/// Which start of the machine it was unpacked in.
const BOOT: &str = "boot";
/// Folders in the making. On the same file system, so that they can be renamed.
const PARTIAL: &str = ".partial";

/// Unpacks the image into `cache_dir/<digest>`, unless it is there. The image must be named by its digest and its
/// repository hold it in this registry: folders are shared by digest, and knowing one must not be enough to run what
/// somebody else pushed. Dropped, the work goes on to its end, and the next caller waits for it.
pub async fn ensure_unpacked(registry: &Registry, image: &ImageRef, cache_dir: &Path) -> Result<Unpacked, ImageError> {
    let digest = image.digest().ok_or_else(|| ImageError::NotByDigest { image: image.to_string() })?;
    registry.get_manifest(&image.repository, &digest.to_string()).await?;
    let folder = cache_dir.join(digest.hex());
    let turn = registry.inner.unpacking.turn(&folder);
    let mine = turn.clone().lock_owned().await;
    let result = match ready(folder.clone()).await {
        Some(unpacked) => Ok(unpacked),
        None => make(registry, image, *digest, cache_dir, mine).await,
    };
    registry.inner.unpacking.leave(&folder, turn);
    result
}

/// Removes every unpacked image that is not in `keep`, and what was left half-done. Those that somebody waits for stay,
/// and those younger than `older_than`, since `keep` may be older than they are.
pub async fn prune_unpacked(
    registry: &Registry,
    cache_dir: &Path,
    keep: &HashSet<Digest>,
    older_than: Duration,
    now: SystemTime,
) -> Result<usize, ImageError> {
    let keep: HashSet<String> = keep.iter().map(Digest::hex).collect();
    let mut removed = 0;
    for folder in [cache_dir.to_owned(), cache_dir.join(PARTIAL)] {
        for name in crate::registry::list(&folder)? {
            let partial = folder != cache_dir;
            if !partial && keep.contains(&name) || Digest::from_hex(&name).is_none() {
                continue;
            }
            let turn = registry.inner.unpacking.turn(&cache_dir.join(&name));
            if let Ok(_turn) = turn.try_lock() {
                let doomed = folder.join(&name);
                let is_gone = blocking(move || {
                    let old = partial || age(&doomed, now).is_some_and(|age| age >= older_than);
                    let remove = || std::fs::remove_dir_all(&doomed).map_err(ImageError::io(&doomed));
                    if old { remove().map(|()| true) } else { Ok(false) }
                });
                removed += usize::from(is_gone.await? && !partial);
            }
            registry.inner.unpacking.leave(&cache_dir.join(&name), turn);
        }
    }
    Ok(removed)
}

fn age(folder: &Path, now: SystemTime) -> Option<Duration> {
    now.duration_since(std::fs::metadata(folder).ok()?.modified().ok()?).ok()
}

async fn make(
    registry: &Registry,
    image: &ImageRef,
    digest: Digest,
    cache_dir: &Path,
    turn: tokio::sync::OwnedMutexGuard<()>,
) -> Result<Unpacked, ImageError> {
    let repository = &image.repository;
    let references = manifest(registry, repository, digest).await?;
    let invalid = |reason: &str| ImageError::InvalidImage { reason: reason.into() };
    let config = references.config.ok_or_else(|| invalid("it has no configuration"))?;
    let config = registry.read_blob(repository, &config.digest, MAX_MANIFEST_BYTES).await?;
    let parsed: ImageConfig = serde_json::from_slice(&config).map_err(|error| invalid(&error.to_string()))?;
    if !parsed.architecture.is_empty() && parsed.architecture != architecture() {
        return Err(ImageError::WrongPlatform { wanted: architecture().into() });
    }
    let mut layers = vec![];
    for layer in references.layers {
        layers.push((layer.digest, registry.blob_path(repository, &layer.digest).await?));
    }
    let cache_dir = cache_dir.to_owned();
    blocking(move || {
        // Held to the end of the work, not only as long as somebody waits for it.
        let _turn = turn;
        let (folder, work) = (cache_dir.join(digest.hex()), cache_dir.join(PARTIAL).join(digest.hex()));
        let clear = |path: &Path| {
            if path.exists() { std::fs::remove_dir_all(path).map_err(ImageError::io(path)) } else { Ok(()) }
        };
        // What a killed process left.
        clear(&work)?;
        std::fs::create_dir_all(&work).map_err(ImageError::io(&work))?;
        if let Err(error) = fill(&work, &layers, &config) {
            clear(&work)?;
            return Err(error);
        }
        clear(&folder)?;
        std::fs::rename(&work, &folder).map_err(ImageError::io(&folder))?;
        Ok(Unpacked { root: folder.join(ROOT), config: parsed })
    })
    .await
}

/// The manifest for this machine: an index is followed once.
async fn manifest(registry: &Registry, repository: &str, digest: Digest) -> Result<References, ImageError> {
    let read = async |digest: Digest| {
        let manifest = registry.get_manifest(repository, &digest.to_string()).await?;
        References::parse(&manifest.bytes)
    };
    let top = read(digest).await?;
    if top.manifests.is_empty() {
        return Ok(top);
    }
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
    };
    match top.manifests.iter().find(fits) {
        Some(descriptor) => Ok(read(descriptor.digest).await?),
        None => Err(ImageError::WrongPlatform { wanted: format!("linux/{}", architecture()) }),
    }
}

fn fill(work: &Path, layers: &[(Digest, PathBuf)], config: &[u8]) -> Result<(), ImageError> {
    let root = work.join(ROOT);
    std::fs::create_dir(&root).map_err(ImageError::io(&root))?;
    open_to_all(work)?;
    open_to_all(&root)?;
    let mut limits = UnpackLimits { links: Links::InImage, ..UnpackLimits::default() };
    for (digest, path) in layers {
        let mut layer = Hashing::new(File::open(path).map_err(ImageError::io(path))?);
        let contents = unpack(&mut layer, &root, &limits)?;
        // The limits are for the image, not for each layer.
        limits.entries -= contents.entries;
        limits.bytes = limits.bytes.saturating_sub(contents.bytes);
        std::io::copy(&mut layer, &mut std::io::sink()).map_err(ImageError::io(path))?;
        let (_, actual, _) = layer.finish();
        if actual != *digest {
            return Err(ImageError::damaged(digest, &actual));
        }
    }
    let write = |name: &str, content: &[u8]| {
        let path = work.join(name);
        std::fs::write(&path, content).map_err(ImageError::io(path))
    };
    write(CONFIG, config)?;
    write(BOOT, boot().as_bytes())
}

/// Sandboxes run under users of their own; temporary folders are made for one user only.
fn open_to_all(folder: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).map_err(ImageError::io(folder))
}

/// The image, if it is there whole.
async fn ready(folder: PathBuf) -> Option<Unpacked> {
    blocking(move || {
        let boot_then = std::fs::read_to_string(folder.join(BOOT)).ok()?;
        let mut config = vec![];
        File::open(folder.join(CONFIG)).ok()?.take(MAX_MANIFEST_BYTES).read_to_end(&mut config).ok()?;
        let config = serde_json::from_slice(&config).ok()?;
        (boot_then == boot()).then(|| Unpacked { root: folder.join(ROOT), config })
    })
    .await
}

/// Names this start of the machine; the same empty name where the kernel does not tell.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

impl Unpacking {
    fn turn(&self, folder: &Path) -> Arc<tokio::sync::Mutex<()>> {
        self.lock().entry(folder.to_owned()).or_default().clone()
    }

    /// Forgets the lock when nobody else has it.
    fn leave(&self, folder: &Path, turn: Arc<tokio::sync::Mutex<()>>) {
        let mut turns = self.lock();
        drop(turn);
        if turns.get(folder).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(folder);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
