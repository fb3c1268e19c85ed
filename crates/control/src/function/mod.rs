//! Function: its Build, then its Knative Service at the image that the Build reports.
//!
//! Watches Functions, their Builds and Services. Must not know how anything is built or served.

mod children;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::build::Build;
use api::function::Function;
use api::serving::Service;
use jiff::Timestamp;
use reconcile::{Applier, Caches, Controller, Key, Plan, View, runner};

use crate::Cluster;
use crate::ownership::name_of;

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock, cluster: Option<Arc<Cluster>>) -> Controller {
    let view = caches.clone();
    Controller::planned("function", clock, applier, move |key, now| gather(&view, key, cluster.as_ref(), now))
        .watch(&caches.of::<Function>(), runner::itself)
        .watch(&caches.of::<Build>(), runner::owner::<Function, _>)
        // By name, not by owner: a foreign Service of our name matters, and so does its end.
        .watch(&caches.of::<Service>(), runner::itself)
}

fn gather(view: &impl View, key: &Key, cluster: Option<&Arc<Cluster>>, now: Timestamp) -> Plan {
    let Some(function) = view.get::<Function>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(function.as_ref()) || !api::class::is_ours(&function.metadata) {
        return Plan::default();
    }
    let wanted_build = children::build_name(&function);
    let inputs = plan::Inputs {
        build: view.get::<Build>(&key.namespace, &wanted_build),
        builds: view.controlled_by::<Build>(reconcile::view::uid(function.as_ref())),
        service: view.get::<Service>(&key.namespace, name_of(function.as_ref())),
        function,
        cluster: cluster.cloned(),
    };
    plan::plan(&inputs, now)
}
