//! Pods against the real API server in memory and a scripted Provider: what people and controllers read in a status.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use api::frames;
use api::image::label;
use api::names::{self, NODE_LEASE_NAMESPACE, annotation};
use api::wire::{InstanceStarted, RevisionKey, Traffic};
use apiserver::ApiServer;
use http_body_util::{BodyExt, Empty, Full};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node as NodeObject, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use node::{Config, KubeletService, Machine, Node, NodeError, RequestBody};
use registry::Registry;
use registry::image::{ImageConfig, Layer, layer_from_dir, push_image};
use runtime::fake::{Failure, FakeProvider, Script};
use runtime::{ExitReason, Provider, Source};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

const PATIENCE: Duration = Duration::from_secs(20);
const NODE: &str = "test-node";

struct World {
    client: Client,
    provider: Arc<FakeProvider>,
    kubelet: KubeletService,
    image: String,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), NodeError>>,
    starts: mpsc::UnboundedReceiver<InstanceStarted>,
    traffic: mpsc::UnboundedReceiver<String>,
    _folder: tempfile::TempDir,
}

/// Hears who gets no requests any more, and who is forgotten. Nobody has any.
struct Heard(mpsc::UnboundedSender<String>);

impl Traffic for Heard {
    fn leaves(&self, key: &RevisionKey, pod: &str) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        drop(self.0.send(format!("{pod} of {} leaves", key.revision)));
        Box::pin(std::future::ready(()))
    }

    fn left(&self, _: &RevisionKey, pod: &str) {
        drop(self.0.send(format!("{pod} left")));
    }
}

impl World {
    async fn start() -> Self {
        Self::with(FakeProvider::new(daemon::system_clock())).await
    }

    async fn with(provider: FakeProvider) -> Self {
        let store = store::Store::memory(apiserver::index, store::Options::default());
        let server = ApiServer::new(store, apiserver::Config::new(daemon::system_clock())).unwrap();
        let client = server.client("default");
        Self::on(client, provider).await
    }

    async fn on(client: Client, provider: FakeProvider) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(&folder.path().join("registry")).unwrap();
        let image = push(&registry, folder.path(), "default/hello", &[(label::RUNTIME, "python")]).await;
        let provider = Arc::new(provider);
        let (to_starts, starts) = mpsc::unbounded_channel();
        let (to_traffic, traffic) = mpsc::unbounded_channel();
        let node = Node::new(Config {
            node_name: NODE.into(),
            providers: vec![provider.clone()],
            registry,
            registry_host: "127.0.0.1:5000".into(),
            cache_dir: folder.path().join("images"),
            host_ip: std::net::Ipv4Addr::LOCALHOST.into(),
            machine: Machine { cpus: 2, memory_bytes: 1 << 30, pods: 10, ..Machine::default() },
            default_limits: Config::default_limits(),
            traffic: Arc::new(Heard(to_traffic)),
            stop_grace: Duration::from_secs(1),
            started: Arc::new(move |started| drop(to_starts.send(started))),
            clock: daemon::system_clock(),
        });
        let kubelet = node.kubelet_service();
        let shutdown = CancellationToken::new();
        let (to_run, stop) = (client.clone(), shutdown.clone());
        let running = tokio::spawn(async move { node.run(to_run, stop).await });
        Self { client, provider, kubelet, image, shutdown, running, starts, traffic, _folder: folder }
    }

    async fn stop(self) -> Client {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
        assert!(self.provider.list().await.unwrap().is_empty(), "an instance outlived the node");
        self.client
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    /// A pod as the replica set controller makes it, changed.
    async fn create(&self, name: &str, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": NODE, "runtimeClassName": "dhow-process", "containers": [{
                "name": "user-container", "image": self.image, "terminationMessagePolicy": "FallbackToLogsOnError",
                "env": [{"name": "GREETING", "value": "hi"}]}]}
        });
        change(&mut pod);
        self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
    }

    /// Waits until the pod's status, as JSON, is as `good` says.
    async fn until(&self, what: &str, name: &str, good: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let pod = self.pods().get_opt(name).await.unwrap();
            let status = pod.map_or(Value::Null, |p| serde_json::to_value(p.status.unwrap_or_default()).unwrap());
            if good(&status) {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {status:#}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until_ready(&self, name: &str) -> Value {
        self.until("ready", name, is_ready).await
    }

    async fn until_gone(&self, name: &str) {
        self.until("gone", name, Value::is_null).await;
    }

    /// A visit that says everything at once; gives what comes back as it is.
    async fn visit(&self, path: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::post(path).body(body).unwrap();
        let response = self.kubelet.clone().ready().await.unwrap().call(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    async fn logs(&self, path: &str) -> (u16, String) {
        let request = http::Request::get(path).body(nothing()).unwrap();
        let response = self.kubelet.clone().ready().await.unwrap().call(request).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned())
    }
}

#[tokio::test]
async fn the_start_of_a_revisions_instance_is_reported_once() {
    let mut world = World::start().await;
    world.create("lone", |_| {}).await;
    world.until_ready("lone").await;
    world.create("hello-1", |pod| pod["metadata"]["labels"] = json!({(names::label::REVISION): "hello-00001"})).await;
    world.until_ready("hello-1").await;
    let first = world.starts.recv().await.unwrap();
    assert_eq!((first.key.namespace.as_str(), first.key.revision.as_str()), ("default", "hello-00001"));
    assert!(first.sandbox_seconds > 0.0 && first.runtime_seconds >= 0.0, "{first:?}");
    assert!(world.starts.try_recv().is_err(), "one start, one report, and none for a pod of no revision");
    world.stop().await;
}

fn nothing() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

async fn push(registry: &Registry, folder: &std::path::Path, repository: &str, labels: &[(&str, &str)]) -> String {
    let tree = folder.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("main.py"), "x").unwrap();
    let path = folder.join("layer");
    let info = layer_from_dir(&tree, "app", std::fs::File::create(&path).unwrap()).unwrap();
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let config = ImageConfig { labels, working_dir: "/app".into(), ..ImageConfig::default() };
    let digest = push_image(registry, repository, vec![Layer { info, path }], config).await.unwrap();
    format!("127.0.0.1:5000/{repository}@{digest}")
}

fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    status["conditions"].as_array().and_then(|all| all.iter().find(|c| c["type"] == type_)).unwrap_or(&Value::Null)
}

fn is_ready(status: &Value) -> bool {
    condition(status, "Ready")["status"] == "True"
}

fn waits_for(reason: &str) -> impl Fn(&Value) -> bool {
    move |status| status["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
}

fn scripted(script: Script) -> FakeProvider {
    let provider = FakeProvider::new(daemon::system_clock());
    provider.default_script(script);
    provider
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_renews_and_leaves() {
    let world = World::start().await;
    world.create("p", |_| ()).await;
    world.until_ready("p").await;
    let node = Api::<NodeObject>::all(world.client.clone()).get(NODE).await.unwrap();
    assert_eq!(node.metadata.labels.unwrap()["type"], "virtual-kubelet");
    assert!(node.metadata.annotations.unwrap()[annotation::MISSING_ISOLATION].contains("Nothing is isolated"));
    let status = serde_json::to_value(node.status.unwrap()).unwrap();
    assert_eq!(
        (condition(&status, "Ready")["status"].as_str(), status["capacity"]["pods"].as_str()),
        (Some("True"), Some("10"))
    );
    let isolation = condition(&status, "IsolationComplete");
    assert!(isolation["status"] == "False" && isolation["message"].as_str().unwrap().contains("Nothing is isolated"));
    let leases = || Api::<Lease>::namespaced(world.client.clone(), NODE_LEASE_NAMESPACE);
    let lease = leases().get(NODE).await.unwrap();
    assert_eq!(lease.metadata.owner_references.unwrap()[0].uid, node.metadata.uid.unwrap());
    let spec = lease.spec.unwrap();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some(NODE), Some(40)));
    let client = world.stop().await;
    let node = Api::<NodeObject>::all(client.clone()).get(NODE).await.unwrap();
    let status = serde_json::to_value(node.status.unwrap()).unwrap();
    assert_eq!(condition(&status, "Ready")["status"], "False");
    let lease = Api::<Lease>::namespaced(client, NODE_LEASE_NAMESPACE).get(NODE).await.unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_pending_to_ready_to_nothing() {
    let world = World::start().await;
    let made = world.create("p", |_| ()).await;
    let uid = made.metadata.uid.clone().unwrap();
    let status = world.until_ready("p").await;
    let container = &status["containerStatuses"][0];
    assert_eq!(status["phase"], "Running");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.250.") && status["startTime"].is_string());
    assert_eq!((&status["podIPs"][0]["ip"], &status["hostIP"]), (&status["podIP"], &json!("127.0.0.1")));
    assert_eq!(
        (&container["ready"], &container["started"], &container["restartCount"]),
        (&json!(true), &json!(true), &json!(0))
    );
    assert_eq!((&container["imageID"], &container["image"]), (&json!(world.image), &json!(world.image)));
    assert!(
        container["containerID"].as_str().unwrap().contains(&uid)
            && container["state"]["running"]["startedAt"].is_string()
    );
    assert!(status["qosClass"].is_string(), "what the API server wrote is kept");
    let spec = world.provider.created()[0].clone();
    assert_eq!((spec.uid.as_str(), spec.namespace.as_str(), spec.name.as_str()), (&*uid, "default", "p"));
    let env: Vec<(&str, &str)> = spec.containers[0].env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert!(env.contains(&("GREETING", "hi")) && env.contains(&("PORT", "8080")) && env.contains(&("HOSTNAME", "p")));
    assert_eq!(spec.containers[0].limits.memory_bytes, Some(512 << 20));
    let Source::Host(code) = &spec.containers[0].mounts[0].source else { panic!("{spec:?}") };
    assert!(code.join("main.py").is_file());
    world.pods().delete("p", &DeleteParams::default()).await.unwrap();
    let leaving = world.until("not ready or gone", "p", |s| !is_ready(s)).await;
    assert!(leaving.is_null() || condition(&leaving, "Ready")["reason"] == "PodDeleting", "{leaving:#}");
    world.until_gone("p").await;
    assert_eq!(world.provider.stopped(), [uid]);
    assert_eq!(world.logs("/containerLogs/default/p/user-container").await.0, 404);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_provider() {
    let world = World::with(scripted(Script { ready_after: None, ..Script::default() })).await;
    let uid = world.create("p", |_| ()).await.metadata.uid.unwrap();
    let status = world.until("running", "p", |s| s["phase"] == "Running").await;
    assert!(!is_ready(&status));
    let ready = condition(&status, "Ready");
    assert_eq!(ready["reason"], "ContainersNotReady");
    assert!(ready["message"].as_str().unwrap().contains("has not said yet that it is ready"), "{ready}");
    world.provider.set_ready(&uid, true);
    world.until_ready("p").await;
    world.provider.set_ready(&uid, false);
    world.until("not ready", "p", |s| !is_ready(s) && s["containerStatuses"][0]["ready"] == false).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_gets_no_requests_while_it_is_dead_and_before_its_end() {
    let mut world = World::start().await;
    let labelled = |pod: &mut Value| pod["metadata"]["labels"] = json!({"serving.knative.dev/revision": "rev"});
    let uid = world.create("p", labelled).await.metadata.uid.unwrap();
    let ready = |s: &Value| s["containerStatuses"][0]["ready"] == true;
    world.until("ready", "p", ready).await;
    world.provider.exit(&uid, 3, ExitReason::Error);
    assert_eq!(world.traffic.recv().await.unwrap(), "p of rev leaves", "it is dead");
    assert_eq!(world.traffic.recv().await.unwrap(), "p left", "it serves again");
    world.until("ready again", "p", |s| ready(s) && s["containerStatuses"][0]["restartCount"] == 1).await;
    world.pods().delete("p", &DeleteParams::default()).await.unwrap();
    assert_eq!(world.traffic.recv().await.unwrap(), "p of rev leaves", "it is deleted");
    assert_eq!(world.traffic.recv().await.unwrap(), "p left", "it has ended");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_seen_restarted_and_backed_off() {
    let output = vec!["loading".to_owned(), "ModuleNotFoundError: no such thing".to_owned()];
    let world = World::with(scripted(Script { ready_after: None, output, ..Script::default() })).await;
    let uid = world.create("p", |_| ()).await.metadata.uid.unwrap();
    world.until("running", "p", |s| s["phase"] == "Running").await;
    world.provider.exit(&uid, 3, ExitReason::Error);
    let status = world.until("restarted", "p", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
    let container = &status["containerStatuses"][0];
    let end = &container["lastState"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(3), &json!("Error")));
    assert_eq!(end["message"], "loading\nModuleNotFoundError: no such thing");
    assert!(end["startedAt"].is_string() && end["finishedAt"].is_string());
    let path = "/containerLogs/default/p/user-container";
    assert_eq!(
        world.logs(&format!("{path}?previous=true&tailLines=1")).await,
        (200, "ModuleNotFoundError: no such thing\n".into())
    );
    world.until("running again", "p", |s| s["containerStatuses"][0]["state"]["running"].is_object()).await;
    world.provider.exit(&uid, 137, ExitReason::OutOfMemory);
    let status = world.until("crash loop", "p", waits_for("CrashLoopBackOff")).await;
    let container = &status["containerStatuses"][0];
    let end = &container["lastState"]["terminated"];
    assert_eq!(
        (&status["phase"], &end["reason"], &end["exitCode"]),
        (&json!("Running"), &json!("OOMKilled"), &json!(137))
    );
    assert!(end["message"].as_str().unwrap().starts_with("out of memory: its limit is the node's default"), "{end}");
    let waiting = container["state"]["waiting"]["message"].as_str().unwrap();
    assert!(waiting.contains("back-off 10s restarting failed container=user-container pod=p"), "{waiting}");
    assert_eq!(world.logs(path).await.0, 200, "the log of the last run can be read while it waits");
    let events = Api::<Event>::default_namespaced(world.client.clone());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let all = events.list(&ListParams::default().fields("involvedObject.name=p")).await.unwrap();
        let reasons: Vec<String> = all.items.into_iter().filter_map(|e| e.reason).collect();
        if ["Pulled", "Created", "Started", "BackOff"].iter().all(|want| reasons.iter().any(|r| r == want)) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{reasons:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.pods().delete("p", &DeleteParams::default()).await.unwrap();
    world.until_gone("p").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_and_keeps_its_log() {
    let world = World::with(scripted(Script { output: vec!["done".into()], ..Script::default() })).await;
    for (name, code, phase, reason) in [("good", 0, "Succeeded", "Completed"), ("bad", 2, "Failed", "Error")] {
        let uid = world.create(name, |p| p["spec"]["restartPolicy"] = "Never".into()).await.metadata.uid.unwrap();
        world.until_ready(name).await;
        let why = if code == 0 { ExitReason::Completed } else { ExitReason::Error };
        world.provider.exit(&uid, code, why);
        let status = world.until("ended", name, |s| s["phase"] == phase).await;
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], reason);
        assert!(!is_ready(&status));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !world.provider.stopped().contains(&uid) {
            assert!(tokio::time::Instant::now() < deadline, "the sandbox of an ended pod is still held");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(world.logs(&format!("/containerLogs/default/{name}/user-container")).await, (200, "done\n".into()));
        world.pods().delete(name, &DeleteParams::default()).await.unwrap();
        world.until_gone(name).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_run_says_why() {
    let world = World::start().await;
    // Unpacked before: knowing a digest must not be enough to run it from another repository.
    world.create("fine", |_| ()).await;
    world.until_ready("fine").await;
    let digest = world.image.split_once('@').unwrap().1.to_owned();
    let image = |text: String| move |p: &mut Value| p["spec"]["containers"][0]["image"] = text.into();
    world.create("foreign", image(format!("127.0.0.1:5000/other/hello@{digest}"))).await;
    world.create("hub", image("docker.io/library/nginx:latest".into())).await;
    world.create("missing", image(format!("127.0.0.1:5000/default/none@{digest}"))).await;
    world.create("wasm", |p| p["spec"]["runtimeClassName"] = "dhow-wasm".into()).await;
    world
        .create("config", |p| {
            p["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "later"}}]);
        })
        .await;
    for (name, reason, message) in [
        ("foreign", "ImageForbidden", "belongs to another namespace"),
        ("hub", "NoProvider", "not in the built-in registry"),
        ("missing", "ErrImagePull", "127.0.0.1:5000/default/none"),
        ("wasm", "NoProvider", "dhow-wasm"),
        ("config", "CreateContainerConfigError", "configmap \"later\" not found"),
    ] {
        let status = world.until(name, name, waits_for(reason)).await;
        let said = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
        assert!(status["phase"] == "Pending" && said.contains(message), "{name}: {said}");
    }
    let (code, text) = world.logs("/containerLogs/default/foreign/user-container").await;
    assert!(code == 400 && text.contains("waiting to start: ImageForbidden"), "{text}");
    // What was missing appears.
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "later"}, "data": {"K": "v"}})).unwrap();
    Api::<ConfigMap>::default_namespaced(world.client.clone()).create(&PostParams::default(), &map).await.unwrap();
    world.until_ready("config").await;
    for name in ["foreign", "hub", "missing", "wasm", "config"] {
        world.pods().delete(name, &DeleteParams::default()).await.unwrap();
        world.until_gone(name).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_fails() {
    let world = World::with(scripted(Script { create: Err(Failure::Exhausted), ..Script::default() })).await;
    world.create("p", |_| ()).await;
    let status = world.until("quiet first, loud then", "p", waits_for("CreateContainerError")).await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["message"], "out of addresses");
    world.provider.default_script(Script::default());
    world.until_ready("p").await;
    world.provider.script("q", Script { create: Err(Failure::Unsupported("no python".into())), ..Script::default() });
    world.create("q", |_| ()).await;
    world.until("refused", "q", waits_for("NoProvider")).await;
    world.provider.script("r", Script { create: Err(Failure::LauncherGone), ..Script::default() });
    world.create("r", |_| ()).await;
    let ended = tokio::time::timeout(PATIENCE, world.running).await.unwrap().unwrap();
    assert!(matches!(ended, Err(NodeError::Provider(runtime::ProviderError::LauncherGone))), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_vanishes_is_stopped_and_a_namesake_starts_anew() {
    let world = World::start().await;
    let first = world.create("p", |_| ()).await.metadata.uid.unwrap();
    world.until_ready("p").await;
    world.pods().delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    let second = world.create("p", |_| ()).await.metadata.uid.unwrap();
    world.until_ready("p").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while world.provider.stopped() != [first.clone()] {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", world.provider.stopped());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let running: Vec<String> = world.provider.list().await.unwrap().into_iter().map(|s| s.uid).collect();
    assert_eq!(running, [second]);
    assert_eq!(world.logs("/containerLogs/default/p/user-container").await.0, 200);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_node_pods_run_anew() {
    let world = World::start().await;
    world.create("p", |_| ()).await;
    world.create("job", |p| p["spec"]["restartPolicy"] = "Never".into()).await;
    world.until_ready("p").await;
    world.until_ready("job").await;
    let image = world.image.clone();
    let client = world.stop().await;
    let world = World::on(client, FakeProvider::new(daemon::system_clock())).await;
    assert_eq!(world.image, image);
    let status = world.until("anew", "p", |s| is_ready(s) && s["containerStatuses"][0]["restartCount"] == 1).await;
    let end = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(137), &json!("ContainerStatusUnknown")));
    world.until("not run twice", "job", |s| s["phase"] == "Failed").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn left_over_sandboxes_are_stopped_but_not_builds() {
    let provider = FakeProvider::new(daemon::system_clock());
    for uid in ["left", "build-1"] {
        let spec = runtime::SandboxSpec {
            uid: uid.into(),
            namespace: "default".into(),
            name: uid.into(),
            network: runtime::Network::Pod,
            volumes: vec![],
            containers: vec![],
        };
        provider.create(Arc::new(spec)).await.unwrap();
    }
    let world = World::with(provider).await;
    world.create("p", |_| ()).await;
    world.until_ready("p").await;
    assert_eq!(world.provider.stopped(), ["left"]);
    world.provider.stop("build-1", Duration::ZERO).await.unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_comes_and_goes() {
    let world = World::start().await;
    for i in 0..100 {
        world.create(&format!("p{i}"), |_| ()).await;
    }
    for i in 0..100 {
        world.until_ready(&format!("p{i}")).await;
    }
    let all = DeleteParams::default();
    world.pods().delete_collection(&all, &ListParams::default()).await.unwrap();
    for i in 0..100 {
        world.until_gone(&format!("p{i}")).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_others_survive() {
    let world = World::start().await;
    let uid = world.create("p", |_| ()).await.metadata.uid.unwrap();
    world.until_ready("p").await;
    let theirs = json!({"metadata": {"labels": {"team": "a"}}});
    world.pods().patch("p", &PatchParams::default(), &Patch::Merge(theirs)).await.unwrap();
    world.provider.set_ready(&uid, false);
    world.until("not ready", "p", |s| !is_ready(s)).await;
    assert_eq!(world.pods().get("p").await.unwrap().metadata.labels.unwrap()["team"], "a");
    world.stop().await;
}

/// The frames of an answer, those of one channel in a row joined.
fn frames_of(bytes: &[u8]) -> Vec<(u8, String)> {
    let mut decoder = frames::Decoder::default();
    decoder.push(bytes);
    let mut all: Vec<(u8, String)> = vec![];
    while let Some((channel, payload)) = decoder.take().unwrap() {
        let text = String::from_utf8(payload).unwrap();
        match all.last_mut() {
            Some((last, joined)) if *last == channel => joined.push_str(&text),
            _ => all.push((channel, text)),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_come_and_go() {
    let world = World::start().await;
    let uid = world.create("p", |_| ()).await.metadata.uid.unwrap();
    world.until_ready("p").await;
    let exec = "/exec/default/p/user-container?stdin=true&stdout=true&stderr=true";
    // Half closed, it ends; the new size of a terminal reaches it.
    let mut told = frames::encode(frames::RESIZE, br#"{"Width":132,"Height":43}"#);
    told.extend(frames::encode(frames::STDIN, b"words\n"));
    told.extend(frames::encode(frames::CLOSE, &[frames::STDIN]));
    let (code, answer) = world.visit(&format!("{exec}&tty=true&command=cat"), told).await;
    let success = r#"{"apiVersion":"v1","kind":"Status","metadata":{},"status":"Success"}"#.to_owned();
    let heard = [(frames::STDOUT, "words\n132x43\n".to_owned()), (frames::STATUS, success.clone())];
    assert_eq!((code, frames_of(&answer)), (200, heard.to_vec()));
    let (code, answer) = world.visit(&format!("{exec}&command=exit&command=3&command=bye%20now"), vec![]).await;
    let said = frames_of(&answer);
    assert_eq!((code, &said[0]), (200, &(frames::STDOUT, "bye now\n".to_owned())));
    let status: Value = serde_json::from_str(&said[1].1).unwrap();
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["message"]),
        (&json!("NonZeroExitCode"), &json!("3"))
    );
    let (code, answer) = world.visit("/exec/default/p/user-container?command=exit&command=0&command=x", vec![]).await;
    assert_eq!((code, frames_of(&answer)), (200, vec![(frames::STATUS, success.clone())]), "what nobody asked for");
    let (code, answer) = world.visit("/portForward/default/p?port=80", b"there and back".to_vec()).await;
    assert_eq!((code, answer.as_slice()), (200, &b"there and back"[..]));

    for (path, code, text) in [
        ("/exec/default/p/user-container", 400, "cat and exit"),
        ("/exec/default/p/other?command=cat", 400, "container other is not valid for pod p; it has user-container"),
        ("/exec/default/q/user-container?command=cat", 404, "pod default/q is not on this node"),
        ("/exec/default/p/user-container?tty=maybe", 400, "tty=maybe is neither true nor false"),
        ("/attach/default/p/user-container?stdin=true", 400, "neither a standard input nor a terminal"),
        ("/portForward/default/p?port=0", 400, "port is not a number"),
        ("/portForward/default/p?port=65536", 400, "port is not a number"),
    ] {
        let (got, said) = world.visit(path, vec![]).await;
        let said = String::from_utf8(said).unwrap();
        assert!(got == code && said.contains(text), "{path}: {got} {said}");
    }

    let request = http::Request::post("/attach/default/p/user-container?stdout=true&stderr=true").body(nothing());
    let response = world.kubelet.clone().ready().await.unwrap().call(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    world.provider.print(&uid, "a line");
    world.provider.exit(&uid, 0, ExitReason::Completed);
    let heard = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(frames_of(&heard), [(frames::STDOUT, "a line\n".to_owned()), (frames::STATUS, success)]);

    world.provider.script("late", Script { create: Err(Failure::Exhausted), ..Script::default() });
    world.create("late", |_| ()).await;
    world.until("refused", "late", waits_for("CreateContainerError")).await;
    for path in ["/exec/default/late/user-container?command=cat", "/attach/default/late/user-container"] {
        let (code, said) = world.visit(path, vec![]).await;
        assert_eq!((code, said.as_slice()), (400, &br#"container not found ("user-container")"#[..]), "{path}");
    }
    world.stop().await;
}
