//! Endpoints: the EndpointSlices of every core Service that selects pods.

mod children;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use api::names::label;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Applier, Cache, Caches, Change, Controller, Key, Plan, View, runner, view};

use crate::ownership::Labels;

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock) -> Controller {
    let (view, services) = (caches.clone(), caches.of::<Service>());
    let handmade = handmade(&services);
    Controller::planned("endpoints", clock, applier, move |key, now| gather(&view, key, now))
        .workers(8)
        .watch(&caches.of::<Service>(), runner::itself)
        .watch(&caches.of::<EndpointSlice>(), runner::owner::<Service, _>)
        .watch(&caches.of::<Pod>(), move |change: &Change<Pod>| {
            if change.old.as_ref().map(|p| children::endpoint(p)) == change.new.as_ref().map(|p| children::endpoint(p))
            {
                return vec![];
            }
            selecting(&services, &handmade, change)
        })
}

/// The Services that select a changed pod. A Revision's pods are selected by the Service of its name, and perhaps by
/// one that a person made: only those few are held against the pod, not one per Revision of the namespace.
fn selecting(services: &Cache<Service>, handmade: &Handmade, change: &Change<Pod>) -> Vec<Key> {
    let namespace = &change.key.namespace;
    let of_revision = change.either().find_map(|p| view::label(p.as_ref(), label::REVISION));
    let mut keys: Vec<Key> = of_revision.map(|r| Key::new(namespace, r)).into_iter().collect();
    let known = handmade.lock().unwrap_or_else(PoisonError::into_inner);
    let here = known.range(Key::new(namespace, "")..).take_while(|k| k.namespace == *namespace);
    keys.extend(
        here.filter(|k| {
            services.get(namespace, &k.name).is_some_and(|s| change.either().any(|p| plan::selects(&s, p)))
        })
        .cloned(),
    );
    keys
}

/// Services with a selector that are not a Revision's own.
type Handmade = Arc<Mutex<BTreeSet<Key>>>;

fn handmade(services: &Cache<Service>) -> Handmade {
    let known = Handmade::default();
    let remembered = known.clone();
    services.subscribe(move |change| {
        let theirs =
            |s: &Arc<Service>| plan::selector(s).is_some() && view::label(s.as_ref(), label::REVISION).is_none();
        let mut known = remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if change.new.as_ref().is_some_and(theirs) {
            known.insert(change.key.clone());
        } else {
            known.remove(&change.key);
        }
    });
    known
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
