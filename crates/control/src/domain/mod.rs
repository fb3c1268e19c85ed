//! Domain mapping: a host of one's own, claimed for the namespace, that leads where a Service's or a Route's traffic goes.
//!
//! The mapping's Ingress repeats the paths of the target's own, so that traffic, roll-outs and limits are the same by
//! either host. The surprise: a claim is cluster-wide and has no owner, so the one that was made for a mapping is removed
//! here once the mapping is gone.

mod children;
mod plan;
mod target;
#[cfg(test)]
mod tests;

use api::names::label;
use api::networking::Ingress;
use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, Secret};
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View, runner, view};

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
    let (by_target, by_service, by_claim) = (caches.clone(), caches.clone(), caches.clone());
    let (watched, is_alone) = (settings.clone(), hosts.cluster.is_none());
    let controller =
        Controller::planned("domain", clock, applier, move |key, now| gather(&reading, &hosts, &settings, key, now))
            .watch(&caches.of::<DomainMapping>(), runner::itself)
            .watch(&caches.of::<Ingress>(), runner::owner::<DomainMapping, _>)
            .watch(&caches.of::<Ingress>(), move |change: &Change<Ingress>| {
                let route = change.either().find_map(|i| view::label(i.as_ref(), label::ROUTE));
                route.map(|name| leading_to(&by_target, &change.key.namespace, name)).unwrap_or_default()
            })
            .watch(&caches.of::<core::Service>(), move |change| {
                leading_to(&by_service, &change.key.namespace, &change.key.name)
            })
            .watch(&caches.of::<ClusterDomainClaim>(), move |change| claimants(&by_claim, change));
    let controller = exposure.watched::<DomainMapping>(controller, caches);
    let controller = if is_alone { with_secrets(controller, caches) } else { controller };
    watched.watched(controller, caches, &[api::config::Network::NAME], |caches| {
        caches.of::<DomainMapping>().list("").iter().map(|m| Key::of(m.as_ref())).collect()
    })
}

fn with_secrets(controller: Controller, caches: &Caches) -> Controller {
    let mappings = caches.of::<DomainMapping>();
    controller.watch(&caches.of::<Secret>(), move |change: &Change<Secret>| {
        let named = |m: &DomainMapping| m.spec.tls.as_ref().is_some_and(|tls| tls.secret_name == change.key.name);
        // Of one that is there already nothing is known here but that it is.
        let is_news = change.old.is_some() != change.new.is_some();
        let waiting = if is_news { mappings.filter(&change.key.namespace, named) } else { vec![] };
        waiting.iter().map(|m| Key::of(m.as_ref())).collect()
    })
}

fn leading_to(caches: &Caches, namespace: &str, name: &str) -> Vec<Key> {
    let mappings = caches.of::<DomainMapping>().filter(namespace, |m| m.spec.reference.name == name);
    mappings.iter().map(|m| Key::of(m.as_ref())).collect()
}

/// Whom a claim is for; and when it goes or changes hands, everybody who wants the host.
fn claimants(caches: &Caches, change: &Change<ClusterDomainClaim>) -> Vec<Key> {
    let name = &change.key.name;
    let of = |claim: &ClusterDomainClaim| Key::new(&claim.spec.namespace, name);
    match (&change.old, &change.new) {
        (None, Some(new)) => vec![of(new)],
        (Some(old), Some(new)) if old.spec == new.spec => vec![of(new)],
        _ => {
            let waiting = caches.of::<DomainMapping>().filter("", |m| m.metadata.name.as_ref() == Some(name));
            waiting.iter().map(|m| Key::of(m.as_ref())).collect()
        }
    }
}

fn gather(view: &impl View, hosts: &Hosts, settings: &Settings, key: &Key, now: Timestamp) -> Plan {
    let claim = view.get::<ClusterDomainClaim>("", &key.name);
    let Some(mapping) = view.get::<DomainMapping>(&key.namespace, &key.name) else {
        return plan::release(claim.as_deref(), &key.namespace);
    };
    if reconcile::view::is_deleting(mapping.as_ref()) || !api::class::is_ours(&mapping.metadata) {
        return Plan::default();
    }
    let secret = mapping.spec.tls.as_ref().map(|tls| tls.secret_name.as_str());
    // On a cluster nobody but gateways reads Secrets.
    let is_missing = |name: &str| hosts.cluster.is_none() && view.get::<Secret>(&key.namespace, name).is_none();
    let inputs = plan::Inputs {
        target: target::resolve(view, &mapping),
        ingress: view.get::<Ingress>(&key.namespace, &key.name),
        is_secret_missing: secret.is_some_and(is_missing),
        is_taken: claim.is_none() && is_served(view, key),
        exposed: hosts.exposure().find(view, mapping.as_ref()),
        network: settings.network(view),
        hosts: hosts.clone(),
        claim,
        mapping,
    };
    plan::plan(&inputs, now)
}

/// Whether the host is one of a Route's already.
fn is_served(view: &impl View, key: &Key) -> bool {
    let all = view.list::<Ingress>("");
    let others = all.iter().filter(|ingress| Key::of(ingress.as_ref()) != *key);
    others.flat_map(|ingress| &ingress.spec.rules).any(|rule| rule.hosts.contains(&key.name))
}
