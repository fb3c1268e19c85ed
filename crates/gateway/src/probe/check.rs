//! How it is found out that an instance is ready: its owner's probe, as far as the gateway can make it.
//!
//! Owns: reading a pod's probes. Must not know: connections. The surprise: no probe at all means a TCP connect, as
//! Knative defines it, while what only a kubelet can find out (a command inside, TLS without verification, a second
//! container, gates) is left to it.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::{Container, ContainerPort, HTTPGetAction, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What a kubelet allows a probe that says nothing about it.
const TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Check {
    pub how: How,
    /// For the whole probe.
    pub timeout: Duration,
    /// Successes in a row.
    pub successes: u32,
}

/// A port of `None` is the one that serves requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum How {
    Tcp(Option<u16>),
    Http { port: Option<u16>, path: String, headers: Vec<(HeaderName, HeaderValue)> },
    Grpc { port: Option<u16>, service: String },
}

impl Check {
    /// The check of a pod that asks for none.
    pub fn usual() -> Self {
        Self { how: How::Tcp(None), timeout: TIMEOUT, successes: 1 }
    }

    /// The check of a pod; `None` where only its kubelet can tell.
    pub fn of(pod: &PodSpec) -> Option<Self> {
        let containers = &pod.containers;
        let serving = containers.iter().position(|c| c.ports.as_ref().is_some_and(|p| !p.is_empty())).unwrap_or(0);
        let has_probe = |c: &Container| c.readiness_probe.is_some() || c.startup_probe.is_some();
        let beside = containers.iter().enumerate().any(|(at, c)| at != serving && has_probe(c));
        let sidecars = pod.init_containers.iter().flatten().any(has_probe);
        if beside || sidecars || pod.readiness_gates.as_ref().is_some_and(|gates| !gates.is_empty()) {
            return None;
        }
        let container = containers.get(serving);
        let ports = container.and_then(|c| c.ports.as_deref()).unwrap_or_default();
        match container.and_then(|c| c.readiness_probe.as_ref().or(c.startup_probe.as_ref())) {
            None => Some(Self::usual()),
            Some(probe) => Some(Self {
                how: how(probe, ports)?,
                timeout: positive(probe.timeout_seconds).map_or(TIMEOUT, |s| Duration::from_secs(s.into())),
                successes: positive(probe.success_threshold).unwrap_or(1),
            }),
        }
    }
}

fn positive(number: Option<i32>) -> Option<u32> {
    number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
}

fn how(probe: &Probe, ports: &[ContainerPort]) -> Option<How> {
    if probe.exec.is_some() {
        return None;
    }
    if let Some(http) = &probe.http_get {
        return http_get(http, ports);
    }
    if let Some(grpc) = &probe.grpc {
        let port = number(&IntOrString::Int(grpc.port), ports)?;
        return Some(How::Grpc { port, service: grpc.service.clone().unwrap_or_default() });
    }
    match &probe.tcp_socket {
        Some(tcp) if tcp.host.is_some() => None,
        Some(tcp) => Some(How::Tcp(number(&tcp.port, ports)?)),
        None => Some(How::Tcp(None)),
    }
}

fn http_get(http: &HTTPGetAction, ports: &[ContainerPort]) -> Option<How> {
    let tls = http.scheme.as_deref().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http"));
    if tls || http.host.as_deref().is_some_and(|host| !host.is_empty()) {
        return None;
    }
    let header = |name: &str, value: &str| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?))
    };
    let headers = http.http_headers.iter().flatten().map(|h| header(&h.name, &h.value));
    let path = http.path.as_deref().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some(How::Http { port: number(&http.port, ports)?, path, headers: headers.collect::<Option<_>>()? })
}

/// The port of a probe; 0 is Knative's way to say that it is the serving one. `None` for one that cannot be.
fn number(port: &IntOrString, ports: &[ContainerPort]) -> Option<Option<u16>> {
    match port {
        IntOrString::Int(0) => Some(None),
        IntOrString::Int(number) => u16::try_from(*number).ok().map(Some),
        IntOrString::String(name) if name.is_empty() => Some(None),
        IntOrString::String(name) => {
            let named = ports.iter().find(|p| p.name.as_ref() == Some(name))?;
            u16::try_from(named.container_port).ok().map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// `how timeout successes`, or nothing.
    fn read(pod: Value) -> String {
        let pod: PodSpec = serde_json::from_value(pod).unwrap();
        let Some(check) = Check::of(&pod) else { return "kubelet".into() };
        let how = match check.how {
            How::Tcp(port) => format!("tcp {port:?}"),
            How::Http { port, path, headers } => format!("http {port:?} {path} {}", headers.len()),
            How::Grpc { port, service } => format!("grpc {port:?} {service:?}"),
        };
        format!("{how} {}s {}", check.timeout.as_secs(), check.successes)
    }

    #[test]
    fn the_owners_probe_is_made_where_it_can_be() {
        let one = |probe: Value| {
            json!({"containers": [{"name": "c", "readinessProbe": probe,
            "ports": [{"name": "http1", "containerPort": 8080}, {"name": "admin", "containerPort": 9000}]}]})
        };
        let probed = json!({"name": "b", "readinessProbe": {"tcpSocket": {"port": 1}}});
        for (pod, want) in [
            (json!({"containers": []}), "tcp None 1s 1"),
            (json!({"containers": [{"name": "c"}]}), "tcp None 1s 1"),
            (one(json!({})), "tcp None 1s 1"),
            (one(json!({"tcpSocket": {"port": 0}, "timeoutSeconds": 3, "successThreshold": 2})), "tcp None 3s 2"),
            (one(json!({"tcpSocket": {"port": "admin"}})), "tcp Some(9000) 1s 1"),
            (one(json!({"tcpSocket": {"port": "nowhere"}})), "kubelet"),
            (one(json!({"tcpSocket": {"port": 80, "host": "elsewhere"}})), "kubelet"),
            (one(json!({"httpGet": {"path": "/ready", "port": 9000}})), "http Some(9000) /ready 0 1s 1"),
            (
                one(json!({"httpGet": {"path": "ready", "httpHeaders": [{"name": "a", "value": "b"}]}})),
                "http None /ready 1 1s 1",
            ),
            (one(json!({"httpGet": {"scheme": "HTTPS", "port": 1}})), "kubelet"),
            (one(json!({"httpGet": {"host": "elsewhere", "port": 1}})), "kubelet"),
            (one(json!({"httpGet": {"httpHeaders": [{"name": "a b", "value": "c"}], "port": 1}})), "kubelet"),
            (one(json!({"grpc": {"port": 9000}})), "grpc Some(9000) \"\" 1s 1"),
            (one(json!({"grpc": {"port": 0, "service": "x"}})), "grpc None \"x\" 1s 1"),
            (one(json!({"exec": {"command": ["true"]}})), "kubelet"),
            (json!({"containers": [{"name": "c", "startupProbe": {"exec": {}}}]}), "kubelet"),
            (json!({"containers": [{"name": "c", "startupProbe": {"tcpSocket": {"port": 1}}}]}), "tcp Some(1) 1s 1"),
            (json!({"containers": [{"name": "c", "livenessProbe": {"exec": {}}}]}), "tcp None 1s 1"),
            (json!({"containers": [{"name": "c"}, probed]}), "kubelet"),
            (json!({"containers": [probed, {"name": "c", "ports": [{"containerPort": 80}]}]}), "kubelet"),
            (json!({"containers": [{"name": "c"}], "initContainers": [probed]}), "kubelet"),
            (json!({"containers": [{"name": "c"}], "readinessGates": [{"conditionType": "x"}]}), "kubelet"),
        ] {
            assert_eq!(read(pod.clone()), want, "{pod}");
        }
    }
}
