//! The server as kubectl sees it: real kubectl, over TLS, with a bearer token.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use apiserver::ApiServer;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::harness;

/// kubectl against a server of its own, with its own home so that nothing is cached between tests.
struct Kubectl {
    server: ApiServer,
    home: tempfile::TempDir,
    config: PathBuf,
}

struct Output {
    success: bool,
    out: String,
    err: String,
}

impl Kubectl {
    /// `None`: no kubectl here; the test says so and passes.
    async fn start() -> Option<Self> {
        let found = Command::new("kubectl").arg("version").arg("--client").stdout(Stdio::null()).status().await;
        if !found.is_ok_and(|status| status.success()) {
            println!("skipped: no kubectl on PATH");
            return None;
        }
        let server = harness::server();
        let address = harness::listen(&server).await;
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://{address}"),
                                                   "insecure-skip-tls-verify": true}}],
            "users": [{"name": "u", "user": {"token": harness::TOKEN}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
        });
        std::fs::write(&config, text.to_string()).unwrap();
        Some(Self { server, home, config })
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.args(arguments.split_whitespace());
        command.env("HOME", self.home.path()).env("KUBECONFIG", &self.config).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn run_with(&self, arguments: &str, input: &str) -> Output {
        Self::finish(self.command(arguments), input, arguments).await
    }

    async fn finish(mut command: Command, input: &str, what: &str) -> Output {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("kubectl {what} hangs"))
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        Output { success: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs what must succeed, and gives its output.
    async fn ok(&self, arguments: &str) -> String {
        self.ok_with(arguments, "").await
    }

    async fn ok_with(&self, arguments: &str, input: &str) -> String {
        let output = self.run_with(arguments, input).await;
        assert!(output.success, "kubectl {arguments}: {}\n{}", output.err, output.out);
        assert!(!output.err.contains("Warning"), "kubectl {arguments}: {}", output.err);
        output.out
    }

    async fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.ok(arguments).await).unwrap()
    }

    /// Runs what must fail, and gives what it says.
    async fn fails(&self, arguments: &str, input: &str) -> String {
        let output = self.run_with(arguments, input).await;
        assert!(!output.success, "kubectl {arguments} should fail: {}", output.out);
        output.err
    }
}

fn function(timeout: i64) -> String {
    json!({
        "apiVersion": "dhow.dev/v1alpha1", "kind": "Function",
        "metadata": {"name": "hello", "labels": {"app": "hello"}},
        "spec": {"runtime": "python", "timeoutSeconds": timeout,
                 "source": {"inline": {"files": {"main.py": "def handle(r): return 'hi'"}}},
                 "env": [{"name": "A", "value": "1"}]},
    })
    .to_string()
}

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "web:1", ports: [{containerPort: 80}]}
"#;

#[tokio::test]
async fn discovery_and_version() {
    let Some(kubectl) = Kubectl::start().await else { return };
    let resources = kubectl.ok("api-resources --no-headers").await;
    for line in ["functions fn dhow.dev/v1alpha1 true Function", "pods po v1 true Pod", "nodes no v1 false Node"] {
        let found = resources.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == line);
        assert!(found, "{line} in\n{resources}");
    }
    assert!(kubectl.ok("api-versions").await.contains("serving.knative.dev/v1"));
    assert!(kubectl.ok("version -o json").await.contains("serverVersion"));
    assert_eq!(kubectl.ok("auth can-i create pods").await, "yes");
    assert!(kubectl.ok("auth whoami").await.contains("admin"));
    assert!(kubectl.ok("get crd").await.contains("functions.dhow.dev"));
}

#[tokio::test]
async fn client_side_apply() {
    let Some(kubectl) = Kubectl::start().await else { return };
    for (arguments, input, want) in [
        ("apply -f -", function(5), "function.dhow.dev/hello created"),
        ("apply -f -", function(5), "function.dhow.dev/hello unchanged"),
        ("apply -f -", function(6), "function.dhow.dev/hello configured"),
        ("apply -f -", DEPLOYMENT.into(), "deployment.apps/web created"),
        ("apply -f -", DEPLOYMENT.into(), "deployment.apps/web unchanged"),
        ("apply -f -", DEPLOYMENT.replace("web:1", "web:2"), "deployment.apps/web configured"),
        (
            "apply --dry-run=server -f -",
            DEPLOYMENT.replace("web:1", "web:9"),
            "deployment.apps/web configured (server dry run)",
        ),
        (
            "create -f - --dry-run=server",
            function(5).replace("hello", "dry"),
            "function.dhow.dev/dry created (server dry run)",
        ),
    ] {
        assert_eq!(kubectl.ok_with(arguments, &input).await, want, "{arguments}");
    }
    assert_eq!(kubectl.ok("get fn hello -o jsonpath={.spec.timeoutSeconds}").await, "6");
    assert_eq!(kubectl.ok("get deploy web -o jsonpath={.spec.template.spec.containers[0].image}").await, "web:2");
    let diff = kubectl.run_with("diff -f -", &DEPLOYMENT.replace("web:1", "web:3")).await;
    assert!(diff.out.contains("+      - image: web:3") || diff.out.contains("web:3"), "{}{}", diff.out, diff.err);
}

#[tokio::test]
async fn server_side_apply() {
    let Some(kubectl) = Kubectl::start().await else { return };
    let apply = "apply --server-side -f -";
    assert_eq!(kubectl.ok_with(apply, DEPLOYMENT).await, "deployment.apps/web serverside-applied");
    assert_eq!(kubectl.ok_with(apply, &function(5)).await, "function.dhow.dev/hello serverside-applied");
    let before = kubectl.ok("get deploy web -o jsonpath={.metadata.resourceVersion}").await;
    kubectl.ok_with(apply, DEPLOYMENT).await;
    assert_eq!(kubectl.ok("get deploy web -o jsonpath={.metadata.resourceVersion}").await, before);
    kubectl.ok("scale deploy web --replicas=4").await;
    let conflict = kubectl.fails(apply, DEPLOYMENT).await;
    assert!(
        conflict.contains("conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas"),
        "{conflict}"
    );
    kubectl.ok_with("apply --server-side --force-conflicts -f -", DEPLOYMENT).await;
    assert_eq!(kubectl.ok("get deploy web -o jsonpath={.spec.replicas}").await, "2");
    // From client-side to server-side: kubectl rewrites the record of owners first.
    let other = DEPLOYMENT.replace("web}", "moved}");
    kubectl.ok_with("apply -f -", &other).await;
    kubectl.ok_with(apply, &other).await;
    let owners = kubectl.json("get deploy moved -o json --show-managed-fields").await;
    let owners = owners["metadata"]["managedFields"].to_string();
    assert!(owners.contains("\"Apply\"") && !owners.contains("kubectl-client-side-apply"), "{owners}");
}

#[tokio::test]
async fn mistakes_are_told() {
    let Some(kubectl) = Kubectl::start().await else { return };
    kubectl.ok_with("apply -f -", &function(5)).await;
    for (arguments, input, want) in [
        ("get fn nope", String::new(), r#"Error from server (NotFound): functions.dhow.dev "nope" not found"#),
        ("create -f -", function(5), r#"functions.dhow.dev "hello" already exists"#),
        ("apply -f -", function(5).replace("\"runtime\"", "\"runtim\""), r#"strict decoding error: unknown field "spec.runtim""#),
        ("apply -f -", function(5).replace("python", "perl"), r#"spec.runtime: Unsupported value: "perl": supported values: "python", "node""#),
        ("apply -f -", function(9999), "spec.timeoutSeconds in body should be less than or equal to 600"),
        ("apply -f -", DEPLOYMENT.replace("replicas: 2", "replicas: lots"), "spec.replicas"),
        ("apply -f -", DEPLOYMENT.replace("image:", "imagee:"), r#"unknown field "spec.template.spec.containers[0].imagee""#),
        ("-n nowhere apply -f -", function(5), r#"namespaces "nowhere" not found"#),
        ("get pods --field-selector=spec.foo=bar", String::new(), "field label not supported: spec.foo"),
        ("create -f -", json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "a.b"}}).to_string(), "spec.group: Required value"),
    ] {
        let said = kubectl.fails(arguments, &input).await;
        assert!(said.contains(want), "kubectl {arguments}: {said}");
    }
    let anonymous = kubectl.fails("get pods --token=wrong", "").await;
    assert!(anonymous.contains("Unauthorized") || anonymous.contains("logged in"), "{anonymous}");
}

#[tokio::test]
async fn get_describe_explain() {
    let Some(kubectl) = Kubectl::start().await else { return };
    kubectl.ok_with("apply -f -", &function(5)).await;
    kubectl.ok_with("apply -f -", DEPLOYMENT).await;
    let client = kubectl.server.client("default");
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = json!({"metadata": {"name": "p", "labels": {"app": "web"}},
                     "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let status = json!({"apiVersion": "v1", "kind": "Pod", "status": {"phase": "Running", "podIP": "10.0.0.1",
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 1, "image": "i", "imageID": "i",
                               "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}});
    pods.patch_status("p", &PatchParams::apply("dhow-node"), &Patch::Apply(status)).await.unwrap();
    let events: Api<Event> = Api::default_namespaced(client);
    let event = json!({"metadata": {"name": "e"}, "reason": "Pulled", "message": "it was pulled", "type": "Normal",
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "p",
                           "uid": pod.metadata.uid}});
    events.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();

    for (arguments, header, row) in [
        ("get pods", "NAME READY STATUS RESTARTS AGE", "p 1/1 Running 1"),
        (
            "get pods -o wide",
            "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES",
            "p 1/1 Running 1",
        ),
        ("get deploy", "NAME READY UP-TO-DATE AVAILABLE AGE", "web 0/2 0 0"),
        ("get fn", "NAME URL RUNTIME READY REASON AGE", "hello python"),
        ("get ns", "NAME STATUS AGE", "default Active"),
        ("get events", "LAST SEEN TYPE REASON OBJECT MESSAGE", "<unknown> Normal Pulled pod/p it was pulled"),
        ("get pods -A", "NAMESPACE NAME READY STATUS RESTARTS AGE", "default p 1/1 Running"),
        (
            "get po -l app=web --field-selector=spec.nodeName=n,status.phase=Running",
            "NAME READY STATUS RESTARTS AGE",
            "p",
        ),
    ] {
        let table = kubectl.ok(arguments).await;
        let lines: Vec<String> = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[0], header, "{arguments}");
        assert!(lines.iter().any(|line| line.starts_with(row)), "{arguments}: {row} in\n{table}");
    }
    for (arguments, wants) in [
        ("describe pod p", vec!["Node:", "Running", "it was pulled"]),
        ("describe fn hello", vec!["API Version:  dhow.dev/v1alpha1", "Runtime:", "python"]),
        ("describe deploy web", vec!["RollingUpdate", "25% max unavailable"]),
        ("events", vec!["it was pulled"]),
        ("explain pod.spec.containers", vec!["FIELD: containers <[]Container>", "livenessProbe", "-required-"]),
        ("explain fn.spec.source", vec!["GROUP:      dhow.dev", "inline"]),
        ("get all", vec!["pod/p", "deployment.apps/web", "function.dhow.dev/hello"]),
        ("get fn,deploy", vec!["function.dhow.dev/hello", "deployment.apps/web"]),
        ("get pod p -o yaml", vec!["kind: Pod", "podIP: 10.0.0.1"]),
        ("get pod p -o custom-columns=A:.metadata.name,B:.status.phase", vec!["p", "Running"]),
    ] {
        let text = kubectl.ok(arguments).await;
        for want in wants {
            assert!(text.contains(want), "kubectl {arguments}: {want} in\n{text}");
        }
    }
}

#[tokio::test]
async fn changes() {
    let Some(kubectl) = Kubectl::start().await else { return };
    kubectl.ok_with("apply -f -", &function(5)).await;
    kubectl.ok_with("apply -f -", DEPLOYMENT).await;
    for (arguments, want) in [
        (
            "patch deploy web -p {\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"web\",\"image\":\"w:3\"}]}}}}",
            "deployment.apps/web patched",
        ),
        (
            "patch deploy web --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":3}]",
            "deployment.apps/web patched",
        ),
        ("patch fn hello --type=merge -p {\"spec\":{\"timeoutSeconds\":7}}", "function.dhow.dev/hello patched"),
        (
            "patch fn hello --type=merge -p {\"spec\":{\"timeoutSeconds\":7}}",
            "function.dhow.dev/hello patched (no change)",
        ),
        ("label fn hello x=y", "function.dhow.dev/hello labeled"),
        ("annotate deploy web a=b", "deployment.apps/web annotated"),
        ("set image deploy/web web=w:4", "deployment.apps/web image updated"),
        ("scale deploy web --replicas=1", "deployment.apps/web scaled"),
        ("create ns team", "namespace/team created"),
        ("create configmap m --from-literal=a=b", "configmap/m created"),
        ("create secret generic s --from-literal=a=b", "secret/s created"),
        ("create serviceaccount sa", "serviceaccount/sa created"),
        ("create deployment other --image=i", "deployment.apps/other created"),
        ("run bare --image=i", "pod/bare created"),
        ("delete pod bare", "pod \"bare\" deleted"),
        ("delete deploy -l app=other", "deployment.apps \"other\" deleted"),
        ("delete cm --all", "configmap \"m\" deleted"),
        ("delete fn hello --wait=true", "function.dhow.dev \"hello\" deleted"),
    ] {
        assert!(kubectl.ok(arguments).await.starts_with(want), "{arguments}");
    }
    let deployment = kubectl.json("get deploy web -o json").await;
    assert_eq!(deployment["spec"]["replicas"], 1);
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], "w:4");
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"], 80);

    let mut edit = kubectl.command("edit deploy web");
    edit.env("KUBE_EDITOR", "sed -i s/w:4/w:5/");
    let output = Kubectl::finish(edit, "", "edit").await;
    assert!(output.success && output.out.contains("deployment.apps/web edited"), "{}{}", output.out, output.err);
    assert_eq!(kubectl.ok("get deploy web -o jsonpath={.spec.template.spec.containers[0].image}").await, "w:5");
    let replaced = kubectl.ok("get deploy web -o json").await.replace("w:5", "w:6");
    assert_eq!(kubectl.ok_with("replace -f -", &replaced).await, "deployment.apps/web replaced");
}

#[tokio::test]
async fn waits_and_watches() {
    let Some(kubectl) = Kubectl::start().await else { return };
    kubectl.ok_with("apply -f -", &function(5)).await;
    let mut watching: Child = kubectl.command("get fn -w").spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().starts_with("NAME"));
    assert!(lines.next_line().await.unwrap().unwrap().starts_with("hello"));

    let waiting = kubectl.command("wait --for=condition=Ready fn/hello --timeout=60s").spawn().unwrap();
    let client = kubectl.server.client("default");
    let functions: Api<api::function::Function> = Api::default_namespaced(client);
    let status = json!({"apiVersion": "dhow.dev/v1alpha1", "kind": "Function",
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Ok", "message": "",
                                   "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    functions.patch_status("hello", &PatchParams::apply("dhow-function"), &Patch::Apply(status)).await.unwrap();
    let output = waiting.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "function.dhow.dev/hello condition met");
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("True") && line.contains("Ok"), "{line}");
    kubectl.ok("delete fn hello").await;
    kubectl.ok("wait --for=delete fn/hello --timeout=60s").await;
    watching.kill().await.unwrap();
}
