//! No lock-in: what Dhow made of a service or a function runs without it, and beside it.

use std::process::Output;

use http::Request;
use serde_json::Value;

use crate::function::HELLO;
use crate::harness::{IMAGE, Platform, able, admin, container, eventually, on_cluster, said, send};

fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test]
async fn what_is_exported_runs_without_dhow() {
    if !on_cluster() {
        return;
    }
    let platform = Platform::start().await;
    platform.apply(&container("container", IMAGE));
    platform.serves("container");
    let path = platform.dir.path().join("exported.yaml");
    let file = path.to_str().expect("UTF-8");
    platform.deploy("hello", HELLO);
    // Where Dhow sees nothing of its own.
    let elsewhere = format!("{}-plain", platform.namespace());
    done(admin(&["create", "namespace", &elsewhere]));
    for (name, says) in [("container", "it works"), ("hello", "world")] {
        std::fs::write(&path, platform.dhow_ok(&["export", name])).expect("written");
        done(admin(&["apply", "--namespace", &elsewhere, "--filename", file]));
        done(admin(&["rollout", "status", "--namespace", &elsewhere, &format!("deployment/{name}"), "--timeout=90s"]));
        let ip = ["get", "service", name, "--namespace", &elsewhere, "--output=jsonpath={.spec.clusterIP}"];
        let address = format!("{}:80", done(admin(&ip)));
        let answered = eventually(&format!("{name} answers at {address}"), || async {
            let request = Request::get("/").header("host", name).body(Default::default()).expect("a request");
            let reply = send(&address, request).await.map_err(|e| e.to_string())?;
            if reply.status == 200 { Ok(reply.text()) } else { Err(reply.text()) }
        })
        .await;
        assert!(answered.contains(says), "{name}: {answered}");
        // Beside it, where Dhow runs it, nothing has changed.
        assert!(platform.get(name, "/").await.text().contains(says), "{name}");
    }
    let ours = ["get", "all,ingresses", "--namespace", &elsewhere, "--output=json"];
    for word in ["dhow.dev/", "knative.dev"] {
        assert!(!done(admin(&ours)).contains(word), "{word} is left");
    }
    done(admin(&["delete", "namespace", &elsewhere, "--wait=false"]));
}

#[tokio::test]
async fn everything_that_was_made_can_be_seen() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    let text = platform.dhow_ok(&["export", "hello", "--all", "--output", "json"]);
    let list: Value = serde_json::from_str(&text).expect("JSON");
    let kinds: Vec<String> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|object| format!("{} {}", object["apiVersion"], object["kind"]).replace('"', ""))
        .collect();
    for want in [
        "apps/v1 Deployment",
        "v1 Service",
        "serving.knative.dev/v1 Service",
        "serving.knative.dev/v1 Configuration",
        "serving.knative.dev/v1 Revision",
        "serving.knative.dev/v1 Route",
        "autoscaling.internal.knative.dev/v1alpha1 PodAutoscaler",
        "networking.internal.knative.dev/v1alpha1 Ingress",
    ] {
        assert!(kinds.iter().any(|kind| kind == want), "{want} is not among {kinds:?}");
    }
    let absent = platform.dhow(&["export", "absent"]);
    assert!(said(&absent).contains("neither a function nor a service absent"), "{}", said(&absent));
}
