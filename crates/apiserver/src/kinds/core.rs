//! Rows of `core/v1` (Pods and Events have files of their own), `discovery.k8s.io` and `coordination.k8s.io`.

use serde::Deserialize;
use serde_json::{Value, json};
use store::Durability;

use super::{Deletion, Selectable, Shape, Status, Strategy, object_at, set_default};
use crate::forms::key_faults;
use crate::rules;
use crate::status::{Fault, FieldError};
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
    fields: &[Selectable::new("status.phase", "/status/phase")],
    columns: Columns::Printed(builtin::NAMESPACE),
    ..Strategy::BASE
};

pub static CONFIG_MAP: Strategy = Strategy {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    shape: Shape::Builtin("io.k8s.api.core.v1.ConfigMap"),
    validate: |map, old| {
        let mut errors = validate_keys(map, &["data", "binaryData"]);
        let texts = map["data"].as_object();
        for key in map["binaryData"].as_object().into_iter().flatten().map(|(key, _)| key) {
            if texts.is_some_and(|texts| texts.contains_key(key)) {
                let why = "duplicate of key present in binaryData";
                errors.push(FieldError::invalid(format!("data[{key}]"), key.as_str(), why));
            }
        }
        errors.extend(immutable_data(map, old, &["data", "binaryData"]));
        errors.extend(operators_settings(map));
        errors
    },
    columns: Columns::Printed(builtin::CONFIG_MAP),
    ..Strategy::BASE
};

/// A setting that cannot be is refused, as Knative's admission does: by a default in its place nobody would be served.
fn operators_settings(map: &Value) -> Vec<FieldError> {
    let (meta, data) = (&map["metadata"], api::config::Data::deserialize(&map["data"]).unwrap_or_default());
    if meta["namespace"] != api::names::SYSTEM_NAMESPACE {
        return vec![];
    }
    let complaints = api::config::complaints(meta["name"].as_str().unwrap_or_default(), &data);
    complaints
        .into_iter()
        .map(|(key, why)| FieldError::invalid(format!("data[{key}]"), data[&key].as_str(), why))
        .collect()
}

pub static SECRET: Strategy = Strategy {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    shape: Shape::Builtin("io.k8s.api.core.v1.Secret"),
    default: default_secret,
    validate: |secret, old| {
        let mut errors = validate_keys(secret, &["data"]);
        errors.extend(validate_secret_type(secret));
        errors.extend(immutable_data(secret, old, &["data"]));
        if let Some(old) = old
            && old["type"] != secret["type"]
        {
            errors.push(FieldError::invalid("type", secret["type"].clone(), "field is immutable"));
        }
        errors
    },
    fields: &[Selectable::new("type", "/type")],
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
    fields: &[Selectable::new("spec.unschedulable", "/spec/unschedulable").or("false")],
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
        let mut errors = rules::check(slice, "", rules::ENDPOINT_SLICE);
        if old.is_some_and(|old| old["endpoints"] == slice["endpoints"]) {
            errors.retain(|error| !error.field.starts_with("endpoints"));
        }
        if old.is_some_and(|old| old["addressType"] != slice["addressType"]) {
            errors.push(FieldError::invalid("addressType", slice["addressType"].clone(), "field is immutable"));
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
    validate: |lease, _| {
        let number = |field: &str| lease["spec"][field].as_i64();
        let mut errors = vec![];
        if let Some(seconds) = number("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        if let Some(count) = number("leaseTransitions").filter(|count| *count < 0) {
            let why = "must be greater than or equal to 0";
            errors.push(FieldError::invalid("spec.leaseTransitions", count, why));
        }
        errors
    },
    columns: Columns::Printed(builtin::LEASE),
    ..Strategy::BASE
};

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

/// All values of one map together, as in Kubernetes.
const MOST_DATA: usize = 1 << 20;

/// The keys become file names.
fn validate_keys(object: &Value, fields: &[&str]) -> Vec<FieldError> {
    let mut errors = vec![];
    let mut size = 0;
    for field in fields {
        for (key, value) in object[*field].as_object().into_iter().flatten() {
            let faults = key_faults(key).into_iter();
            errors.extend(faults.map(|why| FieldError::invalid(format!("{field}[{key}]"), key.as_str(), why)));
            let text = value.as_str().unwrap_or_default();
            // Bytes are written in base64, four letters for three of them.
            size += if *field == "data" && object["kind"] == "ConfigMap" { text.len() } else { text.len() / 4 * 3 };
        }
    }
    if size > MOST_DATA {
        let fault = Fault::TooLong { most: MOST_DATA };
        errors.push(FieldError { field: if fields.len() > 1 { "[]".into() } else { fields[0].into() }, fault });
    }
    errors
}

/// What a secret of some types must hold.
fn validate_secret_type(secret: &Value) -> Vec<FieldError> {
    const REGISTRIES: [(&str, &str); 2] =
        [("kubernetes.io/dockerconfigjson", ".dockerconfigjson"), ("kubernetes.io/dockercfg", ".dockercfg")];
    let has = |key: &str| secret["data"].get(key).is_some();
    if let Some((_, key)) = REGISTRIES.iter().find(|(of, _)| secret["type"] == *of)
        && let Some(text) = secret["data"][*key].as_str()
    {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
        let object: Result<serde_json::Map<String, Value>, _> = serde_json::from_slice(&bytes);
        let why = object.err().map(|error| error.to_string());
        let at = format!("data[{key}]");
        return why.map(|why| FieldError::invalid(at, "<secret contents redacted>", why)).into_iter().collect();
    }
    let required = |key: &str| FieldError::required(format!("data[{key}]"), "");
    let wanted: &[&str] = match secret["type"].as_str() {
        Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
        Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
        Some("kubernetes.io/dockercfg") => &[".dockercfg"],
        Some("kubernetes.io/ssh-auth") => &["ssh-privatekey"],
        Some("kubernetes.io/basic-auth") if !has("username") && !has("password") => &["username", "password"],
        _ => &[],
    };
    wanted.iter().filter(|key| !has(key)).map(|key| required(key)).collect()
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
