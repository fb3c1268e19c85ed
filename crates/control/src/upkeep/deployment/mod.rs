//! Deployment: one ReplicaSet per pod template; the new one comes up before the old one goes.

mod children;
mod plan;
mod revisions;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use reconcile::{Applier, Caches, Controller, Key, Plan, View, runner};

use super::adoption;

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock) -> Controller {
    let view = caches.clone();
    Controller::planned("deployment", clock, applier, move |key, now| gather(&view, key, now))
        .workers(8)
        .watch(&caches.of::<Deployment>(), runner::itself)
        .watch(&caches.of::<ReplicaSet>(), runner::owner::<Deployment, _>)
}

fn gather(view: &impl View, key: &Key, now: Timestamp) -> Plan {
    let Some(deployment) = view.get::<Deployment>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(deployment.as_ref()) {
        return Plan::default();
    }
    let sets = view.controlled_by::<ReplicaSet>(reconcile::view::uid(deployment.as_ref()));
    // Only one whose set is missing looks for it among those that a deleted Deployment left.
    let orphans = match &deployment.spec {
        Some(spec) if !plan::has_current(spec, &sets) => adoption::orphans(view, &key.namespace, &spec.selector),
        _ => vec![],
    };
    plan::plan(&deployment, &sets, &orphans, now)
}
