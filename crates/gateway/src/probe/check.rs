//! How it is found out that an instance is ready: its owner's probe, as far as the gateway can make it.
//!
//! Owns: reading a pod's probes. Must not know: connections. The surprise: no probe at all means a TCP connect, as
//! Knative defines it, while what only a kubelet can find out (a command inside, TLS without verification, a second
//! container, gates) is left to it.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use probe::{Check, How};

/// The check of a pod; `None` where only its kubelet can tell.
pub(crate) fn check_of(pod: &PodSpec) -> Option<Check> {
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
        None => Some(Check::usual()),
        Some(probe) => Check::of(probe, ports).filter(|check| !matches!(check.how, How::Exec(_))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// `how timeout successes`, or nothing.
    fn read(pod: Value) -> String {
        let pod: PodSpec = serde_json::from_value(pod).unwrap();
        let Some(check) = check_of(&pod) else { return "kubelet".into() };
        let how = match check.how {
            How::Tcp(port) => format!("tcp {port:?}"),
            How::Http { port, path, headers } => format!("http {port:?} {path} {}", headers.len()),
            How::Grpc { port, service } => format!("grpc {port:?} {service:?}"),
            How::Exec(_) => "exec".into(),
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
