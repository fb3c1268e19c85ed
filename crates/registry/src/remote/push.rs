//! Images put together in another registry: a base, and layers on top of it.
//!
//! The surprise: of a base that lies in the same registry nothing is moved, and of any other only what is not there yet.

use std::path::Path;

use bytes::Bytes;

use super::{Location, Remote, RemoteError, pushes};
use crate::digest::Digest;
use crate::image::{ImageConfig, ImageRef, Layer, LayerInfo, architecture, descriptor, media};
use crate::names::Reference;
use crate::registry::{Descriptor, MAX_BLOB_BYTES, MAX_MANIFEST_BYTES, References};

/// An image to build upon, as it is for this machine.
#[derive(Clone, Debug)]
pub struct Base {
    at: Location,
    digest: Digest,
    layers: Vec<Descriptor>,
    config: ImageConfig,
}

/// Where a layer on top comes from.
#[derive(Clone, Debug)]
pub enum LayerSource {
    File(Layer),
    /// The repository holds it.
    Held(LayerInfo),
}

impl LayerSource {
    pub fn info(&self) -> LayerInfo {
        match self {
            LayerSource::File(layer) => layer.info,
            LayerSource::Held(info) => *info,
        }
    }
}

impl Base {
    /// Of the manifest for this machine.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The exact image, by its digest.
    pub fn name(&self) -> String {
        format!("{}@{}", self.at, self.digest)
    }
}

/// Reads what is needed of a base to build upon it: not its layers.
pub async fn pull_base(remote: &Remote, image: &ImageRef) -> Result<Base, RemoteError> {
    let at = Location::of(image);
    let invalid = |reason: String| RemoteError::Invalid { what: format!("the image {image}"), reason };
    let parse = |bytes: &Bytes| References::parse(bytes).map_err(|error| invalid(error.to_string()));
    let mut manifest = remote.manifest(&at, &image.reference).await?;
    let mut references = parse(&manifest.bytes)?;
    if !references.manifests.is_empty() {
        let fits = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
        };
        let found = references.manifests.iter().find(fits).map(|descriptor| descriptor.digest);
        let digest = found.ok_or_else(|| invalid(format!("it is not there for linux/{}", architecture())))?;
        manifest = remote.manifest(&at, &Reference::Digest(digest)).await?;
        references = parse(&manifest.bytes)?;
    }
    let config = references.config.ok_or_else(|| invalid("it has no configuration".into()))?;
    let config = remote.read_blob(&at, &config.digest, MAX_MANIFEST_BYTES).await?;
    let config: ImageConfig = serde_json::from_slice(&config).map_err(|error| invalid(error.to_string()))?;
    if config.architecture != architecture() {
        return Err(invalid(format!("it is not for {}", architecture())));
    }
    if config.diff_ids.len() != references.layers.len() {
        return Err(invalid("its manifest and its configuration name different layers".into()));
    }
    let layers = references.layers.into_iter().map(|layer| match media::as_oci(&layer.media_type) {
        Some(media_type) => Ok(Descriptor { media_type: media_type.into(), platform: None, ..layer }),
        None => Err(invalid(format!("a layer of it is {:?}, which cannot be built upon", layer.media_type))),
    });
    Ok(Base { at, digest: manifest.digest, layers: layers.collect::<Result<_, _>>()?, config })
}

/// Stores an image under its digest, without a tag, and returns the digest of its manifest. The platform and the diff ids
/// of the configuration are set here. The same input gives the same digest. `scratch` is a folder for layers on their
/// way from another registry.
pub async fn push_image_on(
    remote: &Remote,
    into: &Location,
    base: &Base,
    layers: &[LayerSource],
    config: ImageConfig,
    scratch: &Path,
) -> Result<Digest, RemoteError> {
    for layer in &base.layers {
        bring(remote, base, into, layer, scratch).await?;
    }
    for layer in layers {
        if let LayerSource::File(Layer { info, path }) = layer {
            remote.push_file(into, &info.digest, info.size, path).await?;
        }
    }
    let infos: Vec<LayerInfo> = layers.iter().map(LayerSource::info).collect();
    let (config, manifest) = compose(base, &infos, config);
    remote.push_bytes(into, config).await?;
    let digest = Digest::of(&manifest);
    remote.put_manifest(into, &Reference::Digest(digest), media::MANIFEST, manifest).await
}

/// Remembers layers that the repository holds under a tag, where [`cached_layers`] finds them in the same order.
pub async fn keep_layers(remote: &Remote, at: &Location, tag: &str, layers: &[LayerInfo]) -> Result<(), RemoteError> {
    let config = ImageConfig { architecture: architecture().into(), os: "linux".into(), ..ImageConfig::default() };
    let nothing = Base { at: at.clone(), digest: Digest::of(b""), layers: vec![], config };
    let (config, manifest) = compose(&nothing, layers, ImageConfig::default());
    remote.push_bytes(at, config).await?;
    remote.put_manifest(at, &Reference::Tag(tag.into()), media::MANIFEST, manifest).await.map(drop)
}

/// What [`keep_layers`] remembered, if it is all there.
pub async fn cached_layers(remote: &Remote, at: &Location, tag: &str) -> Result<Option<Vec<LayerInfo>>, RemoteError> {
    let manifest = match remote.manifest(at, &Reference::Tag(tag.into())).await {
        Err(error) if error.is_not_found() => return Ok(None),
        manifest => manifest?,
    };
    // Whatever is wrong with it, a cache that cannot be read is an empty one.
    let Ok(References { config: Some(config), layers, .. }) = References::parse(&manifest.bytes) else {
        return Ok(None);
    };
    let config = match remote.read_blob(at, &config.digest, MAX_MANIFEST_BYTES).await {
        Err(error) if error.is_not_found() => return Ok(None),
        config => config?,
    };
    let Ok(config) = serde_json::from_slice::<ImageConfig>(&config) else { return Ok(None) };
    if config.diff_ids.len() != layers.len() {
        return Ok(None);
    }
    let mut found = vec![];
    for (layer, diff_id) in layers.iter().zip(config.diff_ids) {
        if remote.has_blob(at, &layer.digest).await?.is_none() {
            return Ok(None);
        }
        found.push(LayerInfo { digest: layer.digest, diff_id, size: layer.size });
    }
    Ok(Some(found))
}

/// Names a blob that the repository holds by a manifest, tagged with its digest: registries collect what nothing names.
pub async fn keep_blob(remote: &Remote, at: &Location, digest: &Digest, size: u64) -> Result<(), RemoteError> {
    const KIND: &str = "application/vnd.dhow.blob.v1";
    let empty = Bytes::from_static(b"{}");
    let config = descriptor(media::EMPTY, Digest::of(&empty), empty.len() as u64);
    remote.push_bytes(at, empty).await?;
    let manifest = json(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "artifactType": KIND,
        "config": config,
        "layers": [descriptor(KIND, *digest, size)],
    }));
    remote.put_manifest(at, &Reference::Tag(digest.hex()), media::MANIFEST, manifest).await.map(drop)
}

/// The configuration and the manifest of layers on a base. Pure.
fn compose(base: &Base, layers: &[LayerInfo], mut config: ImageConfig) -> (Bytes, Bytes) {
    config.architecture.clone_from(&base.config.architecture);
    config.os.clone_from(&base.config.os);
    config.diff_ids = base.config.diff_ids.iter().copied().chain(layers.iter().map(|layer| layer.diff_id)).collect();
    let config = json(&config);
    let ours = layers.iter().map(|layer| descriptor(media::LAYER, layer.digest, layer.size));
    let all: Vec<Descriptor> = base.layers.iter().cloned().chain(ours).collect();
    let manifest = json(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "config": descriptor(media::CONFIG, Digest::of(&config), config.len() as u64),
        "layers": all,
    }));
    (config, manifest)
}

async fn bring(
    remote: &Remote,
    base: &Base,
    into: &Location,
    layer: &Descriptor,
    scratch: &Path,
) -> Result<(), RemoteError> {
    if base.at == *into || remote.head_blob(into, &layer.digest, &pushes(into)).await?.is_some() {
        return Ok(());
    }
    if remote.mount_blob(&base.at, into, &layer.digest).await? {
        return Ok(());
    }
    let path = scratch.join(layer.digest.hex());
    let size = remote.pull_blob(&base.at, &layer.digest, MAX_BLOB_BYTES, &path).await?;
    let pushed = remote.push_file(into, &layer.digest, size, &path).await;
    tokio::fs::remove_file(&path).await.map_err(RemoteError::io(&path))?;
    pushed
}

fn json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).expect("manifests have string keys only").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composing_is_reproducible_and_keeps_the_base_below() {
        let info = |name: &str| LayerInfo {
            digest: Digest::of(name.as_bytes()),
            diff_id: Digest::of(format!("{name}.tar").as_bytes()),
            size: 3,
        };
        let base = Base {
            at: Location { registry: "r".into(), repository: "base".into() },
            digest: Digest::of(b"base"),
            layers: vec![descriptor(media::LAYER, info("base").digest, 9)],
            config: ImageConfig {
                architecture: "amd64".into(),
                os: "linux".into(),
                diff_ids: vec![info("base").diff_id],
                ..ImageConfig::default()
            },
        };
        let config =
            ImageConfig { entrypoint: vec!["x".into()], diff_ids: vec![Digest::of(b"lie")], ..ImageConfig::default() };
        let layers = [info("deps"), info("code")];
        let (first, manifest) = compose(&base, &layers, config.clone());
        assert_eq!((first.clone(), manifest.clone()), compose(&base, &layers, config));
        let read: ImageConfig = serde_json::from_slice(&first).unwrap();
        assert_eq!(read.diff_ids, [info("base").diff_id, info("deps").diff_id, info("code").diff_id]);
        assert_eq!((&*read.architecture, &*read.entrypoint), ("amd64", &["x".to_owned()][..]));
        let references = References::parse(&manifest).unwrap();
        let digests: Vec<Digest> = references.layers.iter().map(|layer| layer.digest).collect();
        assert_eq!(digests, [info("base").digest, info("deps").digest, info("code").digest]);
        assert_eq!(references.config.map(|config| config.digest), Some(Digest::of(&first)));
    }
}
