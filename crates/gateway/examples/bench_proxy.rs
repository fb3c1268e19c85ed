//! The gateway as a plain proxy: one host, one instance at a given address, no API server.
//!
//! `bench_proxy LISTEN BACKEND [THREADS]` serves every request for the host `bench.test`. It is what
//! `bench/gateway/run.py` compares with nginx and HAProxy, and what a profiler is pointed at.

use std::net::SocketAddr;
use std::time::Duration;

use gateway::{Config, Gateway, Limits};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "bench_proxy LISTEN BACKEND [THREADS]";
    let listen: SocketAddr = arguments.next().ok_or(usage)?.parse()?;
    let backend: SocketAddr = arguments.next().ok_or(usage)?.parse()?;
    let threads = arguments.next().map_or(Ok(1), |n| n.parse())?;
    let config = Config {
        public: listen,
        secure: None,
        secure_port: None,
        internal: None,
        threads,
        limits: Limits::default(),
        grace: Duration::from_secs(1),
        name: String::new(),
        cluster: None,
    };
    let gateway = Gateway::bind(config, &mut Registry::default())?;
    let feed = gateway.feed();
    feed.ingress(&serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": "bench", "namespace": "default"},
        "spec": {"rules": [{"hosts": ["bench.test"], "visibility": "ExternalIP", "http": {"paths": [{"splits": [{
            "serviceName": "bench", "serviceNamespace": "default", "servicePort": 80, "percent": 100,
            "policy": {"service": "bench", "containerConcurrency": 0, "timeoutSeconds": 300},
        }]}]}}]},
    }))?);
    feed.slice(&serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "bench", "namespace": "default", "labels": {"kubernetes.io/service-name": "bench"}},
        "ports": [{"name": "http", "port": backend.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [backend.ip().to_string()], "conditions": {"ready": true}}],
    }))?);
    feed.complete();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (to_autoscaler, mut messages) = tokio::sync::mpsc::channel(16);
        let reader = async { while messages.recv().await.is_some() {} };
        let (served, ()) = tokio::join!(gateway.serve(to_autoscaler, CancellationToken::new()), reader);
        served
    })?;
    Ok(())
}
