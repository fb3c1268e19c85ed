//! What breaks on a cluster, and what must go on meanwhile. Each test breaks the whole cluster, so they run alone:
//! `make test-faults`.

use std::process::{Command, Output};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::harness::{IMAGE, LIMIT, Load, Platform, admin, always, container, eventually, on_cluster, said, send};

fn cluster(action: &[&str]) -> Output {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo told this test about itself would make build scripts run again.
    let about = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars().filter(|(name, _)| about(name)) {
        command.env_remove(name);
    }
    command.args([&["xtask", "cluster"], action].concat()).output().expect("cargo runs")
}

fn component(action: &[&str]) {
    let output = cluster(action);
    assert!(output.status.success(), "cluster {action:?}: {}", said(&output));
}

/// Puts a component back, also when the test fails.
struct Broken(&'static [&'static str]);

impl Drop for Broken {
    fn drop(&mut self) {
        cluster(self.0);
    }
}

/// A platform with `instances` that always run, and requests to them; `None` where there is no cluster.
async fn under_load(instances: u32) -> Option<(Platform, Load)> {
    if !on_cluster() {
        return None;
    }
    let platform = Platform::start().await;
    platform.apply(&always("steady", instances));
    platform.serves("steady");
    let load = Load::start(&platform, "steady").await;
    Some((platform, load))
}

async fn api_answers() {
    eventually("the API server answers", || async {
        let output = admin(&["get", "--raw=/readyz"]);
        output.status.success().then_some(()).ok_or_else(|| said(&output))
    })
    .await;
}

/// How long something stays broken.
fn long_or(short: u64) -> Duration {
    if std::env::var("DHOW_LONG").is_ok() { Duration::from_secs(30 * 60) } else { Duration::from_secs(short) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "breaks the whole cluster: make test-faults"]
async fn without_an_api_server_requests_are_served_on() {
    let Some((platform, load)) = under_load(2).await else { return };
    {
        let _back = Broken(&["start", "kube-apiserver"]);
        component(&["stop", "kube-apiserver"]);
        // Longer than any lease, so that every leader has given up.
        sleep(long_or(60)).await;
    }
    api_answers().await;
    // What leads again acts on what is new, and what was acknowledged before is there.
    platform.apply(&always("after", 1));
    platform.serves("after");
    platform.serves("steady");
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "breaks the whole cluster: make test-faults"]
async fn an_api_server_that_hangs_is_waited_for() {
    let Some((platform, load)) = under_load(1).await else { return };
    {
        let _back = Broken(&["signal", "kube-apiserver", "CONT"]);
        component(&["signal", "kube-apiserver", "STOP"]);
        sleep(Duration::from_secs(25)).await;
    }
    api_answers().await;
    platform.apply(&always("after", 1));
    platform.serves("after");
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "breaks the whole cluster: make test-faults"]
async fn leaders_may_be_killed_at_any_point() {
    let Some((platform, load)) = under_load(1).await else { return };
    let rounds = if std::env::var("DHOW_LONG").is_ok() { 40 } else { 8 };
    for round in 0..rounds {
        // A little later each time, so that it hits another step of the way from a Service to a pod.
        platform.apply(&always(&format!("killed-{round}"), 1));
        sleep(Duration::from_millis(60 * round)).await;
        for role in ["controller", "autoscaler"] {
            let lease = format!("dhow-{role}");
            let path = "--output=jsonpath={.spec.holderIdentity}";
            let holder = admin(&["get", "lease", &lease, "--namespace", "dhow-system", path]);
            let holder = String::from_utf8_lossy(&holder.stdout).into_owned();
            let pod = holder.split('@').next().unwrap_or_default();
            let kill = ["delete", "pod", pod, "--namespace", "dhow-system", "--grace-period=0", "--force"];
            // Gone already, when the one before it has not been noticed.
            admin(&kill);
        }
    }
    for round in 0..rounds {
        platform.serves(&format!("killed-{round}"));
        assert_eq!(platform.get(&format!("killed-{round}"), "/").await.status.as_u16(), 200);
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "breaks the whole cluster: make test-faults"]
async fn evicted_instances_finish_and_are_replaced() {
    let Some((platform, load)) = under_load(2).await else { return };
    let pods = || {
        let list: Value = serde_json::from_str(&platform.kubectl_ok(&["get", "pods", "-o", "json"])).expect("JSON");
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let is_ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        let items = list["items"].as_array().expect("a list");
        let names = items.iter().filter(stays).filter(|pod| is_ready(pod)).map(|pod| pod["metadata"]["name"].as_str());
        names.flatten().map(str::to_owned).collect::<Vec<_>>()
    };
    let first = pods();
    for pod in &first {
        // What `kubectl drain` does with each pod of a node.
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
        let path = platform.dir.path().join("eviction.json");
        std::fs::write(&path, eviction.to_string()).expect("written");
        let url = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", platform.namespace());
        platform.kubectl_ok(&["create", "--raw", &url, "-f", path.to_str().expect("UTF-8")]);
        eventually("another takes its place", || async {
            let now = pods();
            let there = now.len() >= 2 && !now.contains(pod);
            there.then_some(()).ok_or(now)
        })
        .await;
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "breaks the whole cluster: make test-faults"]
async fn a_node_that_is_not_heard_of_serves_on() {
    if !on_cluster() {
        return;
    }
    let platform = Platform::start().await;
    platform.apply(&always("steady", 1));
    platform.serves("steady");
    // Past kube-proxy, which knows no endpoint of a Service on a lost node; the gateway asks the instances itself.
    let address = admin(&[
        "get",
        "pods",
        "--namespace",
        "dhow-system",
        "--selector=app.kubernetes.io/component=gateway",
        "--output=jsonpath={.items[0].status.podIP}",
    ]);
    let gateway = format!("{}:8080", String::from_utf8_lossy(&address.stdout));
    let call = || async {
        let request = Request::get("/").header("host", platform.host("steady")).body(Default::default());
        send(&gateway, request.expect("a request")).await.map(|reply| reply.status.as_u16()).map_err(|e| e.to_string())
    };
    {
        let _back = Broken(&["start", "kubelet"]);
        component(&["stop", "kubelet"]);
        let not_ready = ["wait", "--for=condition=Ready=Unknown", "node", "--all", "--timeout=120s"];
        let output = admin(&not_ready);
        assert!(output.status.success(), "{}", said(&output));
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until {
            assert_eq!(call().await, Ok(200));
            sleep(Duration::from_millis(50)).await;
        }
    }
    let output = admin(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(call().await, Ok(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "breaks the whole cluster: make test-faults"]
async fn answers_of_429_are_waited_out() {
    let Some((platform, load)) = under_load(1).await else { return };
    let user = json!({"kind": "ServiceAccount",
        "serviceAccount": {"name": "dhow-controller", "namespace": "dhow-system"}});
    let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["create", "patch", "delete"],
        "namespaces": ["*"], "clusterScope": true}]);
    let refuse = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": "dhow-refused"},
            "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 0, "lendablePercent": 0,
                "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}}},
        {"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "dhow-refused"},
            "spec": {"priorityLevelConfiguration": {"name": "dhow-refused"}, "matchingPrecedence": 2,
                "rules": [{"subjects": [user], "resourceRules": everything}]}},
    ]});
    platform.apply(&refuse);
    platform.apply(&always("after", 1));
    sleep(Duration::from_secs(10)).await;
    admin(&["delete", "flowschema,prioritylevelconfiguration", "dhow-refused"]);
    platform.serves("after");
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "breaks the whole cluster: make test-faults"]
async fn without_dns_functions_start_and_answer() {
    if !on_cluster() {
        return;
    }
    let platform = Platform::start().await;
    platform.apply(&container("idle", IMAGE));
    platform.serves("idle");
    {
        let _back = Broken(&["start", "coredns"]);
        component(&["stop", "coredns"]);
        // From zero, too.
        platform.kubectl_ok(&["annotate", "kpa", "--all", &format!("dhow.dev/scale-request=0@{}", now())]);
        let gone = ["wait", "--for=delete", "pods", "--all", "--timeout=90s"];
        platform.kubectl_ok(&gone);
        assert_eq!(platform.send("idle", Request::get("/"), Bytes::new()).await.status.as_u16(), 200);
        platform.apply(&always("new", 1));
        platform.serves("new");
        assert_eq!(platform.get("new", "/").await.status.as_u16(), 200);
    }
}

fn now() -> String {
    let output = Command::new("date").args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"]).output().expect("date runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "breaks the whole cluster: make test-faults"]
async fn conditions_say_what_a_cluster_refuses_and_why() {
    if !on_cluster() {
        return;
    }
    let platform = Platform::start().await;
    let condition = |name: &'static str| {
        let object = platform.object("ksvc", name);
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default();
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (text("status"), format!("{}: {}", text("reason"), text("message")))
    };
    let says = async |name: &'static str, want: &[&str]| {
        let seen = async || {
            let (status, text) = condition(name);
            let good = status == "False" && want.iter().any(|want| text.contains(want));
            if good { Ok(text) } else { Err(format!("{status} {text}")) }
        };
        println!("{}", eventually(&format!("{name} says {want:?}"), seen).await);
    };
    platform.apply(&container("absent", "10.213.255.1:5000/nobody/absent:1"));
    says("absent", &["ErrImagePull", "ImagePullBackOff", "not found"]).await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
        "spec": {"hard": {"count/pods": "0"}}});
    platform.apply(&quota);
    // A quota counts once its controller has seen it.
    eventually("the quota counts", || async {
        let quota = platform.object("resourcequota", "none");
        quota["status"]["hard"].is_object().then_some(()).ok_or(quota)
    })
    .await;
    platform.apply(&container("refused", IMAGE));
    says("refused", &["exceeded quota"]).await;
    // The gateway says it, too, and does not wait for a request's whole timeout.
    let reply = tokio::time::timeout(LIMIT, platform.get("refused", "/")).await.expect("an answer in time");
    assert!(reply.status.is_client_error() || reply.status.is_server_error(), "{}", reply.status);
    platform.kubectl_ok(&["delete", "resourcequota", "none"]);
    platform.serves("refused");
}
