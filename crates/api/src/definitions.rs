//! The CustomResourceDefinitions that a cluster gets: the types' own schemas, made fit for a real API server.
//!
//! The surprise: nothing of ours stands in a cluster's admission, so what the embedded API server does there is said
//! here in the schema: defaults that Knative fills in, and rules as CEL. What neither can say becomes a condition.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Map, Value, json};

use crate::names::USER_CONTAINER;
use crate::{autoscaling, build, function, networking, rules, serving};

/// More targets than anybody has; the cost of a rule is bounded by it.
const MOST_TARGETS: u64 = 256;
const MOST_FILES: u64 = 256;
const MOST_VARIABLES: u64 = 256;
const QUANTITY: &str =
    r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+))?$";
/// The pod template's fields from here on are Kubernetes' own, and described there.
const POD_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

pub fn definitions() -> Vec<CustomResourceDefinition> {
    let derived = [
        function::Function::crd(),
        build::Build::crd(),
        serving::Service::crd(),
        serving::Configuration::crd(),
        serving::Revision::crd(),
        serving::Route::crd(),
        serving::domain::DomainMapping::crd(),
        serving::domain::ClusterDomainClaim::crd(),
        autoscaling::PodAutoscaler::crd(),
        networking::Ingress::crd(),
    ];
    derived.into_iter().map(fit).collect()
}

fn fit(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let kind = definition.spec.names.kind.clone();
    let mut value = serde_json::to_value(&definition).expect("an API object is JSON");
    for version in value["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        walk(schema, &mut no_null_in_enum);
        walk(schema, &mut amounts);
        match kind.as_str() {
            "Function" => function_rules(schema),
            "Service" => {
                template(&mut schema["properties"]["spec"]["properties"]["template"]);
                traffic(&mut schema["properties"]["spec"]["properties"]["traffic"]);
                // What `kubectl` and `kn` show and what Knative's own admission fills in.
                let everything = json!([{"latestRevision": true, "percent": 100}]);
                schema["properties"]["spec"]["properties"]["traffic"]["default"] = everything;
                named(schema);
            }
            "Configuration" => template(&mut schema["properties"]["spec"]["properties"]["template"]),
            "Revision" => {
                pod(&mut schema["properties"]["spec"]);
                let rule = json!([{"rule": "self == oldSelf", "message": "a Revision's spec never changes"}]);
                schema["properties"]["spec"]["x-kubernetes-validations"] = rule;
            }
            "Route" => traffic(&mut schema["properties"]["spec"]["properties"]["traffic"]),
            _ => {}
        }
    }
    serde_json::from_value(value).expect("a definition stays one")
}

fn walk(node: &mut Value, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    match node {
        Value::Object(object) => {
            visit(object);
            object.values_mut().for_each(|child| walk(child, visit));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

/// An optional enum is one that may be absent; `kubectl` refuses definitions that say it otherwise.
fn no_null_in_enum(node: &mut Map<String, Value>) {
    if let Some(Value::Array(values)) = node.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
}

fn template(schema: &mut Value) {
    // Generated manifests carry more here than anybody reads, such as a creationTimestamp of null.
    let text = json!({"type": "string"});
    let map = json!({"type": "object", "additionalProperties": text});
    schema["properties"]["metadata"] = json!({
        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"annotations": map, "labels": map, "name": text, "namespace": text},
    });
    pod(&mut schema["properties"]["spec"]);
}

fn pod(spec: &mut Value) {
    for (field, schema) in spec["properties"].as_object_mut().into_iter().flatten() {
        // The texts are most of its size, and `kubectl explain pod.spec` has them.
        let mut described = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        walk(schema, &mut |node| {
            if node.get("description").is_some_and(Value::is_string) {
                node.remove("description");
            }
        });
        if let Some(text) = described.take() {
            schema["description"] = text;
        }
        if POD_LISTS.contains(&field.as_str()) {
            unnamed(&mut schema["items"], field == "containers");
        }
    }
}

/// Knative names a container that has no name.
fn unnamed(container: &mut Value, serves: bool) {
    if let Some(required) = container["required"].as_array_mut() {
        required.retain(|field| field != "name");
    }
    if container["required"].as_array().is_some_and(Vec::is_empty) {
        container.as_object_mut().and_then(|container| container.remove("required"));
    }
    if serves {
        container["properties"]["name"]["default"] = json!(USER_CONTAINER);
    }
    // A probe without a port asks the one that the container serves on.
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        for how in ["httpGet", "tcpSocket", "grpc"] {
            let ask =
                container.get_mut("properties").and_then(|p| p.get_mut(probe)?.get_mut("properties")?.get_mut(how));
            ask.and_then(Value::as_object_mut).and_then(|ask| ask.shift_remove("required"));
        }
    }
}

fn traffic(schema: &mut Value) {
    schema["maxItems"] = json!(MOST_TARGETS);
    schema["x-kubernetes-validations"] = json!([{
        "rule": "self.size() == 0 || self.map(target, has(target.percent) ? target.percent : 0).sum() == 100",
        "message": "the percentages of traffic must sum to 100",
    }]);
    schema["items"]["x-kubernetes-validations"] = json!([{
        "rule": "!(has(self.revisionName) && has(self.latestRevision) && self.latestRevision)",
        "message": "expected one of revisionName and latestRevision, got both",
    }]);
}

/// Names become a part of host names.
fn named(schema: &mut Value) {
    schema["x-kubernetes-validations"] = json!([{
        "rule": "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "message": rules::DNS_LABEL,
    }]);
}

fn variables(env: &mut Value) {
    env["maxItems"] = json!(MOST_VARIABLES);
    env["items"]["x-kubernetes-validations"] = json!([{
        "rule": format!("!(self.name in {})", json!(rules::RESERVED)),
        "messageExpression": "'\"' + self.name + '\" is a reserved environment variable'",
    }]);
}

/// Amounts are texts or numbers; texts that are no amount would stop a Deployment, later.
fn amounts(node: &mut Map<String, Value>) {
    for of in ["limits", "requests"] {
        let values = node.get_mut(of).and_then(|amounts| amounts.get_mut("additionalProperties"));
        if let Some(Value::Object(values)) = values {
            values.insert("pattern".into(), json!(QUANTITY));
        }
    }
}

fn function_rules(schema: &mut Value) {
    named(schema);
    let spec = &mut schema["properties"]["spec"]["properties"];
    spec["source"]["x-kubernetes-validations"] = json!([{
        "rule": "has(self.blob) != has(self.inline)", "message": "expected exactly one of blob, inline",
    }]);
    let files = &mut spec["source"]["properties"]["inline"]["properties"]["files"];
    files["minProperties"] = json!(1);
    files["maxProperties"] = json!(MOST_FILES);
    files["x-kubernetes-validations"] = json!([{
        "rule": "self.all(path, !path.startsWith('/') && !path.split('/').exists(part, part in ['', '.', '..']))",
        "message": "each name must be a relative path inside the source, without '..'",
    }]);
    variables(&mut spec["env"]);
    spec["scale"]["x-kubernetes-validations"] = json!([{
        "rule": "!has(self.min) || !has(self.max) || self.max == 0 || self.min <= self.max",
        "message": "min is greater than max",
    }]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_fit_for_an_api_server() {
        let all = definitions();
        assert_eq!(all.len(), 10);
        for definition in all {
            let name = definition.metadata.name.clone().unwrap_or_default();
            let mut value = serde_json::to_value(&definition).unwrap();
            let size = value.to_string().len();
            // Beyond that `kubectl apply` cannot remember what it applied.
            assert!(size < 200_000, "{name} has {size} bytes");
            walk(&mut value, &mut |node| {
                let values = node.get("enum").and_then(Value::as_array);
                assert!(values.is_none_or(|values| !values.contains(&Value::Null)), "{name}");
            });
            let subresources = value["spec"]["versions"][0]["subresources"].clone();
            let is_claim = name.starts_with("clusterdomainclaims.");
            assert!(is_claim || subresources["status"].is_object(), "{name}");
        }
    }

    #[test]
    fn what_knative_lets_people_leave_out() {
        let service = serde_json::to_value(definitions().remove(2)).unwrap();
        let spec = &service["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        let container = &spec["template"]["properties"]["spec"]["properties"]["containers"]["items"];
        assert_eq!(container["properties"]["name"]["default"], USER_CONTAINER);
        assert!(container.get("required").is_none(), "{}", container["required"]);
        assert_eq!(spec["template"]["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"], true);
    }
}
