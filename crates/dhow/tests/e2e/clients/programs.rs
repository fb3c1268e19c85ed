//! Programs written with the client libraries of other languages; their sources are in `tests/clients/`.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Stdio};

use serde_json::json;

use super::pod_spec;
use crate::harness::{Platform, Running, client, eventually, kubectl, machine, sources};

/// A platform on which the pod `subject` runs.
async fn with_pod() -> Option<Platform> {
    if !machine() || kubectl().is_none() {
        return None;
    }
    let platform = Platform::start().await;
    platform.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "subject"}, "spec": pod_spec(&platform),
    }));
    platform.kubectl_ok(&["wait", "--for=condition=Ready", "pod/subject", "--timeout=60s"]);
    Some(platform)
}

#[tokio::test]
#[ignore = "make test-clients installs the library"]
async fn python() {
    let Some(packages) = client("python") else { return };
    let Some(platform) = with_pod().await else { return };
    let mut suite = platform.program("/usr/bin/python3");
    suite.arg(sources().join("python/test_client.py")).args(["--verbose"]);
    suite.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1").env("DHOW_TEST_POD", "subject");
    platform.done(suite);
}

#[tokio::test]
#[ignore = "make test-clients installs the library"]
async fn javascript() {
    let Some(folder) = client("javascript") else { return };
    let Some(platform) = with_pod().await else { return };
    // Modules look for others beside themselves.
    let here = platform.dir.path();
    std::os::unix::fs::symlink(folder.join("node_modules"), here.join("node_modules")).expect("linked");
    std::fs::copy(sources().join("javascript/client.test.mjs"), here.join("client.test.mjs")).expect("copied");
    let mut suite = platform.program("/usr/bin/node");
    suite.args(["--test", "client.test.mjs"]).env("DHOW_TEST_POD", "subject");
    platform.done(suite);
}

#[tokio::test]
#[ignore = "make test-clients builds the program"]
async fn go_clients_and_informers() {
    let Some(program) = client("go") else { return };
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let mut suite = platform.program(program);
    suite.arg("typed");
    assert_eq!(platform.done(suite).matches("ok ").count(), 7);
}

/// A controller-runtime manager; dropping it ends it as an operator would.
struct Manager {
    said: BufReader<ChildStdout>,
    _process: Running,
}

impl Manager {
    fn start(platform: &Platform, program: &std::path::Path, name: &str) -> Self {
        let log = std::fs::File::create(platform.dir.path().join(format!("{name}.log"))).expect("a log file");
        let mut command = platform.program(program);
        command.args(["manager", name]).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().expect("it starts");
        let said = BufReader::new(process.stdout.take().expect("piped"));
        Self { said, _process: Running(process) }
    }

    fn leads(&mut self) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it can be read");
        assert_eq!(line.trim(), "leading");
    }
}

#[tokio::test]
#[ignore = "make test-clients builds the program"]
async fn a_controller_runtime_manager() {
    let Some(program) = client("go") else { return };
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let asks = |name: &str| {
        let labels = json!({"suite": "go"});
        let metadata = json!({"name": name, "labels": labels});
        platform
            .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"key": "value"}}));
        platform.kubectl_ok(&["wait", "--for=create", &format!("secret/{name}"), "--timeout=60s"]);
        let secret = platform.object("secret", name);
        assert_eq!(secret["data"]["key"], "dmFsdWU=");
        secret["metadata"]["annotations"]["example.org/made-by"].as_str().unwrap_or_default().to_owned()
    };
    let mut first = Manager::start(&platform, &program, "first");
    first.leads();
    let mut second = Manager::start(&platform, &program, "second");
    assert_eq!(asks("early"), "first");
    let lease = platform.object("lease", "clients.example.org");
    assert!(lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| holder.contains('_')), "{lease}");
    // It gives the lease back as it ends.
    drop(first);
    second.leads();
    assert_eq!(asks("late"), "second");
    // What is taken away comes back; what goes takes the rest with it, once its finalizer was heard.
    platform.kubectl_ok(&["delete", "secret", "early"]);
    platform.kubectl_ok(&["wait", "--for=create", "secret/early", "--timeout=60s"]);
    platform.kubectl_ok(&["delete", "configmap", "early", "late", "--timeout=60s"]);
    eventually("what they owned is gone", || async {
        let left = platform.kubectl_ok(&["get", "secrets", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}
