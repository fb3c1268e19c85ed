//! Whether one pod is bound to the node, or why it waits.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Plan, view};
use serde_json::json;

use crate::ownership::name_of;

/// Pods of another scheduler are that one's.
const SCHEDULER: &str = "default-scheduler";

pub fn is_unbound(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.node_name.as_deref()).unwrap_or_default().is_empty()
        && spec.and_then(|s| s.scheduler_name.as_deref()).unwrap_or(SCHEDULER) == SCHEDULER
}

pub fn plan(pod: &Pod, node: Option<&Node>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if !is_unbound(pod) || view::is_deleting(pod) {
        return plan;
    }
    // The node comes with a change of its own, which looks again.
    let Some(node) = node else { return plan };
    let selector = pod.spec.as_ref().and_then(|s| s.node_selector.clone()).unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    if let Some((name, value)) = selector.iter().find(|(name, value)| labels.get(*name) != Some(value)) {
        let message = format!("0/1 nodes are available: 1 node(s) didn't match the node selector {name}={value}.");
        plan.event(pod, "FailedScheduling", &message, true, now);
        return plan;
    }
    plan.patch(pod, json!({"spec": {"nodeName": name_of(node)}}));
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let message = format!("Successfully assigned {namespace}/{} to {}", name_of(pod), name_of(node));
    plan.event(pod, "Scheduled", &message, false, now);
    plan
}
