//! What a Revision needs.

use std::sync::Arc;

use api::autoscaling::PodAutoscaler;
use api::serving::{REVISION_CONDITIONS, Revision, reason};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use reconcile::Plan;

use super::digests::Digests;
use super::{children, status};
use crate::Cluster;
use crate::ownership::{controls, name_of};

pub struct Inputs {
    pub revision: Arc<Revision>,
    pub deployment: Option<Arc<Deployment>>,
    pub autoscaler: Option<Arc<PodAutoscaler>>,
    pub service: Option<Arc<Service>>,
    pub pods: Vec<Arc<Pod>>,
    pub cluster: Option<Cluster>,
    pub digests: Digests,
}

/// A tag that is not there may be pushed yet.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(5);

pub fn plan(inputs: &Inputs, now: Timestamp) -> Plan {
    let revision = inputs.revision.as_ref();
    let mut plan = Plan::default();
    if let Some(taken) = taken(inputs) {
        let mut status = revision.status.clone().unwrap_or_default();
        status.observed_generation = revision.metadata.generation;
        let conditions = &mut status.conditions;
        REVISION_CONDITIONS.mark_false(conditions, status::RESOURCES_AVAILABLE, reason::NOT_OWNED, &taken, now);
        plan.status(revision, &status, now);
        return plan;
    }
    if let Some(missing) = inputs.digests.values().find_map(|image| image.as_ref().err()) {
        let mut status = status::status(inputs, now);
        let conditions = &mut status.conditions;
        REVISION_CONDITIONS.mark_false(conditions, status::CONTAINER_HEALTHY, reason::CONTAINER_MISSING, missing, now);
        plan.status(revision, &status, now);
        plan.requeue_after(LOOK_AGAIN);
        return plan;
    }
    // The autoscaler before the Deployment: no instance may run that nobody counts.
    plan.apply(inputs.autoscaler.as_deref(), &children::autoscaler(revision));
    plan.apply(inputs.service.as_deref(), &children::service(revision));
    let wanted = children::deployment(revision, inputs.cluster.as_ref(), &inputs.digests);
    match inputs.deployment.as_deref() {
        Some(deployment) => plan.apply(Some(deployment), &wanted),
        None => {
            let mut first = wanted;
            if let Some(spec) = &mut first.spec {
                spec.replicas = Some(children::initial_scale(revision));
            }
            plan.create(&first);
        }
    }
    let status = status::status(inputs, now);
    plan.tell_refusal(revision, &status, REVISION_CONDITIONS, status::RESOURCES_AVAILABLE, now);
    plan.status(revision, &status, now);
    plan
}

fn taken(inputs: &Inputs) -> Option<String> {
    let revision = inputs.revision.as_ref();
    let message = |kind: &str, name: &str| format!("There is an existing {kind} {name:?} that we do not own.");
    if let Some(d) = inputs.deployment.as_deref().filter(|d| !controls(revision, *d)) {
        return Some(message("Deployment", name_of(d)));
    }
    if let Some(a) = inputs.autoscaler.as_deref().filter(|a| !controls(revision, *a)) {
        return Some(message("PodAutoscaler", name_of(a)));
    }
    inputs.service.as_deref().filter(|s| !controls(revision, *s)).map(|s| message("Service", name_of(s)))
}
