//! The row of Pods.

use serde_json::{Value, json};
use store::Durability;

use super::workload::default_pod_spec;
use super::{Deletion, Selectable, Shape, Status, Strategy, object_at, set_default};
use crate::rules::{self, advice};
use crate::status::FieldError;
use crate::table::{Columns, builtin};

pub static POD: Strategy = Strategy {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    status: Some(Status::WithMetadata),
    runs: true,
    generation: true,
    deletion: Deletion::Graceful,
    shape: Shape::Builtin("io.k8s.api.core.v1.Pod"),
    durability: |pod| {
        let mut owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        // Its ReplicaSet makes it again after a restart; a bare Pod or a Job's is somebody's own.
        if owners.any(|owner| owner["controller"] == true && owner["kind"] == "ReplicaSet") {
            Durability::Ephemeral
        } else {
            Durability::Durable
        }
    },
    default: |pod| {
        if let Some(spec) = object_at(pod, "spec") {
            default_pod_spec(spec);
            set_default(spec, "enableServiceLinks", true);
        }
    },
    create: |pod| {
        let class = quality_of_service(&pod["spec"]);
        pod["status"] = json!({"phase": "Pending", "qosClass": class});
    },
    validate,
    // Pods are changed by controllers, which read no warnings.
    advise: |pod, old| if old.is_none() { advice::of_pod(pod, "") } else { vec![] },
    fields: &[
        Selectable::new("spec.nodeName", "/spec/nodeName"),
        Selectable::new("spec.restartPolicy", "/spec/restartPolicy"),
        Selectable::new("spec.schedulerName", "/spec/schedulerName"),
        Selectable::new("spec.serviceAccountName", "/spec/serviceAccountName"),
        Selectable::new("spec.hostNetwork", "/spec/hostNetwork").or("false"),
        Selectable::new("status.phase", "/status/phase"),
        Selectable::new("status.podIP", "/status/podIP"),
        Selectable::new("status.nominatedNodeName", "/status/nominatedNodeName"),
    ],
    columns: Columns::Printed(builtin::POD),
    ..Strategy::BASE
};

fn quality_of_service(spec: &Value) -> &'static str {
    let of = |list: &str| spec[list].as_array().into_iter().flatten();
    let containers = || of("initContainers").chain(of("containers"));
    let resources = |container: &Value, side: &str, name: &str| container["resources"][side][name].clone();
    if containers().all(|c| c["resources"].as_object().is_none_or(|r| r.is_empty())) {
        return "BestEffort";
    }
    let fixed = |container: &Value, name: &str| {
        let limit = resources(container, "limits", name);
        !limit.is_null() && limit == resources(container, "requests", name)
    };
    if containers().all(|c| fixed(c, "cpu") && fixed(c, "memory")) { "Guaranteed" } else { "Burstable" }
}

fn validate(pod: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = rules::check(&pod["spec"], "spec", rules::SPEC);
    let Some(old) = old else {
        errors.extend(padded_images(&pod["spec"]));
        return errors;
    };
    // What may change in a running pod: images, tolerations, a deadline, and the node when it has none yet.
    let comparable = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
                spec.shift_remove(field);
            }
            if old["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
                spec.shift_remove("nodeName");
            }
        }
        for list in ["initContainers", "containers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                container["image"] = Value::Null;
            }
        }
        spec
    };
    if comparable(pod) == comparable(old) {
        return errors;
    }
    let detail = "pod updates may not change fields other than `spec.containers[*].image`,\
                  `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                  existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                  previously negative)";
    errors.push(FieldError::forbidden("spec", detail));
    errors
}

/// A template may have spaces about an image's name, which something fills in; a pod may not.
fn padded_images(spec: &Value) -> Vec<FieldError> {
    let mut errors = vec![];
    for list in ["initContainers", "containers"] {
        for (i, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let image = container["image"].as_str().unwrap_or_default();
            if image.trim() != image {
                let why = "must not have leading or trailing whitespace";
                errors.push(FieldError::invalid(format!("spec.{list}[{i}].image"), image, why));
            }
        }
    }
    errors
}
