//! What a service is without Dhow: a Deployment, a Service and what exposes it, as plain Kubernetes objects. Pure.
//!
//! Knows what the controllers make of a Revision and a Route, by its shape on the wire; must not know how it is read.

use serde_json::{Map, Value, json};

/// What is exported under one name.
pub struct Found {
    pub name: String,
    /// Of the Revision that is ready.
    pub deployment: Value,
    /// The Ingresses, HTTPRoutes and VirtualServices that lead to the gateway.
    pub exposures: Vec<Value>,
}

/// Whose labels and annotations mean something to Dhow alone.
const OURS: [&str; 2] = ["dhow.dev", "knative.dev"];
/// What a server or a client notes down for itself.
const NOTES: [&str; 3] = [
    "deployment.kubernetes.io/revision",
    "kubectl.kubernetes.io/last-applied-configuration",
    "controller.kubernetes.io/pod-deletion-cost",
];
const SELECTED: &str = "app.kubernetes.io/name";
const REVISION: &str = "serving.knative.dev/revision";
const MIN_SCALE: &str = "autoscaling.knative.dev/min-scale";
const PORT: i32 = 80;

/// The objects, in the order in which they can be applied.
pub fn objects(found: Found) -> Vec<Value> {
    let Found { name, deployment, exposures } = found;
    let service = service(&name, &deployment);
    let mut all = vec![self::deployment(&name, deployment), service];
    all.extend(exposures.into_iter().map(|exposure| self::exposure(&name, exposure)));
    all
}

/// An object as somebody could have written it.
pub fn clean(mut object: Value) -> Value {
    let Some(fields) = object.as_object_mut() else { return object };
    fields.remove("status");
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| ["name", "labels", "annotations"].contains(&key.as_str()));
    }
    object
}

fn deployment(name: &str, object: Value) -> Value {
    let least = object.pointer("/metadata/annotations").and_then(|a| a.get(MIN_SCALE)).and_then(Value::as_str);
    let replicas = least.and_then(|text| text.parse::<i32>().ok()).unwrap_or(0).max(1);
    let mut made = renamed(name, object);
    let spec = &mut made["spec"];
    spec["replicas"] = json!(replicas);
    spec["selector"] = json!({"matchLabels": {SELECTED: name}});
    let template = &mut spec["template"];
    let metadata = template["metadata"].take();
    template["metadata"] = own(name, metadata);
    if let Some(pod) = template["spec"].as_object_mut() {
        // Only Dhow's node knows its classes.
        let class = pod.get("runtimeClassName").and_then(Value::as_str).unwrap_or_default();
        if class.starts_with("dhow-") {
            pod.remove("runtimeClassName");
        }
    }
    made
}

/// With a clean name, and neither labels nor annotations of ours.
fn renamed(name: &str, object: Value) -> Value {
    let mut made = clean(object);
    made["metadata"] = own(name, made["metadata"].take());
    made["metadata"]["name"] = json!(name);
    made
}

fn own(name: &str, metadata: Value) -> Value {
    let kept = |field: &str| -> Map<String, Value> {
        let of = metadata[field].as_object().cloned().unwrap_or_default();
        of.into_iter().filter(|(key, _)| is_theirs(key)).collect()
    };
    let mut labels = kept("labels");
    // Put there where nobody else had.
    if labels.get("app") == metadata["labels"].get(REVISION) {
        labels.remove("app");
    }
    labels.insert(SELECTED.into(), json!(name));
    let annotations = kept("annotations");
    let mut made = json!({"labels": labels});
    if !annotations.is_empty() {
        made["annotations"] = json!(annotations);
    }
    made
}

fn is_theirs(key: &str) -> bool {
    let group = key.split_once('/').map_or("", |(group, _)| group);
    let is_ours = OURS.iter().any(|ours| group == *ours || group.ends_with(&format!(".{ours}")));
    !is_ours && !NOTES.contains(&key) && key != "pod-template-hash"
}

/// In place of the one that leads to the gateway.
fn service(name: &str, deployment: &Value) -> Value {
    let containers = deployment.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let port = containers.into_iter().flatten().find_map(|container| container["ports"].get(0));
    let number = port.map_or(json!(8080), |port| port["containerPort"].clone());
    let h2c = port.is_some_and(|port| port["name"] == "h2c");
    let mut port = json!({"name": if h2c { "h2c" } else { "http" }, "port": PORT, "targetPort": number});
    if h2c {
        port["appProtocol"] = json!("kubernetes.io/h2c");
    }
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {SELECTED: name}},
        "spec": {"selector": {SELECTED: name}, "ports": [port]},
    })
}

/// The same hosts, led to the Service instead of the gateway.
fn exposure(name: &str, object: Value) -> Value {
    let number =
        object["metadata"]["name"].as_str().and_then(|n| n.rsplit_once("-outside-")).map(|(_, n)| n.to_owned());
    let own_name = number.map_or_else(|| name.to_owned(), |number| format!("{name}-{number}"));
    let mut made = renamed(name, object);
    made["metadata"]["name"] = json!(own_name);
    let each = |value: &mut Value, key: &str, change: &dyn Fn(&mut Value)| {
        value[key].as_array_mut().into_iter().flatten().for_each(change);
    };
    match made["kind"].as_str() {
        Some("Ingress") => each(&mut made["spec"], "rules", &|rule| {
            each(&mut rule["http"], "paths", &|path| path["backend"]["service"]["name"] = json!(name));
        }),
        Some("HTTPRoute") => each(&mut made["spec"], "rules", &|rule| {
            each(rule, "backendRefs", &|to| to["name"] = json!(name));
        }),
        Some("VirtualService") => each(&mut made["spec"], "http", &|http| {
            each(http, "route", &|route| route["destination"]["host"] = json!(name));
        }),
        _ => {}
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "hello-00002-deployment", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{}],
                "ownerReferences": [{"kind": "Revision"}],
                "labels": {REVISION: "hello-00002", "app": "hello-00002", "team": "a"},
                "annotations": {MIN_SCALE: "2", "deployment.kubernetes.io/revision": "1", "note": "{{ x }}"}},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"serving.knative.dev/revisionUID": "u"}},
                "template": {
                    "metadata": {"labels": {"serving.knative.dev/revisionUID": "u", "team": "a"}, "annotations": {"dhow.dev/x": "y"}},
                    "spec": {"runtimeClassName": "dhow-process", "containers": [
                        {"name": "side"}, {"name": "user-container", "image": "i", "ports": [{"name": "h2c", "containerPort": 9000}]}]}}},
            "status": {"replicas": 0},
        })
    }

    fn exported(exposures: Vec<Value>) -> Vec<Value> {
        objects(Found { name: "hello".into(), deployment: generated(), exposures })
    }

    #[test]
    fn a_deployment_and_its_service_belong_together() {
        let all = exported(vec![]);
        let want = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "hello", "labels": {"team": "a", SELECTED: "hello"}, "annotations": {"note": "{{ x }}"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {SELECTED: "hello"}},
                "template": {"metadata": {"labels": {"team": "a", SELECTED: "hello"}},
                    "spec": {"containers": [
                        {"name": "side"}, {"name": "user-container", "image": "i", "ports": [{"name": "h2c", "containerPort": 9000}]}]}}},
        });
        assert_eq!(all[0], want);
        assert_eq!(all[1]["spec"]["selector"], json!({SELECTED: "hello"}));
        let port = json!({"name": "h2c", "port": 80, "targetPort": 9000, "appProtocol": "kubernetes.io/h2c"});
        assert_eq!(all[1]["spec"]["ports"], json!([port]));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn what_led_to_the_gateway_leads_to_the_service() {
        let meta = |name: &str| json!({"name": name, "namespace": "shop", "uid": "u", "labels": {"dhow.dev/exposes": "hello"}});
        let to = |name: &str| json!({"service": {"name": name, "port": {"number": 80}}});
        let ingress = |meta, name| {
            json!({"kind": "Ingress", "metadata": meta, "spec": {"rules": [
            {"host": "hello.shop.example.com", "http": {"paths": [{"path": "/", "backend": to(name)}]}}]}})
        };
        let route = |meta, name| {
            json!({"kind": "HTTPRoute", "metadata": meta, "spec": {"hostnames": ["a"],
            "rules": [{"backendRefs": [{"name": name, "port": 80}]}]}})
        };
        let istio = |meta, host| {
            json!({"kind": "VirtualService", "metadata": meta, "spec": {"hosts": ["a"],
            "http": [{"route": [{"destination": {"host": host, "port": {"number": 80}}}]}]}})
        };
        let gateway = "dhow-gateway.dhow-system.svc.cluster.local";
        let all = exported(vec![
            ingress(meta("hello-outside"), "route"),
            route(meta("hello-outside-1"), "route"),
            istio(meta("hello-outside"), gateway),
        ]);
        let clean = |name: &str| json!({"name": name, "labels": {SELECTED: "hello"}});
        assert_eq!(all[2], ingress(clean("hello"), "hello"));
        assert_eq!(all[3], route(clean("hello-1"), "hello"));
        assert_eq!(all[4], istio(clean("hello"), "hello"));
    }
}
