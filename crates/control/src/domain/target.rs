//! What a mapping's reference means now. Pure.

use std::sync::Arc;

use api::names::label;
use api::networking::{HttpPath, Ingress, Split, SplitPolicy};
use api::serving::domain::DomainMapping;
use api::serving::{Route, Service, local_host};
use k8s_openapi::api::core::v1 as core;
use reconcile::{View, view};

use crate::ownership::namespace_of;

/// The port that a target must have.
const PORT: i32 = 80;

/// Where a mapped host leads.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Paths(Vec<HttpPath>),
    /// It is there, and has no address yet.
    Waiting(String),
    Missing(String),
}

pub fn resolve(view: &impl View, mapping: &DomainMapping) -> Target {
    let reference = &mapping.spec.reference;
    let (namespace, name) = (namespace_of(mapping), reference.name.as_str());
    let missing = |plural: &str| Target::Missing(format!("{plural} {name:?} not found"));
    match (reference.group(), reference.kind.as_str()) {
        ("serving.knative.dev", "Service") => match view.get::<Service>(namespace, name) {
            Some(_) => of_route(view, namespace, name),
            None => missing("services.serving.knative.dev"),
        },
        ("serving.knative.dev", "Route") => match view.get::<Route>(namespace, name) {
            Some(_) => of_route(view, namespace, name),
            None => missing("routes.serving.knative.dev"),
        },
        ("", "Service") => match view.get::<core::Service>(namespace, name) {
            Some(service) if view::label(service.as_ref(), label::ROUTE) == Some(name) => {
                of_route(view, namespace, name)
            }
            Some(service) => Target::Paths(vec![of_service(&service)]),
            None => missing("services"),
        },
        (group, kind) => {
            let kind = if group.is_empty() { kind.to_owned() } else { format!("{kind} of {group}") };
            Target::Missing(format!(
                "{kind} has no address: map a Service or Route of serving.knative.dev, or a core Service"
            ))
        }
    }
}

fn of_route(view: &impl View, namespace: &str, name: &str) -> Target {
    let host = local_host(name, namespace);
    let paths = |ingress: Arc<Ingress>| {
        let rule = ingress.spec.rules.iter().find(|rule| rule.hosts.contains(&host))?;
        Some(rule.http.paths.clone())
    };
    match view.get::<Ingress>(namespace, name).and_then(paths) {
        Some(paths) => Target::Paths(paths),
        None => Target::Waiting(format!("Route {name:?} has no address yet")),
    }
}

fn of_service(service: &core::Service) -> HttpPath {
    let name = service.metadata.name.clone().unwrap_or_default();
    let policy = SplitPolicy { service: name.clone(), ..SplitPolicy::default() };
    let split = Split {
        service_name: name,
        service_namespace: service.metadata.namespace.clone().unwrap_or_default(),
        service_port: PORT,
        percent: 100,
        append_headers: Default::default(),
        policy: Some(policy),
    };
    HttpPath { splits: vec![split], ..HttpPath::default() }
}
