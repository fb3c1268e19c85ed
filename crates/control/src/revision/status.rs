//! What the instances of a Revision say about it. Pure.
//!
//! A Revision is proven once: after its first instances were ready it stays Ready, at zero as well. Until then the
//! reason why they are not is looked for in the pods, and kept when they are gone.

use std::sync::Arc;

use api::autoscaling::{ACTIVE, SCALE_TARGET_INITIALIZED};
use api::condition::{self, Condition};
use api::serving::{self, REVISION_CONDITIONS, RevisionStatus, reason};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use super::digests::{is_pinned, known};
use super::plan::Inputs;
use crate::ownership::generation_of;

pub const RESOURCES_AVAILABLE: &str = "ResourcesAvailable";
pub const CONTAINER_HEALTHY: &str = "ContainerHealthy";
/// Reasons of a container that is merely on its way.
const PATIENT: [&str; 3] = ["ContainerCreating", "PodInitializing", "CrashLoopBackOff"];

/// Why no instance became ready.
struct Trouble {
    condition: &'static str,
    reason: String,
    message: String,
    /// It may yet pass by itself.
    pending: bool,
}

pub fn status(inputs: &Inputs, now: Timestamp) -> RevisionStatus {
    let revision = inputs.revision.as_ref();
    let mut status = revision.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(revision);
    let pod = &revision.spec.pod;
    status.container_statuses = container_statuses(inputs, &pod.containers);
    status.init_container_statuses = container_statuses(inputs, pod.init_containers.as_deref().unwrap_or_default());
    let autoscaler = inputs.autoscaler.as_ref().and_then(|a| a.status.clone()).unwrap_or_default();
    status.actual_replicas = autoscaler.actual_scale;
    status.desired_replicas = autoscaler.desired_scale;
    let conditions = &mut status.conditions;
    REVISION_CONDITIONS.init(conditions, now);
    match condition::find(&autoscaler.conditions, ACTIVE) {
        Some(active) => condition::put(conditions, ACTIVE, &active.status, &active.reason, &active.message, now),
        None => condition::put(conditions, ACTIVE, condition::UNKNOWN, reason::DEPLOYING, "", now),
    }
    if condition::is_true(&autoscaler.conditions, SCALE_TARGET_INITIALIZED) {
        REVISION_CONDITIONS.mark_true(conditions, RESOURCES_AVAILABLE, now);
        REVISION_CONDITIONS.mark_true(conditions, CONTAINER_HEALTHY, now);
    } else if let Some(trouble) = trouble(inputs, &autoscaler.conditions) {
        let other = if trouble.condition == CONTAINER_HEALTHY { RESOURCES_AVAILABLE } else { CONTAINER_HEALTHY };
        REVISION_CONDITIONS.mark_unknown(conditions, other, reason::DEPLOYING, "", now);
        let (condition, reason, message) = (trouble.condition, &trouble.reason, &trouble.message);
        match trouble.pending {
            true => REVISION_CONDITIONS.mark_unknown(conditions, condition, reason, message, now),
            false => REVISION_CONDITIONS.mark_false(conditions, condition, reason, message, now),
        }
    } else if !inputs.pods.is_empty() || !failed_before(conditions) {
        REVISION_CONDITIONS.mark_unknown(conditions, RESOURCES_AVAILABLE, reason::DEPLOYING, "", now);
        REVISION_CONDITIONS.mark_unknown(conditions, CONTAINER_HEALTHY, reason::DEPLOYING, "", now);
    }
    status
}

fn failed_before(conditions: &[Condition]) -> bool {
    condition::is_false(conditions, RESOURCES_AVAILABLE) || condition::is_false(conditions, CONTAINER_HEALTHY)
}

fn trouble(inputs: &Inputs, autoscaler: &[Condition]) -> Option<Trouble> {
    let mut pods: Vec<&Arc<Pod>> = inputs.pods.iter().collect();
    pods.sort_by_key(|p| std::cmp::Reverse(p.metadata.creation_timestamp.clone().map(|t| t.0)));
    if let Some(trouble) = pods.iter().find_map(|p| pod_trouble(p)) {
        return Some(trouble);
    }
    let available = |reason: &str, message: String| {
        Some(Trouble { condition: RESOURCES_AVAILABLE, reason: reason.to_owned(), message, pending: false })
    };
    let deployment = inputs.deployment.as_ref().and_then(|d| d.status.as_ref());
    let stuck = deployment.into_iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| {
        (c.type_ == "Progressing" && c.status == condition::FALSE)
            || (c.type_ == "ReplicaFailure" && c.status == condition::TRUE)
    });
    if let Some(c) = stuck {
        return available(c.reason.as_deref().unwrap_or("Failed"), c.message.clone().unwrap_or_default());
    }
    let timed_out =
        condition::find(autoscaler, ACTIVE).is_some_and(|c| c.status == condition::FALSE && c.reason == "TimedOut");
    if timed_out && inputs.pods.is_empty() && !failed_before_in(inputs) {
        return available(reason::PROGRESS_DEADLINE_EXCEEDED, "Initial scale was never achieved".into());
    }
    None
}

fn failed_before_in(inputs: &Inputs) -> bool {
    inputs.revision.status.as_ref().is_some_and(|s| failed_before(&s.conditions))
}

fn pod_trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let available = |reason: &str, message: &str| {
        let (reason, message) = (reason.to_owned(), message.to_owned());
        Some(Trouble { condition: RESOURCES_AVAILABLE, reason, message, pending: false })
    };
    for container in status.container_statuses.iter().flatten().filter(|c| !c.ready) {
        if let Some(trouble) = exited(container) {
            return Some(trouble);
        }
        let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
        if let Some(reason) = waiting.and_then(|w| w.reason.as_deref()).filter(|r| !PATIENT.contains(r)) {
            return available(reason, waiting.and_then(|w| w.message.as_deref()).unwrap_or_default());
        }
    }
    if let Some(c) =
        status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == condition::FALSE)
    {
        // A node may be on its way; the Deployment says when that takes too long.
        let trouble =
            available(c.reason.as_deref().unwrap_or("Unschedulable"), c.message.as_deref().unwrap_or_default());
        return trouble.map(|trouble| Trouble { pending: true, ..trouble });
    }
    match (&status.phase, &status.reason) {
        (Some(phase), Some(reason)) if phase == "Failed" => {
            available(reason, status.message.as_deref().unwrap_or_default())
        }
        _ => None,
    }
}

/// The last end of a container that has never been ready since.
fn exited(container: &ContainerStatus) -> Option<Trouble> {
    let states = [container.state.as_ref(), container.last_state.as_ref()];
    let end = states.into_iter().flatten().find_map(|s| s.terminated.as_ref())?;
    let said = end.message.as_deref().map(str::trim_end).filter(|m| !m.is_empty());
    let said = said.or(end.reason.as_deref()).unwrap_or("no message");
    Some(Trouble {
        condition: CONTAINER_HEALTHY,
        reason: reason::exit_code(end.exit_code),
        message: format!("Container failed with: {said}"),
        pending: false,
    })
}

/// Each container with the digest it runs: from its image when pinned there, else what its tag named when it was looked up,
/// else from what a node pulled.
fn container_statuses(inputs: &Inputs, containers: &[Container]) -> Vec<serving::ContainerStatus> {
    let pulled = |name: &str| {
        let statuses = inputs
            .pods
            .iter()
            .filter_map(|p| p.status.as_ref())
            .flat_map(|status| status.container_statuses.iter().chain(&status.init_container_statuses).flatten());
        let mut ids = statuses.filter(|c| c.name == name).map(|c| c.image_id.trim_start_matches("docker-pullable://"));
        ids.find(|id| id.contains("@sha256:")).map(str::to_owned)
    };
    let found = |name: &str| inputs.digests.get(name).and_then(|image| image.clone().ok());
    let digest = |container: &Container| match is_pinned(container) {
        true => container.image.clone(),
        false => {
            let name = &container.name;
            known(&inputs.revision, name).or_else(|| found(name)).or_else(|| pulled(name))
        }
    };
    containers
        .iter()
        .map(|c| serving::ContainerStatus { name: Some(c.name.clone()), image_digest: digest(c) })
        .collect()
}
