//! `cargo xtask cluster check`: holds the cluster to what tests expect of one, and says how long a pod takes to start.
//!
//! Owns: the list of expectations. Must not know: how the cluster is made.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::plan::{HELLO, Layout};
use super::{eventually, kubectl};

const NAMESPACE: &str = "cluster-check";
const GREETING: &str = "it works";
const WAIT: &str = "--timeout=60s";
const STARTS: usize = 5;

pub fn run(layout: &Layout) -> Result<()> {
    apply(layout, "Namespace", None, &json!({}))?;
    let checked = expectations(layout);
    let removed = kubectl(layout, &["delete", "namespace", NAMESPACE, WAIT]);
    checked?;
    removed?;
    println!("the cluster does what it should");
    Ok(())
}

fn expectations(layout: &Layout) -> Result<()> {
    apply(layout, "Deployment", Some("web"), &deployment())?;
    apply(
        layout,
        "Service",
        Some("web"),
        &json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}),
    )?;
    let there = |arguments: &[&str]| kubectl(layout, &[&["--namespace", NAMESPACE], arguments].concat());
    let same = |what: &str, answer: &str| {
        ensure!(answer.contains(GREETING), "{what}: {answer:?}");
        println!("{what}: as expected");
        Ok(())
    };
    there(&["rollout", "status", "deployment/web", WAIT])?;
    same("log of a pod", &there(&["logs", "deployment/web"])?)?;
    let get = |host: &str| there(&["exec", "deployment/web", "--", "/hello", "get", &format!("http://{host}")]);
    same("command in a pod", &get("127.0.0.1:8080")?)?;
    let address = there(&["get", "service", "web", "--output=jsonpath={.spec.clusterIP}"])?;
    // The rules and the name of a new Service follow a moment after it.
    for host in [&address, "web", &format!("web.{NAMESPACE}.svc.cluster.local")] {
        same(&format!("http://{host} from a pod"), &eventually(50, host, || Ok(get(host).ok()))?)?;
    }
    let pod = there(&["get", "pods", "--output=jsonpath={.items[0].status.podIP}"])?;
    for host in [format!("{pod}:8080"), address] {
        same(&format!("http://{host} from the host"), &get_here(layout, &host)?)?;
    }
    let mut starts: Vec<Duration> = (0..STARTS).map(|_| start_once(layout)).collect::<Result<_>>()?;
    starts.sort();
    println!("a Deployment from zero to Ready: {starts:.0?}, two runs of kubectl included");
    Ok(())
}

/// The program of the image, outside of it.
fn get_here(layout: &Layout, host: &str) -> Result<String> {
    let output = Command::new(layout.built("hello")).args(["get", &format!("http://{host}")]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From the write of the scale until the Deployment tells of a ready pod.
#[allow(clippy::disallowed_methods, reason = "a stopwatch for people")]
fn start_once(layout: &Layout) -> Result<Duration> {
    let there = |arguments: &[&str]| kubectl(layout, &[&["--namespace", NAMESPACE], arguments].concat());
    there(&["scale", "deployment/web", "--replicas=0"])?;
    there(&["wait", "--for=delete", "pod", "--selector=app=web", WAIT])?;
    let begin = Instant::now();
    there(&["scale", "deployment/web", "--replicas=1"])?;
    there(&["wait", "--for=jsonpath={.status.readyReplicas}=1", "deployment/web", WAIT])?;
    Ok(begin.elapsed())
}

fn apply(layout: &Layout, kind: &str, name: Option<&str>, spec: &Value) -> Result<()> {
    let version = if kind == "Deployment" { "apps/v1" } else { "v1" };
    let mut metadata = json!({"name": name.unwrap_or(NAMESPACE)});
    if name.is_some() {
        metadata["namespace"] = NAMESPACE.into();
    }
    let object = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
    let file = layout.state().join(format!("check-{kind}.json"));
    std::fs::write(&file, object.to_string())?;
    let file: &Path = &file;
    kubectl(layout, &["apply", "--filename", &file.display().to_string()])?;
    Ok(())
}

fn deployment() -> Value {
    let restricted = json!({
        "readOnlyRootFilesystem": true, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    let container = json!({
        "name": "web", "image": HELLO, "securityContext": restricted,
        "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1},
        "resources": {"requests": {"memory": "16Mi", "cpu": "10m"}, "limits": {"memory": "64Mi", "cpu": "500m"}},
    });
    json!({
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
        },
    })
}
