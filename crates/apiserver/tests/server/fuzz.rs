//! Requests that nobody would send: whatever comes, the answer is a Status and the server goes on.
//!
//! Each case begins as a request of `tests/corpus` and is then damaged. What once brought the server down is kept there
//! as a case of its own. A few hundred cases run always; `DHOW_LONG=1` runs a hundred thousand.

use std::panic::AssertUnwindSafe;

use apiserver::ApiServer;
use futures::FutureExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tower::Service;

use self::damage::{Random, rounds, seeds};
use crate::harness::{TOKEN, call, config, store};

#[path = "../corpus/damage.rs"]
pub mod damage;

const ALWAYS: u64 = 600;
const LONG: u64 = 100_000;

#[derive(Clone)]
struct Case {
    method: String,
    target: Vec<u8>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn read(bytes: &[u8]) -> Case {
    let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned()));
    Case { method: method.into(), target: target.into(), headers: headers.collect(), body: bytes[end + 2..].to_vec() }
}

fn corpus() -> Vec<(String, Case)> {
    seeds("").into_iter().map(|(name, bytes)| (name, read(&bytes))).collect()
}

/// A server with something to find for the cases, and a kind of a client's own.
async fn server() -> ApiServer {
    let server = ApiServer::new(store(), config()).unwrap();
    let definition = include_str!("../corpus/things.definition");
    let map = r#"{"metadata":{"name":"seed"},"data":{"k":"v"}}"#;
    let deployment = r#"{"metadata":{"name":"seed"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":
        {"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
    for (path, body) in [
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition),
        ("/api/v1/namespaces/default/configmaps", map),
        ("/apis/apps/v1/namespaces/default/deployments", deployment),
    ] {
        let (status, answer) = call(&server, Method::POST, path, &[], body).await;
        assert!(status.is_success(), "{answer}");
    }
    server
}

/// `None`: no client library would let this out.
fn request(case: &Case) -> Option<Request<Full<bytes::Bytes>>> {
    let target = String::from_utf8(case.target.clone()).ok()?;
    let mut request = Request::builder().method(Method::from_bytes(case.method.as_bytes()).ok()?).uri(target);
    request = request.header("authorization", format!("Bearer {TOKEN}"));
    for (name, value) in &case.headers {
        request = request.header(name, value);
    }
    request.body(Full::new(case.body.clone().into())).ok()
}

async fn answered(server: &ApiServer, case: &Case) -> Result<(), String> {
    let Some(request) = request(case) else { return Ok(()) };
    let watch = case.target.windows(6).any(|part| part == b"watch=");
    let answer = async {
        let response = server.external().call(request).await.unwrap();
        let status = response.status();
        // A watch may go on for ever; that it began is enough.
        let body = if watch { None } else { Some(response.into_body().collect().await.unwrap().to_bytes()) };
        (status, body)
    };
    let Ok((status, body)) = AssertUnwindSafe(answer).catch_unwind().await else { return Err("it panicked".into()) };
    if status.is_server_error() && status != 503 && status != 504 {
        return Err(format!("{status}: {body:?}"));
    }
    let Some(body) = body.filter(|_| !status.is_success()) else { return Ok(()) };
    match serde_json::from_slice::<Value>(&body) {
        Ok(answer) if answer["kind"] == "Status" && answer["code"] == status.as_u16() => Ok(()),
        _ => Err(format!("{status} without a Status: {body:?}")),
    }
}

fn damage(case: &mut Case, seeds: &[(String, Case)], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let other = &seeds[random.below(seeds.len())].1;
        match random.below(8) {
            0 => case.headers = other.headers.clone(),
            // No client library lets a bit of an address change.
            1 | 2 => damage::damage(&mut case.target, &other.body, false, random),
            _ => damage::damage(&mut case.body, &other.body, true, random),
        }
        const MOST: usize = 64 << 10;
        case.body.truncate(MOST);
        case.target.truncate(4 << 10);
    }
}

#[tokio::test]
async fn the_corpus_is_answered() {
    let server = server().await;
    for (name, case) in corpus() {
        answered(&server, &case).await.unwrap_or_else(|fault| panic!("{name}: {fault}"));
    }
}

#[tokio::test]
async fn damaged_requests_are_answered() {
    let seeds = corpus();
    let (mut server, mut random) = (server().await, Random(Random::SEED));
    for round in 0..rounds(ALWAYS, LONG) {
        // What the cases themselves leave behind must not pile up.
        if round % 5000 == 4999 {
            server = self::server().await;
        }
        let (name, mut case) = seeds[random.below(seeds.len())].clone();
        damage(&mut case, &seeds, &mut random);
        if let Err(fault) = answered(&server, &case).await {
            let shown = String::from_utf8_lossy(&case.body);
            let target = String::from_utf8_lossy(&case.target);
            panic!("round {round}, from {name}: {fault}\n{} {target}\n{:?}\n\n{shown}", case.method, case.headers);
        }
    }
}

#[tokio::test]
async fn bad_input_is_refused_in_the_words_of_kubernetes() {
    let server = server().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let (json, yaml) = ("application/json", "application/yaml");
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    let large = "x".repeat(4 << 20);
    let posts: [(&str, Vec<u8>, u16, &str); 22] = [
        (json, br#"{"metadata":"#.into(), 400, ""),
        (yaml, b"metadata: {name: [".into(), 400, ""),
        (json, nested("[", "]").into(), 400, ""),
        (json, nested(r#"{"a":"#, "}").into(), 400, ""),
        (json, format!(r#"{{"metadata":{{"name":"n"}},"data":{}}}"#, nested("[", "]")).into(), 400, ""),
        (yaml, nested("[", "]").into(), 400, ""),
        (yaml, nested("- ", "").into(), 400, ""),
        (json, format!(r#"{{"metadata":{{"name":"big"}},"data":{{"k":"{large}"}}}}"#).into(), 413, "too large"),
        (yaml, format!("metadata: {{name: big}}\ndata: {{k: {large}}}\n").into(), 413, "too large"),
        (json, br#"{"metadata":{"name":"d"},"data":{"k":"1","k":"2"}}"#.into(), 400, "duplicate field"),
        (yaml, b"metadata: {name: d}\ndata:\n  k: '1'\n  k: '2'\n".into(), 400, ""),
        (json, b"{\"metadata\":{\"name\":\"n\"},\"data\":{\"k\":\"\xff\xfe\"}}".into(), 400, ""),
        (yaml, b"metadata: {name: n}\ndata: {k: \"\xff\xfe\"}\n".into(), 400, ""),
        (json, br#"{"metadata":{"name":"n"},"data":[1]}"#.into(), 400, ""),
        (json, br#"{"metadata":{"name":"n"},"data":{"k":1}}"#.into(), 400, ""),
        (yaml, b"metadata: {name: n}\ndata: [1]\n".into(), 400, ""),
        (yaml, b"just a word".into(), 400, ""),
        (json, br#"{"metadata":{"name":7}}"#.into(), 400, ""),
        (json, br#"{"metadata":{"name":"UPPER_case"}}"#.into(), 422, "RFC 1123 subdomain"),
        (json, br#"{"metadata":{"name":"a/../b"}}"#.into(), 422, "RFC 1123 subdomain"),
        (json, format!(r#"{{"metadata":{{"name":"{}"}}}}"#, "n".repeat(254)).into(), 422, "no more than 253"),
        (json, br#"{"metadata":{"name":"n","labels":{"a b":"c"}}}"#.into(), 422, "metadata.labels"),
    ];
    let strict = format!("{maps}?fieldValidation=Strict");
    for (media, body, code, want) in posts {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let (status, answer) = call(&server, Method::POST, &strict, &[("content-type", media)], body).await;
        check(&format!("{media} {shown}"), status.as_u16(), &answer, code, want);
    }
    for (selector, want) in [
        ("labelSelector=a%20in%20(b", "unable to parse requirement"),
        ("labelSelector=%3D%3D", "unable to parse requirement"),
        ("labelSelector=a%3Db%20c", "unable to parse requirement"),
        ("fieldSelector=metadata.name", "invalid selector"),
        ("fieldSelector=data.k%3Dv", "not a known field selector"),
        ("limit=x", ""),
        ("continue=rubbish", "continue key is not valid"),
        ("watch=true&resourceVersion=x", ""),
    ] {
        let (status, answer) = call(&server, Method::GET, &format!("{maps}?{selector}"), &[], "").await;
        check(selector, status.as_u16(), &answer, 400, want);
    }
    let operations = format!("[{}]", vec![r#"{"op":"add","path":"/data/k","value":"v"}"#; 10_001].join(","));
    let patch = [("content-type", "application/json-patch+json")];
    let (status, answer) = call(&server, Method::PATCH, &format!("{maps}/seed"), &patch, operations).await;
    check("a patch", status.as_u16(), &answer, 413, "The allowed maximum operations");
}

fn check(what: &str, status: u16, answer: &Value, code: u16, want: &str) {
    assert_eq!((status, answer["kind"].as_str()), (code, Some("Status")), "{what}: {answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(!message.is_empty() && message.contains(want), "{what}: {answer}");
}

/// A few lines of YAML that stand for ten thousand million items.
#[tokio::test]
async fn aliases_do_not_multiply() {
    let aliases = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(b'b'..=b'j')
            .map(|c| {
                let (this, last) = (c as char, (c - 1) as char);
                format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 10].join(","))
            })
            .collect::<String>();
    let headers = [("content-type", "application/yaml")];
    let path = "/api/v1/namespaces/default/configmaps";
    let (status, _) = call(&server().await, Method::POST, path, &headers, aliases).await;
    assert!(status.is_client_error(), "{status}");
}
