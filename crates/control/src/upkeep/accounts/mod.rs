//! Service accounts: every namespace has the one of pods that name none, as clients wait for it.

mod plan;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View};

/// The account of pods that name none.
const DEFAULT: &str = "default";

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock) -> Controller {
    let reading = caches.clone();
    Controller::planned("accounts", clock, applier, move |key, now| gather(&reading, key, now))
        .watch(&caches.of::<Namespace>(), |change: &Change<Namespace>| vec![Key::new(&change.key.name, DEFAULT)])
        .watch(&caches.of::<ServiceAccount>(), |change: &Change<ServiceAccount>| {
            if change.key.name == DEFAULT { vec![change.key.clone()] } else { vec![] }
        })
}

fn gather(view: &impl View, key: &Key, _now: Timestamp) -> Plan {
    let Some(namespace) = view.get::<Namespace>("", &key.namespace) else { return Plan::default() };
    plan::plan(&namespace, view.get::<ServiceAccount>(&key.namespace, &key.name).as_deref())
}
