//! Namespaces: what lies in one that is deleted goes first, then the namespace.

mod plan;
#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use reconcile::{Applier, Caches, Controller, Error, Held, Key, Requeue, apply, runner};

/// No watch tells that the last Events are gone.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub fn controller(caches: &Caches, applier: Applier, client: Client) -> Controller {
    let reading = caches.clone();
    let controller = Controller::new("namespaces", move |key: Key| {
        let (caches, applier, client) = (reading.clone(), applier.clone(), client.clone());
        async move { empty(&caches, &applier, &client, &key).await }
    })
    .watch(&caches.of::<Namespace>(), runner::itself);
    let (queue, namespaces) = (controller.queue(), caches.of::<Namespace>());
    caches.subscribe_all(move |change| {
        let namespace = change.old.iter().chain(&change.new).map(|h| &h.target.namespace).find(|n| !n.is_empty());
        if let Some(name) = namespace
            && namespaces.get("", name).is_some_and(|n| n.metadata.deletion_timestamp.is_some())
        {
            queue.add(Key::new("", name));
        }
    });
    controller
}

async fn empty(caches: &Caches, applier: &Applier, client: &Client, key: &Key) -> Result<Requeue, Error> {
    let Some(namespace) = caches.of::<Namespace>().get("", &key.name) else { return Ok(None) };
    let plan = plan::plan(&namespace, caches.in_namespace(&key.name));
    if !plan::is_last_step(&plan) {
        applier.apply(&plan).await?;
        return Ok(None);
    }
    // Each cache has its own watch: one may not yet show what was made just before the end.
    let left = live(caches, client, &key.name).await?;
    if left.is_empty() {
        applier.apply(&plan).await?;
        return Ok(None);
    }
    applier.apply(&plan::plan(&namespace, left)).await?;
    Ok(Some(LOOK_AGAIN))
}

/// What really is in the namespace, Events included, which nobody here watches.
async fn live(caches: &Caches, client: &Client, namespace: &str) -> Result<Vec<Held>, Error> {
    let kinds = caches.kinds().into_iter();
    let namespaced = kinds.filter(|(api_version, kind)| !super::is_cluster_wide(caches, api_version, kind));
    let mut left = vec![];
    for (api_version, kind) in namespaced.chain([("v1".to_owned(), "Event".to_owned())]) {
        left.extend(apply::list_live(client, caches, &api_version, &kind, namespace).await?);
    }
    Ok(left)
}
