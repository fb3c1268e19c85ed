//! Route: who gets which share of the traffic, as one Ingress for the gateway.
//!
//! Also writes the Ingress's status, since a gateway serves a table as soon as it has seen it; labels Revisions with
//! whether traffic reaches them; and keeps the placeholder core Service that cluster tools look for.

mod children;
mod plan;
#[cfg(test)]
mod tests;
mod traffic;

use std::sync::Arc;

use api::names::label;
use api::networking::Ingress;
use api::serving::{Configuration, Revision, Route};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View, runner, view};

pub use plan::ROUTES;

use crate::Cluster;
use crate::exposure::Exposure;

/// What hosts and URLs are made of.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// The domain of public hosts.
    pub domain: String,
    /// The public port of the gateway, written into URLs unless it is 80.
    pub port: u16,
    /// On a cluster: where the gateway is, and how the outside world comes to it.
    pub cluster: Option<Cluster>,
}

impl Hosts {
    fn exposure(&self) -> &Exposure {
        self.cluster.as_ref().map_or(&Exposure::None, |cluster| &cluster.exposure)
    }
}

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock, hosts: Hosts) -> Controller {
    let reading = caches.clone();
    let exposure = hosts.exposure().clone();
    let (by_configuration, by_revision) = (caches.clone(), caches.clone());
    let controller = Controller::planned("route", clock, applier, move |key, now| gather(&reading, &hosts, key, now))
        .watch(&caches.of::<Route>(), runner::itself)
        .watch(&caches.of::<Ingress>(), runner::owner::<Route, _>)
        .watch(&caches.of::<Service>(), runner::owner::<Route, _>)
        .watch(&caches.of::<Configuration>(), move |change: &Change<Configuration>| {
            referring(&by_configuration, &change.key.namespace, change.either(), &change.key.name)
        })
        .watch(&caches.of::<Revision>(), move |change: &Change<Revision>| {
            let configuration = change.either().find_map(|r| view::label(r.as_ref(), label::CONFIGURATION));
            let name = configuration.unwrap_or_default().to_owned();
            referring(&by_revision, &change.key.namespace, change.either(), &name)
        });
    exposure.watched(controller, caches)
}

/// The Routes a Configuration matters to. A Service's Route has the Service's name; only what belongs to no
/// Service may be meant by any Route of the namespace.
fn referring<'a, K: reconcile::Kind>(
    caches: &Caches,
    namespace: &str,
    mut objects: impl Iterator<Item = &'a Arc<K>>,
    configuration: &str,
) -> Vec<Key> {
    if objects.any(|o| view::label(o.as_ref(), label::SERVICE).is_some()) {
        return vec![Key::new(namespace, configuration)];
    }
    caches.of::<Route>().list(namespace).iter().map(|r| Key::of(r.as_ref())).collect()
}

fn gather(view: &impl View, hosts: &Hosts, key: &Key, now: Timestamp) -> Plan {
    let Some(route) = view.get::<Route>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(route.as_ref()) || !api::class::is_ours(&route.metadata) {
        return Plan::default();
    }
    let namespace = key.namespace.as_str();
    let resolved = traffic::resolve(
        &route,
        |name| view.get::<Configuration>(namespace, name),
        |name| view.get::<Revision>(namespace, name),
    );
    let service = reconcile::view::label(route.as_ref(), label::SERVICE);
    let siblings = service.map(|s| view.labelled::<Revision>(namespace, label::SERVICE, s));
    let inputs = plan::Inputs {
        resolved,
        revisions: siblings.unwrap_or_else(|| view.list::<Revision>(namespace)),
        ingress: view.get::<Ingress>(namespace, &key.name),
        placeholder: view.get::<Service>(namespace, &key.name),
        exposed: hosts.exposure().find(view, &route),
        route,
        hosts: hosts.clone(),
    };
    plan::plan(&inputs, now)
}
