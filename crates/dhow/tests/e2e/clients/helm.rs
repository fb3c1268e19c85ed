//! Helm, of both major versions that people have.

use serde_json::json;

use super::pod_spec;
use crate::harness::{Platform, client, kubectl, machine, sources, write_files};

/// The life of a release. Both versions keep releases in Secrets and read each other's.
async fn the_life_of_a_release(helm: &str) {
    let Some(program) = client(helm) else { return };
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let values = json!({"pod": pod_spec(&platform)}).to_string();
    write_files(platform.dir.path(), &[("values.json", &values)]);
    std::os::unix::fs::symlink(program, platform.dir.path().join("helm")).expect("linked");
    std::os::unix::fs::symlink(sources().join("chart"), platform.dir.path().join("chart")).expect("linked");
    let greets = "kubectl get cm r -o jsonpath='{.data}'; kubectl get deploy r -o jsonpath='{.status.readyReplicas}{..annotations.greeting}'";
    platform.shell(&[
        ("./helm install r chart -f values.json --wait --timeout 90s", &["STATUS: deployed", "r says hello."]),
        (greets, &[r#"{"greeting":"hello","revision":"1"}1"#]),
        ("kubectl wait --for=condition=Ready fn/r-function --timeout=60s", &[]),
        ("kubectl get secret -l owner=helm --field-selector=type=helm.sh/release.v1 -o name", &["secret/sh.helm.release.v1.r.v1"]),
        ("!./helm install r chart -f values.json", &["a name that is still in use"]),
        ("./helm upgrade r chart -f values.json --set greeting=hej --set replicas=2 --wait --timeout 90s", &["STATUS: deployed"]),
        (greets, &[r#"{"greeting":"hej","revision":"2"}2"#, "hej"]),
        ("kubectl get secret r -o jsonpath='{.data.first}' | base64 -d", &["hello"]),
        ("kubectl get cm r-hook -o jsonpath='{.data.greeting}'", &["hej"]),
        ("./helm history r -o json", &[r#""revision":2"#, r#""status":"superseded""#]),
        ("./helm status r", &["REVISION: 2"]),
        ("./helm get values r", &["greeting: hej"]),
        ("kubectl get tune r -o jsonpath='{.spec}'", &[r#"{"notes":"hej","times":1}"#]),
        ("!./helm upgrade r chart -f values.json --set greeting= --wait --timeout 90s", &["spec.notes"]),
        // What somebody else changed in between is merged, and what the chart says wins.
        ("kubectl label cm r mine=kept && kubectl scale deploy r --replicas=1", &[]),
        ("./helm rollback r 1 --wait --timeout 90s", &["Rollback was a success"]),
        (greets, &[r#"{"greeting":"hello","revision":"1"}1"#]),
        ("kubectl get cm r -o jsonpath='{.metadata.labels.mine}'", &["kept"]),
        ("!./helm upgrade r chart -f values.json --set-json 'replicas=\"many\"' --wait --timeout 90s", &["spec.replicas"]),
        ("./helm upgrade --install r chart -f values.json --set greeting=again --wait --timeout 90s --history-max 3", &["STATUS: deployed"]),
        ("./helm list -o json", &[r#""name":"r""#, r#""status":"deployed""#]),
        ("./helm upgrade r chart -f values.json --dry-run=server --set greeting=dry", &["greeting: \"dry\""]),
        ("./helm uninstall r --wait --timeout 90s", &[r#"release "r" uninstalled"#]),
        ("kubectl get deploy,rs,svc,sa,cm,fn -l app=r -o name; kubectl get deploy,svc,cm,secret r --ignore-not-found -o name", &[]),
        ("kubectl get deploy,svc,cm,secret,fn r r-function --ignore-not-found -o name | wc -l | xargs test 0 -eq", &[]),
        // As everywhere, it leaves the kinds that a chart brought.
        ("kubectl get tunes.example.org -o name | wc -l | xargs test 0 -eq", &[]),
        ("kubectl get crd tunes.example.org", &["tunes.example.org"]),
        ("kubectl wait --for=delete pods -l app=r --timeout=60s", &[]),
        ("./helm list -q | wc -l | xargs test 0 -eq", &[]),
    ]);
}

#[tokio::test]
#[ignore = "make test-clients builds it"]
async fn helm_3() {
    the_life_of_a_release("helm").await;
}

#[tokio::test]
#[ignore = "make test-clients builds it"]
async fn helm_4() {
    the_life_of_a_release("helm4").await;
}
