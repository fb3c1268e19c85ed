//! Namespaces: what lies in one that is deleted goes first, then the namespace.

mod plan;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Event, Namespace};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};
use reconcile::{Applier, Caches, Controller, Error, Key, Requeue, Target, runner};

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
    if plan::is_last_step(&plan) {
        delete_events(client, &key.name).await?;
    }
    applier.apply(&plan).await?;
    Ok(None)
}

/// Events are not watched by anybody here; they are swept once, when nothing is left to make more.
async fn delete_events(client: &Client, namespace: &str) -> Result<(), Error> {
    let fail = |source: kube::Error| Error::Api {
        action: "delete events of",
        target: Box::new(Target::named::<Namespace>("", namespace)),
        source: Box::new(source),
    };
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    for event in api.list(&ListParams::default()).await.map_err(fail)? {
        match api.delete(&event.name_any(), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(())
}
