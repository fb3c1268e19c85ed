//! Visits over real WebSockets, with a node that echoes: protocols, refusals, bounds, and who notices whose end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::frames;
use apiserver::{ApiServer, Config, NodeProxy, ResponseBody};
use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tower::Service;

use crate::fuzz::damage::{Random, damage, rounds, seeds};
use crate::harness::{TOKEN, call, config, store};

const SUCCESS: &str = r#"{"status":"Success"}"#;
const FAILURE: &str = r#"{"message":"exit status 3","status":"Failure"}"#;
const BASE: &str = "/api/v1/namespaces/default/pods/p";

/// How many visits the node has now, and how many pieces of endless output it has given out.
#[derive(Default)]
struct Counters {
    visits: watch::Sender<usize>,
    pieces: AtomicUsize,
}

/// A visit that is counted as long as its answer is there.
struct Counted(Arc<Counters>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.visits.send_modify(|visits| *visits -= 1);
    }
}

/// A node that echoes what it is sent, prints without end, or refuses, as the command or the port says.
fn node(counters: &Arc<Counters>) -> NodeProxy {
    let counters = counters.clone();
    NodeProxy::new(tower::service_fn(move |request: Request<ResponseBody>| {
        let counters = counters.clone();
        async move {
            counters.visits.send_modify(|visits| *visits += 1);
            let counted = Counted(counters.clone());
            let uri = request.uri().to_string();
            let refuse = |status: StatusCode, text: &'static str| {
                let body = Full::from(text).map_err(|never| match never {}).boxed_unsync();
                Ok(Response::builder().status(status).body(body).unwrap())
            };
            if uri.contains("command=gone") {
                return refuse(StatusCode::BAD_REQUEST, "container not found (\"main\")");
            }
            if uri.ends_with("port=1") {
                return refuse(StatusCode::BAD_GATEWAY, "connection refused");
            }
            if uri.contains("command=endless") {
                let pieces = stream::unfold(counted, |counted| async move {
                    counted.0.pieces.fetch_add(1, Ordering::SeqCst);
                    Some((frames::encode(frames::STDOUT, &[b'x'; 32 << 10]), counted))
                });
                return Ok(answer(pieces.boxed()));
            }
            let body = request.into_body();
            if uri.ends_with("port=2") {
                let deaf = stream::unfold((body, counted), |deaf| async move {
                    std::future::pending::<()>().await;
                    Some((vec![], deaf))
                });
                return Ok(answer(deaf.boxed()));
            }
            if uri.starts_with("/portForward") {
                let pieces = stream::unfold((body, counted), |(mut body, counted)| async move {
                    let bytes = body.frame().await?.ok()?.into_data().ok()?;
                    Some((bytes.to_vec(), (body, counted)))
                });
                return Ok(answer(pieces.boxed()));
            }
            let end = if uri.contains("command=fail") { FAILURE } else { SUCCESS };
            let echo = Echo { body, decoder: frames::Decoder::default(), end: Some(end), _counted: counted };
            Ok(answer(stream::unfold(echo, Echo::next).boxed()))
        }
    }))
}

fn answer(pieces: stream::BoxStream<'static, Vec<u8>>) -> Response<ResponseBody> {
    let frames = pieces.map(|piece| Ok(Frame::data(Bytes::from(piece))));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

struct Echo {
    body: ResponseBody,
    decoder: frames::Decoder,
    end: Option<&'static str>,
    _counted: Counted,
}

impl Echo {
    async fn next(mut self) -> Option<(Vec<u8>, Self)> {
        self.end?;
        loop {
            match self.decoder.take().unwrap() {
                Some((frames::STDIN, bytes)) if bytes == b"end" => break,
                Some((frames::CLOSE, _)) => break,
                Some((frames::STDIN, bytes)) => return Some((frames::encode(frames::STDOUT, &bytes), self)),
                Some((channel, bytes)) => {
                    let text = format!("{channel}:{}", String::from_utf8_lossy(&bytes));
                    return Some((frames::encode(frames::STDERR, text.as_bytes()), self));
                }
                None => match self.body.frame().await {
                    Some(Ok(frame)) => self.decoder.push(&frame.into_data().unwrap()),
                    _ => break,
                },
            }
        }
        let end = self.end.take()?;
        Some((frames::encode(frames::STATUS, end.as_bytes()), self))
    }
}

struct World {
    server: ApiServer,
    counters: Arc<Counters>,
}

impl World {
    async fn with(edit: impl FnOnce(&mut Config)) -> Self {
        let counters = Arc::new(Counters::default());
        let mut config = Config { node_proxy: Some(node(&counters)), ..config() };
        edit(&mut config);
        let server = ApiServer::new(store(), config).unwrap();
        for (name, node, phase) in [("p", "n", "Running"), ("done", "n", "Succeeded"), ("lost", "", "Pending")] {
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"containers": [{"name": "main", "image": "x"}]}});
            if !node.is_empty() {
                pod["spec"]["nodeName"] = node.into();
            }
            let path = "/api/v1/namespaces/default/pods";
            let (status, made) = call(&server, Method::POST, path, &[], pod.to_string()).await;
            assert_eq!(status, 201, "{made}");
            let patch = json!({"status": {"phase": phase}}).to_string();
            let merge = [("content-type", "application/merge-patch+json")];
            let (status, _) = call(&server, Method::PATCH, &format!("{path}/{name}/status"), &merge, patch).await;
            assert_eq!(status, 200);
        }
        Self { server, counters }
    }

    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A connection to the external side.
    fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let external = self.server.external();
        let service = hyper::service::service_fn(move |request| external.clone().call(request));
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(http.serve_connection(TokioIo::new(theirs), service).with_upgrades());
        ours
    }

    /// A WebSocket, or the refusal.
    async fn open(&self, path: &str, protocol: &str) -> Result<WebSocketStream<DuplexStream>, (u16, Value)> {
        let mut request = format!("ws://x{path}").into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        match tokio_tungstenite::client_async(request, self.connect()).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((response.status().as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null)))
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }

    async fn until_visits(&self, count: usize) {
        self.counters.visits.subscribe().wait_for(|visits| *visits == count).await.unwrap();
    }
}

/// Every message until the end, pings aside, and whether the end was a normal one.
async fn heard(mut socket: WebSocketStream<DuplexStream>) -> (Vec<Vec<u8>>, Option<u16>) {
    let mut messages = vec![];
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => messages.push(bytes.to_vec()),
            Message::Text(text) => messages.push(text.as_bytes().to_vec()),
            Message::Close(frame) => return (messages, frame.map(|frame| frame.code.into())),
            _ => {}
        }
    }
    (messages, None)
}

fn on(channel: u8, text: &str) -> Vec<u8> {
    [&[channel], text.as_bytes()].concat()
}

const EXEC: &str = "/exec?command=echo&stdin=true&stdout=true&stderr=true";

#[tokio::test]
async fn every_protocol_of_a_socket() {
    let world = World::start().await;
    let size = r#"{"Width":1,"Height":2}"#;
    let told = on(2, &format!("4:{size}"));
    for (protocol, what, says) in [
        ("v5.channel.k8s.io", "echo", Some(SUCCESS)),
        ("unknown, v4.channel.k8s.io", "echo", Some(SUCCESS)),
        ("v4.channel.k8s.io", "fail", Some(FAILURE)),
        ("v3.channel.k8s.io", "echo", None),
        ("channel.k8s.io", "fail", Some("exit status 3")),
        ("", "echo", None),
    ] {
        let path = format!("{BASE}{}", EXEC.replace("echo", what));
        let mut socket = world.open(&path, protocol).await.unwrap();
        for message in [on(0, "one"), on(4, size), on(0, "end")] {
            socket.send(Message::Binary(message.into())).await.unwrap();
        }
        let mut want = vec![vec![1], on(1, "one"), told.clone()];
        want.extend(says.map(|status| on(3, status)));
        assert_eq!(heard(socket).await, (want, Some(1000)), "{protocol} {what}");
    }
    // The newest can close its input; text carries bytes in base64.
    let mut socket = world.open(&format!("{BASE}{EXEC}"), "v5.channel.k8s.io").await.unwrap();
    socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    assert_eq!(heard(socket).await.0, [vec![1], on(3, SUCCESS)]);
    let mut socket = world.open(&format!("{BASE}{EXEC}"), "v4.base64.channel.k8s.io").await.unwrap();
    for text in ["0b25l", "0ZW5k"] {
        socket.send(Message::Text(text.into())).await.unwrap();
    }
    let (messages, _) = heard(socket).await;
    assert_eq!(messages[..2], [b"1".to_vec(), b"1b25l".to_vec()]);
    world.until_visits(0).await;
}

#[tokio::test]
async fn attaching_and_what_is_started_first() {
    let world = World::start().await;
    let path = format!("{BASE}/attach?stderr=true&stdin=true");
    let mut socket = world.open(&path, "v5.channel.k8s.io").await.unwrap();
    socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    assert_eq!(heard(socket).await.0, [vec![2], on(3, SUCCESS)], "the first channel that is read says that it is on");
}

#[tokio::test]
async fn what_cannot_be_visited_is_refused_before_the_upgrade() {
    let world = World::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    for (path, protocol, code, message) in [
        ("none/exec?command=x&stdout=1", "v5.channel.k8s.io", 404, "pods \"none\" not found"),
        ("lost/exec?command=x&stdout=1", "v5.channel.k8s.io", 400, "pod lost does not have a host assigned"),
        ("done/exec?command=x&stdout=1", "v5.channel.k8s.io", 400, "completed pod; current phase is Succeeded"),
        ("done/portforward?ports=80", "v4.channel.k8s.io", 400, "pod is not running. Current status=Succeeded"),
        ("p/exec?stdout=1", "v5.channel.k8s.io", 400, "you must specify at least one command"),
        ("p/exec?command=x", "v5.channel.k8s.io", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("p/exec?command=x&stdout=1&container=y", "v5.channel.k8s.io", 400, "container y is not valid for pod p"),
        ("p/exec?command=gone&stdout=1", "v5.channel.k8s.io", 400, "container not found (\"main\")"),
        ("p/exec?command=x&stdout=1", "v9.channel.k8s.io", 403, "client supports [v9.channel.k8s.io], server accepts"),
        ("p/portforward?ports=80", "v5.channel.k8s.io", 403, "unable to negotiate protocol"),
        ("p/portforward", "v4.channel.k8s.io", 400, "query parameter \"ports\" is required"),
        ("p/portforward?ports=0", "v4.channel.k8s.io", 400, "unable to parse \"0\" as a port"),
        ("p/portforward?ports=80,x", "v4.channel.k8s.io", 400, "unable to parse \"x\" as a port"),
        ("p/other", "v5.channel.k8s.io", 404, "could not find the requested resource"),
    ] {
        let (got, status) = world.open(&format!("{pods}/{path}"), protocol).await.expect_err(path);
        let said = status["message"].as_str().unwrap_or_default();
        assert!(got == code && said.contains(message), "{path}: {got} {status}");
    }
    let exec = format!("{BASE}/exec?command=x&stdout=1");
    for (method, code) in [(Method::GET, 400), (Method::POST, 400), (Method::DELETE, 405), (Method::PATCH, 405)] {
        let (status, said) = call(&world.server, method.clone(), &exec, &[], "").await;
        assert_eq!(status, code, "{method}: {said}");
        assert!(code != 400 || said["message"] == "Upgrade request required", "{said}");
    }
    let lonely = World::with(|config| config.node_proxy = None).await;
    assert_eq!(lonely.open(&exec, "v5.channel.k8s.io").await.expect_err("no node").0, 503);
    let full = World::with(|config| config.max_visits = 1).await;
    let first = full.open(&format!("{BASE}{EXEC}"), "v5.channel.k8s.io").await.unwrap();
    assert_eq!(full.open(&exec, "v5.channel.k8s.io").await.expect_err("full").0, 429);
    drop(first);
    full.until_visits(0).await;
}

#[tokio::test]
async fn either_end_is_noticed_and_nothing_is_kept() {
    let world = World::start().await;
    let socket = world.open(&format!("{BASE}{EXEC}"), "v5.channel.k8s.io").await.unwrap();
    world.until_visits(1).await;
    drop(socket);
    world.until_visits(0).await;
    // A client that never reads: what the node may say is bounded, and others are served meanwhile.
    let path = format!("{BASE}/exec?command=endless&stdout=true");
    let deaf = world.open(&path, "v5.channel.k8s.io").await.unwrap();
    let mut last = usize::MAX;
    loop {
        let mut other = world.open(&format!("{BASE}{EXEC}"), "v5.channel.k8s.io").await.unwrap();
        other.send(Message::Binary(vec![255, 0].into())).await.unwrap();
        assert_eq!(heard(other).await.0, [vec![1], on(3, SUCCESS)]);
        let pieces = world.counters.pieces.load(Ordering::SeqCst);
        if pieces == last {
            break;
        }
        last = pieces;
    }
    assert!(last < 64, "{last} pieces for nobody");
    drop(deaf);
    world.until_visits(0).await;
    // What cannot be understood is the end as well.
    for nonsense in [Message::Text("not base64".into()), Message::Binary(vec![0; 2 << 20].into())] {
        let mut socket = world.open(&format!("{BASE}{EXEC}"), "v4.base64.channel.k8s.io").await.unwrap();
        // It may be cut off while it still speaks.
        let _ = socket.send(nonsense).await;
        world.until_visits(0).await;
    }
    // The server ends all of them when it stops.
    let stop = tokio_util::sync::CancellationToken::new();
    let world = World::with(|config| config.stop = stop.clone()).await;
    let socket = world.open(&format!("{BASE}{EXEC}"), "v5.channel.k8s.io").await.unwrap();
    stop.cancel();
    world.server.visits_ended().await;
    world.until_visits(0).await;
    assert_eq!(heard(socket).await.1, None);
}

#[tokio::test]
async fn ports_over_a_socket() {
    let world = World::start().await;
    let path = format!("{BASE}/portforward?ports=8080,1&ports=9090");
    let mut socket = world.open(&path, "v4.channel.k8s.io").await.unwrap();
    let mut heard: Vec<Vec<u8>> = vec![];
    let mut messages = |socket: WebSocketStream<DuplexStream>, count: usize| {
        let mut heard = std::mem::take(&mut heard);
        async move {
            let mut socket = socket;
            while heard.len() < count {
                if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
                    heard.push(bytes.to_vec());
                }
            }
            (socket, heard)
        }
    };
    socket.send(Message::Binary(on(4, "third").into())).await.unwrap();
    socket.send(Message::Binary(on(0, "first").into())).await.unwrap();
    let (_, mut heard) = messages(socket, 9).await;
    heard.sort();
    let port = |channel: u8, port: u16| [&[channel], &port.to_le_bytes()[..]].concat();
    let mut want = vec![
        port(0, 8080),
        port(1, 8080),
        port(2, 1),
        port(3, 1),
        port(4, 9090),
        port(5, 9090),
        on(0, "first"),
        on(3, "error forwarding port 1 to pod p: connection refused"),
        on(4, "third"),
    ];
    want.sort();
    assert_eq!(heard, want);
    world.until_visits(0).await;
}

/// A stream that a client opens for a connection to a port, without the dictionary, and without compression.
fn opened(stream: u32, kind: &str, port: &str, id: &str) -> Vec<u8> {
    let headers = [("streamtype", kind), ("port", port), ("requestid", id)];
    let mut block = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend((text.len() as u32).to_be_bytes());
        block.extend(text.bytes());
    }
    let length = block.len() as u16;
    let mut payload = [&stream.to_be_bytes()[..], &[0; 6]].concat();
    payload.extend(if stream == 1 { &[0x78, 1][..] } else { &[] });
    payload.push(0);
    payload.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
    payload.extend(block);
    [&[0x80, 3, 0, 1][..], &(payload.len() as u32).to_be_bytes(), &payload].concat()
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_not_read_holds_up_the_others_for_a_while() {
    let world = World::start().await;
    let said =
        |stream: u32, bytes: &[u8]| [&stream.to_be_bytes()[..], &(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let streams = [(1, "error", "2", "a"), (3, "data", "2", "a"), (5, "error", "80", "b"), (7, "data", "80", "b")];
    let mut all: Vec<u8> =
        streams.iter().flat_map(|(stream, kind, port, id)| opened(*stream, kind, port, id)).collect();
    for _ in 0..64 {
        all.extend(said(3, &[b'x'; 32 << 10]));
    }
    all.extend(said(7, b"there"));
    let head = format!(
        "GET {BASE}/portforward HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\
        connection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: portforward.k8s.io\r\n\r\n"
    );
    let (mut from, mut to) = tokio::io::split(world.connect());
    to.write_all(head.as_bytes()).await.unwrap();
    let writing = tokio::spawn(async move {
        to.write_all(&all).await.unwrap();
        to
    });
    let mut heard = vec![];
    while !heard.ends_with(b"there") {
        heard.push(from.read_u8().await.unwrap());
    }
    let reset = [&[0x80, 3, 0, 3, 0, 0, 0, 8][..], &3u32.to_be_bytes()].concat();
    assert!(heard.windows(reset.len()).any(|window| window == reset), "it is told which one was broken off");
    world.until_visits(1).await;
    drop((from, writing.await.unwrap()));
    world.until_visits(0).await;
}

thread_local! {
    static PANICS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts the panics of this thread from now on: a task that ends in one takes only its connection with it.
fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
}

/// Whatever a client says once its connection was upgraded, the visit ends with it and leaves nothing.
#[tokio::test]
async fn damaged_visits_end() {
    count_panics();
    let (world, seeds, mut random) = (World::start().await, seeds("visits"), Random(Random::SEED));
    let many = seeds.len() as u64;
    for round in 0..many + rounds(300, 30_000) {
        let (name, bytes) = seeds[if round < many { round as usize } else { random.below(seeds.len()) }].clone();
        let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap();
        let (head, mut said) = (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end + 2..].to_vec());
        for _ in 0..if round < many { 0 } else { 1 + random.below(4) } {
            damage(&mut said, &seeds[random.below(seeds.len())].1, true, &mut random);
        }
        said.truncate(64 << 10);
        upgraded(&world, &head, &said).await;
        world.until_visits(0).await;
        assert_eq!(PANICS.get(), 0, "round {round}, from {name}: {:?}", said.escape_ascii().to_string());
    }
}

/// Says it all, and nothing more; reads until the server is done.
async fn upgraded(world: &World, head: &str, said: &[u8]) {
    let (mut from, mut to) = tokio::io::split(world.connect());
    let (request, headers) = head.split_once('\n').unwrap();
    let head = format!("{request} HTTP/1.1\nhost: x\nauthorization: Bearer {TOKEN}\n{headers}\n\n");
    to.write_all(head.replace('\n', "\r\n").as_bytes()).await.unwrap();
    let mut answer = vec![];
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(from.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    let saying = async {
        // It may be cut off while it still speaks.
        let _ = to.write_all(said).await;
        let _ = to.shutdown().await;
    };
    let _ = tokio::join!(saying, from.read_to_end(&mut answer));
}
