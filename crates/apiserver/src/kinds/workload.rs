//! What Pods and everything with a pod template share: defaults and the rules of a pod's spec.

use serde_json::{Map, Value, json};

use super::set_default;
use crate::status::FieldError;

/// The defaults of a `PodSpec`, as Kubernetes applies them.
pub fn default_pod_spec(spec: &mut Map<String, Value>) {
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "securityContext", json!({}));
    set_default(spec, "schedulerName", "default-scheduler");
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                default_container(container);
            }
        }
    }
    default_volumes(spec);
}

fn default_container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    // A tag is after the last slash; a registry's port is before it.
    let name = image.rsplit('/').next().unwrap_or_default();
    let floating = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
    set_default(container, "imagePullPolicy", if floating { "Always" } else { "IfNotPresent" });
    set_default(container, "resources", json!({}));
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            set_default(port, "protocol", "TCP");
        }
    }
    for env in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(variable) = env.as_object_mut().filter(|variable| variable.get("value").is_some_and(|v| v == "")) {
            // An empty value is what a variable has without one.
            variable.shift_remove("value");
        }
        if let Some(field) = env.pointer_mut("/valueFrom/fieldRef").and_then(Value::as_object_mut) {
            set_default(field, "apiVersion", "v1");
        }
    }
    default_resources(container);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) {
            default_probe(probe);
        }
    }
}

/// A limit without a request is also the request.
fn default_resources(container: &mut Map<String, Value>) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if let Some(requests) = resources.entry("requests").or_insert_with(|| json!({})).as_object_mut() {
        for (name, limit) in limits {
            set_default(requests, &name, limit);
        }
    }
}

fn default_probe(probe: &mut Map<String, Value>) {
    for (key, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        set_default(probe, key, value);
    }
    if let Some(get) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
        set_default(get, "path", "/");
        set_default(get, "scheme", "HTTP");
    }
}

fn default_volumes(spec: &mut Map<String, Value>) {
    const MODE: i32 = 0o644;
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        for source in ["configMap", "secret", "projected", "downwardAPI"] {
            if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
                set_default(source, "defaultMode", MODE);
            }
        }
    }
}

/// The rules of a `PodSpec` that a schema cannot say.
pub fn validate_pod_spec(path: &str, spec: &Value) -> Vec<FieldError> {
    let mut errors = vec![];
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = std::collections::HashSet::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("{path}.{list}[{i}]");
            match container["name"].as_str() {
                None | Some("") => errors.push(FieldError::required(format!("{at}.name"), "")),
                Some(name) if !names.insert(name) => errors.push(FieldError {
                    field: format!("{at}.name"),
                    fault: crate::status::Fault::Duplicate(name.into()),
                }),
                Some(_) => {}
            }
            if container["image"].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::required(format!("{at}.image"), ""));
            }
        }
    }
    let policies = ["Always", "Never", "OnFailure"];
    if let Some(policy) = spec["restartPolicy"].as_str().filter(|policy| !policies.contains(policy)) {
        errors.push(FieldError::not_supported(format!("{path}.restartPolicy"), policy, &policies));
    }
    errors
}

/// A selector must select the template's own labels, or a controller would never see its pods.
pub fn validate_selector(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let selector = &object["spec"]["selector"];
    let is_empty = |value: &Value| value.as_object().is_none_or(Map::is_empty);
    if is_empty(&selector["matchLabels"]) && selector["matchExpressions"].as_array().is_none_or(Vec::is_empty) {
        return vec![FieldError::required("spec.selector", "")];
    }
    if let Some(old) = old
        && old["spec"]["selector"] != *selector
    {
        return vec![FieldError::invalid("spec.selector", selector.clone(), "field is immutable")];
    }
    let labels = &object["spec"]["template"]["metadata"]["labels"];
    let mut wanted = selector["matchLabels"].as_object().into_iter().flatten();
    if wanted.all(|(key, value)| labels[key.as_str()] == *value) {
        return vec![];
    }
    let detail = "`selector` does not match template `labels`";
    vec![FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail)]
}

pub fn validate_replicas(object: &Value) -> Vec<FieldError> {
    match object["spec"]["replicas"].as_i64() {
        Some(replicas) if replicas < 0 => {
            vec![FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0")]
        }
        _ => vec![],
    }
}
