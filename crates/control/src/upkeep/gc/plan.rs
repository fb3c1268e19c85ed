//! What to delete, forget or let go for one object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use reconcile::{Held, Plan, Propagation, Write};
use serde_json::json;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// Whether the object is leaving and waits for the collector.
pub fn is_waiting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && (has(meta, FOREGROUND) || has(meta, ORPHAN))
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// `absent` holds the uids of owners that are gone for certain; `has_dependents` tells of a uid whether something
/// names it as owner.
pub fn plan(object: &Held, absent: &[String], dependents: &[Held], has_dependents: impl Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::default();
    if object.meta.deletion_timestamp.is_some() {
        if has(&object.meta, ORPHAN) {
            dependents.iter().for_each(|d| forget_owners(d, &[object.uid().to_owned()], &mut plan));
            let_go(object, ORPHAN, &mut plan);
        } else if has(&object.meta, FOREGROUND) {
            in_foreground(object, dependents, has_dependents, &mut plan);
        }
        return plan;
    }
    let owners: Vec<&OwnerReference> = object.meta.owner_references.iter().flatten().collect();
    let gone = owners.iter().filter(|o| absent.contains(&o.uid)).count();
    if gone > 0 && gone == owners.len() {
        delete(object, Propagation::Background, &mut plan);
    } else if gone > 0 {
        forget_owners(object, absent, &mut plan);
    }
    plan
}

fn in_foreground(object: &Held, dependents: &[Held], has_dependents: impl Fn(&str) -> bool, plan: &mut Plan) {
    let blocks = |d: &Held| {
        let owners = d.meta.owner_references.iter().flatten();
        owners.filter(|o| o.uid == object.uid()).any(|o| o.block_owner_deletion == Some(true))
    };
    let blocking: Vec<&Held> = dependents.iter().filter(|d| blocks(d)).collect();
    if blocking.is_empty() {
        return let_go(object, FOREGROUND, plan);
    }
    for dependent in blocking.into_iter().filter(|d| d.meta.deletion_timestamp.is_none()) {
        let deeper = has_dependents(dependent.uid());
        delete(dependent, if deeper { Propagation::Foreground } else { Propagation::Background }, plan);
    }
}

fn delete(object: &Held, propagation: Propagation, plan: &mut Plan) {
    let (target, uid) = (object.target.clone(), object.uid().to_owned());
    plan.writes.push(Write::Delete { target, uid, propagation, at_once: false });
}

fn let_go(object: &Held, finalizer: &str, plan: &mut Plan) {
    let left: Vec<&String> = object.meta.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
    let patch = json!({"metadata": {"resourceVersion": object.meta.resource_version, "finalizers": left}});
    plan.writes.push(Write::Patch { target: object.target.clone(), patch });
}

fn forget_owners(object: &Held, uids: &[String], plan: &mut Plan) {
    let left: Vec<&OwnerReference> =
        object.meta.owner_references.iter().flatten().filter(|o| !uids.contains(&o.uid)).collect();
    let patch = json!({"metadata": {"resourceVersion": object.meta.resource_version, "ownerReferences": left}});
    plan.writes.push(Write::Patch { target: object.target.clone(), patch });
}
