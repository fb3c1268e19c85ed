//! Whether one pod is garbage.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Plan, Propagation, view};

use crate::ownership::name_of;
use crate::upkeep::is_finished;

/// Finished pods that are kept for each owner, for people to look at.
const KEPT: usize = 3;
/// How long a pod may wait for its node to register.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);

pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

pub fn plan(pod: &Pod, node_exists: bool, siblings: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if !node_exists {
        let born = pod.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        let age = now.duration_since(born);
        if age < PATIENCE {
            plan.requeue_after(PATIENCE - age);
        } else {
            plan.delete_at_once(pod);
        }
        return plan;
    }
    if !is_finished(pod) || view::is_deleting(pod) {
        return plan;
    }
    let mut finished: Vec<&Arc<Pod>> = siblings.iter().filter(|p| is_finished(p)).collect();
    finished
        .sort_by_key(|p| Reverse((p.metadata.creation_timestamp.clone().map(|t| t.0), name_of(p.as_ref()).to_owned())));
    if finished.iter().skip(KEPT).any(|p| name_of(p.as_ref()) == name_of(pod)) {
        plan.delete(pod, Propagation::Background);
    }
    plan
}
