//! How long the write of a cold start takes in process: a Pod created, its status applied, each seen by five watchers.
//!
//! `cargo run --release -p apiserver --example loop`

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::{ApiServer, Config, index};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

const ROUNDS: usize = 2000;
const WATCHERS: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = ApiServer::new(
        store::Store::memory(index, store::Options::default()),
        Config::new(Arc::new(jiff::Timestamp::now)),
    )
    .unwrap();
    let pods: Api<Pod> = Api::namespaced(server.client("default"), "default");
    let mut watches = vec![];
    for _ in 0..WATCHERS {
        let pods: Api<Pod> = Api::namespaced(server.client("default"), "default");
        watches.push(pods.watch(&WatchParams::default(), "0").await.unwrap().boxed());
    }
    let (mut create, mut seen, mut status) = (vec![], vec![], vec![]);
    for i in 0..ROUNDS {
        let name = format!("pod-{i}");
        let pod = pod(&name);
        let start = Instant::now();
        pods.create(&PostParams { field_manager: Some("dhow-replicaset".into()), ..PostParams::default() }, &pod)
            .await
            .unwrap();
        create.push(start.elapsed());
        for watch in &mut watches {
            until(watch, |event| matches!(event, WatchEvent::Added(p) if p.metadata.name.as_deref() == Some(&name)))
                .await;
        }
        seen.push(start.elapsed());
        let start = Instant::now();
        let patch = Patch::Apply(running());
        pods.patch_status(&name, &PatchParams::apply("dhow-node").force(), &patch).await.unwrap();
        status.push(start.elapsed());
        for watch in &mut watches {
            until(watch, |event| matches!(event, WatchEvent::Modified(_))).await;
        }
        let now = DeleteParams::default().grace_period(0);
        pods.delete(&name, &now).await.unwrap();
        for watch in &mut watches {
            until(watch, |event| matches!(event, WatchEvent::Deleted(_))).await;
        }
    }
    for (what, mut times) in [("create", create), ("create, seen by all", seen), ("status apply", status)] {
        times.sort();
        let at = |share: f64| times[(times.len() as f64 * share) as usize].as_micros();
        println!("{what:22} p50 {} us, p99 {} us", at(0.5), at(0.99));
    }
}

async fn until(
    watch: &mut (impl futures::Stream<Item = Result<WatchEvent<Pod>, kube::Error>> + Unpin),
    wanted: impl Fn(&WatchEvent<Pod>) -> bool,
) {
    let next = async { while !wanted(&watch.try_next().await.unwrap().unwrap()) {} };
    tokio::time::timeout(Duration::from_secs(10), next).await.unwrap();
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": {"app": "hello", "serving.knative.dev/revision": "hello-00001", "pod-template-hash": "abcdef"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "hello-00001-abcdef",
                                 "uid": "0e5e3c6a-0000-4000-8000-000000000000", "controller": true}],
        },
        "spec": {
            "nodeName": "node", "runtimeClassName": "dhow-process", "automountServiceAccountToken": false,
            "containers": [{
                "name": "user-container", "image": "127.0.0.1:5000/default/hello@sha256:0123",
                "env": [{"name": "PORT", "value": "8080"}, {"name": "K_REVISION", "value": "hello-00001"},
                        {"name": "K_SERVICE", "value": "hello"}, {"name": "GREETING", "value": "hi"}],
                "ports": [{"containerPort": 8080, "name": "http1"}],
                "resources": {"limits": {"memory": "128Mi", "cpu": "1"}},
            }],
        },
    }))
    .unwrap()
}

fn running() -> serde_json::Value {
    let at = "2026-01-01T00:00:00Z";
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "status": {
            "phase": "Running", "podIP": "10.200.0.7", "hostIP": "127.0.0.1", "startTime": at,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at},
                           {"type": "ContainersReady", "status": "True", "lastTransitionTime": at},
                           {"type": "Initialized", "status": "True", "lastTransitionTime": at}],
            "containerStatuses": [{"name": "user-container", "ready": true, "restartCount": 0, "started": true,
                                   "image": "i", "imageID": "", "state": {"running": {"startedAt": at}}}],
        },
    })
}
