//! Rows of `apps/v1`.

use serde_json::{Value, json};

use super::workload::{default_pod_spec, validate_pod_spec, validate_replicas, validate_selector};
use super::{Selectable, Shape, Status, Strategy, object_at, set_default};
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
        errors.extend(validate_strategy(&deployment["spec"]["strategy"]));
        errors
    },
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
    fields: &[Selectable::new("status.replicas", "/status/replicas").or("0")],
    columns: Columns::Printed(builtin::REPLICA_SET),
    ..Strategy::BASE
};

fn default_template(object: &mut Value) {
    if let Some(spec) = object.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut) {
        default_pod_spec(spec);
    }
}

fn validate_strategy(strategy: &Value) -> Option<FieldError> {
    const FIELD: &str = "spec.strategy";
    match strategy["type"].as_str().unwrap_or_default() {
        "Recreate" if strategy.get("rollingUpdate").is_some() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            Some(FieldError::forbidden(format!("{FIELD}.rollingUpdate"), why))
        }
        "Recreate" | "RollingUpdate" => None,
        other => Some(FieldError::not_supported(FIELD, other, &["Recreate", "RollingUpdate"])),
    }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = validate_replicas(object);
    errors.extend(validate_selector(object, old));
    errors.extend(validate_pod_spec("spec.template.spec", &object["spec"]["template"]["spec"]));
    let policy = &object["spec"]["template"]["spec"]["restartPolicy"];
    if policy != "Always" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy.clone(), &["Always"]));
    }
    errors
}
