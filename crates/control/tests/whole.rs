//! Every controller against the real API server in memory, with a scripted node: from a Function to an instance,
//! to none, to one again, and to nothing left.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::time::Duration;

use api::autoscaling::PodAutoscaler;
use api::build::Build;
use api::condition;
use api::function::Function;
use api::networking::Ingress;
use api::serving::{Configuration, Revision, Route, Service};
use api::wire::{ConcurrencyStat, GatewayMessage, InstanceLoad, Poke, RevisionKey};
use apiserver::ApiServer;
use control::Duty;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{self as core, ConfigMap, Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::core::{NamespaceResourceScope, Request};
use kube::{Api, Client};
use reconcile::{Caches, Controller, Error, Key, Kind, runner};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const REVISION: &str = "hello-00001";

struct Platform {
    client: Client,
    gateway: mpsc::Sender<GatewayMessage>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Platform {
    async fn start() -> Self {
        Self::start_where(None).await
    }

    async fn start_where(cluster: Option<control::Cluster>) -> Self {
        let store = store::Store::memory(apiserver::index, store::Options::default());
        let server = ApiServer::new(store, apiserver::Config::new(daemon::system_clock())).unwrap();
        let client = server.client("default");
        let (gateway, messages) = mpsc::channel(64);
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let config = control::Config {
            domain: "localhost".into(),
            gateway_port: 8080,
            gateway_tls_port: 8443,
            namespace: "dhow-system".into(),
            node_name: "node".into(),
            cluster,
            tags: None,
            clock: daemon::system_clock(),
        };
        let (to_run, stop) = (client.clone(), shutdown.clone());
        tasks.spawn(async move { control::run(to_run, config, Duty::Standalone(messages), stop).await.unwrap() });
        let caches = Caches::builder().kind::<Pod>(&[]).build();
        let node = node(&caches, client.clone());
        let (to_watch, stop) = (client.clone(), shutdown.clone());
        tasks.spawn(async move { caches.run(to_watch, stop).await });
        let stop = shutdown.clone();
        tasks.spawn(async move { node.run(stop).await.unwrap() });
        let platform = Self { client, gateway, shutdown, tasks };
        platform.post("/api/v1/nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})).await;
        platform
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    fn api<K: Kind + kube::Resource<Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::default_namespaced(self.client.clone())
    }

    async fn post(&self, path: &str, object: Value) {
        let request = Request::new(path).create(&PostParams::default(), object.to_string().into_bytes()).unwrap();
        self.client.request::<Value>(request).await.unwrap();
    }

    async fn count<K: Kind + kube::Resource<Scope = NamespaceResourceScope>>(&self) -> usize {
        self.api::<K>().list(&ListParams::default()).await.unwrap().items.len()
    }

    /// Waits until the named object is as `good` says.
    async fn until<K>(&self, what: &str, name: &str, good: impl Fn(&K) -> bool) -> K
    where
        K: Kind + kube::Resource<Scope = NamespaceResourceScope>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let object = self.api::<K>().get_opt(name).await.unwrap();
            if let Some(object) = object.as_ref().filter(|o| good(o)) {
                return object.clone();
            }
            assert!(Instant::now() < deadline, "{what}: {}", serde_json::to_string_pretty(&object).unwrap());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Every object of the kinds that a Function leads to, by kind.
    async fn census(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("functions", self.count::<Function>().await),
            ("builds", self.count::<Build>().await),
            ("kservices", self.count::<Service>().await),
            ("configurations", self.count::<Configuration>().await),
            ("routes", self.count::<Route>().await),
            ("revisions", self.count::<Revision>().await),
            ("autoscalers", self.count::<PodAutoscaler>().await),
            ("ingresses", self.count::<Ingress>().await),
            ("deployments", self.count::<Deployment>().await),
            ("replicasets", self.count::<ReplicaSet>().await),
            ("pods", self.count::<Pod>().await),
            ("services", self.count::<core::Service>().await),
            ("slices", self.count::<EndpointSlice>().await),
        ]
    }

    async fn until_nothing_is_left(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let census = self.census().await;
            if census.iter().all(|(_, n)| *n == 0) {
                return;
            }
            assert!(Instant::now() < deadline, "left over: {census:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn deploy(&self) {
        let object = json!({"apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": "hello"},
            "spec": {"runtime": "python", "source": {"inline": {"files": {"main.py": "x"}}}}});
        self.post("/apis/dhow.dev/v1alpha1/namespaces/default/functions", object).await;
        let building = |f: &Function| f.status.as_ref().is_some_and(|s| s.build.is_some());
        let build = self.until("a build", "hello", building).await.status.unwrap().build.unwrap();
        self.until("the build", &build, |_: &Build| true).await;
        let status = json!({"status": {"image": "localhost:5000/default/hello@sha256:aa", "conditions": [
            {"type": "Succeeded", "status": "True"}]}});
        self.api::<Build>().patch_status(&build, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        self.until("ready", "hello", is_ready).await;
    }
}

fn is_ready(function: &Function) -> bool {
    function.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, "Ready"))
}

fn has_ready_endpoint(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().any(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
}

fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// A node whose instances are ready at once and end at once.
fn node(caches: &Caches, client: Client) -> Controller {
    let pods = caches.of::<Pod>();
    let reading = pods.clone();
    Controller::new("node", move |key: Key| {
        let (pod, client) = (reading.get(&key.namespace, &key.name), client.clone());
        async move {
            let Some(pod) = pod else { return Ok(None) };
            let api: Api<Pod> = Api::namespaced(client, &key.namespace);
            let done = if pod.metadata.deletion_timestamp.is_some() {
                api.delete(&key.name, &DeleteParams { grace_period_seconds: Some(0), ..Default::default() })
                    .await
                    .map(|_| ())
            } else if pod.status.as_ref().is_none_or(|s| s.pod_ip.is_none()) {
                let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [
                    {"type": "Ready", "status": "True"}]}});
                api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(status)).await.map(|_| ())
            } else {
                Ok(())
            };
            match done {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                Err(error) => Err(Error::Retry(error.to_string())),
                Ok(()) => Ok(None),
            }
        }
    })
    .watch(&pods, runner::itself)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_lives_and_dies() {
    let platform = Platform::start().await;
    platform.deploy().await;
    let status = platform.until("ready", "hello", is_ready).await.status.unwrap();
    assert_eq!(status.url.as_deref(), Some("http://hello.default.localhost:8080"));
    assert_eq!(status.revision.as_deref(), Some(REVISION));
    let slice = format!("{REVISION}-0");
    platform.until("an endpoint", &slice, has_ready_endpoint).await;

    let request =
        json!({"metadata": {"annotations": {"dhow.dev/scale-request": format!("0@{}", (daemon::system_clock())())}}});
    platform.api::<PodAutoscaler>().patch(REVISION, &PatchParams::default(), &Patch::Merge(request)).await.unwrap();
    let inactive = |a: &PodAutoscaler| a.status.as_ref().is_some_and(|s| condition::is_false(&s.conditions, "Active"));
    platform.until("inactive", REVISION, inactive).await;
    platform.until("no endpoint", &slice, |s: &EndpointSlice| s.endpoints.is_empty()).await;
    let gone = |r: &Revision| r.status.as_ref().is_some_and(|s| s.actual_replicas == Some(0));
    platform.until("no replicas", REVISION, gone).await;
    assert!(is_ready(&platform.until("the function", "hello", |_| true).await), "zero is not a failure");

    let begin = Instant::now();
    let key = RevisionKey { namespace: "default".into(), revision: REVISION.into() };
    platform
        .gateway
        .send(GatewayMessage::Poke(Poke { key, gateway: String::new(), queued: 1, in_flight: 0 }))
        .await
        .unwrap();
    platform.until("scaled", "hello-00001-deployment", |d| replicas(d) == 1).await;
    let scaled = begin.elapsed();
    platform.until("an endpoint again", &slice, has_ready_endpoint).await;
    println!("poke to scale {scaled:?}, to endpoint {:?}", begin.elapsed());
    let active = |a: &PodAutoscaler| a.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, "Active"));
    platform.until("active", REVISION, active).await;

    platform.api::<Function>().delete("hello", &DeleteParams::default()).await.unwrap();
    platform.until_nothing_is_left().await;
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_waits_for_all() {
    let platform = Platform::start().await;
    platform.deploy().await;
    let params = DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..Default::default() };
    platform.api::<Function>().delete("hello", &params).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while platform.api::<Function>().get_opt("hello").await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "still there: {:?}", platform.census().await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Children that do not block may outlive it by a moment.
    platform.until_nothing_is_left().await;
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_starts_many_and_never_too_many() {
    let platform = Platform::start().await;
    platform.deploy().await;
    let key = RevisionKey { namespace: "default".into(), revision: REVISION.into() };
    platform
        .gateway
        .send(GatewayMessage::Poke(Poke { key, gateway: String::new(), queued: 100, in_flight: 0 }))
        .await
        .unwrap();
    let begin = Instant::now();
    let all = |s: &EndpointSlice| {
        s.endpoints.iter().filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true)).count() == 100
    };
    platform.until("a hundred", &format!("{REVISION}-0"), all).await;
    println!("a hundred endpoints after {:?}", begin.elapsed());
    assert_eq!(platform.count::<Pod>().await, 100);
    platform.stop().await;
}

/// What one gateway says once a second: each pod with its requests, and whether it drains there.
fn report(pods: &[(&str, u32, bool)]) -> GatewayMessage {
    let instances = pods.iter().map(|(pod, in_flight, draining)| InstanceLoad {
        pod: (*pod).to_owned(),
        in_flight: *in_flight,
        draining: *draining,
    });
    GatewayMessage::Report(vec![ConcurrencyStat {
        key: RevisionKey { namespace: "default".into(), revision: REVISION.into() },
        gateway: "gateway-0".into(),
        average_concurrency: 1.0,
        requests_per_second: 0.0,
        in_flight: 1,
        instances: instances.collect(),
    }])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_the_idle_drain_and_then_they_go() {
    let cluster = control::Cluster {
        pre_stop_seconds: control::Cluster::PRE_STOP_SECONDS,
        gateway: control::Cluster::GATEWAY.into(),
        exposure: control::Exposure::None,
        pull_secrets: vec![],
    };
    let platform = Platform::start_where(Some(cluster)).await;
    platform.deploy().await;
    let key = RevisionKey { namespace: "default".into(), revision: REVISION.into() };
    let poke = Poke { key, gateway: "gateway-0".into(), queued: 3, in_flight: 0 };
    platform.gateway.send(GatewayMessage::Poke(poke)).await.unwrap();
    let three = |s: &EndpointSlice| s.endpoints.len() == 3 && has_ready_endpoint(s);
    platform.until("three", &format!("{REVISION}-0"), three).await;
    let pods = platform.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
    let names: Vec<&str> = pods.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
    let [busy, idle, other] = names[..] else { panic!("{names:?}") };

    platform.gateway.send(report(&[(busy, 1, false), (idle, 0, false), (other, 0, false)])).await.unwrap();
    let request =
        json!({"metadata": {"annotations": {"dhow.dev/scale-request": format!("0@{}", (daemon::system_clock())())}}});
    platform.api::<PodAutoscaler>().patch(REVISION, &PatchParams::default(), &Patch::Merge(request)).await.unwrap();
    let drains = |p: &Pod| p.metadata.labels.as_ref().is_some_and(|l| l.contains_key("dhow.dev/draining"));
    platform.until("the first to drain", idle, drains).await;
    platform.until("the second to drain", other, drains).await;
    assert!(!drains(&platform.api::<Pod>().get(busy).await.unwrap()));
    let deployment = platform.api::<Deployment>().get("hello-00001-deployment").await.unwrap();
    assert_eq!(replicas(&deployment), 3, "nobody goes before the gateways know");

    let deadline = Instant::now() + PATIENCE;
    while platform.count::<Pod>().await > 1 {
        assert!(Instant::now() < deadline, "{:?}", platform.census().await);
        platform.gateway.send(report(&[(busy, 1, false), (idle, 0, true), (other, 0, true)])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    platform.until("the busy one", busy, |p: &Pod| p.metadata.deletion_timestamp.is_none()).await;
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_takes_its_contents_along() {
    let platform = Platform::start().await;
    let namespaces: Api<Namespace> = Api::all(platform.client.clone());
    platform
        .post("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}))
        .await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    platform.post("/api/v1/namespaces/other/configmaps", map).await;
    namespaces.delete("other", &DeleteParams::default()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Some(namespace) = namespaces.get_opt("other").await.unwrap() {
        assert!(Instant::now() < deadline, "still there: {namespace:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let maps: Api<ConfigMap> = Api::namespaced(platform.client.clone(), "other");
    assert!(maps.list(&ListParams::default()).await.unwrap().items.is_empty());
    platform.stop().await;
}
