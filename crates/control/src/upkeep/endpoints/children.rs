//! EndpointSlices and their endpoints.

use std::collections::BTreeMap;

use api::names::{annotation, label};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reconcile::view;

use crate::autoscaler::is_ready;
use crate::ownership::{Labels, child_meta, labels_of, name_of, namespace_of};

const MANAGED_BY: &str = "endpointslice-controller.dhow.dev";

/// The endpoint of a pod that can be reached, or soon will be.
pub fn endpoint(pod: &Pod) -> Option<Endpoint> {
    if crate::upkeep::is_finished(pod) {
        return None;
    }
    let address = pod.status.as_ref().and_then(|s| s.pod_ip.clone()).filter(|ip| !ip.is_empty());
    // A pod without a network of its own is reached through its socket; a slice still wants an address.
    let address = address.or_else(|| socket(pod).map(|_| "127.0.0.1".to_owned()))?;
    let (ready, leaving) = (is_ready(pod), view::is_deleting(pod));
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready && !leaving),
            serving: Some(ready),
            terminating: Some(leaving),
        }),
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(namespace_of(pod).to_owned()),
            name: Some(name_of(pod).to_owned()),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

fn socket(pod: &Pod) -> Option<&str> {
    view::annotation(pod, annotation::SOCKET)
}

pub fn slice(service: &Service, index: usize, pods: &[&Pod]) -> EndpointSlice {
    let mut labels = labels_of(service);
    labels.insert(label::ENDPOINTS_SERVICE.into(), name_of(service).to_owned());
    labels.insert(label::ENDPOINTS_MANAGED_BY.into(), MANAGED_BY.into());
    let sockets: BTreeMap<&str, &str> = pods.iter().filter_map(|p| Some((name_of(*p), socket(p)?))).collect();
    let mut annotations = Labels::new();
    if !sockets.is_empty() {
        annotations.insert(annotation::SOCKETS.into(), serde_json::json!(sockets).to_string());
    }
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_ref());
    EndpointSlice {
        metadata: child_meta(service, &format!("{}-{index}", name_of(service)), labels, annotations),
        address_type: "IPv4".into(),
        endpoints: pods.iter().filter_map(|p| endpoint(p)).collect(),
        ports: Some(ports.into_iter().flatten().map(|p| port(p, pods.first().copied())).collect()),
    }
}

fn port(port: &ServicePort, pod: Option<&Pod>) -> EndpointPort {
    let number = match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => pod.and_then(|p| named_port(p, name)),
    };
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: number,
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn named_port(pod: &Pod, name: &str) -> Option<i32> {
    let containers = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
    let mut ports = containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports.find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port)
}
