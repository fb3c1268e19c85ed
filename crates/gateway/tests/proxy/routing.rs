//! Which back end answers, and what it is told.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;

use crate::harness::{Client, HOST, Instance, Setup, raw, split, tally};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_paths_tags_and_listeners() {
    let setup = Setup::new();
    let early = setup.get("/").await;
    assert_eq!((early.status, early.headers["retry-after"].to_str().unwrap()), (503, "1"), "{}", early.text());
    let (rev, old) = (Instance::start("rev").await, Instance::start("old").await);
    setup.instances("rev", &[("rev-1", rev.at)]);
    setup.instances("old", &[("old-1", old.at)]);
    let to = |revision| json!([split(revision, 100, json!({}))]);
    setup.ingress(json!([
        {"hosts": [HOST], "http": {"paths": [{"splits": to("rev")}, {"path": "/v1", "splits": to("old")}]}},
        {"hosts": ["blue-hello.default.test"], "http": {"paths": [{"splits": to("old")}]}},
        {"hosts": ["hello.default.svc.cluster.local"], "visibility": "ClusterLocal",
         "http": {"paths": [{"splits": to("rev"), "rewriteHost": "inner.test", "appendHeaders": {"K-Tag": "x"}}]}},
    ]));
    let internal = setup.at.internal.unwrap();
    let rows = [
        (setup.at.public, HOST, "/", 200, "rev"),
        (setup.at.public, "HELLO.default.test:8080", "/", 200, "rev"),
        (setup.at.public, HOST, "/v1/x", 200, "old"),
        (setup.at.public, "blue-hello.default.test", "/", 200, "old"),
        (setup.at.public, "nobody.default.test", "/", 404, "nothing is served at nobody.default.test"),
        (setup.at.public, "hello.default.svc.cluster.local", "/", 404, "nothing is served"),
        (internal, "hello.default.svc.cluster.local", "/", 200, "rev"),
        (internal, HOST, "/", 200, "rev"),
    ];
    for (address, host, path, status, text) in rows {
        let mut client = Client::connect(address).await;
        let reply = client.send(Request::get(path).header("host", host).body(Full::default()).unwrap()).await;
        assert_eq!(reply.status, status, "{host} {path}: {}", reply.text());
        assert!(reply.text().starts_with(text), "{host} {path}: {}", reply.text());
    }
    let heads = rev.seen.heads.lock().unwrap();
    let inner = heads.iter().find(|head| head.headers["host"] == "inner.test").expect("the rewritten host");
    assert_eq!(inner.headers["k-tag"], "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_are_kept() {
    let setup = Setup::new();
    let (a, b) = (Instance::start("a").await, Instance::start("b").await);
    setup.instances("a", &[("a-1", a.at)]);
    setup.instances("b", &[("b-1", b.at)]);
    setup.ingress(json!([{"hosts": [HOST], "http": {"paths": [
        {"splits": [split("a", 20, json!({})), split("b", 80, json!({}))]}]}}]));
    let mut client = setup.client().await;
    let mut replies = vec![];
    for _ in 0..1000 {
        replies.push(client.get("/").await);
    }
    let counts = tally(&replies);
    // Five standard deviations around 200.
    assert!((137..=263).contains(&counts["200 a"]), "{counts:?}");
    assert_eq!(counts["200 a"] + counts["200 b"], 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_gets_the_request_as_it_was_sent_and_more() {
    let setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(0);
    let mut client = setup.client().await;
    let body = Full::new(Bytes::from_static(b"a body"));
    let request = Request::put("/path?x=1&y=%20").header("host", format!("{HOST}:80")).header("connection", "x-hop");
    let request = request.header("x-hop", "1").header("x-kept", "2").header("x-forwarded-for", "9.9.9.9");
    assert_eq!(client.send(request.body(body).unwrap()).await.status, 200);
    let heads = instance.seen.heads.lock().unwrap();
    let head = &heads[0];
    assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), ("PUT", "/path?x=1&y=%20"));
    let rows = [
        ("host", Some(format!("{HOST}:80"))),
        ("x-kept", Some("2".into())),
        ("x-hop", None),
        ("connection", None),
        ("x-forwarded-for", Some("9.9.9.9, 127.0.0.1".into())),
        ("x-forwarded-proto", Some("http".into())),
        ("x-forwarded-host", Some(format!("{HOST}:80"))),
        ("forwarded", Some(format!("for=127.0.0.1;host=\"{HOST}:80\";proto=http"))),
        ("content-length", Some("6".into())),
    ];
    for (name, want) in rows {
        let got = head.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(got, want, "{name}");
    }
    let trace = head.headers["traceparent"].to_str().unwrap();
    assert_eq!((trace.len(), &trace[3..35]), (55, head.headers["x-request-id"].to_str().unwrap()));
    assert_eq!(*instance.seen.bodies.lock().unwrap(), [Bytes::from_static(b"a body")]);
}

/// A request as bytes, the status it must get, and the body that the instance may see.
type Shape = (&'static str, String, u16, Option<&'static str>);

fn smuggling_shapes() -> Vec<Shape> {
    let head = format!("Host: {HOST}\r\n");
    let post = format!("POST / HTTP/1.1\r\n{head}");
    let get = format!("GET / HTTP/1.1\r\n{head}");
    let close = "Connection: close\r\n";
    let (chunked, hidden) = ("Transfer-Encoding: chunked\r\n", format!("GET /smuggled HTTP/1.1\r\n{head}\r\n"));
    let chunks = format!("2\r\nok\r\n0\r\n\r\n{hidden}");
    vec![
        ("a good one", format!("{post}{close}Content-Length: 2\r\n\r\nok"), 200, Some("ok")),
        ("no host", format!("GET / HTTP/1.1\r\n{close}\r\n"), 400, None),
        ("two hosts", format!("{get}{head}{close}\r\n"), 400, None),
        ("a bad host", format!("GET / HTTP/1.1\r\nHost: a b\r\n{close}\r\n"), 400, None),
        ("two lengths", format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk"), 400, None),
        ("a signed length", format!("{post}Content-Length: +2\r\n\r\nok"), 400, None),
        ("a length list", format!("{post}Content-Length: 2, 2\r\n\r\nok"), 400, None),
        ("an unknown coding", format!("{post}Transfer-Encoding: gzip\r\n\r\nok"), 400, None),
        ("chunked not last", format!("{post}Transfer-Encoding: chunked, gzip\r\n\r\nok"), 400, None),
        ("chunked in 1.0", format!("POST / HTTP/1.0\r\n{head}{chunked}\r\n0\r\n\r\n"), 400, None),
        ("a space before the colon", format!("{post}Content-Length : 2\r\n\r\nok"), 400, None),
        ("a folded header", format!("{get}X-A: b\r\n c\r\n\r\n"), 400, None),
        ("a bare CR in a value", format!("{get}X-A: b\rc\r\n\r\n"), 400, None),
        ("a null byte", format!("{get}X-A: b\0c\r\n\r\n"), 400, None),
        ("a head too long", format!("{get}X-Long: {}\r\n\r\n", "a".repeat(70_000)), 431, None),
        ("CONNECT", format!("CONNECT {HOST}:80 HTTP/1.1\r\n{head}{close}\r\n"), 501, None),
        // By the standard the length is dropped, the coding counts, and the connection ends.
        ("a length and a coding", format!("{post}Content-Length: 40\r\n{chunked}\r\n{chunks}"), 200, Some("ok")),
        ("a coding and a length", format!("{post}{chunked}Content-Length: 40\r\n\r\n{chunks}"), 200, Some("ok")),
    ]
}

/// What could be read in two ways is refused, or reaches the instance in one way only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_could_be_read_in_two_ways() {
    let setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(0);
    for (what, request, status, body) in smuggling_shapes() {
        instance.seen.bodies.lock().unwrap().clear();
        instance.seen.heads.lock().unwrap().clear();
        let text = raw(setup.at.public, request.as_bytes()).await;
        assert_eq!(text.get(9..12), Some(status.to_string().as_str()), "{what}: {text}");
        assert_eq!(text.matches("HTTP/1.").count(), 1, "{what}: one answer only: {text}");
        let bodies = instance.seen.bodies.lock().unwrap().clone();
        let want: Vec<_> = body.into_iter().map(|b| Bytes::from_static(b.as_bytes())).collect();
        assert_eq!(bodies, want, "{what}");
        for head in instance.seen.heads.lock().unwrap().iter() {
            let both = head.headers.contains_key("content-length") && head.headers.contains_key("transfer-encoding");
            assert!(!both, "{what}: the instance is told one length");
        }
    }
}
