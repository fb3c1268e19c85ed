//! Instances that refuse, die or talk nonsense, and clients that dawdle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use api::wire::{RevisionKey, Traffic};
use bytes::Bytes;
use gateway::Limits;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{HOST, Instance, Setup, raw, read_head, scripted, soon, until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn request(method: Method, body: &'static str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri("/").header("host", HOST).body(Full::from(body)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_refuses_is_passed_by() {
    let setup = Setup::new();
    let (dead, alive) = (Instance::start("dead").await, Instance::start("alive").await);
    let refusing = dead.at;
    dead.crash().await;
    setup.route(1);
    setup.instances("rev", &[("rev-dead", refusing), ("rev-alive", alive.at)]);
    for _ in 0..10 {
        let reply = setup.client().await.send(request(Method::POST, "a body")).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "alive"), "nothing was sent, so even a POST is safe");
    }
    assert_eq!(alive.seen.requests.load(SeqCst), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_body_is_the_clients_fault() {
    let setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.route(1);
    setup.instances("rev", &[("rev-1", instance.at)]);
    for chunk in ["zz\r\nx\r\n", "0x1\r\nx\r\n", "ffffffffffffffffff\r\nx\r\n", "1\r\nxy\r\n"] {
        let head = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        let reply = raw(setup.at.public, format!("{head}{chunk}").as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 400 "), "{chunk:?}: {reply}");
        assert!(reply.contains("body"), "{reply}");
    }
    assert_eq!(setup.get("/").await.status, 200, "the instance is not blamed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_instance_that_refuses_is_tried_again_then_502() {
    let setup = Setup::new();
    let dead = Instance::start("dead").await;
    let refusing = dead.at;
    dead.crash().await;
    setup.route(0);
    setup.instances("rev", &[("rev-1", refusing)]);
    let reply = setup.get("/").await;
    assert_eq!(reply.status, 502, "{}", reply.text());
    for part in ["hello", "rev-1", "refused", "dhow logs hello"] {
        assert!(reply.text().contains(part), "{part}: {}", reply.text());
    }
    let call = tokio::spawn({
        let mut client = setup.client().await;
        async move { client.get("/").await }
    });
    let back = Instance::at(refusing, "back").await;
    let reply = call.await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "back"), "it came back in time");
    drop(back);
}

/// Serves one request per connection and closes without saying so, at the next request or at once.
async fn fickle(setup: &Setup, served: Arc<AtomicUsize>) -> tokio::task::JoinSet<()> {
    let (at, tasks) = scripted(move |mut stream| {
        let served = served.clone();
        async move {
            if read_head(&mut stream).await.is_some() {
                served.fetch_add(1, SeqCst);
                let _ = stream.write_all(OK).await;
            }
            // The second request is read and then dropped with the connection.
            let _ = read_head(&mut stream).await;
        }
    })
    .await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route(0);
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_closes_is_replaced_only_when_that_is_safe() {
    let rows = [
        (Method::GET, "", 200),
        (Method::HEAD, "", 200),
        (Method::PUT, "", 200),
        (Method::DELETE, "", 200),
        (Method::POST, "", 502),
        (Method::PATCH, "", 502),
        (Method::PUT, "a body", 502),
    ];
    for (method, body, want) in rows {
        let setup = Setup::new();
        let served = Arc::new(AtomicUsize::new(0));
        let _instance = fickle(&setup, served.clone()).await;
        let mut client = setup.client().await;
        assert_eq!(client.send(request(Method::GET, "")).await.status, 200);
        let reply = client.send(request(method.clone(), body)).await;
        assert_eq!(reply.status, want, "{method} {body:?}: {}", reply.text());
        assert_eq!(served.load(SeqCst), if want == 200 { 2 } else { 1 }, "{method} {body:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_had_when_it_died_is_given_to_another_only_when_that_is_safe() {
    for (method, body, want) in
        [(Method::GET, "", 200), (Method::DELETE, "", 200), (Method::POST, "", 502), (Method::PUT, "a body", 502)]
    {
        let setup = Setup::new();
        let alive = Instance::start("alive").await;
        let had = Arc::new(AtomicUsize::new(0));
        let (count, feed) = (had.clone(), setup.feed.clone());
        let key = RevisionKey { namespace: "default".into(), revision: "rev".into() };
        drop(feed.leaves(&key, "rev-2"));
        // It has the request, and what it would answer is never known.
        let (at, _dying) = scripted(move |mut stream| {
            let (count, feed, key) = (count.clone(), feed.clone(), key.clone());
            async move {
                read_head(&mut stream).await;
                count.fetch_add(1, SeqCst);
                feed.left(&key, "rev-2");
                drop(feed.leaves(&key, "rev-1"));
            }
        })
        .await;
        setup.route(0);
        setup.instances("rev", &[("rev-1", at), ("rev-2", alive.at)]);
        let reply = setup.client().await.send(request(method.clone(), body)).await;
        assert_eq!((reply.status, had.load(SeqCst)), (want, 1), "{method} {body:?}: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_revision_has_no_route_any_more_finds_its_new_instances() {
    let setup = Setup::new();
    let (old, new) = (Instance::start("old").await, Instance::start("new").await);
    setup.route(0);
    setup.instances("rev", &[("rev-1", old.at)]);
    let mut client = setup.client().await;
    let call = tokio::spawn(async move { client.get("/hold").await });
    until("it is held", || old.seen.now.load(SeqCst) == 1).await;
    setup.ingress(json!([]));
    setup.instances("rev", &[("rev-2", new.at)]);
    old.crash().await;
    until("the new instance has it", || new.seen.now.load(SeqCst) == 1).await;
    new.seen.release.notify_waiters();
    let reply = call.await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_every_instance_does_not_do_so_for_ever() {
    let setup = Setup::new();
    let had = Arc::new(AtomicUsize::new(0));
    let count = had.clone();
    let (at, _dying) = scripted(move |mut stream| {
        let count = count.clone();
        async move {
            read_head(&mut stream).await;
            count.fetch_add(1, SeqCst);
        }
    })
    .await;
    setup.route(0);
    setup.instances("rev", &[("rev-1", at)]);
    assert_eq!(setup.get("/").await.status, 502);
    assert_eq!(had.load(SeqCst), 3, "sent twice more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_closed_by_the_instance_is_not_used() {
    let setup = Setup::new();
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let (at, _tasks) = scripted(move |mut stream| {
        let count = count.clone();
        async move {
            if read_head(&mut stream).await.is_some() {
                let mut body = [0; 4];
                let _ = stream.read_exact(&mut body).await;
                let _ = stream.write_all(OK).await;
                stream.shutdown().await.unwrap();
                count.fetch_add(1, SeqCst);
            }
        }
    })
    .await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route(0);
    let mut client = setup.client().await;
    for round in 1..=20 {
        assert_eq!(client.send(request(Method::POST, "body")).await.status, 200, "round {round}");
        until("the instance has closed", || served.load(SeqCst) == round).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_break_off() {
    let rows: &[(&str, &'static [u8], Option<u16>)] = &[
        ("nothing at all", b"", Some(502)),
        ("half a head", b"HTTP/1.1 200 OK\r\nContent-", Some(502)),
        ("not HTTP", b"hello there\r\n\r\n", Some(502)),
        (
            "an unasked upgrade",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            Some(502),
        ),
        ("half a body", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", None),
        ("half a chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf", None),
        ("no last chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", None),
        ("until the end", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it", Some(200)),
    ];
    for (what, answer, want) in rows {
        let setup = Setup::new();
        let (at, _tasks) = scripted(move |mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(answer).await.unwrap();
        })
        .await;
        setup.instances("rev", &[("rev-1", at)]);
        setup.route(1);
        let reply = setup.client().await.try_send(request(Method::GET, "")).await;
        match want {
            Some(status) => {
                let reply = reply.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(reply.status, *status, "{what}: {}", reply.text());
                assert!(*status == 200 || reply.text().contains("rev-1"), "{what}: {}", reply.text());
            }
            None => assert!(reply.is_err(), "{what}: the client must see that something is missing: {reply:?}"),
        }
        let again = setup.client().await.try_send(request(Method::GET, "")).await;
        assert_eq!(again.is_ok(), want.is_some(), "{what}: the slot is free again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_come_before_the_body_was_read() {
    let setup = Setup::new();
    let (at, _tasks) = scripted(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig").await.unwrap();
        // Reading on keeps the kernel from turning the close into a reset.
        let mut rest = vec![];
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route(0);
    let (mut reader, mut writer) = TcpStream::connect(setup.at.public).await.unwrap().into_split();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000000\r\n\r\n");
    writer.write_all(head.as_bytes()).await.unwrap();
    writer.write_all(&[b'x'; 1000]).await.unwrap();
    let mut answer = [0; 12];
    soon("the answer", reader.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_in_the_middle_ends_the_answer() {
    let setup = Setup::new();
    let (at, _tasks) = scripted(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route_with(json!({"idleTimeoutSeconds": 1}));
    let mut client = setup.client().await;
    let response = client.start(request(Method::GET, "")).await.unwrap();
    assert!(soon("the end", response.into_body().collect()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_dawdle_are_let_go() {
    let quick = Duration::from_millis(300);
    let limits = Limits { header_read: quick, idle: quick, connections: 2, ..Limits::default() };
    let setup = Setup::with(limits, Duration::from_secs(1));
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(0);
    let whole = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let rows = [
        ("nothing", String::new(), 0),
        ("the beginning of either protocol", "P".into(), 0),
        ("half a head", whole[..20].to_owned(), 0),
        ("a request, then nothing", whole.clone(), 1),
        ("a request, then half a head", format!("{whole}{}", &whole[..20]), 1),
        ("half the preface", "PRI * HT".into(), 0),
    ];
    for (what, bytes, answers) in rows {
        let mut stream = TcpStream::connect(setup.at.public).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut all = vec![];
        let _ = soon(what, stream.read_to_end(&mut all)).await;
        let text = String::from_utf8_lossy(&all);
        assert_eq!(text.matches("HTTP/1.1 200").count(), answers, "{what}: {text}");
    }
    // A request that takes longer than all of these is nobody's dawdling.
    let call = tokio::spawn({
        let mut client = setup.client().await;
        async move { client.send(Request::get("/hold").header("host", HOST).body(Full::default()).unwrap()).await }
    });
    until("it is held", || instance.seen.now.load(SeqCst) == 1).await;
    let second = TcpStream::connect(setup.at.public).await.unwrap();
    until("both are open", || setup.metric("dhow_gateway_connections", &[]) == 2.0).await;
    let mut third = TcpStream::connect(setup.at.public).await.unwrap();
    let mut none = vec![];
    assert_eq!(soon("the third to be refused", third.read_to_end(&mut none)).await.unwrap_or(0), 0);
    until("the second was let go", || setup.metric("dhow_gateway_connections", &[]) == 1.0).await;
    drop(second);
    instance.seen.release.notify_waiters();
    assert_eq!(call.await.unwrap().status, 200);
    assert!(setup.metric("dhow_gateway_connections_refused_total", &[]) >= 1.0);
}
