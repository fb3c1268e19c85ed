//! What is taken, and is likely not what was meant: said as a warning, in Kubernetes' words.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::forms::qualified_faults;
use crate::quantity::Quantity;

/// Of one thing, more is not read.
const MOST_SAID: usize = 20;

/// Of a pod, whose path is empty, or of a template.
pub fn of_pod(pod: &Value, path: &str) -> Vec<String> {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let spec = &pod["spec"];
    let containers: Vec<(String, &Value)> = ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| super::find(spec, &below("spec"), &format!("{list}[]")))
        .map(|(container, at)| (at, container))
        .collect();
    let mut said: Vec<String> = containers.iter().flat_map(|(at, container)| of_container(container, at)).collect();
    said.extend(ports(&containers));
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        let at = below("spec.terminationGracePeriodSeconds");
        said.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    said
}

fn of_container(container: &Value, at: &str) -> Vec<String> {
    let mut said = vec![];
    for side in ["limits", "requests"] {
        for name in ["memory", "ephemeral-storage"] {
            let text = container["resources"][side][name].as_str();
            if let Some(quantity) = text.and_then(Quantity::parse).filter(|quantity| !quantity.is_whole()) {
                let (at, text) = (format!("{at}.resources.{side}[{name}]"), quantity.text());
                said.push(format!("{at}: fractional byte value {text:?} is invalid, must be an integer"));
            }
        }
    }
    let variables = container["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut before = HashSet::new();
    for (i, variable) in variables.iter().enumerate() {
        let name = variable["name"].as_str().unwrap_or_default();
        let (value, itself) = (variable["value"].as_str().unwrap_or_default(), format!("$({name})"));
        let keeps = variable["valueFrom"].is_null() && value != itself && value.contains(&itself);
        if !before.insert(name) && !keeps {
            let at = format!("{at}.env[{i}]");
            said.push(format!("{at}: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
    said
}

/// Ports of all containers together.
fn ports(containers: &[(String, &Value)]) -> Vec<String> {
    let all = containers.iter().flat_map(|(at, container)| super::find(container, at, "ports[]"));
    let (mut said, mut names) = (vec![], vec![]);
    let mut by_number: HashMap<_, Vec<(&Value, String)>> = HashMap::new();
    let mut by_name: HashMap<&Value, String> = HashMap::new();
    for (port, at) in all {
        let before = by_number.entry((&port["containerPort"], &port["protocol"])).or_default();
        for (other, there) in before.iter().take(MOST_SAID) {
            let same = |field: &str| other[field] == port[field];
            if same("hostIP") && same("hostPort") {
                said.push(format!("{at}: duplicate port definition with {there}"));
            } else if port["hostPort"].is_null() || other["hostPort"].is_null() {
                said.push(format!("{at}: overlapping port definition with {there}"));
            }
        }
        before.push((port, at.clone()));
        let name = &port["name"];
        if name.is_null() {
            continue;
        }
        match by_name.entry(name) {
            Entry::Vacant(free) => {
                free.insert(at);
            }
            Entry::Occupied(there) => {
                let (there, first) = (there.get(), "services and probes that select ports by name will use");
                names.push(format!("{at}: duplicate port name {name} with {there}, {first} {there}"));
            }
        }
    }
    said.extend(names);
    said
}

pub fn of_service(service: &Value) -> Vec<String> {
    let spec = &service["spec"];
    let headless = spec["type"] == "ClusterIP" && spec["clusterIP"] == "None";
    let external = spec["type"] == "ExternalName";
    let has = |name: &str| match &spec[name] {
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => false,
    };
    let addresses = has("externalIPs");
    [
        (headless && has("loadBalancerIP"), "spec.loadBalancerIP is ignored for headless services"),
        (headless && addresses, "spec.externalIPs is ignored for headless services"),
        (headless && spec["sessionAffinity"] != "None", "spec.SessionAffinity is ignored for headless services"),
        (
            addresses && !headless && !external,
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
        ),
        (external && addresses, "spec.externalIPs is ignored when spec.type is \"ExternalName\""),
        (!external && has("externalName"), "spec.externalName is ignored when spec.type is not \"ExternalName\""),
        (
            spec["trafficDistribution"] == "PreferClose",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        ),
    ]
    .into_iter()
    .filter(|(applies, _)| *applies)
    .map(|(_, said)| said.to_owned())
    .collect()
}

/// The finalizers that need no domain.
const STANDARD: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// Of a custom kind's object: the finalizers that it was given now.
pub fn of_finalizers(object: &Value, old: Option<&Value>) -> Vec<String> {
    let list = |object: &Value| -> Vec<String> {
        let list = object["metadata"]["finalizers"].as_array().into_iter().flatten();
        list.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let had: HashSet<String> = old.map(list).unwrap_or_default().into_iter().collect();
    let mut added: Vec<String> = list(object).into_iter().filter(|name| !had.contains(name)).collect();
    added.sort();
    added.dedup();
    let mut said = vec![];
    for name in added {
        let at = format!("metadata.finalizers: {name:?}");
        said.extend(qualified_faults(&name).into_iter().map(|why| format!("{at}: {why}")));
        if !name.contains('/') && !STANDARD.contains(&name.as_str()) {
            let how = if name.contains('.') { " including a path (/)" } else { "" };
            said.push(format!(
                "{at}: prefer a domain-qualified finalizer name{how} to avoid accidental conflicts with other finalizer \
                 writers"
            ));
        }
    }
    said
}

/// Of a definition: the formats that mean nothing here and did not before.
pub fn of_formats(definition: &Value, old: Option<&Value>) -> Vec<String> {
    let had: HashSet<String> = old.map(formats).unwrap_or_default().into_iter().collect();
    let new = formats(definition).into_iter().filter(|format| !had.contains(format));
    new.map(|format| format!("unrecognized format {format:?}")).collect()
}

fn formats(definition: &Value) -> Vec<String> {
    let mut found = vec![];
    for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
        collect_formats(&version["schema"]["openAPIV3Schema"], &mut found);
    }
    found
}

fn collect_formats(schema: &Value, found: &mut Vec<String>) {
    let form = schema["type"].as_str().unwrap_or_default();
    let format = schema["format"].as_str().filter(|format| !crate::schema::is_format(form, format));
    found.extend(format.map(str::to_owned));
    let members = schema["properties"].as_object().into_iter().flatten().map(|(_, member)| member);
    let branches =
        ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| schema[name].as_array().into_iter().flatten());
    let single = ["items", "additionalProperties", "not"].into_iter().filter_map(|name| schema.get(name));
    members.chain(branches).chain(single).for_each(|schema| collect_formats(schema, found));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn advice() {
        let pod = json!({"spec": {"terminationGracePeriodSeconds": -1, "containers": [
            {"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
             "env": [{"name": "A", "value": "x"}, {"name": "A", "value": "y"}, {"name": "A", "value": "$(A)z"}],
             "resources": {"limits": {"memory": "64m"}}}]}});
        assert_eq!(
            of_pod(&pod, "spec.template"),
            [
                "spec.template.spec.containers[0].resources.limits[memory]: fractional byte value \"64m\" is invalid, must be an integer",
                "spec.template.spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.template.spec.containers[0].ports[1]: duplicate port definition with spec.template.spec.containers[0].ports[0]",
                "spec.template.spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            ]
        );
        let service = json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "sessionAffinity": "ClientIP"}});
        assert_eq!(of_service(&service), ["spec.SessionAffinity is ignored for headless services"]);
        let object = json!({"metadata": {"finalizers": ["a.b/c", "plain"]}});
        assert_eq!(of_finalizers(&object, None).len(), 1);
        assert!(of_finalizers(&object, Some(&object)).is_empty());
    }
}
