//! A namespace on a real cluster, where Dhow is installed: what a test gets instead of a platform of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{kubectl, said, tail};

/// What Dhow is installed with.
pub const DOMAIN: &str = "dhow.test";
const SYSTEM: &str = "dhow-system";
static TENANTS: AtomicU32 = AtomicU32::new(0);

/// The administrator's, where the tests run against a cluster.
pub fn kubeconfig() -> Option<PathBuf> {
    std::env::var_os("DHOW_TEST_CLUSTER").filter(|path| !path.is_empty()).map(PathBuf::from)
}

pub struct Tenant {
    pub namespace: String,
}

impl Tenant {
    /// Makes the namespace and a kubeconfig at `path` that works in it.
    pub fn new(path: &Path, dir: &Path) -> Self {
        let prefix = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
        let namespace = format!("{prefix}-{}", TENANTS.fetch_add(1, Ordering::Relaxed));
        std::fs::create_dir_all(path.parent().expect("in a folder")).expect("a folder");
        std::fs::copy(kubeconfig().expect("asked before"), path).expect("the kubeconfig is copied");
        let file = path.to_str().expect("UTF-8");
        let set = ["config", "set-context", "--current", "--namespace", &namespace, "--kubeconfig", file];
        for command in [&["create", "namespace", &namespace][..], &set] {
            let output = admin(command);
            assert!(output.status.success(), "kubectl {command:?}: {}", said(&output));
        }
        Self { namespace }
    }

    pub fn log(&self) -> String {
        let selector = "app.kubernetes.io/name=dhow";
        let output = admin(&[
            "logs",
            "--namespace",
            SYSTEM,
            "--selector",
            selector,
            "--tail=40",
            "--prefix",
            "--all-containers",
        ]);
        let events = admin(&["get", "events", "--namespace", &self.namespace, "--sort-by=.lastTimestamp"]);
        let text = |output: Output| String::from_utf8_lossy(&output.stdout).into_owned();
        format!("{}\n{}", text(output), tail(&text(events)))
    }

    pub fn endpoint(&self, name: &str) -> String {
        assert_eq!(name, "gateway", "a cluster publishes no other");
        static GATEWAY: OnceLock<String> = OnceLock::new();
        GATEWAY
            .get_or_init(|| jsonpath(&["service", "dhow-gateway"], "{.spec.clusterIP}:{.spec.ports[0].port}"))
            .clone()
    }

    /// Where each gateway serves its metrics.
    pub fn gateways(&self) -> Vec<String> {
        let pods = jsonpath(
            &["pods", "--selector", "app.kubernetes.io/component=gateway"],
            "{range .items[*]}{.status.podIP}:9090 {end}",
        );
        pods.split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        admin(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

fn jsonpath(what: &[&str], path: &str) -> String {
    let output = format!("--output=jsonpath={path}");
    let done = admin(&[&["get", "--namespace", SYSTEM], what, &[&output]].concat());
    assert!(done.status.success(), "kubectl get {what:?}: {}", said(&done));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// kubectl as the cluster's administrator.
pub fn admin(arguments: &[&str]) -> Output {
    let kubectl = kubectl().expect("a cluster is tested with kubectl");
    let config = kubeconfig().expect("asked before");
    Command::new(kubectl).args(arguments).env("KUBECONFIG", config).output().expect("kubectl runs")
}
