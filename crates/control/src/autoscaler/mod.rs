//! Autoscaler: how many instances each Revision has. The only writer of a Deployment's scale.
//!
//! Gateways report what they see; [`deciders`] keeps one decider per Revision with instances or traffic, which runs
//! Knative's algorithm ([`kpa`]) on every tick and answers a poke at once; a changed answer runs the PodAutoscaler's
//! key, whose plan bounds it, walks the way to zero and writes the scale. Memory here is cache: after a restart it
//! is rebuilt from the PodAutoscaler's status and the Deployment.

mod buckets;
mod deciders;
mod drain;
mod kpa;
mod plan;
mod receive;
mod settings;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::autoscaling::PodAutoscaler;
use api::names::label;
use api::wire::GatewayMessage;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Applier, Caches, Change, Controller, Key, Plan, View, runner};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use deciders::Deciders;
pub use plan::is_ready;
pub use receive::{Answer, receive};
use settings::Settings;

/// The controller, and the task that feeds it with what gateways see.
pub struct Autoscaler {
    pub controller: Controller,
    deciders: Arc<Deciders>,
}

/// `drains` where gateways drain an instance before its end, and not its node.
pub fn autoscaler(caches: &Caches, applier: Applier, clock: api::Clock, drains: bool) -> Autoscaler {
    let deciders = Arc::new(Deciders::new(caches.clone(), clock.clone()));
    let (view, deciding) = (caches.clone(), deciders.clone());
    let controller = Controller::planned("autoscaler", clock, applier, move |key, now| {
        gather(&view, drains, key, now, |key, now| deciding.wanted(key, now))
    })
    // A burst from zero wakes many Revisions at once, and each run waits for its write.
    .workers(16)
    .watch(&caches.of::<PodAutoscaler>(), runner::itself)
    .watch(&caches.of::<Deployment>(), runner::named_by_label(label::REVISION))
    .watch(&caches.of::<Pod>(), pod_counts);
    deciders.wake(controller.queue());
    Autoscaler { controller, deciders }
}

impl Autoscaler {
    /// Splits off the future that takes in messages and ticks, until shutdown.
    pub fn feed(
        &self,
        messages: mpsc::Receiver<GatewayMessage>,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        deciders::run(self.deciders.clone(), messages, shutdown)
    }
}

/// A Pod matters only when it appears, goes, or changes its readiness.
fn pod_counts(change: &Change<Pod>) -> Vec<Key> {
    let weight =
        |pod: &Option<Arc<Pod>>| pod.as_ref().map(|p| (plan::is_ready(p), reconcile::view::is_deleting(p.as_ref())));
    if weight(&change.old) == weight(&change.new) {
        return vec![];
    }
    runner::named_by_label(label::REVISION)(change)
}

fn gather(
    view: &impl View,
    drains: bool,
    key: &Key,
    now: Timestamp,
    wanted: impl Fn(&Key, Timestamp) -> kpa::Wanted,
) -> Plan {
    let Some(autoscaler) = view.get::<PodAutoscaler>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(autoscaler.as_ref()) || !api::class::is_our_autoscaler(&autoscaler.metadata) {
        return Plan::default();
    }
    let inputs = plan::Inputs {
        settings: Settings::of(&autoscaler),
        deployment: view.get::<Deployment>(&key.namespace, &autoscaler.spec.scale_target_ref.name),
        pods: view.labelled::<Pod>(&key.namespace, label::REVISION, &key.name),
        wanted: wanted(key, now),
        drains,
        autoscaler,
    };
    plan::plan(&inputs, now)
}
