//! The Ingress, the HTTPRoutes or the VirtualService of a Route or a DomainMapping.

use api::names::label;
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend, IngressSpec,
    IngressTLS, ServiceBackendPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::Kind;
use serde_json::{Map, Value, json};

use super::kinds::{HTTPRoute, HttpRouteSpec, VirtualService, VirtualServiceSpec};
use super::{Exposed, GatewayRef};
use crate::ownership::{annotations_of, child_meta, child_name, labels_of, name_of};

/// The port of the gateway's Service, and of the placeholder that points at it.
const PORT: i32 = 80;
/// The most hosts that one HTTPRoute may have.
const HOSTS: usize = 16;

/// Apart from the owner's own name, under which people keep Ingresses of their own.
pub fn name(owner: &impl Kind, number: usize) -> String {
    let suffix = if number == 0 { "-outside".to_owned() } else { format!("-outside-{number}") };
    child_name(name_of(owner), &suffix)
}

/// Annotations of the Service reach it, since controllers of Ingresses are told their details that way.
fn meta(exposed: &Exposed<'_, impl Kind>, number: usize) -> ObjectMeta {
    let owner = exposed.owner;
    let mut labels = labels_of(owner);
    labels.insert(label::ROUTE.into(), exposed.service.to_owned());
    labels.insert(label::EXPOSES.into(), child_name(name_of(owner), ""));
    child_meta(owner, &name(owner, number), labels, annotations_of(owner))
}

/// Back ends are in the Ingress's own namespace: a placeholder Service leads on to the gateway.
pub fn ingress(exposed: &Exposed<'_, impl Kind>, class: Option<&str>) -> Ingress {
    let service = IngressServiceBackend {
        name: exposed.service.to_owned(),
        port: Some(ServiceBackendPort { name: None, number: Some(PORT) }),
    };
    let path = HTTPIngressPath {
        path: Some("/".into()),
        path_type: "Prefix".into(),
        backend: IngressBackend { resource: None, service: Some(service) },
    };
    let rule = |host: &String| IngressRule {
        host: Some(host.clone()),
        http: Some(HTTPIngressRuleValue { paths: vec![path.clone()] }),
    };
    let spec = IngressSpec {
        ingress_class_name: class.map(str::to_owned),
        rules: Some(exposed.hosts.iter().map(rule).collect()),
        tls: exposed.secret.map(|secret| {
            vec![IngressTLS { hosts: Some(exposed.hosts.to_vec()), secret_name: Some(secret.to_owned()) }]
        }),
        ..IngressSpec::default()
    };
    Ingress { metadata: meta(exposed, 0), spec: Some(spec), status: None }
}

/// As many as the hosts need. Here, too, the placeholder spares a grant from another namespace.
pub fn http_routes(exposed: &Exposed<'_, impl Kind>, gateway: &GatewayRef) -> Vec<HTTPRoute> {
    let mut parent = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway",
        "namespace": gateway.namespace, "name": gateway.name});
    if let Some(section) = &gateway.section {
        parent["sectionName"] = json!(section);
    }
    let rule = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [{"group": "", "kind": "Service", "name": exposed.service, "port": PORT, "weight": 1}],
    });
    let one = |(number, hosts): (usize, &[String])| {
        let spec = json!({"parentRefs": [parent], "hostnames": hosts, "rules": [rule]});
        let mut object = HTTPRoute::new("", HttpRouteSpec { fields: fields(spec) });
        object.metadata = meta(exposed, number);
        object
    };
    exposed.hosts.chunks(HOSTS).enumerate().map(one).collect()
}

/// Istio reaches a Service of any namespace by its whole name.
pub fn virtual_service(exposed: &Exposed<'_, impl Kind>, gateways: &[String], gateway: &str) -> VirtualService {
    let destination = json!({"host": gateway, "port": {"number": PORT}});
    let spec =
        json!({"hosts": exposed.hosts, "gateways": gateways, "http": [{"route": [{"destination": destination}]}]});
    let mut object = VirtualService::new("", VirtualServiceSpec { fields: fields(spec) });
    object.metadata = meta(exposed, 0);
    object
}

fn fields(spec: Value) -> Map<String, Value> {
    match spec {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
