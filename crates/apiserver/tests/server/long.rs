//! Lists as long as a body may hold: the work for them grows as they do. A test here that takes minutes has found work that
//! grows with the square.

use apiserver::ApiServer;
use http::Method;
use serde_json::{Value, json};

use crate::harness::{call, server};

const MANY: usize = 30_000;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn many(item: impl Fn(usize) -> Value) -> Value {
    (0..MANY).map(item).collect()
}

async fn sent(server: &ApiServer, method: &Method, path: &str, media: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    assert!(body.len() < 3 << 20, "{path}: {}", body.len());
    let (status, answer) = call(server, method.clone(), path, &[("content-type", media)], body).await;
    (status.as_u16(), answer)
}

#[tokio::test]
async fn sets_and_keyed_lists_merge() {
    let server = server();
    let map = |from: usize| {
        let owner = |i: usize| json!({"apiVersion": "v1", "kind": "A", "name": "o", "uid": (from + i).to_string()});
        let names = many(|i| json!(format!("a.b/{}", from + i)));
        let meta = json!({"name": "m", "finalizers": names, "ownerReferences": many(owner)});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    };
    let (path, apply) = (format!("{MAPS}/m?fieldManager=a"), "application/apply-patch+yaml");
    for (method, path, media, body, want) in [
        (Method::PATCH, path.as_str(), apply, map(0), 201),
        (Method::PATCH, &path, apply, map(MANY / 2), 200),
        (Method::PATCH, &path, "application/strategic-merge-patch+json", map(MANY), 200),
    ] {
        let (status, answer) = sent(&server, &method, path, media, &body).await;
        assert_eq!(status, want, "{}", answer["message"]);
    }
    let twice = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n", "finalizers": many(|i| json!(i / 2))}});
    let (status, _) = sent(&server, &Method::PATCH, &format!("{MAPS}/n?fieldManager=a"), apply, &twice).await;
    assert!(status >= 400);
}

#[tokio::test]
async fn pods_are_checked() {
    let server = server();
    let path = "/api/v1/namespaces/default/pods";
    for (part, item) in [
        ("env", (|i| json!({"name": format!("N{i}"), "value": "v"})) as fn(usize) -> Value),
        ("env", |_| json!({"name": "N", "value": "v"})),
        ("ports", |i| json!({"containerPort": 80, "name": format!("n{i}")})),
        ("ports", |i| json!({"containerPort": i % 60_000 + 1, "protocol": "UDP"})),
        ("volumeMounts", |i| json!({"name": format!("v{i}"), "mountPath": format!("/{i}")})),
    ] {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "image": "i"}], "volumes": many(|i| json!({"name": format!("v{i}")})),
        }});
        pod["spec"]["containers"][0][part] = many(item);
        let (status, answer) = sent(&server, &Method::POST, path, "application/json", &pod).await;
        assert!([201, 409, 422].contains(&status), "{part} {status} {}", answer["message"]);
    }
}

#[tokio::test]
async fn objects_of_defined_kinds_are_compared() {
    let server = server();
    let item = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.k == oldSelf.k"}],
        "properties": {"k": {"type": "integer"}, "v": {"type": "string"}}, "required": ["k"]});
    let list = json!({"type": "array", "items": item, "maxItems": 100_000,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]});
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"list": list}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.a.io"},
        "spec": {"group": "a.io", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (status, answer) = sent(&server, &Method::POST, path, "application/json", &definition).await;
    assert_eq!(status, 201, "{}", answer["message"]);
    let path = "/apis/a.io/v1/namespaces/default/things";
    let thing = json!({"apiVersion": "a.io/v1", "kind": "Thing", "metadata": {"name": "t"},
        "spec": {"list": many(|i| json!({"k": i, "v": "x"}))}});
    let (status, answer) = sent(&server, &Method::POST, path, "application/json", &thing).await;
    assert_eq!(status, 201, "{}", answer["message"]);
    let change = json!({"spec": {"list": many(|i| json!({"k": MANY - 1 - i, "v": "y"}))}});
    let path = format!("{path}/t");
    let (status, answer) = sent(&server, &Method::PATCH, &path, "application/merge-patch+json", &change).await;
    assert_eq!(status, 200, "{}", answer["message"]);
}
