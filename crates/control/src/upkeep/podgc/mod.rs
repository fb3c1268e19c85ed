//! Pods that nobody ends: those of a node that is gone, and the pile of finished ones that a ReplicaSet replaced.

mod plan;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View, runner};

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock) -> Controller {
    let (reading, pods) = (caches.clone(), caches.of::<Pod>());
    Controller::planned("podgc", clock, applier, move |key, now| gather(&reading, key, now))
        .workers(1)
        .watch(&caches.of::<Pod>(), |change: &Change<Pod>| {
            let finished = change.new.as_ref().is_some_and(|p| super::is_finished(p));
            // A new pod is looked at once: its node may be long gone.
            if finished || change.old.is_none() { runner::itself(change) } else { vec![] }
        })
        .watch(&caches.of::<Node>(), move |change: &Change<Node>| {
            if change.new.is_some() {
                return vec![];
            }
            let on_it = |p: &Pod| plan::node_of(p) == Some(change.key.name.as_str());
            pods.filter("", on_it).iter().map(|p| Key::of(p.as_ref())).collect()
        })
}

fn gather(view: &impl View, key: &Key, now: Timestamp) -> Plan {
    let Some(pod) = view.get::<Pod>(&key.namespace, &key.name) else { return Plan::default() };
    let node_exists = plan::node_of(&pod).is_none_or(|node| view.get::<Node>("", node).is_some());
    let siblings = reconcile::view::controller_of(pod.as_ref()).map(|owner| view.controlled_by::<Pod>(&owner.uid));
    plan::plan(&pod, node_exists, siblings.as_deref().unwrap_or_default(), now)
}
