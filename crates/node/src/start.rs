//! From a manifest to processes: what a pod's start needs besides the plan.
//!
//! Owns fetching what the manifest refers to, and what all workers share to do so. Must not know what follows a failure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use registry::image::{ImageError, ImageRef};
use runtime::{ProviderError, Sandbox};
use tokio::sync::mpsc;

use crate::Config;
use crate::environment::{self, Facts};
use crate::events::Recorder;
use crate::images::Images;
use crate::logs::Directory;
use crate::translate::{self, Accepted, Image, Part, Refusal, reason};
use crate::{sources, volumes};

/// What all workers share.
pub struct Shared {
    pub client: Client,
    pub config: Arc<Config>,
    pub images: Images,
    /// The runtime classes of the Providers, in their order.
    pub classes: Vec<&'static str>,
    pub directory: Arc<Directory>,
    pub recorder: Recorder,
    /// A Provider that is gone for good ends the node.
    pub fatal: mpsc::Sender<ProviderError>,
}

impl Shared {
    pub fn accept(&self, pod: &Pod) -> Result<Accepted, Refusal> {
        translate::accept(pod, &self.classes, &self.config.registry_host)
    }
}

/// Why a pod was not started.
pub enum Failure {
    Refused(Refusal),
    Passing { reason: &'static str, message: String },
    Provider(ProviderError),
}

/// Everything from a manifest to processes.
pub async fn start(shared: Arc<Shared>, pod: Arc<Pod>) -> Result<Sandbox, Failure> {
    let config = &shared.config;
    let accepted = shared.accept(&pod).map_err(Failure::Refused)?;
    let spec = pod.spec.as_ref().expect("an accepted pod has a spec");
    let mut images = vec![];
    for name in &accepted.images {
        images.push(image(&shared, &pod, name).await?);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let sources = sources::read(&shared.client, namespace, spec).await;
    let sources = sources.map_err(|e| Failure::Passing { reason: reason::CONFIG, message: e.to_string() })?;
    let facts = Facts { pod: &pod, host_ip: config.host_ip };
    let wanted = spec.volumes.as_deref().unwrap_or_default();
    let volumes = volumes::volumes(wanted, &sources, &facts, &config.default_limits).map_err(Failure::Refused)?;
    let parts = translate::containers(spec).zip(images).map(|(container, image)| {
        let env = environment::resolve(&image.config, container, &sources, &facts)?;
        Ok(Part { image, env })
    });
    let parts = parts.collect::<Result<_, _>>().map_err(Failure::Refused)?;
    let asked = translate::sandbox(&pod, volumes, parts, &config.default_limits).map_err(Failure::Refused)?;
    config.providers[accepted.provider].create(Arc::new(asked)).await.map_err(Failure::Provider)
}

/// An image, unpacked.
async fn image(shared: &Shared, pod: &Pod, name: &ImageRef) -> Result<Image, Failure> {
    let (image, new) = shared.images.get(name).await.map_err(|error| match error {
        ImageError::WrongPlatform { .. } => {
            Failure::Refused(Refusal { reason: reason::NO_PROVIDER, message: error.to_string() })
        }
        error => Failure::Passing { reason: reason::IMAGE_PULL, message: format!("{name}: {error}") },
    })?;
    if new {
        shared.recorder.normal(pod, "Pulled", format!("Unpacked image {name}"), (shared.config.clock)());
    }
    Ok(image)
}
