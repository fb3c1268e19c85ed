//! Route: who gets which share of the traffic, as one Ingress for the gateway.
//!
//! Also writes the Ingress's status, since a gateway serves a table as soon as it has seen it; labels Revisions with
//! whether traffic reaches them; and keeps the placeholder core Service that cluster tools look for.

mod children;
mod naming;
mod plan;
#[cfg(test)]
mod tests;
mod traffic;

use std::sync::Arc;

use api::config::{Domains, Network};
use api::names::label;
use api::networking::Ingress;
use api::serving::{Configuration, Revision, Route};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View, runner, view};

use naming::Naming;
pub use plan::ROUTES;

use crate::hosts::Hosts;
use crate::settings::Settings;

pub fn controller(
    caches: &Caches,
    applier: Applier,
    clock: api::Clock,
    hosts: Hosts,
    settings: Settings,
) -> Controller {
    let reading = caches.clone();
    let exposure = hosts.exposure().clone();
    let (by_configuration, by_revision) = (caches.clone(), caches.clone());
    let watched = settings.clone();
    let controller =
        Controller::planned("route", clock, applier, move |key, now| gather(&reading, &hosts, &settings, key, now))
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
    let controller = exposure.watched::<Route>(controller, caches);
    watched.watched(controller, caches, &[Network::NAME, Domains::NAME], |caches| {
        caches.of::<Route>().list("").iter().map(|route| Key::of(route.as_ref())).collect()
    })
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

fn gather(view: &impl View, hosts: &Hosts, settings: &Settings, key: &Key, now: Timestamp) -> Plan {
    let Some(route) = view.get::<Route>(&key.namespace, &key.name) else {
        return plan::abandon(&view.list::<Revision>(&key.namespace), &key.name, now);
    };
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
    let (network, domains) = (settings.network(view), settings.domains(view));
    let mut naming = Naming { hosts: hosts.clone(), network, domains, placeholders: vec![] };
    naming.placeholders = placeholders(view, &naming, &route);
    let inputs = plan::Inputs {
        resolved,
        revisions: siblings.unwrap_or_else(|| view.list::<Revision>(namespace)),
        ingress: view.get::<Ingress>(namespace, &key.name),
        exposed: hosts.exposure().find(view, route.as_ref()),
        naming,
        route,
    };
    plan::plan(&inputs, now)
}

/// The core Services of the Route's names, whoever owns them, and those that it made for names it had.
fn placeholders(view: &impl View, naming: &Naming, route: &Route) -> Vec<Arc<Service>> {
    let tags = route.spec.traffic.iter().filter_map(|target| target.tag.as_deref());
    let names = std::iter::once(None).chain(tags.map(Some)).map(|tag| naming.name(route, tag));
    let namespace = crate::ownership::namespace_of(route);
    let mut found: Vec<Arc<Service>> = names.filter_map(|name| view.get::<Service>(namespace, &name)).collect();
    let known = |found: &[Arc<Service>], one: &Service| found.iter().any(|f| f.metadata.name == one.metadata.name);
    for one in view.controlled_by::<Service>(reconcile::view::uid(route)) {
        if !known(&found, &one) {
            found.push(one);
        }
    }
    found
}
