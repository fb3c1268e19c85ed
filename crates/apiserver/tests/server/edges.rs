//! Bounds, tokens, bookmarks, expiry, logs, durability: what neither client shows by itself.

use std::collections::BTreeMap;

use apiserver::{ApiServer, BoxError, Config, ResponseBody};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use tower::Service;

use crate::harness::{self, TOKEN, call, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}}).to_string()
}

async fn external(
    server: &ApiServer,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: String,
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = server.external().call(request.body(Full::<Bytes>::from(body)).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// The events of a watch that ends by itself.
async fn events(server: &ApiServer, path: &str, accept: &str) -> Vec<Value> {
    let request = Request::get(path).header("accept", accept).body(Full::<Bytes>::default()).unwrap();
    let response = server.local().call(request).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let text = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::Deserializer::from_slice(&text).into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn tokens_are_needed_outside() {
    let server = server();
    for (path, token, want) in [
        (MAPS, None, 401),
        (MAPS, Some("wrong"), 401),
        (MAPS, Some(TOKEN), 200),
        ("/apis", None, 401),
        ("/healthz", None, 200),
        ("/readyz", None, 200),
        ("/version", None, 200),
        ("/nothing", Some(TOKEN), 404),
        ("/apis/nothing/v1/things", Some(TOKEN), 404),
        ("/api/v1/namespaces/default/pods/p/exec", Some(TOKEN), 404),
    ] {
        let (status, body) = external(&server, Method::GET, path, token, String::new()).await;
        assert_eq!(status, want, "{path} {token:?}");
        if want == 401 {
            assert_eq!((&body["reason"], &body["message"]), (&json!("Unauthorized"), &json!("Unauthorized")));
        }
    }
}

#[tokio::test]
async fn bodies() {
    let config = Config { max_body_bytes: 2000, ..harness::config() };
    let server = ApiServer::new(harness::store(), config).unwrap();
    let deep = format!("{}{}", "{\"a\":".repeat(200), "1".to_owned() + &"}".repeat(200));
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-yaml}\n";
    let wrong = map("m").replace("ConfigMap", "Secret");
    for (media, body, want) in [
        ("application/json", map("m"), 201),
        ("application/json", map("m"), 409),
        ("application/yaml", yaml.to_owned(), 201),
        ("application/json", "{".to_owned(), 400),
        ("application/json", "[]".to_owned(), 400),
        ("application/json", deep, 400),
        ("application/json", map(&"x".repeat(2000)), 413),
        ("application/json", map("UPPER"), 422),
        ("application/json", wrong, 400),
        ("application/cbor", map("m"), 415),
        ("application/vnd.kubernetes.protobuf", "k8s\0garbage".to_owned(), 400),
    ] {
        let (status, answer) = call(&server, Method::POST, MAPS, &[("content-type", media)], body.clone()).await;
        assert_eq!(status, want, "{media} {body}: {answer}");
    }
}

/// A request of an administrator whose body comes piece by piece.
async fn trickled(server: &ApiServer, pieces: impl Stream<Item = Bytes> + Send + 'static) -> (u16, Value) {
    let body = StreamBody::new(pieces.map(|piece| Ok::<_, BoxError>(http_body::Frame::data(piece))));
    let request = Request::post(MAPS).header("authorization", format!("Bearer {TOKEN}")).body(body).unwrap();
    let response = server.external().call(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_body_that_takes_for_ever() {
    let server = server();
    let a_byte_a_second = stream::unfold((), |()| async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        Some((Bytes::from_static(b" "), ()))
    });
    let (status, answer) = trickled(&server, a_byte_a_second).await;
    assert_eq!((status, &answer["reason"]), (504, &json!("Timeout")));
    assert_eq!(answer["message"], "Timeout: request did not complete within the allotted timeout");
}

#[tokio::test]
async fn bodies_that_do_not_end_are_bounded_together() {
    let config = Config { max_pending_bytes: 1000, ..harness::config() };
    let server = ApiServer::new(harness::store(), config).unwrap();
    let half = || stream::once(async { Bytes::from(vec![b' '; 600]) });
    let mut first = Box::pin(trickled(&server, half().chain(stream::pending())));
    assert!(futures::poll!(first.as_mut()).is_pending());
    let (status, answer) = trickled(&server, half()).await;
    assert_eq!((status, &answer["reason"]), (429, &json!("TooManyRequests")), "{answer}");
    let (status, _) = call(&server, Method::POST, MAPS, &[], map(&"x".repeat(600))).await;
    assert_ne!(status, 429, "the program itself is not held up by strangers");
    drop(first);
    assert_eq!(trickled(&server, half()).await.0, 400, "what a client that left had sent is forgotten");
}

#[tokio::test]
async fn unknown_fields() {
    let server = server();
    let body = |name: &str| json!({"metadata": {"name": name}, "data": {"a": "b"}, "extra": 1}).to_string();
    for (query, want, warned) in [
        ("", 201, false),
        ("?fieldValidation=Warn", 201, true),
        ("?fieldValidation=Strict", 400, false),
        ("?fieldValidation=Odd", 422, false),
    ] {
        let name = format!("m{}", query.len());
        let request = Request::post(format!("{MAPS}{query}")).body(Full::<Bytes>::from(body(&name))).unwrap();
        let response = server.local().call(request).await.unwrap();
        assert_eq!(response.status(), want, "{query}");
        let warning = response.headers().get("warning").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(warning.is_some_and(|text| text.contains(r#"unknown field \"extra\""#)), warned, "{query}");
        if want == 201 {
            let (_, kept) = call(&server, Method::GET, &format!("{MAPS}/{name}"), &[], "").await;
            assert_eq!(kept["extra"], 1, "unknown fields survive");
        }
    }
}

#[tokio::test]
async fn some_kinds_are_made_by_a_replace() {
    let server = server();
    for (plural, name, extra, want) in [
        ("services", "a", json!({}), 201),
        ("services", "a", json!({}), 200),
        ("services", "b", json!({"resourceVersion": "5"}), 404),
        ("configmaps", "a", json!({}), 404),
    ] {
        let mut object = json!({"metadata": extra, "spec": {"clusterIP": "None"}});
        object["metadata"]["name"] = name.into();
        let path = format!("/api/v1/namespaces/default/{plural}/{name}");
        let (status, answer) = call(&server, Method::PUT, &path, &[], object.to_string()).await;
        assert_eq!(status, want, "{plural} {name}: {answer}");
    }
}

#[tokio::test]
async fn what_is_on_its_way_out_is_still_there() {
    let server = server();
    let held = json!({"metadata": {"name": "a", "finalizers": ["a.example/b"]}}).to_string();
    let path = format!("{MAPS}/a");
    for (method, path, want) in [
        (Method::POST, MAPS, ""),
        (Method::POST, MAPS, r#"configmaps "a" already exists"#),
        (Method::DELETE, path.as_str(), ""),
        (Method::POST, MAPS, r#"object is being deleted: configmaps "a" already exists"#),
    ] {
        let body = if method == Method::POST { held.clone() } else { String::new() };
        let (_, answer) = call(&server, method.clone(), path, &[], body).await;
        assert_eq!(answer["message"].as_str().unwrap_or_default(), want, "{method} {answer}");
    }
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let server = server();
    call(&server, Method::POST, MAPS, &[], map("a")).await;
    let (_, before) = call(&server, Method::GET, MAPS, &[], "").await;
    let merge: &[(&str, &str)] = &[("content-type", "application/merge-patch+json")];
    for (method, path, headers, body, want) in [
        (Method::POST, MAPS.to_owned(), &[] as &[_], map("b"), 201),
        (Method::POST, MAPS.to_owned(), &[], map("a"), 409),
        (Method::PATCH, format!("{MAPS}/a"), merge, json!({"data": {"c": "d"}}).to_string(), 200),
        (Method::DELETE, format!("{MAPS}/a"), &[], String::new(), 200),
    ] {
        let (status, answer) = call(&server, method.clone(), &format!("{path}?dryRun=All"), headers, body).await;
        assert_eq!(status, want, "{method} {path}: {answer}");
    }
    assert_eq!(call(&server, Method::GET, MAPS, &[], "").await.1, before);
}

#[tokio::test(start_paused = true)]
async fn watch_frames() {
    let server = server();
    call(&server, Method::POST, MAPS, &[], map("a")).await;
    let list = "watch=true&timeoutSeconds=90";
    let streaming = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let types = |events: &[Value]| events.iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>();

    let plain = events(&server, &format!("{MAPS}?{list}"), "application/json").await;
    assert_eq!(types(&plain), ["ADDED"]);
    let marked = events(&server, &format!("{MAPS}?{list}&{streaming}"), "application/json").await;
    assert_eq!(
        types(&marked),
        ["ADDED", "BOOKMARK", "BOOKMARK", "BOOKMARK"],
        "after the present, after a minute, at the end"
    );
    assert_eq!(marked[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(marked[1]["object"]["kind"], "ConfigMap");

    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    call(&server, Method::POST, MAPS, &[], map("b")).await;
    let tables = events(&server, &format!("{MAPS}?{list}"), table).await;
    assert_eq!(tables[0]["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(tables[1]["object"]["columnDefinitions"], Value::Null);
    assert_eq!(tables[1]["object"]["rows"][0]["cells"][0], "b");
    let partial = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let partials = events(&server, &format!("{MAPS}?{list}"), partial).await;
    assert_eq!(
        (&partials[0]["object"]["kind"], &partials[0]["object"]["data"]),
        (&json!("PartialObjectMetadata"), &Value::Null)
    );
    let (status, _) = call(&server, Method::GET, &format!("{MAPS}?{list}&resourceVersion=x"), &[], "").await;
    assert_eq!(status, 400);
    let streaming = "sendInitialEvents=false&resourceVersionMatch=NotOlderThan";
    assert!(events(&server, &format!("{MAPS}?{list}&{streaming}"), "application/json").await.is_empty(), "from now on");
}

#[tokio::test(start_paused = true)]
async fn old_revisions_expire() {
    let options = store::Options { history: 4, ..store::Options::default() };
    let server = ApiServer::new(store::Store::memory(apiserver::index, options), harness::config()).unwrap();
    for i in 0..10 {
        call(&server, Method::POST, MAPS, &[], map(&format!("m{i}"))).await;
    }
    let expired = events(&server, &format!("{MAPS}?watch=true&resourceVersion=2"), "application/json").await;
    assert_eq!((&expired[0]["type"], &expired[0]["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(expired[0]["object"]["reason"], "Expired");
    let (status, page) = call(&server, Method::GET, &format!("{MAPS}?limit=2"), &[], "").await;
    assert_eq!(status, 200);
    for i in 10..20 {
        call(&server, Method::POST, MAPS, &[], map(&format!("m{i}"))).await;
    }
    let token = page["metadata"]["continue"].as_str().unwrap();
    for (query, want) in [
        (format!("limit=2&continue={token}"), 410),
        ("limit=2&continue=rubbish".to_owned(), 400),
        ("resourceVersion=999999".to_owned(), 504),
        ("watch=true&resourceVersion=999999".to_owned(), 504),
        ("resourceVersion=0".to_owned(), 200),
        ("resourceVersion=3&resourceVersionMatch=Exact".to_owned(), 410),
    ] {
        let (status, answer) = call(&server, Method::GET, &format!("{MAPS}?{query}"), &[], "").await;
        assert_eq!(status, want, "{query}: {answer}");
    }
}

#[tokio::test]
async fn watches_are_bounded_and_end_with_the_program() {
    let config = Config { max_watches: 1, ..harness::config() };
    let stop = config.stop.clone();
    let server = ApiServer::new(harness::store(), config).unwrap();
    let path = format!("{MAPS}?watch=true");
    let open = || {
        let request = Request::get(&path).header("authorization", format!("Bearer {TOKEN}"));
        server.external().call(request.body(Full::<Bytes>::default()).unwrap())
    };
    let first = open().await.unwrap();
    assert_eq!((first.status(), open().await.unwrap().status()), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS));
    stop.cancel();
    assert!(first.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(open().await.unwrap().status(), 200);
}

#[tokio::test]
async fn acknowledged_writes_survive_and_ephemeral_ones_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let open =
        || store::Store::open(&folder.path().join("objects.db"), apiserver::index, store::Options::default()).unwrap();
    let pod = |name: &str, owned: bool| {
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]);
        let owners = if owned { owner } else { json!([]) };
        json!({"metadata": {"name": name, "ownerReferences": owners},
               "spec": {"containers": [{"name": "c", "image": "i"}]}})
        .to_string()
    };
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let objects = open();
    let server = ApiServer::new(objects.clone(), harness::config()).unwrap();
    for (path, body) in [(MAPS, map("a")), (PODS, pod("bare", false)), (PODS, pod("owned", true))] {
        assert_eq!(external(&server, Method::POST, path, Some(TOKEN), body).await.0, 201);
    }
    let (_, before) = call(&server, Method::GET, &format!("{MAPS}/a"), &[], "").await;
    objects.close().await.unwrap();
    drop((objects, server));

    let server = ApiServer::new(open(), harness::config()).unwrap();
    assert_eq!(call(&server, Method::GET, &format!("{MAPS}/a"), &[], "").await.1, before);
    let (_, pods) = call(&server, Method::GET, &format!("{PODS}?fieldSelector=status.phase=Pending"), &[], "").await;
    let names: Vec<_> = pods["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]["name"]).collect();
    assert_eq!(names, ["bare"]);
}

#[tokio::test]
async fn logs_come_from_the_node() {
    // The node's API, as far as logs need it.
    let node = tower::service_fn(|request: Request<ResponseBody>| async move {
        let path = request.uri().path();
        if path != "/containerLogs/default/p/c" {
            let mut response =
                Response::new(Full::from(format!("no container {path}")).map_err(BoxError::from).boxed_unsync());
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return Ok::<_, BoxError>(response);
        }
        let query: BTreeMap<_, _> =
            request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
        let lines = [format!("{query:?}\n"), "two\n".to_owned()];
        let frames =
            futures::stream::iter(lines.map(|line| Ok::<_, BoxError>(http_body::Frame::data(Bytes::from(line)))));
        Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(frames))))
    });
    let config = Config { node_proxy: Some(tower::util::BoxCloneSyncService::new(node)), ..harness::config() };
    let server = ApiServer::new(harness::store(), config).unwrap();
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let pod = |name: &str, containers: &[&str]| {
        let containers: Vec<_> = containers.iter().map(|c| json!({"name": c, "image": "i"})).collect();
        json!({"metadata": {"name": name}, "spec": {"nodeName": "n", "containers": containers}}).to_string()
    };
    call(&server, Method::POST, PODS, &[], pod("p", &["c"])).await;
    call(&server, Method::POST, PODS, &[], pod("two", &["a", "b"])).await;
    for (path, want, text) in [
        ("p/log?tailLines=5&follow=true&unknown=1", 200, "{\"follow\": \"true\", \"tailLines\": \"5\"}\ntwo\n"),
        ("p/log?container=c", 200, "{}\ntwo\n"),
        ("p/log?container=x", 400, "container x is not valid for pod p"),
        ("two/log", 400, "a container name must be specified for pod two, choose one of: [a b]"),
        ("two/log?container=a", 400, "no container /containerLogs/default/two/a"),
        ("missing/log", 404, "pods \"missing\" not found"),
    ] {
        let (status, answer) = call(&server, Method::GET, &format!("{PODS}/{path}"), &[], "").await;
        let said = answer["message"].as_str().or(answer.as_str()).unwrap();
        assert_eq!((status.as_u16(), said), (want, text), "{path}");
    }
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let server = server();
    for i in 0..6 {
        let body = json!({"metadata": {"name": format!("m{i}"), "labels": {"odd": (i % 2 == 1).to_string()}}});
        call(&server, Method::POST, MAPS, &[], body.to_string()).await;
    }
    let (status, deleted) = call(&server, Method::DELETE, &format!("{MAPS}?labelSelector=odd%3Dtrue"), &[], "").await;
    assert_eq!((status.as_u16(), deleted["items"].as_array().unwrap().len()), (200, 3));
    let (_, left) = call(&server, Method::GET, MAPS, &[], "").await;
    assert_eq!(left["items"].as_array().unwrap().len(), 3);
    for (path, want) in [("/api/v1/configmaps", 405), ("/api/v1/namespaces/default", 403), ("/api/v1/namespaces", 405)]
    {
        assert_eq!(call(&server, Method::DELETE, path, &[], "").await.0, want, "{path}");
    }
}

#[tokio::test]
async fn revisions_never_change() {
    let server = server();
    const REVISIONS: &str = "/apis/serving.knative.dev/v1/namespaces/default/revisions";
    let body = json!({"metadata": {"name": "r"}, "spec": {"containers": [{"image": "i"}]}}).to_string();
    let (status, made) = call(&server, Method::POST, REVISIONS, &[], body).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["spec"]["containers"][0]["name"], "user-container");
    assert_eq!((&made["spec"]["timeoutSeconds"], &made["spec"]["containerConcurrency"]), (&json!(300), &json!(0)));
    let merge: &[(&str, &str)] = &[("content-type", "application/merge-patch+json")];
    let path = format!("{REVISIONS}/r");
    for (body, want) in
        [(json!({"spec": {"timeoutSeconds": 5}}), 422), (json!({"metadata": {"labels": {"a": "b"}}}), 200)]
    {
        assert_eq!(call(&server, Method::PATCH, &path, merge, body.to_string()).await.0, want, "{body}");
    }
    let strategic = &[("content-type", "application/strategic-merge-patch+json")];
    assert_eq!(call(&server, Method::PATCH, &path, strategic, "{}").await.0, 415);
    let empty = json!({"metadata": {"name": "s"}, "spec": {"containers": []}}).to_string();
    let (status, refused) = call(&server, Method::POST, REVISIONS, &[], empty).await;
    assert_eq!(
        (status.as_u16(), refused["message"].as_str().unwrap()),
        (422, "Revision.serving.knative.dev \"s\" is invalid: missing field(s): spec.containers")
    );
}
