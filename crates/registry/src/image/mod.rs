//! OCI images: their names and configuration, layers made from folders, and layers unpacked into folders.
//!
//! Layers come from strangers. Making and unpacking them never follows a link, and never leaves the folder.

mod cache;
mod config;
mod layer;
mod links;
mod name;
mod push;
mod unpack;

pub use cache::{Unpacked, ensure_unpacked, prune_unpacked};
pub use config::ImageConfig;
pub use layer::{LayerInfo, layer_from_dir};
pub use name::ImageRef;
pub use push::{Layer, push_image};
pub use unpack::{Contents, Links, UnpackLimits, unpack};

pub use crate::names::Reference;

pub(crate) use cache::Unpacking;
pub(crate) use push::{descriptor, read_chunks};

use std::path::PathBuf;

use crate::digest::Digest;
use crate::error::RegistryError;

/// What can go wrong with an image or an archive. Whatever names an entry is the author's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{text:?} is not an image: {reason}")]
    InvalidName { text: String, reason: &'static str },
    #[error("the image {image} must be named by its digest")]
    NotByDigest { image: String },
    #[error("the image is not valid: {reason}")]
    InvalidImage { reason: String },
    #[error("the image is not for this machine ({wanted})")]
    WrongPlatform { wanted: String },
    #[error("{entry:?} leaves the folder")]
    Outside { entry: String },
    #[error("{entry:?} is a link to {target:?}, which leaves the folder")]
    LinkOutside { entry: String, target: String },
    #[error("{entry:?} is {kind}, which is not allowed")]
    Forbidden { entry: String, kind: &'static str },
    #[error("{entry:?} is not valid: {reason}")]
    InvalidEntry { entry: String, reason: String },
    #[error("the archive has more than {limit} {what}")]
    TooMuch { limit: u64, what: &'static str },
    #[error("the archive is broken: {reason}")]
    Broken { reason: String },
    #[error("{path}", path = .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl ImageError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    fn damaged(layer: &Digest, actual: &Digest) -> Self {
        Self::InvalidImage { reason: format!("the layer {layer} was damaged on disk and is now {actual}") }
    }
}

pub(crate) mod media {
    /// What a client can read, in the words of either specification.
    pub const ANY_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, \
        application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
        application/vnd.docker.distribution.manifest.list.v2+json";
    pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    /// A layer's type in the words of the OCI; `None` for one whose bytes may not be copied.
    pub fn as_oci(layer: &str) -> Option<&str> {
        match layer {
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => Some(LAYER),
            "application/vnd.docker.image.rootfs.diff.tar" => Some("application/vnd.oci.image.layer.v1.tar"),
            known if known.starts_with("application/vnd.oci.image.layer.v1.tar") => Some(known),
            _ => None,
        }
    }
}

/// This machine, as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
