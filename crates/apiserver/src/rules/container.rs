//! What a container must be.

use std::collections::HashSet;

use serde_json::Value;

use super::Must::{AtLeast, Be, Differ, Hold, Keep, Look, OneOf, Range};
use super::{Rule, given, resources};
use crate::forms::{key_faults, label_faults, port_name_faults, qualified_faults, subdomain_faults, variable_faults};
use crate::status::FieldError;

const PORTS: (i64, i64) = (1, 65535);

/// Of any container.
pub const COMMON: &[Rule] = &[
    ("name", Be),
    ("name", Look(label_faults)),
    ("image", Be),
    ("imagePullPolicy", OneOf(&["Always", "IfNotPresent", "Never"])),
    ("terminationMessagePolicy", OneOf(&["File", "FallbackToLogsOnError"])),
    ("ports[].containerPort", Be),
    ("ports[].containerPort", Range(PORTS.0, PORTS.1)),
    ("ports[].hostPort", Range(PORTS.0, PORTS.1)),
    ("ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
    ("ports[].name", Look(port_name_faults)),
    ("ports", Differ("name")),
    ("env[].name", Be),
    ("env[].name", Look(variable_faults)),
    ("env[]", Hold(variable)),
    ("env[].valueFrom", Keep(SOURCE)),
    ("envFrom[].prefix", Look(variable_faults)),
    ("envFrom[].configMapRef.name", Be),
    ("envFrom[].configMapRef.name", Look(subdomain_faults)),
    ("envFrom[].secretRef.name", Be),
    ("envFrom[].secretRef.name", Look(subdomain_faults)),
    ("envFrom", Hold(sources)),
    ("volumeMounts[].name", Be),
    ("volumeMounts[].mountPath", Be),
    ("volumeMounts", Hold(mounts)),
    ("resources", Hold(resources::check)),
    ("securityContext.runAsUser", AtLeast(0)),
    ("securityContext.runAsGroup", AtLeast(0)),
];

/// Of a container that keeps running.
pub const RUNNING: &[Rule] = &[
    ("livenessProbe", Keep(PROBE)),
    ("livenessProbe.successThreshold", Hold(one)),
    ("readinessProbe", Keep(PROBE)),
    ("startupProbe", Keep(PROBE)),
    ("startupProbe.successThreshold", Hold(one)),
    ("lifecycle.postStart", Hold(handler)),
    ("lifecycle.postStart", Keep(HANDLER)),
    ("lifecycle.preStop", Hold(handler)),
    ("lifecycle.preStop", Keep(HANDLER)),
];

const PROBE: &[Rule] = &[
    ("", Hold(handler)),
    ("", Keep(HANDLER)),
    ("initialDelaySeconds", AtLeast(0)),
    ("timeoutSeconds", AtLeast(0)),
    ("periodSeconds", AtLeast(0)),
    ("successThreshold", AtLeast(0)),
    ("failureThreshold", AtLeast(0)),
];

const HANDLER: &[Rule] = &[
    ("exec.command", Be),
    ("httpGet.path", Be),
    ("httpGet.port", Hold(port)),
    ("httpGet.scheme", OneOf(&["HTTP", "HTTPS"])),
    ("tcpSocket.port", Hold(port)),
    ("grpc.port", Hold(port)),
];

/// Where a variable's value comes from.
const SOURCE: &[Rule] = &[
    ("fieldRef.fieldPath", Be),
    ("fieldRef.fieldPath", Hold(field_path)),
    ("resourceFieldRef.resource", Be),
    ("resourceFieldRef.resource", OneOf(RESOURCE_FIELDS)),
    ("configMapKeyRef.name", Be),
    ("configMapKeyRef.key", Be),
    ("configMapKeyRef.key", Look(key_faults)),
    ("secretKeyRef.name", Be),
    ("secretKeyRef.key", Be),
    ("secretKeyRef.key", Look(key_faults)),
];

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Fields of a pod that a variable can have the value of, beside labels and annotations.
const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// An init container ends before the others begin, unless it is always restarted.
pub fn initial(container: &Value, at: &str) -> Vec<FieldError> {
    if container["restartPolicy"] == "Always" {
        return super::check(container, at, RUNNING);
    }
    let members = given(container, &["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"]);
    let why = "may not be set for init containers without restartPolicy=Always";
    members.into_iter().map(|member| FieldError::forbidden(format!("{at}.{member}"), why)).collect()
}

fn variable(variable: &Value, at: &str) -> Vec<FieldError> {
    let source = &variable["valueFrom"];
    if source.is_null() {
        return vec![];
    }
    let sources = given(source, &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]);
    let why = match sources.len() {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        _ if variable["value"].as_str().is_some_and(|value| !value.is_empty()) => {
            "may not be specified when `value` is not empty"
        }
        1 => return vec![],
        _ => "may not have more than one field specified at a time",
    };
    vec![FieldError::invalid(format!("{at}.valueFrom"), "", why)]
}

/// The fault of one is told of the list, as Kubernetes does.
fn sources(list: &Value, at: &str) -> Vec<FieldError> {
    let numbers =
        list.as_array().into_iter().flatten().map(|source| given(source, &["configMapRef", "secretRef"]).len());
    numbers
        .filter_map(|number| match number {
            0 => Some("must specify one of: `configMapRef` or `secretRef`"),
            1 => None,
            _ => Some("may not have more than one field specified at a time"),
        })
        .map(|why| FieldError::invalid(at, "", why))
        .collect()
}

fn mounts(mounts: &Value, at: &str) -> Vec<FieldError> {
    let mut seen = HashSet::new();
    let paths = mounts.as_array().into_iter().flatten().map(|mount| &mount["mountPath"]).enumerate();
    let twice = paths.filter(|(_, path)| !seen.insert(*path));
    twice.map(|(i, path)| FieldError::invalid(format!("{at}[{i}].mountPath"), path.clone(), "must be unique")).collect()
}

fn field_path(path: &Value, at: &str) -> Vec<FieldError> {
    let Some(text) = path.as_str().filter(|text| !text.is_empty()) else { return vec![] };
    let parent = at.trim_end_matches(".fieldPath");
    if let Some((field, key)) = text.strip_suffix("']").and_then(|text| text.split_once("['")) {
        let faults = match field {
            "metadata.annotations" => qualified_faults(&key.to_ascii_lowercase()),
            "metadata.labels" => qualified_faults(key),
            _ => return vec![FieldError::invalid(parent, field, "does not support subscript")],
        };
        return faults.into_iter().map(|why| FieldError::invalid(parent, key, why)).collect();
    }
    // Two more can be converted, and are supported elsewhere.
    let known = FIELDS.contains(&text);
    match text {
        _ if known => vec![],
        "metadata.annotations" | "metadata.labels" | "spec.restartPolicy" | "spec.schedulerName" | "status.phase" => {
            vec![FieldError::not_supported(at, text, &FIELDS)]
        }
        _ => {
            let why = format!("error converting fieldPath: field label not supported: {text}");
            vec![FieldError::invalid(at, text, why)]
        }
    }
}

fn one(threshold: &Value, at: &str) -> Vec<FieldError> {
    let odd = threshold.as_i64().filter(|threshold| *threshold != 1);
    odd.map(|odd| FieldError::invalid(at, odd, "must be 1")).into_iter().collect()
}

fn handler(holder: &Value, at: &str) -> Vec<FieldError> {
    let handlers = given(holder, &["exec", "httpGet", "tcpSocket", "grpc", "sleep"]);
    if handlers.is_empty() {
        return vec![FieldError::required(at, "must specify a handler type")];
    }
    let more = handlers.iter().skip(1);
    more.map(|name| FieldError::forbidden(format!("{at}.{name}"), "may not specify more than 1 handler type")).collect()
}

/// A number, or the name of a port of the container.
fn port(port: &Value, at: &str) -> Vec<FieldError> {
    match port {
        Value::String(name) => {
            port_name_faults(name).into_iter().map(|why| FieldError::invalid(at, name.as_str(), why)).collect()
        }
        Value::Number(number) if !number.as_i64().is_some_and(|n| (PORTS.0..=PORTS.1).contains(&n)) => {
            vec![FieldError::invalid(at, port.clone(), "must be between 1 and 65535, inclusive")]
        }
        _ => vec![],
    }
}
