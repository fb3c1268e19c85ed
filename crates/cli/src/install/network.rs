//! Who may connect to Dhow's pods. Pure.

use serde_json::{Value, json};

use super::settings::Settings;
use super::workloads::{GATEWAY, GATEWAY_INTERNAL, PROXY, REPORTS, UPLOADS};
use super::{namespaced, selector};

pub fn manifests(settings: &Settings) -> Vec<Value> {
    let port = |port: u16| json!({"port": port, "protocol": "TCP"});
    let pods = |role: &str| json!([{"podSelector": {"matchLabels": selector(role)}}]);
    // What gateways report is believed, so nobody else may.
    let reports = json!({"ports": [port(REPORTS)], "from": pods("gateway")});
    let builds = json!([{"podSelector": {"matchLabels": {
        "app.kubernetes.io/part-of": "dhow", "app.kubernetes.io/component": "build",
    }}}]);
    vec![
        policy("controller", vec![], settings),
        policy("autoscaler", vec![reports], settings),
        policy("gateway", vec![json!({"ports": [port(GATEWAY), port(GATEWAY_INTERNAL)]})], settings),
        settings.registry.switch.of(policy(
            "builder",
            vec![json!({"ports": [port(UPLOADS)]}), json!({"ports": [port(PROXY)], "from": builds})],
            settings,
        )),
    ]
}

/// Metrics may be read from within the cluster; the kubelet's probes come from the node, which no policy stops.
fn policy(role: &str, mut ingress: Vec<Value>, settings: &Settings) -> Value {
    ingress.push(json!({"ports": [{"port": 9090, "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]}));
    let spec = json!({
        "podSelector": {"matchLabels": selector(role)}, "policyTypes": ["Ingress"], "ingress": ingress,
    });
    let name = format!("dhow-{role}");
    namespaced("networking.k8s.io/v1", "NetworkPolicy", &name, role, settings, json!({"spec": spec}))
}
