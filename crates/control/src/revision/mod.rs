//! Revision: one Deployment, one PodAutoscaler and one core Service, and what their instances say about the code.
//!
//! The surprise: the number of replicas is written once, at creation; from then on the autoscaler alone writes it.

mod children;
mod digests;
mod plan;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::autoscaling::PodAutoscaler;
use api::names::label;
use api::serving::Revision;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use reconcile::{Applier, Caches, Controller, Key, Plan, View, runner};

use crate::Cluster;
use digests::Digests;
pub use digests::Tags;

/// Without `tags`, images named by a tag are left to nodes.
pub fn controller(
    caches: &Caches,
    applier: Applier,
    clock: api::Clock,
    cluster: Option<Cluster>,
    tags: Option<Arc<dyn Tags>>,
) -> Controller {
    let (view, asking) = (caches.clone(), caches.clone());
    let ask = move |key: &Key| {
        let asked = asking.get::<Revision>(&key.namespace, &key.name).zip(tags.clone());
        async move {
            match asked {
                Some((revision, tags)) => digests::find(tags, revision).await,
                None => Digests::default(),
            }
        }
    };
    Controller::asked("revision", clock, applier, ask, move |key, digests, now| {
        gather(&view, cluster.as_ref(), digests, key, now)
    })
    .watch(&caches.of::<Revision>(), runner::itself)
    .watch(&caches.of::<Deployment>(), runner::owner::<Revision, _>)
    .watch(&caches.of::<PodAutoscaler>(), runner::owner::<Revision, _>)
    .watch(&caches.of::<Service>(), runner::owner::<Revision, _>)
    .watch(&caches.of::<Pod>(), runner::named_by_label(label::REVISION))
}

fn gather(view: &impl View, cluster: Option<&Cluster>, digests: Digests, key: &Key, now: Timestamp) -> Plan {
    let Some(revision) = view.get::<Revision>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(revision.as_ref()) || !api::class::is_ours(&revision.metadata) {
        return Plan::default();
    }
    let inputs = plan::Inputs {
        deployment: view.get::<Deployment>(&key.namespace, &children::deployment_name(&key.name)),
        autoscaler: view.get::<PodAutoscaler>(&key.namespace, &key.name),
        service: view.get::<Service>(&key.namespace, &key.name),
        pods: view.labelled::<Pod>(&key.namespace, label::REVISION, &key.name),
        revision,
        cluster: cluster.cloned(),
        digests,
    };
    plan::plan(&inputs, now)
}
