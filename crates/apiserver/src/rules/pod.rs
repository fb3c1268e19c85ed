//! What a pod's specification must be, alone and in a template.

use std::collections::HashSet;

use serde_json::Value;

use super::Must::{AtLeast, Be, BeLabels, Differ, Hold, Keep, Look, OneOf};
use super::{Rule, container, not_found, volume};
use crate::forms::{label_faults, qualified_faults, subdomain_faults};
use crate::status::FieldError;

/// Of a `PodSpec`.
pub const SPEC: &[Rule] = &[
    ("volumes[]", Keep(volume::VOLUME)),
    ("volumes", Differ("name")),
    ("containers", Be),
    ("containers[]", Keep(container::COMMON)),
    ("containers[]", Keep(container::RUNNING)),
    ("containers", Differ("name")),
    ("initContainers[]", Keep(container::COMMON)),
    ("initContainers[]", Hold(container::initial)),
    ("", Hold(names)),
    ("", Hold(mounts)),
    ("restartPolicy", OneOf(&["Always", "OnFailure", "Never"])),
    ("dnsPolicy", OneOf(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"])),
    ("nodeSelector", BeLabels),
    ("serviceAccountName", Look(subdomain_faults)),
    ("nodeName", Look(subdomain_faults)),
    ("priorityClassName", Look(subdomain_faults)),
    ("runtimeClassName", Look(subdomain_faults)),
    ("hostname", Look(label_faults)),
    ("subdomain", Look(label_faults)),
    ("activeDeadlineSeconds", Hold(deadline)),
    ("imagePullSecrets[].name", Be),
    ("readinessGates[].conditionType", Look(qualified_faults)),
    ("tolerations[]", Hold(toleration)),
    ("tolerations[].effect", OneOf(&["NoSchedule", "PreferNoSchedule", "NoExecute"])),
    ("securityContext.runAsUser", AtLeast(0)),
    ("securityContext.runAsGroup", AtLeast(0)),
    ("securityContext.fsGroup", AtLeast(0)),
];

/// Of a `PodTemplateSpec`.
pub const TEMPLATE: &[Rule] =
    &[("metadata.labels", BeLabels), ("metadata.annotations", Hold(annotations)), ("spec", Keep(SPEC))];

fn annotations(annotations: &Value, at: &str) -> Vec<FieldError> {
    let keys = annotations.as_object().into_iter().flatten().map(|(key, _)| key);
    keys.flat_map(|key| {
        let faults = qualified_faults(&key.to_ascii_lowercase()).into_iter();
        faults.map(move |why| FieldError::invalid(at, key.as_str(), why))
    })
    .collect()
}

fn deadline(seconds: &Value, at: &str) -> Vec<FieldError> {
    let range = 1..=i64::from(i32::MAX);
    let odd = seconds.as_i64().filter(|seconds| !range.contains(seconds));
    let why = format!("must be between 1 and {}, inclusive", i32::MAX);
    odd.map(|odd| FieldError::invalid(at, odd, why)).into_iter().collect()
}

/// Init containers share the names of the others.
fn names(spec: &Value, at: &str) -> Vec<FieldError> {
    let list = |name: &str| spec[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut before: HashSet<&Value> = list("containers").iter().map(|container| &container["name"]).collect();
    let mut errors = vec![];
    let first = list("initContainers").iter().enumerate();
    for (i, container) in first.filter(|(_, c)| c["name"].as_str().is_some_and(|name| !name.is_empty())) {
        if !before.insert(&container["name"]) {
            errors.push(FieldError::duplicate(
                below(at, &format!("initContainers[{i}].name")),
                container["name"].clone(),
            ));
        }
    }
    errors
}

/// What is mounted must be there, and be sound.
fn mounts(spec: &Value, at: &str) -> Vec<FieldError> {
    let volumes = spec["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_sound = |volume: &Value| super::check(volume, "", volume::VOLUME).is_empty();
    let known: HashSet<&Value> =
        volumes.iter().filter(|volume| is_sound(volume)).map(|volume| &volume["name"]).collect();
    let mut errors = vec![];
    for list in ["containers", "initContainers"] {
        for (mount, at) in super::find(spec, at, &format!("{list}[].volumeMounts[]")) {
            if !known.contains(&mount["name"]) {
                errors.push(not_found(format!("{at}.name"), &mount["name"]));
            }
        }
    }
    errors
}

fn below(path: &str, member: &str) -> String {
    if path.is_empty() { member.to_owned() } else { format!("{path}.{member}") }
}

fn toleration(toleration: &Value, at: &str) -> Vec<FieldError> {
    let text = |name: &str| toleration[name].as_str().unwrap_or_default();
    let mut errors = vec![];
    if !text("key").is_empty() {
        let faults = qualified_faults(text("key")).into_iter();
        errors.extend(faults.map(|why| FieldError::invalid(format!("{at}.key"), text("key"), why)));
    } else if text("operator") != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(format!("{at}.operator"), text("operator"), why));
    }
    if !toleration["tolerationSeconds"].is_null() && text("effect") != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(format!("{at}.effect"), text("effect"), why));
    }
    let operator = format!("{at}.operator");
    match text("operator") {
        "" | "Equal" => {
            let faults = crate::forms::label_value_faults(text("value"));
            if !faults.is_empty() {
                errors.push(FieldError::invalid(operator, text("value"), faults.join(";")));
            }
        }
        "Exists" if !text("value").is_empty() => {
            let why = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(operator, text("value"), why));
        }
        "Exists" => {}
        other => errors.push(FieldError::not_supported(operator, other, &["Equal", "Exists"])),
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods() {
        let with = |extra: Value| {
            let mut container = json!({"name": "c", "image": "i"});
            container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"containers": [container]})
        };
        for (spec, want) in [
            (with(json!({})), vec![]),
            (json!({"containers": []}), vec!["spec.containers: Required value"]),
            (
                json!({"containers": [{}]}),
                vec!["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "initContainers": [{"name": "c", "image": "i"}]}),
                vec!["spec.initContainers[0].name: Duplicate value: \"c\""],
            ),
            (
                with(json!({"ports": [{"containerPort": 0}, {"containerPort": 70000, "name": "A"}]})),
                vec![
                    "spec.containers[0].ports[0].containerPort: Required value",
                    "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    "spec.containers[0].ports[1].name: Invalid value: \"A\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
                    "spec.containers[0].ports[1].name: Invalid value: \"A\": must contain at least one letter (a-z)",
                ],
            ),
            (
                with(json!({"env": [{"name": "A", "valueFrom": {}}]})),
                vec![
                    "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
                ],
            ),
            (
                with(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}]})),
                vec!["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
            ),
            (
                with(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1.5"}}})),
                vec![
                    "spec.containers[0].resources.requests: Invalid value: \"1500m\": must be less than or equal to cpu limit of 1",
                ],
            ),
            (
                with(json!({"readinessProbe": {}})),
                vec!["spec.containers[0].readinessProbe: Required value: must specify a handler type"],
            ),
        ] {
            let told: Vec<String> = super::super::check(&spec, "spec", SPEC).iter().map(ToString::to_string).collect();
            assert_eq!(told, want, "{spec}");
        }
    }
}
