//! Lists in pages, at revisions and by selectors: always what was there at one moment.

use apiserver::ApiServer;
use http::Method;
use serde_json::{Value, json};

use crate::harness::{self, call, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, value: u32) -> String {
    let labels = json!({"odd": (value % 2 == 1).to_string()});
    json!({"metadata": {"name": name, "labels": labels}, "data": {"v": value.to_string()}}).to_string()
}

async fn write(server: &ApiServer, method: Method, name: &str, value: u32) -> u64 {
    let path = if method == Method::POST { MAPS.to_owned() } else { format!("{MAPS}/{name}") };
    let (status, answer) = call(server, method, &path, &[], map(name, value)).await;
    assert!(status.is_success(), "{answer}");
    revision(&answer)
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap_or("0").parse().unwrap()
}

async fn list(server: &ApiServer, query: &str) -> (u16, Value) {
    let (status, answer) = call(server, Method::GET, &format!("{MAPS}?{query}"), &[], "").await;
    (status.as_u16(), answer)
}

/// What a list shows, as `name=value` each.
fn shown(list: &Value) -> String {
    let items = list["items"].as_array().unwrap();
    let item = |item: &Value| {
        format!("{}={}", item["metadata"]["name"].as_str().unwrap(), item["data"]["v"].as_str().unwrap())
    };
    items.iter().map(item).collect::<Vec<_>>().join(" ")
}

/// A list that is made in pieces is the same list.
#[tokio::test]
async fn large_ones() {
    let server = server();
    let content = "x".repeat(1000);
    for i in 0..300 {
        let object = json!({"metadata": {"name": format!("m{i:03}")}, "data": {"v": content}}).to_string();
        assert_eq!(call(&server, Method::POST, MAPS, &[], object).await.0, 201);
    }
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    for (accept, kind) in [("application/json", "ConfigMapList"), (partial, "PartialObjectMetadataList")] {
        let (_, all) = call(&server, Method::GET, MAPS, &[("accept", accept)], "").await;
        let items = all["items"].as_array().unwrap();
        let names = items.iter().map(|item| item["metadata"]["name"].as_str().unwrap());
        assert!(names.eq((0..300).map(|i| format!("m{i:03}"))), "{accept}");
        assert_eq!((&all["kind"], revision(&all) > 300), (&json!(kind), true));
    }
}

#[tokio::test]
async fn at_revisions() {
    let server = server();
    write(&server, Method::POST, "a", 1).await;
    let two = write(&server, Method::POST, "b", 1).await;
    let changed = write(&server, Method::PUT, "a", 2).await;
    write(&server, Method::DELETE, "b", 0).await;
    let now = write(&server, Method::POST, "c", 3).await;
    let exact = "resourceVersionMatch=Exact";
    for (query, want, of) in [
        (String::new(), "a=2 c=3", now),
        ("resourceVersion=0".into(), "a=2 c=3", now),
        (format!("resourceVersion={two}"), "a=2 c=3", now),
        (format!("resourceVersion={two}&resourceVersionMatch=NotOlderThan&limit=9"), "a=2 c=3", now),
        (format!("resourceVersion={two}&{exact}"), "a=1 b=1", two),
        (format!("resourceVersion={two}&limit=9"), "a=1 b=1", two),
        (format!("resourceVersion={two}&{exact}&limit=1"), "a=1", two),
        (format!("resourceVersion={changed}&{exact}"), "a=2 b=1", changed),
        (format!("resourceVersion={changed}&{exact}&labelSelector=odd%3Dtrue"), "b=1", changed),
        (format!("resourceVersion={changed}&{exact}&fieldSelector=metadata.name%3Db"), "b=1", changed),
        (format!("resourceVersion={now}&{exact}"), "a=2 c=3", now),
    ] {
        let (status, answer) = list(&server, &query).await;
        assert_eq!(status, 200, "{query}: {answer}");
        assert_eq!((shown(&answer).as_str(), revision(&answer)), (want, of), "{query}");
    }
    let future = now + 1;
    for query in [format!("resourceVersion={future}"), format!("resourceVersion={future}&{exact}")] {
        let (status, answer) = list(&server, &query).await;
        assert_eq!((status, &answer["reason"]), (504, &json!("Timeout")), "{query}");
        let text = format!("Timeout: Too large resource version: {future}, current: {now}");
        assert_eq!(
            (&answer["message"], &answer["details"]["causes"][0]["reason"]),
            (&json!(text), &json!("ResourceVersionTooLarge"))
        );
    }
    let (status, answer) = call(&server, Method::GET, &format!("{MAPS}/a?resourceVersion={future}"), &[], "").await;
    assert_eq!(status, 504, "{answer}");
}

#[tokio::test]
async fn pages_are_all_of_one_moment() {
    let server = server();
    for i in 0..7 {
        write(&server, Method::POST, &format!("m{i}"), i).await;
    }
    for (limit, selector, want) in [
        (1, "", ["m0=0", "m1=1", "m2=2", "m3=3", "m4=4", "m5=5", "m6=6"].as_slice()),
        (3, "", &["m0=0 m1=1 m2=2", "m3=3 m4=4 m5=5", "m6=6"]),
        (7, "", &["m0=0 m1=1 m2=2 m3=3 m4=4 m5=5 m6=6"]),
        (2, "labelSelector=odd%3Dfalse", &["m0=0 m2=2", "m4=4 m6=6"]),
        (2, "labelSelector=odd%3Dtrue", &["m1=1 m3=3", "m5=5"]),
        (5, "fieldSelector=metadata.name!%3Dm3", &["m0=0 m1=1 m2=2 m4=4 m5=5", "m6=6"]),
    ] {
        let mut pages = vec![];
        let mut token = String::new();
        let mut first = None;
        loop {
            let (status, page) = list(&server, &format!("limit={limit}&{selector}{token}")).await;
            assert_eq!(status, 200, "{page}");
            pages.push(shown(&page));
            assert_eq!(*first.get_or_insert(revision(&page)), revision(&page), "{limit} {selector}");
            let left = page["metadata"]["remainingItemCount"].as_u64();
            let told = selector.is_empty() && pages.len() < want.len();
            assert_eq!(left, told.then_some(7_u64.saturating_sub(limit * pages.len() as u64)), "{limit} {selector}");
            let Some(next) = page["metadata"]["continue"].as_str() else { break };
            token = format!("&continue={next}");
            // What happens between two pages is in neither.
            write(&server, Method::DELETE, "m6", 0).await;
            write(&server, Method::PUT, "m5", 55).await;
            write(&server, Method::POST, "m35", 1).await;
            write(&server, Method::DELETE, "m35", 0).await;
            write(&server, Method::PUT, "m5", 5).await;
            write(&server, Method::POST, "m6", 6).await;
        }
        assert_eq!(pages, want, "{limit} {selector}");
    }
}

#[tokio::test]
async fn a_list_that_is_no_longer_kept() {
    let options = store::Options { history: 4, ..store::Options::default() };
    let server = ApiServer::new(store::Store::memory(apiserver::index, options), harness::config()).unwrap();
    for i in 0..4 {
        write(&server, Method::POST, &format!("m{i}"), i).await;
    }
    let (_, page) = list(&server, "limit=2").await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    for i in 4..10 {
        write(&server, Method::POST, &format!("m{i}"), i).await;
    }
    let (status, expired) = list(&server, &format!("limit=2&continue={token}")).await;
    assert_eq!((status, &expired["reason"]), (410, &json!("Expired")));
    assert!(
        expired["message"].as_str().unwrap().starts_with("The provided continue parameter is too old"),
        "{expired}"
    );
    // The token in the answer goes on from there, in the present.
    let inconsistent = expired["metadata"]["continue"].as_str().unwrap();
    let (status, rest) = list(&server, &format!("limit=3&continue={inconsistent}")).await;
    assert_eq!((status, shown(&rest).as_str()), (200, "m2=2 m3=3 m4=4"));
    let next = rest["metadata"]["continue"].as_str().unwrap();
    write(&server, Method::DELETE, "m9", 0).await;
    let (_, last) = list(&server, &format!("continue={next}")).await;
    assert_eq!((shown(&last).as_str(), revision(&last)), ("m5=5 m6=6 m7=7 m8=8 m9=9", revision(&rest)));

    let (status, expired) = list(&server, &format!("resourceVersion={}&limit=2", revision(&page))).await;
    assert_eq!((status, &expired["message"]), (410, &json!("The resourceVersion for the provided list is too old.")));
    let (status, _) = list(&server, &format!("resourceVersion={}", revision(&page))).await;
    assert_eq!(status, 200, "what is at least as new is there");
}

#[tokio::test]
async fn contradictions_are_named() {
    let server = server();
    for (query, code, reason) in [
        ("resourceVersionMatch=Exact", 422, "Invalid"),
        ("sendInitialEvents=true", 422, "Invalid"),
        ("resourceVersion=-1", 400, "BadRequest"),
        ("limit=many", 400, "BadRequest"),
        ("continue=rubbish", 400, "BadRequest"),
        ("watch=true&sendInitialEvents=true", 422, "Invalid"),
        ("watch=true&resourceVersionMatch=NotOlderThan", 422, "Invalid"),
    ] {
        let (status, answer) = list(&server, query).await;
        assert_eq!(
            (status, &answer["reason"], &answer["code"]),
            (code, &json!(reason), &json!(code)),
            "{query}: {answer}"
        );
    }
    let (_, answer) = list(&server, "resourceVersionMatch=Odd").await;
    assert_eq!(
        (&answer["details"]["group"], &answer["details"]["kind"]),
        (&json!("meta.k8s.io"), &json!("ListOptions"))
    );
    let causes: Vec<_> = answer["details"]["causes"].as_array().unwrap().iter().map(|cause| &cause["reason"]).collect();
    assert_eq!(causes, ["FieldValueForbidden", "FieldValueNotSupported"]);
    let (status, _) = call(&server, Method::DELETE, &format!("{MAPS}?resourceVersionMatch=Exact"), &[], "").await;
    assert_eq!(status, 422);
}
