//! What Pods and everything with a pod template share: the defaults of a pod's spec.

use serde_json::{Map, Value, json};

use super::set_default;

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
        for (name, default) in [("path", "/"), ("scheme", "HTTP")] {
            if get.get(name).is_none_or(|given| given == "") {
                get.insert(name.to_owned(), default.into());
            }
        }
    }
}

fn default_volumes(spec: &mut Map<String, Value>) {
    const MODE: i32 = 0o644;
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        // One that says nothing of a source is an empty directory.
        if let Some(volume) = volume.as_object_mut().filter(|volume| volume.keys().all(|name| name == "name")) {
            volume.insert("emptyDir".into(), json!({}));
        }
        for source in ["configMap", "secret", "projected", "downwardAPI"] {
            if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
                set_default(source, "defaultMode", MODE);
            }
        }
    }
}
