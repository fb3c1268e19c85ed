//! The tags of the built-in registry, as controllers look them up.

use futures::FutureExt;
use futures::future::BoxFuture;
use registry::Registry;
use registry::image::{ImageRef, Reference};

pub struct BuiltIn {
    pub registry: Registry,
    /// The host and port that it listens on.
    pub host: String,
}

impl control::Tags for BuiltIn {
    fn pin(&self, namespace: String, image: String) -> BoxFuture<'static, Result<Option<String>, String>> {
        let (registry, host) = (self.registry.clone(), self.host.clone());
        async move {
            let Ok(parsed) = image.parse::<ImageRef>() else { return Ok(None) };
            // Whether there is something in another namespace's repository is not told.
            if !parsed.is_built_in(&host) || !parsed.is_for(&namespace) {
                return Ok(None);
            }
            let Reference::Tag(tag) = &parsed.reference else { return Ok(None) };
            let manifest = registry.get_manifest(&parsed.repository, tag).await.map_err(|error| error.to_string())?;
            Ok(Some(ImageRef { reference: Reference::Digest(manifest.digest), ..parsed }.to_string()))
        }
        .boxed()
    }
}
