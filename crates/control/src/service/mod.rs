//! Knative Service: one Configuration and one Route of the same name, and the sum of their status.

mod children;
mod plan;
#[cfg(test)]
mod tests;

use api::serving::{Configuration, Route, Service};
use jiff::Timestamp;
use reconcile::{Applier, Caches, Controller, Key, Plan, View, runner};

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock) -> Controller {
    let view = caches.clone();
    Controller::planned("service", clock, applier, move |key, now| gather(&view, key, now))
        .watch(&caches.of::<Service>(), runner::itself)
        .watch(&caches.of::<Configuration>(), runner::itself)
        .watch(&caches.of::<Route>(), runner::itself)
}

fn gather(view: &impl View, key: &Key, now: Timestamp) -> Plan {
    let Some(service) = view.get::<Service>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(service.as_ref()) || !api::class::is_ours(&service.metadata) {
        return Plan::default();
    }
    let configuration = view.get::<Configuration>(&key.namespace, &key.name);
    let route = view.get::<Route>(&key.namespace, &key.name);
    plan::plan(&service, configuration.as_deref(), route.as_deref(), now)
}
