//! Clients of the API that want nothing, or everything and do not read it: by the thousand, beside others who are served
//! all the same, by a platform whose memory has a bound.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::harness::{Platform, kubectl, machine};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// What a connection may cost at most: what TLS holds in both directions, a head that is not complete, an answer that
/// waits to be taken.
const CONNECTION_BYTES: u64 = 256 << 10;
/// What all changes together may cost that watches resume from, and as much again for what comes and goes.
const SHARED_BYTES: u64 = 192 << 20;

/// The API, as a program finds it that speaks TLS by itself.
struct Door {
    tls: tokio_rustls::TlsConnector,
    address: std::net::SocketAddr,
    token: String,
}

type Sender = http2::SendRequest<Full<Bytes>>;

impl Door {
    /// Only those who say that they speak HTTP/2 are spoken to in it by clients of TLS; the server hears it either way.
    fn of(platform: &Platform) -> Self {
        daemon::tls::install_provider();
        let read = |name: &str| std::fs::read(platform.data_dir().join(name)).expect("it is in the data directory");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&read("tls/ca.crt")).expect("a certificate")).expect("an authority");
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let token = String::from_utf8(read("token")).expect("text").trim().to_owned();
        let address = platform.endpoint("api").parse().expect("an address");
        Self { tls: Arc::new(config).into(), address, token }
    }

    async fn shake(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls.connect(ServerName::try_from("localhost").expect("a name"), stream).await
    }

    /// A client that has little room for what it does not read, as one far away.
    async fn narrow(&self) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("it is set");
        // Large segments would make the kernel keep megabytes at the other end.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpMaxSeg, &536).expect("it is set");
        self.shake(socket.connect(self.address).await.expect("connected")).await.expect("a handshake")
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Request<Full<Bytes>> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder().method(method).uri(format!("https://{}{path}", self.address));
        let request = request.header("host", "localhost").header("authorization", format!("Bearer {}", self.token));
        request.header("content-type", "application/json").body(Full::from(body)).expect("a request")
    }

    async fn http2(&self, stream: TlsStream<TcpStream>) -> Sender {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(64 << 10).initial_connection_window_size(8 << 20);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }

    async fn sender(&self) -> Sender {
        let stream = TcpStream::connect(self.address).await.expect("connected");
        self.http2(self.shake(stream).await.expect("a handshake")).await
    }

    async fn ask(&self, sender: &mut Sender, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let response = sender.send_request(self.request(method, path, body)).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }
}

impl Door {
    /// Now.
    async fn revision(&self) -> u64 {
        let (_, list) = self.ask(&mut self.sender().await, "GET", &format!("{MAPS}?limit=1"), &Value::Null).await;
        list["metadata"]["resourceVersion"].as_str().expect("a list").parse().expect("a number")
    }

    async fn watch(&self, sender: &mut Sender, path: &str, from: u64) -> Incoming {
        let path = format!("{path}?watch=true&resourceVersion={from}");
        let response = sender.send_request(self.request("GET", &path, &Value::Null)).await.expect("an answer");
        assert_eq!(response.status(), 200);
        response.into_body()
    }
}

/// The memory of the platform's own process, in bytes.
fn memory(platform: &Platform) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", platform.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") << 10
}

/// A connection that asks for nothing, in one of several ways.
async fn crowd_in(door: &Door, number: usize) -> std::io::Result<Box<dyn Send>> {
    const HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252];
    let mut stream = TcpStream::connect(door.address).await?;
    let head = format!("POST {MAPS} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n", door.token);
    let text = match number % 10 {
        1 => String::new(),
        2 => head,
        3 => format!("{head}content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{"),
        4 => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        half => {
            stream.write_all(if half % 2 == 0 { HELLO } else { &[] }).await?;
            return Ok(Box::new(stream));
        }
    };
    let mut stream = door.shake(stream).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    Ok(Box::new(stream))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let mut platform = Platform::start().await;
    let door = Door::of(&platform);
    let files = daemon::files::open_many().expect("the limit is raised");
    assert!(files > 11_000, "this test needs more open files than {files}: raise the hard limit (ulimit -Hn)");
    let before = memory(&platform);
    // Begun before the crowd came, and never in its way.
    let mut watch = Watching::begin(&door).await;
    let mut crowd = vec![];
    for part in 0..5 {
        let coming: Vec<_> = futures::stream::iter(part * 2000..(part + 1) * 2000)
            .map(|number| crowd_in(&door, number))
            .buffer_unordered(64)
            .collect()
            .await;
        // Some have had to go already.
        crowd.extend(coming.into_iter().filter_map(Result::ok));
        platform.kubectl_ok(&["create", "configmap", &format!("m{part}"), "--from-literal=a=b"]);
        assert_eq!(watch.next().await.expect("an event").2, format!("m{part}"));
    }
    assert!(crowd.len() > 8000, "{} of them were let in", crowd.len());
    let after = memory(&platform);
    // An idle one has nothing to be taken.
    let bound = before + 4096 * CONNECTION_BYTES / 4;
    println!("memory: {before} before, {after} with {} connections", crowd.len());
    assert!(after < bound, "{after} bytes of memory, {before} before");
    assert_eq!(platform.kubectl_ok(&["get", "configmaps", "-o", "name"]).matches("configmap/m").count(), 5);
    drop(crowd);
    platform.stop_and_count().await;
}

/// A watch that is read.
struct Watching {
    body: Incoming,
    read: Vec<u8>,
}

impl Watching {
    /// Nothing is shown that was there before.
    async fn begin(door: &Door) -> Self {
        Self { body: door.watch(&mut door.sender().await, MAPS, door.revision().await).await, read: vec![] }
    }

    /// The next event: what happened, the revision, and the name; `None` at the end.
    async fn next(&mut self) -> Option<(String, u64, String)> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(event(&line));
            }
            self.read.extend(self.body.frame().await?.ok()?.into_data().ok()?);
        }
    }
}

fn event(line: &[u8]) -> (String, u64, String) {
    let event: Value = serde_json::from_slice(line).expect("an event");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &event["object"]["metadata"];
    let name = if event["type"] == "ERROR" { event["object"]["reason"].clone() } else { metadata["name"].clone() };
    (text(&event["type"]), text(&metadata["resourceVersion"]).parse().unwrap_or(0), text(&name))
}

const WRITERS: u64 = 40;
const SILENT: u64 = 1000;

/// Writes a map again and again; the revisions it was given.
async fn write(door: &Door, writer: u64, times: u64) -> Vec<u64> {
    let (mut sender, name, mut revisions) = (door.sender().await, format!("w{writer}"), vec![]);
    let content = "x".repeat(4000);
    for round in 0..times {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                            "data": {"round": round.to_string(), "content": content}});
        let (method, path) = if round == 0 { ("POST", MAPS.to_owned()) } else { ("PUT", format!("{MAPS}/{name}")) };
        let (status, answer) = door.ask(&mut sender, method, &path, &object).await;
        assert!(status == 200 || status == 201, "{answer}");
        revisions.push(answer["metadata"]["resourceVersion"].as_str().expect("a revision").parse().expect("a number"));
    }
    revisions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_nobody_reads() {
    if !machine() {
        return;
    }
    // More than one watch may be behind, and more than is kept for it to resume from.
    let changes = if std::env::var("DHOW_LONG").is_ok() { 40_000 } else { 12_000 };
    let mut platform = Platform::start().await;
    let door = Arc::new(Door::of(&platform));
    daemon::files::open_many().expect("the limit is raised");
    let mut watch = Watching::begin(&door).await;
    let before = memory(&platform);
    // Half of them have a connection of their own, the others share one with nine others.
    let from = door.revision().await;
    let path = format!("{MAPS}?watch=true&resourceVersion={from}");
    let mut silent = vec![];
    for _ in 0..SILENT / 2 {
        let mut stream = door.narrow().await;
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n", door.token);
        stream.write_all(head.as_bytes()).await.expect("written");
        silent.push(stream);
    }
    let (mut shared, mut streams) = (vec![], vec![]);
    for number in 0..SILENT / 2 {
        if number % 10 == 0 {
            shared.push(door.sender().await);
        }
        let sender = shared.last_mut().expect("one was made");
        streams.push(door.watch(sender, MAPS, from).await);
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let door = door.clone();
            tokio::spawn(async move { write(&door, writer, changes / WRITERS).await })
        })
        .collect();
    // One that reads sees everything, once and in order.
    let mut seen = vec![];
    while seen.len() < changes as usize {
        let (kind, revision, name) = watch.next().await.expect("an event");
        assert!(kind == "ADDED" || kind == "MODIFIED", "{kind} {name}");
        if name.starts_with('w') {
            seen.push(revision);
        }
    }
    let mut written: Vec<u64> = vec![];
    for writer in writers {
        written.extend(writer.await.expect("it writes"));
    }
    written.sort_unstable();
    assert_eq!(seen, written);
    let after = memory(&platform);
    println!("memory: {before} before, {after} with {SILENT} watches that nobody reads");
    assert!(after < before + SHARED_BYTES + SILENT * CONNECTION_BYTES, "{after} bytes of memory, {before} before");
    // On their connections others are served, and whoever reads on learns that it must list again.
    let (status, _) = door.ask(&mut shared[0], "GET", &format!("{MAPS}/w0"), &Value::Null).await;
    assert_eq!(status, 200);
    let mut late = Watching { body: streams.swap_remove(3), read: vec![] };
    let mut last = from;
    while let Some((kind, revision, reason)) = late.next().await {
        // Unless the test took so long that the server did not wait any more.
        assert!(kind != "ERROR" || reason == "Expired", "{reason}");
        last = last.max(revision);
    }
    assert!(from < last && last < seen[seen.len() - 1], "it saw some, and not all: {last}");
    let mut again = Watching { body: door.watch(&mut door.sender().await, MAPS, last).await, read: vec![] };
    assert_eq!(again.next().await, Some(("ERROR".to_owned(), 0, "Expired".to_owned())));
    ends(silent.swap_remove(7)).await;
    platform.stop_and_count().await;
}

/// Reads what a watch over HTTP/1.1 still says: that it has expired, or nothing more.
async fn ends(mut stream: TlsStream<TcpStream>) {
    let (mut said, mut piece) = (vec![], vec![0; 64 << 10]);
    loop {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(length) => said.extend_from_slice(&piece[..length]),
        }
        if String::from_utf8_lossy(&said[said.len().saturating_sub(4096)..]).contains("\"reason\":\"Expired\"") {
            return;
        }
    }
}
