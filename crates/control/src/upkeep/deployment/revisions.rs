//! The numbers of a Deployment's pod templates, which `kubectl rollout history` lists and `undo` goes back to.
//!
//! The surprise: a template that comes back gets a new number, so the one in use always has the highest.

use std::sync::Arc;

use api::names::annotation;
use k8s_openapi::api::apps::v1::ReplicaSet;
use reconcile::view;

/// The number of the template in use, whose set is `current` once there is one.
pub fn of_template(current: Option<&ReplicaSet>, old: &[&Arc<ReplicaSet>]) -> u64 {
    let highest = old.iter().map(|set| of_set(set)).max().unwrap_or(0);
    current.map_or(0, of_set).max(highest + 1)
}

fn of_set(set: &ReplicaSet) -> u64 {
    view::annotation(set, annotation::DEPLOYMENT_REVISION).and_then(|number| number.parse().ok()).unwrap_or(0)
}
