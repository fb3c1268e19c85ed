//! The gateway behind an API server: a scripted one, which lists once and then sends what the test says.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use api::wire::GatewayMessage;
use bytes::Bytes;
use futures::SinkExt;
use futures::channel::mpsc;
use gateway::{Config, Gateway, Limits};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client as KubeClient;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, HOST, Instance, soon, split};

pub type Body = UnsyncBoxBody<Bytes, Infallible>;
pub type Events = mpsc::Receiver<Result<Frame<Bytes>, Infallible>>;

const INGRESSES: &str = "/apis/networking.internal.knative.dev/v1alpha1/ingresses";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const REVISIONS: &str = "/apis/serving.knative.dev/v1/revisions";
const PODS: &str = "/api/v1/pods";

/// Answers lists with `lists` and the one watch of each path with its events; a second watch gets none.
pub fn api_server(lists: Value, watches: Vec<(&'static str, Events)>) -> KubeClient {
    let watches = Arc::new(Mutex::new(watches));
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default();
        assert!(path != PODS || query.contains("labelSelector=dhow.dev%2Fdraining"), "only those that drain: {query}");
        let body: Body = if request.uri().query().unwrap_or_default().contains("watch=") {
            let mut all = watches.lock().unwrap();
            match all.iter().position(|(watched, _)| *watched == path) {
                Some(at) => StreamBody::new(all.swap_remove(at).1).boxed_unsync(),
                None => StreamBody::new(futures::stream::pending()).boxed_unsync(),
            }
        } else {
            let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                              "items": lists.get(&path).unwrap_or(&json!([]))});
            Full::from(list.to_string()).boxed_unsync()
        };
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    KubeClient::new(service, "default")
}

fn ingress(host: &str) -> Value {
    json!({"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": host, "namespace": "default", "resourceVersion": "2"},
        "spec": {"rules": [{"hosts": [host], "http": {"paths": [{"splits": [split("rev", 100, json!({}))]}]}}]}})
}

fn slice(at: std::net::SocketAddr) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "rev", "namespace": "default", "resourceVersion": "2",
                     "labels": {"kubernetes.io/service-name": "rev"}},
        "ports": [{"name": "http", "port": at.port()}],
        "endpoints": [{"addresses": [at.ip()], "targetRef": {"kind": "Pod", "name": "rev-1"}}]})
}

pub fn event(kind: &str, object: Value) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_api_server_says_is_served() {
    let instance = Instance::start("rev").await;
    let (mut ingresses, ingress_events) = mpsc::channel(4);
    let (mut slices, slice_events) = mpsc::channel(4);
    let client = api_server(
        json!({INGRESSES: [ingress(HOST)], REVISIONS: []}),
        vec![(INGRESSES, ingress_events), (SLICES, slice_events)],
    );
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        public: any,
        secure: None,
        secure_port: None,
        internal: None,
        threads: 1,
        limits: Limits::default(),
        grace: std::time::Duration::from_secs(5),
        name: String::new(),
        cluster: None,
    };
    let gateway = Gateway::bind(config, &mut Registry::default()).unwrap();
    let (at, mut synced) = (gateway.addresses().public, gateway.feed().synced());
    let (to_autoscaler, mut messages) = tokio::sync::mpsc::channel(16);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(gateway.run(client, to_autoscaler, shutdown.clone()));
    soon("the first lists", synced.wait_for(|synced| *synced)).await.unwrap();

    let waiting = tokio::spawn(async move { Client::connect(at).await.get("/").await });
    soon("a poke", messages.recv()).await.unwrap();
    slices.send(event("ADDED", slice(instance.at))).await.unwrap();
    assert_eq!(soon("the answer", waiting).await.unwrap().text(), "rev", "a new slice wakes the queue");

    let get = |host: &'static str| async move {
        let request = Request::get("/").header("host", host).body(Full::default()).unwrap();
        Client::connect(at).await.send(request).await.status
    };
    assert_eq!(get("late.test").await, 404);
    ingresses.send(event("ADDED", ingress("late.test"))).await.unwrap();
    soon("the new host", async { while get("late.test").await != 200 {} }).await;
    ingresses.send(event("DELETED", ingress(HOST))).await.unwrap();
    soon("the old host to go", async { while get(HOST).await != 404 {} }).await;
    assert_eq!(get("late.test").await, 200);

    shutdown.cancel();
    soon("the gateway to end", running).await.unwrap().unwrap();
    drop((ingresses, slices));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_pods_that_drain_are_watched_and_addresses_probed() {
    let instance = Instance::start("rev").await;
    let (mut slices, slice_events) = mpsc::channel(4);
    let (mut pods, pod_events) = mpsc::channel(4);
    let revision = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"name": "rev", "namespace": "default", "resourceVersion": "2"}, "spec": {"containers": []}});
    let client = api_server(
        json!({INGRESSES: [ingress(HOST)], REVISIONS: [revision]}),
        vec![(SLICES, slice_events), (PODS, pod_events)],
    );
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        public: any,
        secure: None,
        secure_port: None,
        internal: None,
        threads: 1,
        limits: Limits::default(),
        grace: std::time::Duration::from_secs(5),
        name: "gateway-0".into(),
        cluster: Some(gateway::Own { ip: [127, 0, 0, 1].into(), namespace: "dhow-system".into() }),
    };
    let gateway = Gateway::bind(config, &mut Registry::default()).unwrap();
    let (at, mut synced) = (gateway.addresses().public, gateway.feed().synced());
    let (to_autoscaler, mut messages) = tokio::sync::mpsc::channel(16);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(gateway.run(client, to_autoscaler, shutdown.clone()));
    soon("the first lists", synced.wait_for(|synced| *synced)).await.unwrap();

    let get = || tokio::spawn(async move { Client::connect(at).await.get("/").await.text() });
    let mut starting = slice(instance.at);
    starting["endpoints"][0]["conditions"] = json!({"ready": false});
    slices.send(event("ADDED", starting)).await.unwrap();
    assert_eq!(soon("the answer of a pod that is not ready", get()).await.unwrap(), "rev");

    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rev-1", "namespace": "default",
        "resourceVersion": "3", "labels": {"dhow.dev/draining": "1", "serving.knative.dev/revision": "rev"}}});
    pods.send(event("ADDED", pod.clone())).await.unwrap();
    let drains = |message: &Option<GatewayMessage>| match message {
        Some(GatewayMessage::Report(stats)) => stats.iter().any(|stat| stat.instances.iter().any(|i| i.draining)),
        _ => false,
    };
    soon("a report that it drains", async { while !drains(&messages.recv().await) {} }).await;
    let waiting = get();
    soon("a poke", async { while !matches!(messages.recv().await, Some(GatewayMessage::Poke(_))) {} }).await;
    pods.send(event("DELETED", pod)).await.unwrap();
    assert_eq!(soon("the answer once it does not", waiting).await.unwrap(), "rev");

    shutdown.cancel();
    soon("the gateway to end", running).await.unwrap().unwrap();
    drop((slices, pods));
}
