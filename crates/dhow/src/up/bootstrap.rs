//! What a new platform says about itself, and the cleaning that goes on beside it.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result};
use api::names::{ENDPOINTS_CONFIG_MAP, SYSTEM_NAMESPACE};
use api::wire::Endpoints;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::{Api, ListParams, Patch, PatchParams};
use registry::Registry;
use registry::image::ImageRef;
use tokio_util::sync::CancellationToken;

use super::settings::Settings;

/// How often unreferenced blobs are looked for; what is younger than this stays, since somebody may be about to name it.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

const API_SERVICE: &str = "kubernetes";

/// Clients find the gateway and the platform API by this object.
pub async fn publish(client: &kube::Client, settings: &Settings, endpoints: &Endpoints) -> Result<()> {
    let object = serde_json::json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ENDPOINTS_CONFIG_MAP, "namespace": SYSTEM_NAMESPACE},
        "data": {
            "gateway": format!("http://{}", endpoints.gateway),
            "platform": format!("http://{}", endpoints.console),
            "domain": settings.domain,
            "maxSource": settings.max_source.to_string(),
        },
    });
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let params = PatchParams::apply("dhow-up").force();
    maps.patch(ENDPOINTS_CONFIG_MAP, &params, &Patch::Apply(object)).await.context("publishing the endpoints")?;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    services.patch(API_SERVICE, &params, &Patch::Apply(api_service())).await.context("publishing the API's Service")?;
    Ok(())
}

/// What every cluster has, and what clients name in events about the cluster. It leads nowhere: pods here are not given
/// the API.
fn api_service() -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": API_SERVICE, "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"ports": [{"name": "https", "port": 443}]},
    })
}

/// Removes images that nothing refers to any more.
pub struct Housekeeping {
    registry: Registry,
    client: kube::Client,
    settings: Settings,
}

pub fn keep_house(registry: Registry, client: kube::Client, settings: Settings) -> Housekeeping {
    Housekeeping { registry, client, settings }
}

impl Housekeeping {
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(COLLECT_EVERY) => {}
            }
            if let Err(error) = self.clean().await {
                tracing::warn!("unused images were not removed: {error:#}");
            }
        }
    }

    async fn clean(&self) -> Result<()> {
        let keep = self.referenced().await?;
        let now: std::time::SystemTime = (self.settings.clock)().into();
        let collected = self.registry.collect(&keep, COLLECT_EVERY, now).await?;
        let images = self.settings.images_dir();
        registry::image::prune_unpacked(&self.registry, &images, &keep, COLLECT_EVERY, now).await?;
        tracing::debug!(?collected, "removed unused images");
        Ok(())
    }

    /// Everything that an object names: the images of revisions, builds and pods, and the uploaded sources.
    async fn referenced(&self) -> Result<HashSet<registry::Digest>> {
        let all = ListParams::default();
        let client = || self.client.clone();
        let revisions = Api::<api::serving::Revision>::all(client()).list(&all).await?;
        let builds = Api::<api::build::Build>::all(client()).list(&all).await?;
        let functions = Api::<api::function::Function>::all(client()).list(&all).await?;
        let pods = Api::<Pod>::all(client()).list(&all).await?;
        let of_revisions = revisions.iter().flat_map(|r| &r.spec.pod.containers).filter_map(|c| c.image.clone());
        let of_statuses = revisions.iter().filter_map(|r| r.status.as_ref()).flat_map(|s| &s.container_statuses);
        let of_statuses = of_statuses.filter_map(|c| c.image_digest.clone());
        let of_pods =
            pods.iter().filter_map(|p| p.spec.as_ref()).flat_map(|s| &s.containers).filter_map(|c| c.image.clone());
        let of_builds = builds.iter().filter_map(|b| b.status.as_ref()?.image.clone());
        let images = of_revisions
            .chain(of_statuses)
            .chain(of_pods)
            .chain(of_builds)
            .filter_map(|i| i.parse::<ImageRef>().ok()?.digest().cloned());
        let sources = functions.iter().filter_map(|f| f.spec.source.blob.as_ref());
        let sources = sources.chain(builds.iter().filter_map(|b| b.spec.source.blob.as_ref()));
        let sources = sources.filter_map(|blob| blob.digest.parse().ok());
        Ok(images.chain(sources).collect())
    }
}
