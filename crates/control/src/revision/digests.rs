//! The digests of images that a Revision names by a tag: what it runs must not change when the tag does.
//!
//! Asks for each once; from then on the Revision's status knows. Must not know registries: whoever runs the controllers
//! brings [`Tags`].

use std::collections::BTreeMap;
use std::sync::Arc;

use api::serving::Revision;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Container;

/// A registry's tags.
pub trait Tags: Send + Sync {
    /// The image by the digest that its tag names now, for pods of that namespace. `None`: it is of no registry known here,
    /// so that it is the affair of whoever pulls it. An error says why there is no such image.
    fn pin(&self, namespace: String, image: String) -> BoxFuture<'static, Result<Option<String>, String>>;
}

/// By the container's name: the image by its digest, or why there is none.
pub type Digests = BTreeMap<String, Result<String, String>>;

/// Of every container whose image is named by a tag that somebody knows.
pub async fn find(tags: Arc<dyn Tags>, revision: Arc<Revision>) -> Digests {
    let mut found = Digests::new();
    let namespace = revision.metadata.namespace.clone().unwrap_or_default();
    let pod = &revision.spec.pod;
    let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
    for container in containers.filter(|container| !is_pinned(container)) {
        let image = container.image.clone().unwrap_or_default();
        let known = known(&revision, &container.name).map(|image| Ok(Some(image)));
        let pinned = match known {
            Some(known) => known,
            None => tags.pin(namespace.clone(), image.clone()).await,
        };
        let missing = |why| format!("Unable to fetch image {image:?}: {why}");
        if let Some(pinned) = pinned.map_err(missing).transpose() {
            found.insert(container.name.clone(), pinned);
        }
    }
    found
}

pub fn is_pinned(container: &Container) -> bool {
    container.image.as_ref().is_some_and(|image| image.contains("@sha256:"))
}

/// What the Revision's status says that a container runs.
pub fn known(revision: &Revision, container: &str) -> Option<String> {
    let status = revision.status.as_ref()?;
    let statuses = status.container_statuses.iter().chain(&status.init_container_statuses);
    statuses.filter(|status| status.name.as_deref() == Some(container)).find_map(|status| status.image_digest.clone())
}
