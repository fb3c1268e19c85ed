//! Rows of the kinds that come with CustomResourceDefinitions: ours and Knative's.

use api::serving::rules::{self, Complaint};
use api::serving::{self, RevisionSpec, domain};
use kube::CustomResourceExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Shape, Status, Strategy, authors, object_at, set_default};
use crate::status::{Fault, FieldError};
use crate::table::Columns;

pub static FUNCTION: Strategy = Strategy {
    group: "dhow.dev",
    version: "v1alpha1",
    kind: "Function",
    plural: "functions",
    singular: "function",
    short_names: &["fn"],
    categories: &["all"],
    shape: Shape::Custom(api::function::Function::crd),
    validate: |function, old| {
        let rules = checked(&function["spec"], |spec: api::function::FunctionSpec| spec.validate());
        named(function, old).into_iter().chain(rules).collect()
    },
    ..CUSTOM
};

pub static BUILD: Strategy = Strategy {
    group: "dhow.dev",
    version: "v1alpha1",
    kind: "Build",
    plural: "builds",
    singular: "build",
    shape: Shape::Custom(api::build::Build::crd),
    ..CUSTOM
};

pub static SERVICE: Strategy = Strategy {
    group: "serving.knative.dev",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["kservice", "ksvc"],
    categories: KNATIVE,
    shape: Shape::Custom(api::serving::Service::crd),
    sign: authors::sign,
    default: |service| {
        default_revision(service.pointer_mut("/spec/template/spec"));
        default_traffic(service);
    },
    validate: |service, old| {
        let said = said(service, old, |service: serving::Service, old| {
            rules::service(&service.metadata, &service.spec, old.as_ref().map(|old| &old.spec))
        });
        named(service, old).into_iter().chain(authors::changed_creator(service, old)).chain(said).collect()
    },
    ..CUSTOM
};

pub static CONFIGURATION: Strategy = Strategy {
    group: "serving.knative.dev",
    kind: "Configuration",
    plural: "configurations",
    singular: "configuration",
    short_names: &["config", "cfg"],
    categories: KNATIVE,
    shape: Shape::Custom(api::serving::Configuration::crd),
    sign: authors::sign,
    default: |configuration| default_revision(configuration.pointer_mut("/spec/template/spec")),
    validate: |configuration, old| {
        let said = said(configuration, old, |configuration: serving::Configuration, old| {
            rules::configuration(&configuration.metadata, &configuration.spec, old.as_ref().map(|old| &old.spec))
        });
        authors::changed_creator(configuration, old).into_iter().chain(said).collect()
    },
    ..CUSTOM
};

pub static REVISION: Strategy = Strategy {
    group: "serving.knative.dev",
    kind: "Revision",
    plural: "revisions",
    singular: "revision",
    short_names: &["rev"],
    categories: KNATIVE,
    shape: Shape::Custom(api::serving::Revision::crd),
    default: |revision| default_revision(revision.get_mut("spec")),
    validate: |revision, old| match old {
        Some(old) if old["spec"] != revision["spec"] => {
            vec![FieldError::invalid("spec", revision["spec"].clone(), "Immutable fields changed (-old +new)")]
        }
        Some(_) => vec![],
        None => {
            said(revision, None, |revision: serving::Revision, _| rules::revision(&revision.metadata, &revision.spec))
        }
    },
    ..CUSTOM
};

pub static ROUTE: Strategy = Strategy {
    group: "serving.knative.dev",
    kind: "Route",
    plural: "routes",
    singular: "route",
    short_names: &["rt"],
    categories: KNATIVE,
    shape: Shape::Custom(api::serving::Route::crd),
    sign: authors::sign,
    validate: |route, old| {
        let said = said(route, old, |route: serving::Route, _| rules::route(&route.metadata, &route.spec));
        authors::changed_creator(route, old).into_iter().chain(said).collect()
    },
    ..CUSTOM
};

pub static DOMAIN_MAPPING: Strategy = Strategy {
    group: "serving.knative.dev",
    version: "v1beta1",
    kind: "DomainMapping",
    plural: "domainmappings",
    singular: "domainmapping",
    short_names: &["dm"],
    categories: KNATIVE,
    shape: Shape::Custom(domain::DomainMapping::crd),
    sign: authors::sign,
    default: |mapping| {
        let namespace = mapping["metadata"]["namespace"].clone();
        if let Some(reference) = mapping.pointer_mut("/spec/ref").and_then(Value::as_object_mut) {
            set_default(reference, "namespace", namespace);
        }
    },
    validate: |mapping, old| {
        let said = said(mapping, old, |m: domain::DomainMapping, _| domain::rules(&m.metadata, &m.spec));
        authors::changed_creator(mapping, old).into_iter().chain(said).collect()
    },
    ..CUSTOM
};

pub static DOMAIN_CLAIM: Strategy = Strategy {
    group: "networking.internal.knative.dev",
    version: "v1alpha1",
    kind: "ClusterDomainClaim",
    plural: "clusterdomainclaims",
    singular: "clusterdomainclaim",
    short_names: &["cdc"],
    categories: &["knative-internal", "networking"],
    namespaced: false,
    status: None,
    shape: Shape::Custom(domain::ClusterDomainClaim::crd),
    ..CUSTOM
};

pub static POD_AUTOSCALER: Strategy = Strategy {
    group: "autoscaling.internal.knative.dev",
    version: "v1alpha1",
    kind: "PodAutoscaler",
    plural: "podautoscalers",
    singular: "podautoscaler",
    short_names: &["kpa", "pa"],
    shape: Shape::Custom(api::autoscaling::PodAutoscaler::crd),
    ..CUSTOM
};

pub static INGRESS: Strategy = Strategy {
    group: "networking.internal.knative.dev",
    version: "v1alpha1",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["kingress", "king"],
    shape: Shape::Custom(api::networking::Ingress::crd),
    ..CUSTOM
};

const KNATIVE: &[&str] = &["all", "knative", "serving"];

const CUSTOM: Strategy =
    Strategy { status: Some(Status::Separate), generation: true, columns: Columns::OfDefinition, ..Strategy::BASE };

/// The name becomes a part of host names. Only a new object's: one that is there must still be able to go.
fn named(object: &Value, old: Option<&Value>) -> Option<FieldError> {
    let name = object["metadata"]["name"].as_str().filter(|_| old.is_none())?;
    api::rules::dns_label(name).map(|text| FieldError::invalid("metadata.name", json!(name), text))
}

/// Runs the rules of one of Serving's kinds. What is kept already is not looked at again when nothing of it changes: it may be
/// from before a rule, and its status must still be written.
fn said<T: DeserializeOwned>(
    object: &Value,
    old: Option<&Value>,
    rules: impl FnOnce(T, Option<T>) -> Vec<Complaint>,
) -> Vec<FieldError> {
    let same = |old: &Value| {
        old["spec"] == object["spec"] && old["metadata"]["annotations"] == object["metadata"]["annotations"]
    };
    if old.is_some_and(same) {
        return vec![];
    }
    let error =
        |Complaint { path, message, details }| FieldError { field: path, fault: Fault::Said { message, details } };
    match T::deserialize(object) {
        Ok(typed) => rules(typed, old.and_then(|old| T::deserialize(old).ok())).into_iter().map(error).collect(),
        Err(error) => vec![FieldError::invalid("spec", Value::Null, error.to_string())],
    }
}

/// Runs the type's own rules. A spec that does not decode was already refused by the schema, in better words;
/// what slips through (such as a malformed quantity) is said as the decoder says it.
fn checked<T: DeserializeOwned>(spec: &Value, rules: impl FnOnce(T) -> Vec<(String, String)>) -> Vec<FieldError> {
    let at = |path: &str| {
        path.split(['.', '[']).filter(|p| !p.is_empty()).fold(String::new(), |mut pointer, part| {
            pointer += "/";
            pointer += part.trim_end_matches(']');
            pointer
        })
    };
    match T::deserialize(spec) {
        Ok(typed) => rules(typed)
            .into_iter()
            .map(|(path, text)| {
                let value = spec.pointer(at(path.trim_start_matches("spec")).as_str());
                match value {
                    None | Some(Value::Null) if text.starts_with("missing") => FieldError::required(path, ""),
                    value => FieldError::invalid(path, value.cloned().unwrap_or(Value::Null), text),
                }
            })
            .collect(),
        Err(error) => vec![FieldError::invalid("spec", Value::Null, error.to_string())],
    }
}

/// Knative's defaults of a revision's spec.
fn default_revision(spec: Option<&mut Value>) {
    let Some(spec) = spec.and_then(Value::as_object_mut) else { return };
    set_default(spec, "timeoutSeconds", RevisionSpec::DEFAULT_TIMEOUT_SECONDS);
    set_default(spec, "containerConcurrency", 0);
    set_default(spec, "enableServiceLinks", false);
    let volumes = spec.get("volumes").cloned().unwrap_or_default();
    for (of, name) in [("initContainers", INIT_CONTAINER), ("containers", api::names::USER_CONTAINER)] {
        let Some(containers) = spec.get_mut(of).and_then(Value::as_array_mut) else { continue };
        default_names(containers, name);
        let only = containers.len() == 1;
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            set_default(container, "resources", json!({}));
            default_mounts(container, &volumes);
            if of == "containers" {
                let serves = only || container.get("ports").and_then(Value::as_array).is_some_and(|p| !p.is_empty());
                default_probes(container, serves);
            }
        }
    }
}

const INIT_CONTAINER: &str = "init-container";

/// The name of the one that has none; several of them, or one beside others, are numbered, past the numbers that are taken.
fn default_names(containers: &mut [Value], name: &str) {
    let taken: Vec<String> = containers.iter().filter_map(|c| c["name"].as_str()).map(str::to_owned).collect();
    let is_numbered = containers.len() > 1 || taken.iter().any(|taken| taken == name);
    let mut numbered = (0..).map(|i| format!("{name}-{i}")).filter(|name| !taken.contains(name));
    for container in containers.iter_mut().filter_map(Value::as_object_mut) {
        if container.get("name").is_none_or(|name| name == "") {
            let name = if is_numbered { numbered.next().unwrap_or_default() } else { name.to_owned() };
            container.insert("name".into(), name.into());
        }
    }
}

/// What a program cannot write to is mounted so.
fn default_mounts(container: &mut serde_json::Map<String, Value>, volumes: &Value) {
    let writable = |name: &Value| {
        let volume = volumes.as_array().into_iter().flatten().find(|volume| volume["name"] == *name);
        volume.is_none_or(|v| ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|of| v[*of].is_object()))
    };
    let mounts = container.get_mut("volumeMounts").and_then(Value::as_array_mut).into_iter().flatten();
    for mount in mounts.filter(|mount| !writable(&mount["name"])).filter_map(Value::as_object_mut) {
        mount.insert("readOnly".into(), true.into());
    }
}

/// A container that serves is ready when it accepts connections, unless it says better.
fn default_probes(container: &mut serde_json::Map<String, Value>, serves: bool) {
    if serves {
        set_default(container, "readinessProbe", json!({}));
    }
    let is_set = |probe: &serde_json::Map<String, Value>, field: &str| probe.get(field).is_some_and(|v| !v.is_null());
    if let Some(probe) = container.get_mut("readinessProbe").and_then(Value::as_object_mut) {
        if serves && !["tcpSocket", "httpGet", "exec", "grpc"].iter().any(|how| is_set(probe, how)) {
            probe.insert("tcpSocket".into(), json!({"port": 0}));
        }
        let unset = |probe: &serde_json::Map<String, Value>, field: &str| probe.get(field).is_none_or(|v| *v == 0);
        let mut default = |field: &str, value: u8| {
            if unset(probe, field) {
                probe.insert(field.to_owned(), value.into());
            }
        };
        default("successThreshold", 1);
        if !unset(probe, "periodSeconds") {
            for (field, value) in [("failureThreshold", 3), ("timeoutSeconds", 1)] {
                if unset(probe, field) {
                    probe.insert(field.to_owned(), value.into());
                }
            }
        }
    }
    for of in ["readinessProbe", "livenessProbe", "startupProbe"] {
        if let Some(grpc) = container.get_mut(of).and_then(|p| p.get_mut("grpc")).and_then(Value::as_object_mut) {
            set_default(grpc, "service", "");
        }
    }
}

fn default_traffic(service: &mut Value) {
    let Some(spec) = object_at(service, "spec") else { return };
    if spec.get("traffic").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("traffic".into(), json!([{"latestRevision": true, "percent": 100}]));
    }
}
