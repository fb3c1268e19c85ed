//! Requests that nobody would send: whatever comes, the answer is a Status and the server goes on.
//!
//! Each case begins as a request of `tests/corpus` and is then damaged. What once brought the server down is kept there
//! as a case of its own. A few hundred cases run always; `DHOW_LONG=1` runs a hundred thousand.

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use apiserver::ApiServer;
use futures::FutureExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tower::Service;

use crate::harness::{TOKEN, call, config, store};

const ALWAYS: u64 = 600;
const LONG: u64 = 100_000;

#[derive(Clone)]
struct Case {
    method: String,
    target: Vec<u8>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Xorshift: the same cases for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn read(path: &Path) -> Case {
    let bytes = fs::read(path).unwrap();
    let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned()));
    Case { method: method.into(), target: target.into(), headers: headers.collect(), body: bytes[end + 2..].to_vec() }
}

fn corpus() -> Vec<(String, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_none());
    paths.sort();
    paths.iter().map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), read(path))).collect()
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
    const TOKENS: [&str; 24] = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        ":",
        ",",
        "null",
        "-1",
        "1e400",
        "99999999999999999999",
        "\u{0}",
        "\u{fffd}",
        "\\u0000",
        "$patch",
        "x-kubernetes-",
        "self.",
        "(",
        "*",
        "\n- ",
        "&a",
        "true",
        "%00",
        "..",
    ];
    for _ in 0..=random.below(3) {
        let (part, target) = match random.below(4) {
            0 => (&mut case.target, true),
            _ => (&mut case.body, false),
        };
        let at = random.below(part.len() + 1);
        match random.below(7) {
            0 if at < part.len() && !target => part[at] ^= 1 << random.below(8),
            1 => part.truncate(at),
            2 => {
                let end = (at + random.below(16)).min(part.len());
                part.drain(at..end);
            }
            3 => {
                let end = (at + random.below(32)).min(part.len());
                let piece: Vec<u8> = part[at..end].repeat(1 + random.below(40));
                part.splice(at..at, piece);
            }
            4 => {
                let token = TOKENS[random.below(TOKENS.len())].repeat(1 + random.below(3));
                part.splice(at..at, token.bytes());
            }
            5 => {
                let other = &seeds[random.below(seeds.len())].1.body;
                let from = random.below(other.len() + 1);
                let end = (from + random.below(64)).min(other.len());
                part.splice(at..at, other[from..end].iter().copied());
            }
            _ => case.headers = seeds[random.below(seeds.len())].1.headers.clone(),
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
    let (mut server, long) = (server().await, std::env::var_os("DHOW_LONG").is_some());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..if long { LONG } else { ALWAYS } {
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
async fn hostile_sizes_are_refused() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    let big = format!(r#"{{"metadata":{{"name":"big"}},"data":{{"k":"{}"}}}}"#, "x".repeat(4 << 20));
    let operations = format!("[{}]", vec![r#"{"op":"add","path":"/data/k","value":"v"}"#; 10_001].join(","));
    let twice = r#"{"metadata":{"name":"d"},"data":{"k":"1","k":"2"}}"#;
    let (json, yaml, patch) = ("application/json", "application/yaml", "application/json-patch+json");
    for (method, path, media, body, code, want) in [
        (Method::POST, path.to_owned(), json, nested("[", "]"), 400, ""),
        (Method::POST, path.to_owned(), json, nested(r#"{"a":"#, "}"), 400, ""),
        (Method::POST, path.to_owned(), yaml, nested("[", "]"), 400, ""),
        (Method::POST, path.to_owned(), json, big, 413, "Request entity too large"),
        (Method::POST, format!("{path}?fieldValidation=Strict"), json, twice.into(), 400, "duplicate field"),
        (Method::POST, path.to_owned(), json, r#"{"metadata":"#.into(), 400, ""),
        (Method::POST, path.to_owned(), json, r#"{"metadata":{"name":"n"},"data":[1]}"#.into(), 400, ""),
        (Method::PATCH, format!("{path}/seed"), patch, operations, 413, "The allowed maximum operations"),
    ] {
        let headers = [("content-type", media)];
        let (status, answer) = call(&server, method, &path, &headers, body).await;
        assert!(status == code || (code == 400 && status == 422), "{path} {media}: {status} {answer}");
        assert!(answer["message"].as_str().unwrap().contains(want), "{answer}");
    }
    let aliases = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(b'b'..=b'j')
            .map(|c| {
                let (this, last) = (c as char, (c - 1) as char);
                format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 10].join(","))
            })
            .collect::<String>();
    let (status, _) = call(&server, Method::POST, path, &[("content-type", yaml)], aliases).await;
    assert!(status.is_client_error(), "{status}");
}
