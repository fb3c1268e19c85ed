//! What is left to delete of a namespace.

use k8s_openapi::api::core::v1::Namespace;
use reconcile::{Held, Plan, Propagation, Write};
use serde_json::json;

pub fn plan(namespace: &Namespace, mut contents: Vec<Held>) -> Plan {
    let mut plan = Plan::default();
    if namespace.metadata.deletion_timestamp.is_none() {
        return plan;
    }
    if contents.is_empty() {
        if namespace.spec.as_ref().is_some_and(|s| s.finalizers.as_ref().is_some_and(|f| !f.is_empty())) {
            let mut object = json!(namespace);
            object["spec"]["finalizers"] = json!([]);
            plan.writes.push(Write::Replace { object, subresource: Some("finalize") });
        }
        return plan;
    }
    // Owners first: what they own would only be made again.
    contents.sort_by_key(|h| (h.meta.owner_references.is_some(), h.target.clone()));
    for held in contents.into_iter().filter(|h| h.meta.deletion_timestamp.is_none()) {
        let uid = held.uid().to_owned();
        let write = Write::Delete { target: held.target, uid, propagation: Propagation::Background, at_once: false };
        plan.writes.push(write);
    }
    plan
}

/// Whether this plan ends the namespace.
pub fn is_last_step(plan: &Plan) -> bool {
    plan.writes.iter().any(|w| matches!(w, Write::Replace { .. }))
}
