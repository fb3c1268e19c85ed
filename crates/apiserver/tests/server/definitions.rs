//! Kinds that clients bring.

use apiserver::ApiServer;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{call, config, server, store};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/a.example/v1/namespaces/default/widgets";

fn definition() -> Value {
    let spec = json!({"type": "object", "required": ["size"], "properties": {
        "size": {"type": "integer", "minimum": 1},
        "color": {"type": "string", "default": "red", "enum": ["red", "blue"]},
        "count": {"type": "integer"},
        "port": {"x-kubernetes-int-or-string": true},
        "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                  "items": {"type": "object", "required": ["name"],
                            "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}},
    }, "x-kubernetes-validations": [{"rule": "self.size <= 100", "message": "too large for us"}]});
    let status =
        json!({"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}});
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "schema": schema,
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.count",
                "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
            "selectableFields": [{"jsonPath": ".spec.color"}],
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.a.example"},
        "spec": {"group": "a.example", "scope": "Namespaced",
                 "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wi"], "categories": ["all"]},
                 "versions": [version("v1beta1", true), version("v1", false)]},
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "a.example/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn get(server: &ApiServer, path: &str) -> (StatusCode, Value) {
    call(server, Method::GET, path, &[], "").await
}

async fn post(server: &ApiServer, path: &str, object: &Value) -> (StatusCode, Value) {
    call(server, Method::POST, path, &[], object.to_string()).await
}

async fn defined() -> ApiServer {
    let server = server();
    let (status, made) = post(&server, DEFINITIONS, &definition()).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    server
}

#[tokio::test]
async fn a_definition_is_served_at_once() {
    let server = defined().await;
    let (_, stored) = get(&server, &format!("{DEFINITIONS}/widgets.a.example")).await;
    let conditions: Vec<_> = stored["status"]["conditions"].as_array().unwrap().iter().map(|c| &c["status"]).collect();
    assert_eq!(conditions, ["True", "True"], "{stored}");
    assert_eq!(stored["status"]["acceptedNames"]["singular"], "widget");
    let (_, group) = get(&server, "/apis/a.example").await;
    assert_eq!(group["preferredVersion"]["version"], "v1", "{group}");
    let (_, resources) = get(&server, "/apis/a.example/v1").await;
    let names: Vec<_> = resources["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);
    let (_, document) = get(&server, "/openapi/v3/apis/a.example/v1").await;
    let schema = &document["components"]["schemas"]["example.a.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["type"], "integer");
    let (_, index) = get(&server, "/openapi/v3").await;
    assert!(index["paths"]["apis/a.example/v1"]["serverRelativeURL"].is_string());
}

#[tokio::test]
async fn objects_are_pruned_defaulted_and_checked() {
    let server = defined().await;
    let (status, made) = post(&server, WIDGETS, &widget("a", json!({"size": 3, "junk": 1}))).await;
    assert_eq!((status, &made["spec"]), (StatusCode::CREATED, &json!({"size": 3, "color": "red"})), "{made}");
    assert_eq!((&made["apiVersion"], &made["metadata"]["generation"]), (&json!("a.example/v1"), &json!(1)));
    for (spec, want) in [
        (json!({}), "spec.size: Required value"),
        (json!({"size": 0}), "spec.size in body should be greater than or equal to 1"),
        (json!({"size": 3, "color": "pink"}), r#"Unsupported value: "pink": supported values: "red", "blue""#),
        (json!({"size": 300}), "spec: Invalid value: too large for us"),
        (json!({"size": 3, "port": true}), "spec.port in body must be of type integer,string"),
        (json!({"size": null}), "spec.size: Required value"),
        (json!({"size": 3, "parts": [{"name": "a"}, {"name": "a"}]}), "Duplicate value"),
    ] {
        let (status, answer) = post(&server, WIDGETS, &widget("b", spec.clone())).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{spec}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.starts_with(r#"Widget.a.example "b" is invalid: "#) && message.contains(want), "{message}");
    }
    let path = format!("{WIDGETS}?fieldValidation=Strict");
    let (status, answer) = post(&server, &path, &widget("b", json!({"size": 3, "junk": 1}))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["message"].as_str().unwrap().contains(r#"unknown field "spec.junk""#), "{answer}");
}

#[tokio::test]
async fn versions_scale_columns_and_selectable_fields() {
    let server = defined().await;
    post(&server, WIDGETS, &widget("a", json!({"size": 3, "count": 2}))).await;
    post(&server, WIDGETS, &widget("b", json!({"size": 4, "color": "blue"}))).await;
    let (_, old) = get(&server, "/apis/a.example/v1beta1/namespaces/default/widgets/a").await;
    assert_eq!((&old["apiVersion"], &old["spec"]["size"]), (&json!("a.example/v1beta1"), &json!(3)));
    let (_, list) = get(&server, "/apis/a.example/v1/widgets?fieldSelector=spec.color%3Dblue").await;
    let items = list["items"].as_array().unwrap();
    assert_eq!((items.len(), &items[0]["metadata"]["name"]), (1, &json!("b")));
    assert_eq!(items[0]["apiVersion"], "a.example/v1");
    let (status, _) = get(&server, "/apis/a.example/v1/widgets?fieldSelector=spec.size%3D3").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);

    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "a"}, "spec": {"replicas": 5}});
    let (status, answer) = call(&server, Method::PUT, &format!("{WIDGETS}/a/scale"), &[], scale.to_string()).await;
    assert_eq!((status, &answer["spec"]["replicas"]), (StatusCode::OK, &json!(5)), "{answer}");
    assert_eq!(get(&server, &format!("{WIDGETS}/a")).await.1["spec"]["count"], 5);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, table) = call(&server, Method::GET, WIDGETS, &table, "").await;
    let columns: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!((columns, &table["rows"][0]["cells"]), (vec![json!("Name"), json!("Size")], &json!(["a", 3])));

    let apply = [("content-type", "application/apply-patch+yaml")];
    let config = widget("c", json!({"size": 1, "parts": [{"name": "x", "n": 1}]})).to_string();
    let path = format!("{WIDGETS}/c?fieldManager=one");
    let (status, made) = call(&server, Method::PATCH, &path, &apply, config).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(made["metadata"]["managedFields"][0]["apiVersion"], "a.example/v1");
    let config = widget("c", json!({"parts": [{"name": "y"}]})).to_string();
    let path = format!("{WIDGETS}/c?fieldManager=two");
    let (_, both) = call(&server, Method::PATCH, &path, &apply, config).await;
    assert_eq!(both["spec"]["parts"], json!([{"name": "x", "n": 1}, {"name": "y"}]), "{both}");
}

#[tokio::test]
async fn a_stricter_definition_complains_only_about_what_changes() {
    let server = defined().await;
    post(&server, WIDGETS, &widget("a", json!({"size": 50}))).await;
    let (_, mut stored) = get(&server, &format!("{DEFINITIONS}/widgets.a.example")).await;
    for version in stored["spec"]["versions"].as_array_mut().unwrap() {
        let spec = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        spec["properties"]["size"]["maximum"] = 10.into();
        spec["properties"]["later"] = json!({"type": "string", "default": "new"});
    }
    let path = format!("{DEFINITIONS}/widgets.a.example");
    let (status, answer) = call(&server, Method::PUT, &path, &[], stored.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let (_, shown) = get(&server, &format!("{WIDGETS}/a")).await;
    assert_eq!(shown["spec"]["later"], "new", "a default that came later is shown");
    let merge = [("content-type", "application/merge-patch+json")];
    for (patch, want) in [
        (json!({"metadata": {"labels": {"a": "b"}}}), StatusCode::OK),
        (json!({"spec": {"color": "blue"}}), StatusCode::OK),
        (json!({"spec": {"size": 51}}), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let (status, answer) = call(&server, Method::PATCH, &format!("{WIDGETS}/a"), &merge, patch.to_string()).await;
        assert_eq!(status, want, "{patch}: {answer}");
    }
}

#[tokio::test]
async fn deletion_waits_for_the_objects() {
    let server = defined().await;
    post(&server, WIDGETS, &widget("a", json!({"size": 3}))).await;
    let path = format!("{DEFINITIONS}/widgets.a.example");
    let (_, marked) = call(&server, Method::DELETE, &path, &[], "").await;
    assert_eq!(marked["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]), "{marked}");
    assert_eq!(get(&server, &format!("{WIDGETS}/a")).await.0, StatusCode::OK);
    let (status, answer) = post(&server, WIDGETS, &widget("b", json!({"size": 3}))).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer["message"], "create not allowed while custom resource definition is terminating");
    call(&server, Method::DELETE, &format!("{WIDGETS}/a"), &[], "").await;
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = json!({"metadata": {"finalizers": null}}).to_string();
    let (status, _) = call(&server, Method::PATCH, &path, &merge, patch).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(get(&server, WIDGETS).await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&server, "/apis/a.example").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn our_own_definitions_stay() {
    let server = server();
    let path = format!("{DEFINITIONS}/functions.dhow.dev");
    let (status, mut own) = get(&server, &path).await;
    assert_eq!(status, StatusCode::OK);
    let (status, answer) = call(&server, Method::DELETE, &path, &[], "").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    own["metadata"]["labels"] = json!({"mine": "yes"});
    assert_eq!(call(&server, Method::PUT, &path, &[], own.to_string()).await.0, StatusCode::OK);
    own["spec"]["scope"] = "Cluster".into();
    own["metadata"]["resourceVersion"] = "".into();
    let (status, answer) = call(&server, Method::PUT, &path, &[], own.to_string()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
}

#[tokio::test]
async fn definitions_and_objects_survive_a_restart() {
    let store = store();
    let first = ApiServer::new(store.clone(), config()).unwrap();
    post(&first, DEFINITIONS, &definition()).await;
    post(&first, WIDGETS, &widget("a", json!({"size": 3, "color": "blue"}))).await;
    drop(first);
    let second = ApiServer::new(store, config()).unwrap();
    let (status, shown) = get(&second, &format!("{WIDGETS}/a")).await;
    assert_eq!((status, &shown["apiVersion"]), (StatusCode::OK, &json!("a.example/v1")));
}
