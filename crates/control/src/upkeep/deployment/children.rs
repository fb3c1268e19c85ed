//! The ReplicaSet of one pod template.

use std::collections::BTreeMap;

use api::names::{annotation, label};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use reconcile::view;

use crate::ownership::{annotations_of, child_meta, child_name, name_of, short_hash};

/// The hash that tells pod templates apart.
pub fn template_hash(spec: &DeploymentSpec) -> String {
    short_hash(serde_json::json!(spec.template).to_string().as_bytes())
}

pub fn replica_set(deployment: &Deployment, spec: &DeploymentSpec, replicas: i32, revision: u64) -> ReplicaSet {
    let hash = template_hash(spec);
    let mut template = spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(label::POD_TEMPLATE_HASH.into(), hash.clone());
    let labels = meta.labels.clone().unwrap_or_default();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(label::POD_TEMPLATE_HASH.into(), hash.clone());
    let name = child_name(name_of(deployment), &format!("-{hash}"));
    ReplicaSet {
        metadata: child_meta(deployment, &name, labels, annotations(deployment, revision)),
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// What people wrote at the Deployment, such as why they changed it, and the number of the template.
pub fn annotations(deployment: &Deployment, revision: u64) -> BTreeMap<String, String> {
    let mut annotations = annotations_of(deployment);
    annotations.insert(annotation::DEPLOYMENT_REVISION.into(), revision.to_string());
    annotations
}

pub fn has_hash(set: &ReplicaSet, hash: &str) -> bool {
    view::label(set, label::POD_TEMPLATE_HASH) == Some(hash)
}
