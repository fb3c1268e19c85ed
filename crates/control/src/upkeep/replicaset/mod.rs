//! ReplicaSet: as many pods as it should have, made already bound to the node.
//!
//! A lagging watch never makes it create too many: the caches take in the answer to each of its own creates and
//! deletes before the next plan. After a restart the caches list before it runs.

mod children;
mod plan;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Applier, Caches, Controller, Key, Plan, View, runner};

use super::adoption;

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock, node: String) -> Controller {
    let view = caches.clone();
    Controller::planned("replicaset", clock, applier, move |key, now| gather(&view, &node, key, now))
        .workers(8)
        .watch(&caches.of::<ReplicaSet>(), runner::itself)
        .watch(&caches.of::<Pod>(), runner::owner::<ReplicaSet, _>)
}

fn gather(view: &impl View, node: &str, key: &Key, now: Timestamp) -> Plan {
    let Some(set) = view.get::<ReplicaSet>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(set.as_ref()) {
        return Plan::default();
    }
    let pods = view.controlled_by::<Pod>(reconcile::view::uid(set.as_ref()));
    // Only one that would make pods looks for those that nobody controls: the others need not walk over the namespace.
    let orphans = match &set.spec {
        Some(spec) if plan::missing(spec, &pods) > 0 => adoption::orphans(view, &key.namespace, &spec.selector),
        _ => vec![],
    };
    plan::plan(&set, &pods, &orphans, node, now)
}
