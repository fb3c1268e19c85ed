//! Rows of `core/v1` (Pods and Events have files of their own), `discovery.k8s.io` and `coordination.k8s.io`.

use serde_json::{Value, json};
use store::Durability;

use super::{Deletion, Shape, Status, Strategy, object_at, set_default};
use crate::status::FieldError;
use crate::table::{Columns, builtin};

pub static NAMESPACE: Strategy = Strategy {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    status: Some(Status::Separate),
    deletion: Deletion::Namespace,
    shape: Shape::Builtin("io.k8s.api.core.v1.Namespace"),
    default: |namespace| {
        let name = namespace["metadata"]["name"].clone();
        if let Some(metadata) = object_at(namespace, "metadata")
            && let Some(labels) = metadata.entry("labels").or_insert_with(|| json!({})).as_object_mut()
        {
            labels.insert("kubernetes.io/metadata.name".into(), name);
        }
    },
    create: |namespace| {
        namespace["spec"] = json!({"finalizers": ["kubernetes"]});
        namespace["status"] = json!({"phase": "Active"});
    },
    fields: &[("status.phase", "/status/phase")],
    columns: Columns::Printed(builtin::NAMESPACE),
    ..Strategy::BASE
};

pub static SERVICE: Strategy = Strategy {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    status: Some(Status::Separate),
    shape: Shape::Builtin("io.k8s.api.core.v1.Service"),
    default: default_service,
    create: |service| service["status"] = json!({"loadBalancer": {}}),
    validate: validate_service,
    fields: &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
    columns: Columns::Printed(builtin::SERVICE),
    ..Strategy::BASE
};

pub static CONFIG_MAP: Strategy = Strategy {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    shape: Shape::Builtin("io.k8s.api.core.v1.ConfigMap"),
    validate: |map, old| immutable_data(map, old, &["data", "binaryData"]),
    columns: Columns::Printed(builtin::CONFIG_MAP),
    ..Strategy::BASE
};

pub static SECRET: Strategy = Strategy {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    shape: Shape::Builtin("io.k8s.api.core.v1.Secret"),
    default: default_secret,
    validate: |secret, old| {
        let mut errors = immutable_data(secret, old, &["data"]);
        if let Some(old) = old
            && old["type"] != secret["type"]
        {
            errors.push(FieldError::invalid("type", secret["type"].clone(), "field is immutable"));
        }
        errors
    },
    fields: &[("type", "/type")],
    columns: Columns::Printed(builtin::SECRET),
    ..Strategy::BASE
};

pub static SERVICE_ACCOUNT: Strategy = Strategy {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    shape: Shape::Builtin("io.k8s.api.core.v1.ServiceAccount"),
    columns: Columns::Printed(builtin::SERVICE_ACCOUNT),
    ..Strategy::BASE
};

pub static NODE: Strategy = Strategy {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    status: Some(Status::WithMetadata),
    shape: Shape::Builtin("io.k8s.api.core.v1.Node"),
    fields: &[("spec.unschedulable", "/spec/unschedulable")],
    columns: Columns::Printed(builtin::NODE),
    ..Strategy::BASE
};

pub static ENDPOINT_SLICE: Strategy = Strategy {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    generation: true,
    shape: Shape::Builtin("io.k8s.api.discovery.v1.EndpointSlice"),
    durability: |_| Durability::Ephemeral,
    default: |slice| {
        for port in slice["ports"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            set_default(port, "name", "");
            set_default(port, "protocol", "TCP");
        }
    },
    validate: |slice, old| {
        let kinds = ["FQDN", "IPv4", "IPv6"];
        let mut errors = vec![];
        match slice["addressType"].as_str() {
            None | Some("") => errors.push(FieldError::required("addressType", "")),
            Some(kind) if !kinds.contains(&kind) => {
                errors.push(FieldError::not_supported("addressType", kind, &kinds));
            }
            Some(kind) if old.is_some_and(|old| old["addressType"] != kind) => {
                errors.push(FieldError::invalid("addressType", kind, "field is immutable"));
            }
            Some(_) => {}
        }
        errors
    },
    columns: Columns::Printed(builtin::ENDPOINT_SLICE),
    ..Strategy::BASE
};

pub static LEASE: Strategy = Strategy {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    shape: Shape::Builtin("io.k8s.api.coordination.v1.Lease"),
    durability: |lease| {
        if lease["metadata"]["namespace"] == api::names::NODE_LEASE_NAMESPACE {
            Durability::Ephemeral
        } else {
            Durability::Durable
        }
    },
    columns: Columns::Printed(builtin::LEASE),
    ..Strategy::BASE
};

fn default_service(service: &mut Value) {
    let Some(spec) = object_at(service, "spec") else { return };
    set_default(spec, "type", "ClusterIP");
    set_default(spec, "sessionAffinity", "None");
    if spec["type"] != "ExternalName" {
        // Nothing assigns cluster addresses without a cluster's network: every Service is headless.
        set_default(spec, "clusterIP", "None");
        let address = spec["clusterIP"].clone();
        set_default(spec, "clusterIPs", json!([address]));
        set_default(spec, "ipFamilies", json!(["IPv4"]));
        set_default(spec, "ipFamilyPolicy", "SingleStack");
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        set_default(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            set_default(port, "targetPort", number);
        }
    }
}

fn validate_service(service: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let spec = &service["spec"];
    let mut errors = vec![];
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if let Some(kind) = spec["type"].as_str().filter(|kind| !kinds.contains(kind)) {
        errors.push(FieldError::not_supported("spec.type", kind, &kinds));
    }
    if spec["type"] == "ExternalName" && spec["externalName"].as_str().is_none_or(str::is_empty) {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (i, port) in ports.iter().enumerate() {
        let number = &port["port"];
        if !number.as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(format!("spec.ports[{i}].port"), number.clone(), detail));
        }
        if ports.len() > 1 && port["name"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required(format!("spec.ports[{i}].name"), ""));
        }
    }
    errors
}

/// `stringData` is a convenience of writing: it is stored as `data`.
fn default_secret(secret: &mut Value) {
    use base64::Engine;
    let Some(object) = secret.as_object_mut() else { return };
    set_default(object, "type", "Opaque");
    let Some(Value::Object(strings)) = object.shift_remove("stringData") else { return };
    let Some(data) = object_at(secret, "data") else { return };
    for (key, value) in strings {
        let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
        data.insert(key, encoded.into());
    }
}

fn immutable_data(new: &Value, old: Option<&Value>, fields: &[&str]) -> Vec<FieldError> {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return vec![] };
    let mut errors = vec![];
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields.iter().filter(|field| old[**field] != new[**field]) {
        errors.push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
    }
    errors
}
