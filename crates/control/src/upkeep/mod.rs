//! The few controllers of Kubernetes itself that Dhow needs without a cluster; never started on one.
//!
//! No scheduler: the replica set controller makes pods that are already bound to the one node, and `binding` binds others.

pub mod accounts;
mod adoption;
pub mod binding;
pub mod definitions;
pub mod deployment;
pub mod endpoints;
pub mod gc;
pub mod namespaces;
pub mod podgc;
pub mod replicaset;

use k8s_openapi::api::core::v1::Pod;
use reconcile::Caches;

/// Kinds whose objects lie in no namespace.
const CLUSTER_KINDS: [&str; 5] =
    ["Node", "Namespace", "CustomResourceDefinition", "PersistentVolume", "ClusterDomainClaim"];

/// Whether objects of a kind lie in no namespace.
fn is_cluster_wide(caches: &Caches, api_version: &str, kind: &str) -> bool {
    match caches.foreign(api_version, kind) {
        Some(foreign) => !foreign.kind().namespaced,
        None => CLUSTER_KINDS.contains(&kind),
    }
}

/// Whether a pod has ended for good.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}
