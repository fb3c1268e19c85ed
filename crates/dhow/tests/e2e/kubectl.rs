//! kubectl against the embedded API: the verbs people use on the kinds they look at.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::function::HELLO;
use crate::harness::{Platform, able, eventually, kubectl, said};

#[tokio::test]
async fn get_and_describe_every_kind_of_the_flow() {
    if !able() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    let names = |kind: &str| platform.kubectl_ok(&["get", kind, "-o", "name"]);
    for kind in [
        "functions",
        "fn",
        "builds",
        "ksvc",
        "configurations",
        "revisions",
        "routes",
        "deployments",
        "replicasets",
        "pods",
        "kpa",
        "endpointslices",
        "services",
    ] {
        assert!(names(kind).contains("hello"), "{kind}: {}", names(kind));
    }
    for (kind, columns) in [
        ("functions", vec!["NAME", "URL", "READY", "REASON", "AGE"]),
        ("ksvc", vec!["NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON"]),
        (
            "revisions",
            vec!["NAME", "CONFIG NAME", "GENERATION", "READY", "REASON", "ACTUAL REPLICAS", "DESIRED REPLICAS"],
        ),
        ("deployments", vec!["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]),
        ("pods", vec!["NAME", "READY", "STATUS", "RESTARTS", "AGE"]),
    ] {
        let table = platform.kubectl_ok(&["get", kind]);
        let header = table.lines().next().unwrap_or_default();
        for column in columns {
            assert!(header.contains(column), "kubectl get {kind}: {header}");
        }
        let described = platform.kubectl_ok(&["describe", kind]);
        assert!(described.contains("hello") && described.contains("Conditions"), "describe {kind}: {described}");
    }
    assert!(platform.kubectl_ok(&["get", "nodes"]).contains("Ready"));
    assert!(platform.kubectl_ok(&["get", "all"]).contains("function.dhow.dev/hello"));
    assert!(platform.kubectl_ok(&["explain", "function.spec.source"]).contains("inline"));
}

#[tokio::test]
async fn apply_edit_wait_and_delete_a_function() {
    if !able() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let manifest = json!({
        "apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": "applied"},
        "spec": {"runtime": "python", "env": [{"name": "GREETING", "value": "hi"}],
                 "source": {"inline": {"files": {"main.py": "import os\n\ndef handle(request):\n    return os.environ['GREETING']\n"}}}},
    });
    let path = platform.dir.path().join("applied.json");
    std::fs::write(&path, manifest.to_string()).expect("written");
    let file = path.to_str().expect("UTF-8");
    assert!(platform.kubectl_ok(&["apply", "-f", file]).contains("created"));
    assert!(platform.kubectl_ok(&["apply", "-f", file]).contains("unchanged"));
    platform.kubectl_ok(&["wait", "--for=condition=Ready", "function/applied", "ksvc/applied", "--timeout=60s"]);
    assert_eq!(platform.get("applied", "/").await.text(), "hi");
    let edited = Command::new(kubectl().expect("checked"))
        .args(["edit", "function", "applied"])
        .env("KUBECONFIG", platform.kubeconfig())
        .env("KUBE_EDITOR", "sed -i s/hi$/hej/")
        .output()
        .expect("kubectl runs");
    assert!(edited.status.success(), "{}", said(&edited));
    eventually("the edit is served", || async {
        let text = platform.get("applied", "/").await.text();
        if text == "hej" { Ok(()) } else { Err(text) }
    })
    .await;
    platform.kubectl_ok(&["apply", "--server-side", "--field-manager=someone", "--force-conflicts", "-f", file]);
    eventually("server-side apply is served", || async {
        let text = platform.get("applied", "/").await.text();
        if text == "hi" { Ok(()) } else { Err(text) }
    })
    .await;
    platform.kubectl_ok(&["delete", "function", "applied", "--timeout=60s"]);
    eventually("everything made for it is gone", || async {
        let left = platform.kubectl_ok(&[
            "get",
            "ksvc,configurations,revisions,routes,deployments,replicasets,pods,kpa,builds,endpointslices",
            "-o",
            "name",
        ]);
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn lists_and_several_documents() {
    if !able() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let function = |name: &str| {
        json!({
            "apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": name},
            "spec": {"source": {"inline": {"files": {"main.py": "def handle(request):\n    return 'ok'\n"}}}},
        })
    };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"a": "1"}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [map, function("listed")]}).to_string();
    let document = |name: &str| {
        let head = format!("apiVersion: dhow.dev/v1alpha1\nkind: Function\nmetadata: {{name: {name}}}\n");
        head + "spec: {source: {inline: {files: {main.py: \"def handle(r):\\n    return 'ok'\\n\"}}}}\n"
    };
    let documents = format!("{}---\n{}", document("first"), document("second"));
    for (file, text) in [("list.json", list), ("documents.yaml", documents)] {
        let path = platform.dir.path().join(file);
        std::fs::write(&path, text).expect("written");
        let path = path.to_str().expect("UTF-8");
        assert_eq!(platform.kubectl_ok(&["apply", "-f", path]).matches("created").count(), 2, "{file}");
        assert_eq!(platform.kubectl_ok(&["apply", "-f", path]).matches("unchanged").count(), 2, "{file}");
    }
    platform.kubectl_ok(&["wait", "--for=condition=Ready", "function", "--all", "--timeout=60s"]);
    assert_eq!(platform.get("listed", "/").await.text(), "ok");
}

#[tokio::test]
async fn edit_wait_and_watch_every_kind() {
    if !able() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    let pod = platform.pods("hello").pop().expect("a pod");
    let editor = platform.dir.path().join("editor.sh");
    std::fs::write(
        &editor,
        "#!/bin/sh\nsed -i 's|^  labels:$|  labels:\\n    example.org/'\"$MARK\"': \"yes\"|' \"$1\"\n",
    )
    .expect("written");
    std::fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    for (kind, name, condition) in [
        // First, since a new label of the Revision makes new pods.
        ("pod", pod.as_str(), "condition=Ready"),
        ("ksvc", "hello", "condition=Ready"),
        ("revision", "hello-00001", "condition=Ready"),
        ("deployment", "hello-00001-deployment", "condition=Available"),
    ] {
        // A label travels to what is made from an object, so each kind has its own.
        let mark = format!("edited-{kind}");
        platform.kubectl_ok(&["wait", &format!("--for={condition}"), &format!("{kind}/{name}"), "--timeout=60s"]);
        let mut watching = Command::new(kubectl().expect("checked"))
            .args(["get", kind, name, "-w", "-o", "jsonpath={.metadata.labels}{\"\\n\"}"])
            .env("KUBECONFIG", platform.kubeconfig())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
        assert!(lines.next().is_some_and(|line| line.is_ok_and(|line| !line.contains(&mark))), "{kind}: as it is");
        let edited = Command::new(kubectl().expect("checked"))
            .args(["edit", kind, name])
            .env("KUBECONFIG", platform.kubeconfig())
            .env("KUBE_EDITOR", &editor)
            .env("MARK", &mark)
            .output()
            .expect("kubectl runs");
        assert!(edited.status.success(), "{kind}: {}", said(&edited));
        assert!(lines.any(|line| line.is_ok_and(|line| line.contains(&mark))), "{kind}: get -w sees the edit");
        watching.kill().expect("killed");
        watching.wait().expect("reaped");
        assert_eq!(platform.object(kind, name)["metadata"]["labels"][format!("example.org/{mark}")], "yes", "{kind}");
    }
    platform.kubectl_ok(&["wait", "--for=jsonpath={.status.url}", "ksvc/hello", "--timeout=10s"]);
    let pod = platform.pods("hello").pop().expect("a pod");
    platform.kubectl_ok(&["delete", "pod", &pod, "--wait=false"]);
    platform.kubectl_ok(&["wait", "--for=delete", &format!("pod/{pod}"), "--timeout=60s"]);
}

#[tokio::test]
async fn edit_and_delete_the_generated_kinds() {
    if !able() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    let pod = platform.pods("hello").pop().expect("a pod");
    platform.kubectl_ok(&["delete", "pod", &pod, "--timeout=60s"]);
    eventually("the replica set makes another", || async {
        let pods = platform.pods("hello");
        if pods.iter().any(|p| *p != pod) { Ok(()) } else { Err(pods) }
    })
    .await;
    assert_eq!(platform.get("hello", "/").await.status.as_u16(), 200);
    for (kind, name) in [
        ("deployment", "hello-00001-deployment"),
        ("revision", "hello-00001"),
        ("ksvc", "hello"),
        ("function", "hello"),
    ] {
        platform.kubectl_ok(&["annotate", kind, name, "example.org/seen=yes"]);
        assert_eq!(platform.object(kind, name)["metadata"]["annotations"]["example.org/seen"], "yes", "{kind}");
        platform.kubectl_ok(&["label", kind, name, "example.org/l=1"]);
        platform.kubectl_ok(&[
            "patch",
            kind,
            name,
            "--type=merge",
            "-p",
            r#"{"metadata":{"labels":{"example.org/l":null}}}"#,
        ]);
        assert!(platform.object(kind, name)["metadata"]["labels"]["example.org/l"].is_null(), "{kind}");
    }
    platform.kubectl_ok(&["delete", "ksvc", "hello", "--timeout=60s"]);
    eventually("the function makes its service again", || async {
        let ready = platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=5s"]);
        if ready.status.success() { Ok(()) } else { Err(said(&ready)) }
    })
    .await;
    assert_eq!(platform.get("hello", "/").await.status.as_u16(), 200);
}

#[tokio::test]
async fn logs_follow_and_get_watches() {
    if !able() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let talks = "def handle(request):\n    print('saw', request.path)\n    return 'ok'\n";
    platform.deploy("talks", &[("main.py", talks)]);
    platform.get("talks", "/first").await;
    let pod = platform.pods("talks").pop().expect("a pod");
    eventually("the line is logged", || async {
        let logs = platform.kubectl_ok(&["logs", &pod]);
        if logs.contains("saw /first") { Ok(()) } else { Err(logs) }
    })
    .await;
    let follow = |args: &[&str]| {
        let mut child = Command::new(kubectl().expect("checked"))
            .args(args)
            .env("KUBECONFIG", platform.kubeconfig())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        (child, lines)
    };
    let (mut following, mut lines) = follow(&["logs", "-f", &pod]);
    assert!(lines.any(|l| l.is_ok_and(|l| l.contains("saw /first"))));
    platform.get("talks", "/second").await;
    assert!(lines.any(|l| l.is_ok_and(|l| l.contains("saw /second"))), "logs -f sees what comes later");
    following.kill().expect("killed");
    following.wait().expect("reaped");
    let (mut watching, mut lines) = follow(&["get", "pods", "-w"]);
    assert!(lines.any(|l| l.is_ok_and(|l| l.contains(&pod))));
    platform.scale_to_zero("talks");
    assert!(lines.any(|l| l.is_ok_and(|l| l.contains("Terminating"))), "get -w sees the pod go");
    watching.kill().expect("killed");
    watching.wait().expect("reaped");
}

#[tokio::test]
async fn errors_are_worded_as_kubernetes_words_them() {
    if !able() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let apply = |text: &str| {
        let path = platform.dir.path().join("bad.yaml");
        std::fs::write(&path, text).expect("written");
        said(&platform.kubectl(&["apply", "-f", path.to_str().expect("UTF-8")]))
    };
    let head = "apiVersion: dhow.dev/v1alpha1\nkind: Function\nmetadata: {name: bad}\n";
    for (spec, want) in [
        ("spec: {source: {inline: {files: {main.py: x}}}, concurency: 2}\n", r#"unknown field "spec.concurency""#),
        ("spec: {source: {inline: {files: {main.py: x}}}, timeoutSeconds: soon}\n", "spec.timeoutSeconds"),
        ("spec: {source: {}}\n", "expected exactly one of blob, inline"),
        ("spec: {runtime: cobol, source: {inline: {files: {main.py: x}}}}\n", "spec.runtime"),
        ("spec: {source: {inline: {files: {../main.py: x}}}}\n", "without '..'"),
        ("spec: {source: {inline: {files: {main.py: x}}}, env: [{name: PORT}]}\n", "reserved environment variable"),
        ("spec: {source: {inline: {files: {main.py: x}}}, resources: {limits: {memory: lots}}}\n", "\"lots\""),
    ] {
        let said = apply(&format!("{head}{spec}"));
        assert!(said.contains(want), "{spec}: {said}");
    }
    let dotted = head.replace("bad", "a.b");
    assert!(apply(&format!("{dotted}spec: {{source: {{inline: {{files: {{main.py: x}}}}}}}}\n")).contains("DNS-1035"));
    let missing = said(&platform.kubectl(&["get", "function", "nobody"]));
    assert!(missing.contains(r#"Error from server (NotFound): functions.dhow.dev "nobody" not found"#), "{missing}");
}
