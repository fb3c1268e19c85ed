//! A gateway on a cluster: instances that answer before they are said to be ready, and pods that drain.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::{Instance, Reply, Setup, soon, until};

fn not_ready() -> Value {
    json!({"ready": false, "serving": false, "terminating": false})
}

fn ready() -> Value {
    json!({"ready": true, "serving": true, "terminating": false})
}

/// An address on which nobody listens yet.
async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn waiting(setup: &Setup) -> JoinHandle<Reply> {
    let mut client = setup.client().await;
    tokio::spawn(async move { client.get("/").await })
}

/// A gateway with one route, whose revision has this container.
fn setup(container: Value) -> Setup {
    let setup = Setup::on_cluster();
    setup.route(0);
    setup.probed_by("rev", container);
    setup
}

fn plain() -> Value {
    json!({"name": "c", "ports": [{"containerPort": 8080}]})
}

/// Long enough for hundreds of probes: the gateway pokes once a second while a request waits.
async fn a_while(setup: &mut Setup) {
    setup.poke().await;
    setup.poke().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_accepts_takes_requests_at_once() {
    let setup = setup(plain());
    let at = free_address().await;
    let call = waiting(&setup).await;
    setup.listed("rev", &[("a", at, not_ready())]);
    until("some probes", || setup.metric("dhow_gateway_probes_total", &[]) > 3.0).await;
    let instance = Instance::at(at, "a").await;
    assert_eq!(soon("the answer", call).await.unwrap().text(), "a");
    assert_eq!(setup.metric("dhow_gateway_early_instances_total", &[]), 1.0);
    assert_eq!(setup.metric("dhow_instances", &["revision=\"rev\""]), 1.0);

    setup.listed("rev", &[("a", at, ready())]);
    let connections = instance.seen.connections.load(SeqCst);
    assert_eq!(setup.get("/").await.text(), "a");
    assert_eq!(setup.metric("dhow_instances", &["revision=\"rev\""]), 1.0, "the same instance");
    assert!(instance.seen.connections.load(SeqCst) <= connections + 1);
    setup.listed("rev", &[]);
    assert_eq!(setup.metric("dhow_instances", &["revision=\"rev\""]), 0.0, "the slice rules");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_probed() {
    let exec = json!({"name": "c", "readinessProbe": {"exec": {"command": ["true"]}}});
    for (case, cluster, known, conditions) in [
        ("one machine: its node says it itself", false, Some(plain()), not_ready()),
        ("a command inside is the kubelet's", true, Some(exec), not_ready()),
        ("a revision that was not seen yet", true, None, not_ready()),
        ("on its way out", true, Some(plain()), json!({"ready": false, "terminating": true})),
    ] {
        let mut setup = if cluster { Setup::on_cluster() } else { Setup::new() };
        setup.route(0);
        if let Some(container) = known {
            setup.probed_by("rev", container);
        }
        let instance = Instance::start("a").await;
        setup.listed("rev", &[("a", instance.at, conditions)]);
        let call = waiting(&setup).await;
        a_while(&mut setup).await;
        assert_eq!(instance.seen.connections.load(SeqCst), 0, "{case}");
        assert!(!call.is_finished(), "{case}");
        setup.listed("rev", &[("a", instance.at, ready())]);
        assert_eq!(soon(case, call).await.unwrap().text(), "a", "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_ready_any_more_is_asked_when_there_is_no_other() {
    let setup = setup(plain());
    let (a, b) = (Instance::start("a").await, Instance::start("b").await);
    setup.listed("rev", &[("a", a.at, ready()), ("b", b.at, ready())]);
    // As when nothing was heard of its node for a while.
    setup.listed("rev", &[("a", a.at, not_ready()), ("b", b.at, ready())]);
    for _ in 0..5 {
        assert_eq!(setup.get("/").await.text(), "b");
    }
    assert_eq!(a.seen.connections.load(SeqCst), 0, "its kubelet's word counts");
    setup.listed("rev", &[("a", a.at, not_ready())]);
    assert_eq!(setup.get("/").await.text(), "a");
    let before = setup.metric("dhow_gateway_probes_total", &[]);
    until("it is asked again", || setup.metric("dhow_gateway_probes_total", &[]) > before).await;
    assert_eq!(setup.get("/").await.text(), "a");
}

/// Answers probes as it is told, and all else with `app`. HTTP/1 and HTTP/2.
async fn application(healthy: Arc<AtomicBool>, probes: Arc<AtomicBool>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (healthy, probes) = (healthy.clone(), probes.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let is_healthy = healthy.load(SeqCst);
                let path = request.uri().path().to_owned();
                if path != "/" {
                    probes.store(true, SeqCst);
                    assert_eq!(request.headers()["user-agent"], "kube-probe/dhow");
                }
                let answer = match path.as_str() {
                    "/ready" => {
                        Response::builder().status(if is_healthy { 204 } else { 503 }).body(Full::<Bytes>::default())
                    }
                    "/grpc.health.v1.Health/Check" => {
                        let status = if is_healthy { 1 } else { 2 };
                        Response::builder().body(Full::<Bytes>::from(Bytes::from(vec![0, 0, 0, 0, 2, 8, status])))
                    }
                    _ => Ok(Response::new(Full::<Bytes>::from("app"))),
                };
                async move { Ok::<_, Infallible>(answer.unwrap()) }
            });
            connections.spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (at, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owners_probe_decides() {
    for probe in [json!({"httpGet": {"path": "/ready"}, "successThreshold": 2}), json!({"grpc": {"port": 0}})] {
        let mut container = plain();
        container["readinessProbe"] = probe.clone();
        let setup = setup(container);
        let (healthy, probed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (at, _tasks) = application(healthy.clone(), probed.clone()).await;
        let call = waiting(&setup).await;
        setup.listed("rev", &[("a", at, not_ready())]);
        until("some probes", || setup.metric("dhow_gateway_probes_total", &[]) > 5.0).await;
        assert!(probed.load(SeqCst), "{probe}");
        assert!(!call.is_finished(), "it accepts, but it is not ready: {probe}");
        healthy.store(true, SeqCst);
        assert_eq!(soon("the answer", call).await.unwrap().text(), "app", "{probe}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_ends_before_it_was_said_to_be_ready_is_asked_again() {
    let mut setup = setup(plain());
    let instance = Instance::start("a").await;
    let at = instance.at;
    setup.listed("rev", &[("a", at, not_ready())]);
    assert_eq!(setup.get("/").await.text(), "a");
    instance.crash().await;
    let call = waiting(&setup).await;
    a_while(&mut setup).await;
    assert!(!call.is_finished(), "it waits for the container's next start");
    let _again = Instance::at(at, "again").await;
    assert_eq!(soon("the answer", call).await.unwrap().text(), "again");
}

fn pod(name: &str, draining: bool) -> k8s_openapi::api::core::v1::Pod {
    let mut labels = json!({"serving.knative.dev/revision": "rev"});
    if draining {
        labels["dhow.dev/draining"] = json!("1");
    }
    serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name, "labels": labels}})).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_drains_gets_nothing_new_and_the_autoscaler_is_told() {
    let mut setup = setup(plain());
    let (a, b) = (Instance::start("a").await, Instance::start("b").await);
    setup.listed("rev", &[("a", a.at, ready()), ("b", b.at, ready())]);
    setup.feed.pod(&pod("a", true));
    for _ in 0..10 {
        assert_eq!(setup.get("/").await.text(), "b");
    }
    let report = setup.report(|_| true).await;
    let told: Vec<_> = report.instances.iter().map(|i| (i.pod.as_str(), i.draining)).collect();
    assert_eq!((report.gateway.as_str(), told), ("gateway-0", vec![("a", true), ("b", false)]));

    setup.feed.pod(&pod("b", true));
    let call = waiting(&setup).await;
    setup.poke().await;
    setup.feed.remove_pod(&pod("b", true));
    assert_eq!(soon("the answer", call).await.unwrap().text(), "b", "it is not removed after all");
}
