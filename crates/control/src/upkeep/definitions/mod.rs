//! Kinds that clients define: their objects are known to the collector of garbage and go before their definition does.
//!
//! The watches follow the definitions; the controller empties what is deleted.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use reconcile::caches::AnyCache;
use reconcile::{Applier, Cache, Caches, Controller, Error, Foreign, ForeignKind, Key, Requeue, apply, runner};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Objects may have finalizers of their own, whose controllers take their time.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A cache of definitions without their schemas, which are large and not read here.
pub fn cache() -> Cache<CustomResourceDefinition> {
    Cache::trimmed(&[], |definition| {
        for version in &mut definition.spec.versions {
            (version.schema, version.additional_printer_columns) = (None, None);
        }
    })
}

pub fn controller(caches: &Caches, applier: Applier, client: Client) -> Controller {
    let reading = caches.clone();
    Controller::new("definitions", move |key: Key| {
        let (caches, applier, client) = (reading.clone(), applier.clone(), client.clone());
        async move { empty(&caches, &applier, &client, &key).await }
    })
    .watch(&caches.of::<CustomResourceDefinition>(), runner::itself)
}

async fn empty(caches: &Caches, applier: &Applier, client: &Client, key: &Key) -> Result<Requeue, Error> {
    let Some(definition) = caches.of::<CustomResourceDefinition>().get("", &key.name) else { return Ok(None) };
    if !plan::is_ending(&definition) {
        return Ok(None);
    }
    let objects = match plan::kind(&definition) {
        Some(ForeignKind { resource, .. }) => {
            apply::list_live(client, caches, &resource.api_version, &resource.kind, "").await?
        }
        // Never served, so that nothing of it was ever made.
        None => vec![],
    };
    let last = objects.is_empty();
    applier.apply(&plan::plan(&definition, objects)).await?;
    Ok((!last).then_some(LOOK_AGAIN))
}

/// A watch of one client's kind.
struct Watched {
    foreign: Arc<Foreign>,
    stop: CancellationToken,
}

/// Watches every kind that a client defined for as long as it is there.
pub async fn watch(caches: Caches, client: Client, shutdown: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let definitions = caches.of::<CustomResourceDefinition>();
    let tell = changed.clone();
    definitions.subscribe(move |_| tell.notify_one());
    let mut watched: HashMap<String, Watched> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let mut wanted: HashMap<String, ForeignKind> = HashMap::new();
        for definition in definitions.list("") {
            let name = definition.metadata.name.clone().unwrap_or_default();
            let kind = plan::kind(&definition);
            wanted.extend(kind.filter(|kind| !is_ours(&caches, kind)).map(|kind| (name, kind)));
        }
        watched.retain(|name, one| {
            let stays = wanted.get(name) == Some(one.foreign.kind());
            if !stays {
                one.stop.cancel();
                caches.abandon(&one.foreign);
            }
            stays
        });
        for (name, kind) in wanted {
            watched.entry(name).or_insert_with(|| {
                let one = Watched { foreign: caches.adopt(kind), stop: shutdown.child_token() };
                tasks.spawn(one.foreign.clone().watch(client.clone(), one.stop.clone()));
                one
            });
        }
        tokio::select! {
            () = changed.notified() => {}
            Some(_) = tasks.join_next() => {}
            () = shutdown.cancelled() => break,
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Whether a typed cache watches the kind already.
fn is_ours(caches: &Caches, kind: &ForeignKind) -> bool {
    kind.api_versions.iter().any(|api_version| caches.is_typed(api_version, &kind.resource.kind))
}
