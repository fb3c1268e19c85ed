//! Endpoints: the EndpointSlices of every core Service that selects pods.

mod children;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::names::label;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View, runner, view};

use crate::ownership::Labels;

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock) -> Controller {
    let (view, services) = (caches.clone(), caches.of::<Service>());
    Controller::planned("endpoints", clock, applier, move |key, now| gather(&view, key, now))
        .workers(8)
        .watch(&caches.of::<Service>(), runner::itself)
        .watch(&caches.of::<EndpointSlice>(), runner::owner::<Service, _>)
        .watch(&caches.of::<Pod>(), move |change: &Change<Pod>| {
            if change.old.as_ref().map(|p| children::endpoint(p)) == change.new.as_ref().map(|p| children::endpoint(p))
            {
                return vec![];
            }
            selecting(&services, change)
        })
}

/// The Services that select a changed pod. A Revision's pods are selected by the Service of its name; only other
/// pods are held against every selector of their namespace.
fn selecting(services: &reconcile::Cache<Service>, change: &Change<Pod>) -> Vec<Key> {
    let namespace = &change.key.namespace;
    if let Some(revision) = change.either().find_map(|p| view::label(p.as_ref(), label::REVISION)) {
        return vec![Key::new(namespace, revision)];
    }
    let selected = |service: &Service| change.either().any(|p| plan::selects(service, p));
    services.filter(namespace, selected).iter().map(|s| Key::of(s.as_ref())).collect()
}

fn gather(view: &impl View, key: &Key, _: Timestamp) -> Plan {
    let Some(service) = view.get::<Service>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(service.as_ref()) {
        return Plan::default();
    }
    let selector: Labels = plan::selector(&service).cloned().unwrap_or_default();
    // A label that caches index, when the selector has one, spares a walk over the namespace.
    let indexed = [label::REVISION_UID, label::REVISION].into_iter().find_map(|l| Some((l, selector.get(l)?)));
    let pods: Vec<Arc<Pod>> = match indexed {
        Some((label, value)) => view.labelled::<Pod>(&key.namespace, label, value),
        None => view.list::<Pod>(&key.namespace),
    };
    let slices = view.controlled_by::<EndpointSlice>(reconcile::view::uid(service.as_ref()));
    plan::plan(&service, &pods, &slices)
}
