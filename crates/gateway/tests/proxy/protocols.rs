//! HTTP/1, HTTP/2, streaming, trailers, upgrades.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use futures::{SinkExt, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{HOST, Instance, Setup, raw, read_head, scripted, soon, unix_instance, until};

type Chunks = futures::channel::mpsc::Receiver<Result<Frame<Bytes>, Infallible>>;

async fn h2(setup: &Setup, tasks: &mut JoinSet<()>) -> hyper::client::conn::http2::SendRequest<StreamBody<Chunks>> {
    let stream = TcpStream::connect(setup.at.public).await.unwrap();
    let io = TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    sender
}

fn body(frames: Vec<Frame<Bytes>>) -> StreamBody<Chunks> {
    let (mut sender, receiver) = futures::channel::mpsc::channel(frames.len() + 1);
    for frame in frames {
        sender.try_send(Ok(frame)).unwrap();
    }
    StreamBody::new(receiver)
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("42"))])
}

/// Echoes data and trailers, frame by frame.
async fn echo(request: Request<Incoming>) -> Result<Response<StreamBody<BodyStream<Incoming>>>, Infallible> {
    let mut response = Response::new(StreamBody::new(BodyStream::new(request.into_body())));
    response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
    Ok(response)
}

async fn echo_instance() -> (std::net::SocketAddr, JoinSet<()>) {
    scripted(|stream| async move {
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_carries_many_requests_at_once() {
    let setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(0);
    let mut tasks = JoinSet::new();
    let sender = h2(&setup, &mut tasks).await;
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let mut sender = sender.clone();
        calls.spawn(async move {
            let request = Request::get(format!("http://{HOST}/slow")).header("cookie", "a=1").header("cookie", "b=2");
            let response = sender.send_request(request.body(body(vec![])).unwrap()).await.unwrap();
            assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "rev");
        });
    }
    soon("all answers", calls.join_all()).await;
    let heads = instance.seen.heads.lock().unwrap();
    assert_eq!(heads.len(), 100);
    assert_eq!(
        (heads[0].headers["host"].to_str().unwrap(), heads[0].headers["cookie"].to_str().unwrap()),
        (HOST, "a=1; b=2")
    );
    assert_eq!(heads[0].version, Version::HTTP_11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_in_both_directions_through_every_protocol() {
    for (port_name, what) in [("http", "HTTP/1.1 behind"), ("h2c", "HTTP/2 behind")] {
        let setup = Setup::new();
        let (at, _instance) = echo_instance().await;
        setup.instances_on("rev", &[("rev-1", at)], port_name);
        setup.route(0);
        let mut tasks = JoinSet::new();
        let mut sender = h2(&setup, &mut tasks).await;
        let frames = vec![Frame::data(Bytes::from_static(b"data")), Frame::trailers(trailers())];
        let request = Request::post(format!("http://{HOST}/")).header("te", "trailers").header("trailer", "x-sum");
        let response = soon(what, sender.send_request(request.body(body(frames)).unwrap())).await.unwrap();
        assert_eq!(response.status(), 200, "{what}");
        let whole = soon(what, response.into_body().collect()).await.unwrap();
        assert_eq!(whole.trailers(), Some(&trailers()), "{what}");
        assert_eq!(whole.to_bytes(), "data", "{what}");
    }
    let setup = Setup::new();
    let (at, _instance) = echo_instance().await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route(0);
    let text = raw(
        setup.at.public,
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close, TE\r\nTE: trailers\r\nTrailer: x-sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n0\r\nx-sum: 42\r\n\r\n"
        )
        .as_bytes(),
    )
    .await;
    assert!(text.contains("4\r\ndata\r\n") && text.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_may_speak_http2_only() {
    let setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.instances_on("rev", &[("rev-1", instance.at)], "h2c");
    setup.route(0);
    let mut client = setup.client().await;
    for _ in 0..5 {
        let request = Request::post("/echo?x=1").header("host", HOST).body(Full::new(Bytes::from_static(b"text")));
        let reply = client.send(request.unwrap()).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "text"));
    }
    let heads = instance.seen.heads.lock().unwrap();
    assert_eq!((heads[0].version, heads[0].uri.to_string()), (Version::HTTP_2, format!("http://{HOST}/echo?x=1")));
    assert_eq!(instance.seen.connections.load(SeqCst), 1, "one connection is shared");
}

/// Far more than any buffer between the two ends.
const MUCH: u64 = 128 << 20;
/// What may lie in sockets' and the gateway's buffers while nobody reads.
const LITTLE: u64 = 24 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_the_instance_back() {
    let setup = Setup::new();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let (at, _instance) = scripted(move |mut stream| {
        let counter = counter.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n").as_bytes()).await.unwrap();
            let chunk = vec![b'x'; 1 << 16];
            while counter.load(SeqCst) < MUCH {
                stream.write_all(&chunk).await.unwrap();
                counter.fetch_add(chunk.len() as u64, SeqCst);
            }
        }
    })
    .await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route(0);
    let mut stream = TcpStream::connect(setup.at.public).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    read_head(&mut stream).await.unwrap();
    let mut before = u64::MAX;
    until("the instance is held back", || {
        let now = sent.load(SeqCst);
        let stuck = now == before && now > 0;
        before = now;
        stuck
    })
    .await;
    assert!(sent.load(SeqCst) < LITTLE, "{} bytes went ahead of the reader", sent.load(SeqCst));
    let mut rest = vec![0; 1 << 16];
    let mut got = 0;
    while got < MUCH {
        got += soon("more of the body", stream.read(&mut rest)).await.unwrap() as u64;
    }
    assert_eq!(got, MUCH);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_instance_holds_the_client_back() {
    let setup = Setup::new();
    let go = Arc::new(tokio::sync::Notify::new());
    let waiting = go.clone();
    let (at, _instance) = scripted(move |mut stream| {
        let go = waiting.clone();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            assert!(head.contains("content-length"), "{head}");
            go.notified().await;
            let (mut got, mut buffer) = (0, vec![0; 1 << 16]);
            while got < MUCH {
                got += stream.read(&mut buffer).await.unwrap() as u64;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nall").await.unwrap();
        }
    })
    .await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route(0);
    let (mut reader, mut writer) = TcpStream::connect(setup.at.public).await.unwrap().into_split();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {MUCH}\r\n\r\n");
        writer.write_all(head.as_bytes()).await.unwrap();
        let chunk = vec![b'x'; 1 << 16];
        while counter.load(SeqCst) < MUCH {
            writer.write_all(&chunk).await.unwrap();
            counter.fetch_add(chunk.len() as u64, SeqCst);
        }
        writer
    });
    let mut before = u64::MAX;
    until("the client is held back", || {
        let now = sent.load(SeqCst);
        let stuck = now == before && now > 0;
        before = now;
        stuck
    })
    .await;
    assert!(sent.load(SeqCst) < LITTLE, "{} bytes went ahead of the instance", sent.load(SeqCst));
    go.notify_one();
    let mut answer = [0; 15];
    soon("the answer", reader.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_flow_at_once() {
    let setup = Setup::new();
    let (at, _instance) = echo_instance().await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route(1);
    let stream = TcpStream::connect(setup.at.public).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let (mut feed, chunks) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    feed.send(Ok(Frame::data(Bytes::from_static(b"0")))).await.unwrap();
    let request = Request::get("/").header("host", HOST).header("transfer-encoding", "chunked");
    let response = soon("the head", sender.send_request(request.body(StreamBody::new(chunks)).unwrap())).await.unwrap();
    let mut frames = BodyStream::new(response.into_body()).try_filter_map(|f| async { Ok(f.into_data().ok()) }).boxed();
    for i in 0..20 {
        let chunk = soon("an echo", frames.next()).await.unwrap().unwrap();
        assert_eq!(chunk, i.to_string(), "each comes back before the next is sent");
        feed.send(Ok(Frame::data(Bytes::from((i + 1).to_string())))).await.unwrap();
    }
    drop(feed);
    assert_eq!(soon("the last", frames.next()).await.unwrap().unwrap(), "20");
    assert!(soon("the end", frames.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_and_other_upgrades_become_tunnels() {
    let setup = Setup::new();
    let (at, _instance) = scripted(|stream| async move {
        let mut peeked = [0; 4096];
        let count = stream.peek(&mut peeked).await.unwrap();
        if String::from_utf8_lossy(&peeked[..count]).contains("websocket") {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if message.is_text() && socket.send(message).await.is_err() {
                    return;
                }
            }
        } else {
            let mut stream = stream;
            let head = read_head(&mut stream).await.unwrap();
            assert!(head.contains("upgrade: shout"), "{head}");
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\nHI\n";
            stream.write_all(answer).await.unwrap();
            let mut word = [0; 5];
            stream.read_exact(&mut word).await.unwrap();
            stream.write_all(&word.to_ascii_uppercase()).await.unwrap();
        }
    })
    .await;
    setup.instances("rev", &[("rev-1", at)]);
    setup.route(1);
    let stream = TcpStream::connect(setup.at.public).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{HOST}/chat"), stream).await.unwrap();
    for word in ["one", "two", &"long".repeat(50_000)] {
        socket.send(Message::text(word)).await.unwrap();
        let answer = soon("an echo", socket.next()).await.unwrap().unwrap();
        assert_eq!(answer.into_text().unwrap().as_str(), word);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = soon("the close", socket.next()).await {}
    drop(socket);
    // The tunnel held the revision's only slot until now.
    let mut stream = TcpStream::connect(setup.at.public).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = soon("the head", read_head(&mut stream)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("upgrade: shout"), "{head}");
    stream.write_all(b"hello").await.unwrap();
    let mut all = vec![];
    soon("the shout", stream.read_to_end(&mut all)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&all), "HI\nHELLO");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_serve_too() {
    let setup = Setup::new();
    let path = std::env::temp_dir().join(format!("gateway-test-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let _instance = unix_instance(&path, "unix").await;
    setup.unix_instance("rev", "rev-1", &path);
    setup.route(1);
    for _ in 0..3 {
        assert_eq!(setup.get("/").await.text(), "unix");
    }
    let _ = std::fs::remove_file(&path);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_print_of_http1() {
    let setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(0);
    let close = format!("Host: {HOST}\r\nConnection: close\r\n");
    let keep = format!("Host: {HOST}\r\n");
    let rows: &[(&str, String, &[&str])] = &[
        ("HTTP/1.0", format!("GET / HTTP/1.0\r\n{keep}\r\n"), &["HTTP/1.0 200", "content-length: 3", "\r\n\r\nrev"]),
        ("HEAD", format!("HEAD / HTTP/1.1\r\n{close}\r\n"), &["HTTP/1.1 200", "content-length: 3"]),
        (
            "pipelined",
            format!("GET / HTTP/1.1\r\n{keep}\r\nGET / HTTP/1.1\r\n{close}\r\n"),
            &["revHTTP/1.1 200", "\r\n\r\nrev"],
        ),
        ("absolute form", format!("GET http://{HOST}/x HTTP/1.1\r\n{close}\r\n"), &["HTTP/1.1 200", "\r\n\r\nrev"]),
        ("asterisk", format!("OPTIONS * HTTP/1.1\r\n{close}\r\n"), &["HTTP/1.1 200"]),
        ("close", format!("GET / HTTP/1.1\r\n{close}\r\n"), &["connection: close"]),
    ];
    for (what, request, wanted) in rows {
        let text = raw(setup.at.public, request.as_bytes()).await;
        for part in *wanted {
            assert!(text.contains(part), "{what}: no {part:?} in {text:?}");
        }
        assert!(*what != "HEAD" || text.ends_with("\r\n\r\n"), "{text}");
    }
    let mut stream = TcpStream::connect(setup.at.public).await.unwrap();
    let head = format!("POST /echo HTTP/1.1\r\n{close}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let interim = soon("the go-ahead", read_head(&mut stream)).await.unwrap();
    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let mut rest = String::new();
    soon("the answer", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("body"), "{rest}");
    assert_eq!(setup.metric("dhow_requests_total", &["code=\"200\""]), 8.0);
}
