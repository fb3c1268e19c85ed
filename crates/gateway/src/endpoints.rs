//! From EndpointSlices to addresses that can be dialled.
//!
//! Owns: which endpoints of a slice take new requests, and how each is reached. Must not know: connections or slots.
//! The surprise: an endpoint may have no network of its own; the slice's annotation then names its Unix socket.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use api::names::{annotation, label};
use api::wire::RevisionKey;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

/// How an instance is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// One instance that takes new requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ready {
    pub pod: String,
    pub address: Address,
    /// Spoken to in HTTP/2 without TLS.
    pub h2c: bool,
}

/// The back end that a slice belongs to, by its label.
pub fn key(slice: &EndpointSlice) -> Option<RevisionKey> {
    let service = slice.metadata.labels.as_ref()?.get(label::ENDPOINTS_SERVICE)?;
    Some(RevisionKey { namespace: slice.metadata.namespace.clone()?, revision: service.clone() })
}

/// What a slice says: instances that take new requests, and those that are on their way to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    pub ready: Vec<Ready>,
    /// Neither ready nor on their way out. One without a network of its own is never among them: its node says itself,
    /// and at once, when it is ready.
    pub starting: Vec<Ready>,
}

pub fn listed(slice: &EndpointSlice) -> Listed {
    let sockets: BTreeMap<String, PathBuf> = slice
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(annotation::SOCKETS))
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let port = port(slice.ports.as_deref().unwrap_or_default());
    let h2c = port.is_some_and(speaks_h2c);
    let number = port.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok());
    let instance = |endpoint: &Endpoint| {
        let pod = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
        let address = match pod.as_ref().and_then(|pod| sockets.get(pod)) {
            Some(path) => Address::Unix(path.clone()),
            None => {
                let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
                Address::Tcp(SocketAddr::new(ip, number?))
            }
        };
        let pod = pod.unwrap_or_else(|| endpoint.addresses.first().cloned().unwrap_or_default());
        Some(Ready { pod, address, h2c })
    };
    let (ready, starting): (Vec<&Endpoint>, Vec<&Endpoint>) =
        slice.endpoints.iter().filter(|endpoint| !is_leaving(endpoint)).partition(|endpoint| is_ready(endpoint));
    let mut starting: Vec<Ready> = starting.into_iter().filter_map(instance).collect();
    starting.retain(|one| matches!(one.address, Address::Tcp(_)));
    Listed { ready: ready.into_iter().filter_map(instance).collect(), starting }
}

/// A missing condition counts as ready, as the API defines it.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false)
}

fn is_leaving(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.terminating) == Some(true)
}

/// The port that serves requests: one named for HTTP before any other, since a sidecar may expose metrics beside it.
fn port(ports: &[EndpointPort]) -> Option<&EndpointPort> {
    let named = |wanted: &[&str]| ports.iter().find(|p| p.name.as_deref().is_some_and(|name| wanted.contains(&name)));
    named(&["h2c", "http1", "http", "http2"]).or(ports.first())
}

fn speaks_h2c(port: &EndpointPort) -> bool {
    matches!(port.name.as_deref(), Some("h2c" | "http2")) || port.app_protocol.as_deref() == Some("kubernetes.io/h2c")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(endpoints: serde_json::Value, ports: serde_json::Value, sockets: Option<&str>) -> Vec<String> {
        let mut object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "s", "namespace": "n", "labels": {"kubernetes.io/service-name": "rev"}},
            "endpoints": endpoints, "ports": ports,
        });
        if let Some(sockets) = sockets {
            object["metadata"]["annotations"] = json!({annotation::SOCKETS: sockets});
        }
        let slice: EndpointSlice = serde_json::from_value(object).unwrap();
        assert_eq!(key(&slice).unwrap().revision, "rev");
        let listed = listed(&slice);
        let line = |r: Ready| match r.address {
            Address::Tcp(a) => format!("{} {a}{}", r.pod, if r.h2c { " h2c" } else { "" }),
            Address::Unix(p) => format!("{} {}", r.pod, p.display()),
        };
        let ready = listed.ready.into_iter().map(line);
        ready.chain(listed.starting.into_iter().map(|r| format!("starting {}", line(r)))).collect()
    }

    #[test]
    fn only_endpoints_that_take_requests_count() {
        let pod = |name: &str, ip: &str, conditions: serde_json::Value| json!({"addresses": [ip], "targetRef": {"kind": "Pod", "name": name}, "conditions": conditions});
        let http = json!([{"name": "metrics", "port": 9090}, {"name": "http", "port": 8080}]);
        let rows = [
            (json!([pod("a", "10.0.0.1", json!({"ready": true}))]), http.clone(), None, vec!["a 10.0.0.1:8080"]),
            (json!([pod("a", "10.0.0.1", json!({}))]), http.clone(), None, vec!["a 10.0.0.1:8080"]),
            (
                json!([pod("a", "10.0.0.1", json!({"ready": false}))]),
                http.clone(),
                None,
                vec!["starting a 10.0.0.1:8080"],
            ),
            (
                json!([pod("a", "10.0.0.1", json!({"ready": false})), pod("b", "10.0.0.2", json!({"ready": true}))]),
                http.clone(),
                None,
                vec!["b 10.0.0.2:8080", "starting a 10.0.0.1:8080"],
            ),
            (json!([pod("a", "10.0.0.1", json!({"ready": false, "terminating": true}))]), http.clone(), None, vec![]),
            (json!([pod("a", "x", json!({"ready": false}))]), http.clone(), Some(r#"{"a":"/run/a.sock"}"#), vec![]),
            (json!([pod("a", "10.0.0.1", json!({"ready": true, "terminating": true}))]), http.clone(), None, vec![]),
            (json!([pod("a", "fd00::1", json!({}))]), json!([{"port": 1}]), None, vec!["a [fd00::1]:1"]),
            (
                json!([pod("a", "1.2.3.4", json!({}))]),
                json!([{"name": "h2c", "port": 1}]),
                None,
                vec!["a 1.2.3.4:1 h2c"],
            ),
            (json!([pod("a", "x", json!({}))]), http.clone(), Some(r#"{"a":"/run/a.sock"}"#), vec!["a /run/a.sock"]),
            (json!([pod("a", "1.2.3.4", json!({}))]), http.clone(), Some("not json"), vec!["a 1.2.3.4:8080"]),
            (json!([{"addresses": ["1.2.3.4"]}]), http.clone(), None, vec!["1.2.3.4 1.2.3.4:8080"]),
            (json!([pod("a", "not-an-address", json!({}))]), http, None, vec![]),
            (json!([pod("a", "1.2.3.4", json!({}))]), json!([]), None, vec![]),
        ];
        for (endpoints, ports, sockets, want) in rows {
            assert_eq!(check(endpoints.clone(), ports, sockets), want, "{endpoints}");
        }
    }
}
