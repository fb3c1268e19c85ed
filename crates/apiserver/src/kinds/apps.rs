//! Rows of `apps/v1`.

use serde_json::{Value, json};

use super::workload::default_pod_spec;
use super::{Selectable, Shape, Status, Strategy, object_at, set_default};
use crate::rules::{self, advice};
use crate::status::FieldError;
use crate::table::{Columns, builtin};

pub static DEPLOYMENT: Strategy = Strategy {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    status: Some(Status::Separate),
    scale: true,
    generation: true,
    shape: Shape::Builtin("io.k8s.api.apps.v1.Deployment"),
    default: |deployment| {
        default_template(deployment);
        let Some(spec) = object_at(deployment, "spec") else { return };
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        set_default(spec, "progressDeadlineSeconds", 600);
        let Some(strategy) = spec.entry("strategy").or_insert_with(|| json!({})).as_object_mut() else { return };
        set_default(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = strategy.entry("rollingUpdate").or_insert_with(|| json!({})).as_object_mut()
        {
            set_default(rolling, "maxSurge", "25%");
            set_default(rolling, "maxUnavailable", "25%");
        }
    },
    validate: |deployment, old| {
        let mut errors = validate(deployment, old);
        errors.extend(rules::check(deployment, "", rules::DEPLOYMENT));
        errors
    },
    advise,
    columns: Columns::Printed(builtin::DEPLOYMENT),
    ..Strategy::BASE
};

pub static REPLICA_SET: Strategy = Strategy {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    status: Some(Status::Separate),
    scale: true,
    generation: true,
    shape: Shape::Builtin("io.k8s.api.apps.v1.ReplicaSet"),
    default: |set| {
        default_template(set);
        if let Some(spec) = object_at(set, "spec") {
            set_default(spec, "replicas", 1);
        }
    },
    create: |set| set["status"] = json!({"replicas": 0}),
    validate,
    advise,
    fields: &[Selectable::new("status.replicas", "/status/replicas").or("0")],
    columns: Columns::Printed(builtin::REPLICA_SET),
    ..Strategy::BASE
};

fn default_template(object: &mut Value) {
    let spec = object_at(object, "spec").map(|spec| spec.entry("template").or_insert_with(|| json!({})));
    if let Some(spec) = spec.and_then(|template| object_at(template, "spec")) {
        default_pod_spec(spec);
    }
}

fn advise(object: &Value, old: Option<&Value>) -> Vec<String> {
    let same = old.is_some_and(|old| old["spec"] == object["spec"]);
    if same { vec![] } else { advice::of_pod(&object["spec"]["template"], "spec.template") }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = rules::replica_set(object);
    errors.extend(old.and_then(|old| rules::unchanged_selector(object, old)));
    errors
}
