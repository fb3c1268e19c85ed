//! Which objects a controller takes for its own although nothing says that it made them, and which it lets go: labels
//! decide, as in a cluster.
//!
//! The surprise: a selector that names nothing, and one that cannot be read, neither take nor let go.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::core::{Selector, SelectorExt};
use reconcile::{Kind, Plan, View, view};
use serde_json::json;

use crate::ownership::{labels_of, owner_reference};

/// What nobody controls and the selector chooses, by key.
pub fn orphans<K: Kind>(view: &impl View, namespace: &str, selector: &LabelSelector) -> Vec<Arc<K>> {
    let Some(selector) = readable(selector) else { return vec![] };
    let mut all = view.list::<K>(namespace);
    all.retain(|object| {
        let free = view::controller_of(object.as_ref()).is_none() && !view::is_deleting(object.as_ref());
        free && selector.matches(&labels_of(object.as_ref()))
    });
    all
}

/// Whether the labels of an object that is controlled say no longer that it should be.
pub fn has_strayed<K: Kind>(object: &K, selector: &LabelSelector) -> bool {
    readable(selector).is_some_and(|selector| !selector.matches(&labels_of(object)))
}

pub fn adopt<O: Kind, K: Kind>(owner: &O, orphan: &K, plan: &mut Plan) {
    let mut owners = orphan.meta().owner_references.clone().unwrap_or_default();
    owners.push(owner_reference(owner));
    put(orphan, &owners, plan);
}

pub fn release<O: Kind, K: Kind>(owner: &O, strayed: &K, plan: &mut Plan) {
    let mut owners = strayed.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|o| o.uid != view::uid(owner));
    put(strayed, &owners, plan);
}

/// The resource version keeps two owners from taking the same object.
fn put<K: Kind>(object: &K, owners: &[OwnerReference], plan: &mut Plan) {
    let version = &object.meta().resource_version;
    plan.patch(object, json!({"metadata": {"resourceVersion": version, "ownerReferences": owners}}));
}

fn readable(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok().filter(|selector| !selector.selects_all())
}
