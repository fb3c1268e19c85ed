//! Which EndpointSlices a Service has.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Plan, Propagation};
use serde_json::{Value, json};

use super::children;
use crate::ownership::{Labels, name_of};

/// As many endpoints as Kubernetes puts into one slice at most.
const SLICE: usize = 1000;

/// The selector of a Service whose endpoints are ours to keep.
pub fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|s| !external && !s.is_empty())
}

pub fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector(service).is_some_and(|s| s.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)))
}

pub fn plan(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let mut members: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
    members.retain(|p| selects(service, p) && children::endpoint(p).is_some());
    members.sort_by_key(|p| name_of(*p));
    let mut chunks: Vec<&[&Pod]> = members.chunks(SLICE).collect();
    if chunks.is_empty() && selector(service).is_some() {
        chunks.push(&[]);
    }
    let mut kept = vec![];
    for (index, chunk) in chunks.into_iter().enumerate() {
        let wanted = children::slice(service, index, chunk);
        kept.push(name_of(&wanted).to_owned());
        match slices.iter().find(|s| name_of(s.as_ref()) == name_of(&wanted)) {
            None => plan.create(&wanted),
            Some(slice) => plan.patch(slice.as_ref(), changes(slice, &wanted)),
        }
    }
    for slice in slices.iter().filter(|s| !kept.iter().any(|k| k == name_of(s.as_ref()))) {
        plan.delete(slice.as_ref(), Propagation::Background);
    }
    plan
}

/// A merge patch: this is on the way of every cold start, where a plain patch is the cheapest write.
fn changes(slice: &EndpointSlice, wanted: &EndpointSlice) -> Value {
    let sockets = api::names::annotation::SOCKETS;
    let annotation = wanted.metadata.annotations.as_ref().and_then(|a| a.get(sockets));
    let had = reconcile::view::annotation(slice, sockets).is_some();
    let mut patch =
        json!({"endpoints": wanted.endpoints, "ports": wanted.ports, "metadata": {"labels": wanted.metadata.labels}});
    if had || annotation.is_some() {
        patch["metadata"]["annotations"] = json!({sockets: annotation});
    }
    patch
}
