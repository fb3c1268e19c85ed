//! Pods that people make by hand name no node; there is only one, so no scheduler is needed to tell them which.

mod plan;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View, runner};

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock, node: String) -> Controller {
    let (reading, pods, wanted) = (caches.clone(), caches.of::<Pod>(), node.clone());
    Controller::planned("binding", clock, applier, move |key, now| gather(&reading, key, &node, now))
        .workers(1)
        .watch(&caches.of::<Pod>(), |change: &Change<Pod>| {
            if change.new.as_ref().is_some_and(|p| plan::is_unbound(p)) { runner::itself(change) } else { vec![] }
        })
        .watch(&caches.of::<Node>(), move |change: &Change<Node>| {
            if change.key.name != wanted {
                return vec![];
            }
            pods.filter("", plan::is_unbound).iter().map(|p| Key::of(p.as_ref())).collect()
        })
}

fn gather(view: &impl View, key: &Key, node: &str, now: Timestamp) -> Plan {
    let Some(pod) = view.get::<Pod>(&key.namespace, &key.name) else { return Plan::default() };
    plan::plan(&pod, view.get::<Node>("", node).as_deref(), now)
}
