//! What is left to delete of a kind that goes, and which kinds are to be watched.

use api::names::DEFINITION_CLEANUP;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::ApiResource;
use reconcile::{ForeignKind, Held, Plan, Propagation, Write, finalizer, view};

/// The kind that a definition brings; `None` while it is not served.
pub fn kind(definition: &CustomResourceDefinition) -> Option<ForeignKind> {
    let conditions = definition.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Established" && condition.status == "True")?;
    let (spec, names) = (&definition.spec, &definition.status.as_ref()?.accepted_names.as_ref()?);
    let served = || spec.versions.iter().filter(|version| version.served);
    // The stored version's objects need no translation.
    let watched = served().find(|version| version.storage).or_else(|| served().next())?;
    let api_version = |version: &str| format!("{}/{version}", spec.group);
    Some(ForeignKind {
        resource: ApiResource {
            group: spec.group.clone(),
            version: watched.name.clone(),
            api_version: api_version(&watched.name),
            kind: names.kind.clone(),
            plural: names.plural.clone(),
        },
        api_versions: served().map(|version| api_version(&version.name)).collect(),
        namespaced: spec.scope == "Namespaced",
    })
}

/// Whether the definition waits for its objects.
pub fn is_ending(definition: &CustomResourceDefinition) -> bool {
    view::is_deleting(definition) && finalizer::has(definition, DEFINITION_CLEANUP)
}

/// The next step of a definition that is going, of whose kind `objects` are left.
pub fn plan(definition: &CustomResourceDefinition, objects: Vec<Held>) -> Plan {
    let mut plan = Plan::default();
    if !is_ending(definition) {
        return plan;
    }
    if objects.is_empty() {
        plan.patch(definition, finalizer::remove(definition, DEFINITION_CLEANUP));
        return plan;
    }
    for held in objects.into_iter().filter(|held| held.meta.deletion_timestamp.is_none()) {
        let uid = held.uid().to_owned();
        let write = Write::Delete { target: held.target, uid, propagation: Propagation::Background, at_once: false };
        plan.writes.push(write);
    }
    plan
}
