//! OCI artifacts: a content-addressed store of blobs and manifests, the distribution API in front of it, the images
//! made from and unpacked out of it, and a client of other registries.
//!
//! Owns: every byte below its folder. Must not know: Kubernetes, functions, who may write (the composition root
//! hands in a check). The surprise: blobs are shared between repositories on disk but not in the API; a repository
//! serves only what was put, or mounted, into it, so that one tenant cannot read another's blob by its digest.

mod blobs;
mod collect;
mod digest;
mod error;
pub mod image;
mod names;
mod plan;
mod registry;
pub mod remote;
mod service;
mod uploads;

pub use collect::Collected;
pub use digest::Digest;
pub use error::RegistryError;
pub use registry::{BlobReader, MAX_BLOB_BYTES, MAX_MANIFEST_BYTES, Manifest, Registry};
pub use service::{Authorize, Body, Service};
