//! Layers and a configuration become an image in the registry.

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::{ImageConfig, ImageError, LayerInfo, architecture, media};
use crate::digest::Digest;
use crate::error::RegistryError;
use crate::registry::{Descriptor, Registry};

/// A layer in a file of its own.
#[derive(Clone, Debug)]
pub struct Layer {
    pub info: LayerInfo,
    pub path: PathBuf,
}

/// Stores the image under its digest, without a tag, and returns the digest of its manifest. The platform and the
/// diff ids of the configuration are set here. The same input gives the same digest.
pub async fn push_image(
    registry: &Registry,
    repository: &str,
    layers: Vec<Layer>,
    mut config: ImageConfig,
) -> Result<Digest, ImageError> {
    let mut descriptors = vec![];
    for layer in &layers {
        if !registry.has_blob(repository, &layer.info.digest).await? {
            let file = tokio::fs::File::open(&layer.path).await.map_err(ImageError::io(&layer.path))?;
            let body = read_chunks(file);
            registry.put_blob_stream(repository, Some(&layer.info.digest), layer.info.size, body).await?;
        }
        descriptors.push(descriptor(media::LAYER, layer.info.digest, layer.info.size));
    }
    config.architecture = architecture().into();
    config.os = "linux".into();
    config.diff_ids = layers.iter().map(|layer| layer.info.diff_id).collect();
    let config = json(&config)?;
    let size = config.len() as u64;
    let config = registry.put_blob(repository, config).await?;
    let manifest = json(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "config": descriptor(media::CONFIG, config, size),
        "layers": descriptors,
    }))?;
    let digest = Digest::of(&manifest);
    Ok(registry.put_manifest(repository, &digest.to_string(), media::MANIFEST, manifest).await?)
}

pub(crate) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.into(), digest, size, platform: None }
}

fn json(value: &impl serde::Serialize) -> Result<Bytes, ImageError> {
    let bytes = serde_json::to_vec(value).map_err(|error| RegistryError::InvalidManifest { reason: error.to_string() });
    Ok(bytes?.into())
}

/// A file, 64 KiB at a time.
pub(crate) fn read_chunks(
    file: impl tokio::io::AsyncRead + Unpin,
) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
    futures::stream::try_unfold(file, |mut file| async move {
        let mut chunk = BytesMut::with_capacity(64 << 10);
        let count = file.read_buf(&mut chunk).await?;
        Ok((count > 0).then(|| (chunk.freeze(), file)))
    })
}
