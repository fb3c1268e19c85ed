//! Load for a running API server, and the same for etcd beside it: one program and one protocol (HTTP/2, each client on
//! a connection of its own) for both, so that what differs is what is measured. Prints one JSON object.
//!
//! `load api KUBECONFIG PART` and `load etcd ADDRESS,CERTIFICATE PART`, where PART is one of `create`, `get`, `list`, `apply`,
//! `watch` or `fill`. SECONDS, CLIENTS and COUNT come from the environment. Both are spoken to over TLS, an etcd without a
//! certificate aside.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a small object's own content is: etcd's values and our ConfigMaps carry as much.
const CONTENT: usize = 256;
const LISTED: u64 = 1000;
const WATCHES: usize = 1000;
/// Streams that share a connection, well below what servers allow.
const STREAMS: usize = 50;

#[derive(Clone)]
enum Target {
    Api { address: String, token: String, tls: TlsConnector },
    Etcd { address: String, tls: Option<TlsConnector> },
}

type Sender = SendRequest<Full<Bytes>>;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, place, part] = arguments.as_slice() else { panic!("usage: load api|etcd PLACE PART") };
    let target = match kind.as_str() {
        "api" => Target::of_kubeconfig(place),
        "etcd" => Target::of_etcd(place),
        other => panic!("{other}"),
    };
    let result = match part.as_str() {
        "watch" => watch(&target).await,
        "fill" => fill(&target, number("COUNT", 100_000)).await,
        part => {
            if part != "create" {
                fill(&target, LISTED).await;
            }
            let clients = if part == "list" { 8 } else { number("CLIENTS", 64) };
            requests(&target, part, clients, Duration::from_secs(number("SECONDS", 5))).await
        }
    };
    println!("{result}");
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

impl Target {
    fn of_kubeconfig(path: &str) -> Self {
        let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cluster = &config["clusters"][0]["cluster"];
        let authority = STANDARD.decode(cluster["certificate-authority-data"].as_str().unwrap()).unwrap();
        Self::Api {
            address: cluster["server"].as_str().unwrap().trim_start_matches("https://").to_owned(),
            token: config["users"][0]["user"]["token"].as_str().unwrap().to_owned(),
            tls: trusting(&authority),
        }
    }

    fn of_etcd(place: &str) -> Self {
        let (address, certificate) = place.split_once(',').unwrap();
        let tls = (!certificate.is_empty()).then(|| trusting(&std::fs::read(certificate).unwrap()));
        Self::Etcd { address: address.to_owned(), tls }
    }

    async fn connect(&self) -> Sender {
        let (address, tls) = match self {
            Self::Api { address, tls, .. } => (address, Some(tls)),
            Self::Etcd { address, tls } => (address, tls.as_ref()),
        };
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let Some(tls) = tls else { return handshake(stream).await };
        let name = ServerName::try_from(address.rsplit_once(':').unwrap().0.to_owned()).unwrap();
        handshake(tls.connect(name, stream).await.unwrap()).await
    }

    /// One request of a part; every create is of a name of its own.
    fn request(&self, part: &str, i: u64) -> Request<Full<Bytes>> {
        match self {
            Self::Api { address, token, .. } => {
                let maps = format!("https://{address}/api/v1/namespaces/default/configmaps");
                let one = format!("{maps}/o-{}", i % LISTED);
                let (method, uri, media, body) = match part {
                    "create" => (Method::POST, maps, "json", object(&format!("c-{i}"), i)),
                    "fill" => (Method::POST, maps, "json", object(&format!("o-{i}"), i)),
                    "get" => (Method::GET, one, "json", String::new()),
                    "list" => (Method::GET, format!("{maps}?limit={LISTED}"), "json", String::new()),
                    "apply" => (
                        Method::PATCH,
                        format!("{one}?fieldManager=load&force=true"),
                        "apply-patch+yaml",
                        object(&format!("o-{}", i % LISTED), i),
                    ),
                    "watch" => (
                        Method::GET,
                        format!("{maps}?watch=true&fieldSelector=metadata.name%3Dtick"),
                        "json",
                        String::new(),
                    ),
                    "tick" => (
                        Method::PATCH,
                        format!("{maps}/tick?fieldManager=load&force=true"),
                        "apply-patch+yaml",
                        object("tick", i),
                    ),
                    other => panic!("{other}"),
                };
                let request = Request::builder().method(method).uri(uri);
                let request = request.header("authorization", format!("Bearer {token}"));
                request.header("content-type", format!("application/{media}")).body(Full::from(body)).unwrap()
            }
            Self::Etcd { address, tls } => {
                let key = |kind: &str, i: u64| field(1, format!("/{kind}/{i:010}").as_bytes());
                let value = field(2, "v".repeat(CONTENT).as_bytes());
                let (method, message) = match part {
                    "create" => ("KV/Put", [key("c", i), value].concat()),
                    "fill" | "apply" => ("KV/Put", [key("o", i % LISTED), value].concat()),
                    "get" => ("KV/Range", key("o", i % LISTED)),
                    "list" => ("KV/Range", [field(1, b"/o/"), field(2, b"/o0")].concat()),
                    "watch" => ("Watch/Watch", field(1, &field(1, b"/tick"))),
                    "tick" => ("KV/Put", [field(1, b"/tick"), value].concat()),
                    other => panic!("{other}"),
                };
                let mut frame = BytesMut::new();
                frame.put_u8(0);
                frame.put_u32(u32::try_from(message.len()).unwrap());
                frame.extend_from_slice(&message);
                let uri = format!("{}://{address}/etcdserverpb.{method}", if tls.is_some() { "https" } else { "http" });
                let request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
                request.body(Full::from(frame.freeze())).unwrap()
            }
        }
    }
}

async fn handshake<S>(stream: S) -> Sender
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_connection_window_size(8 << 20).initial_stream_window_size(4 << 20);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

fn trusting(authority: &[u8]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(tls).into()
}

/// A length-delimited field of a protobuf message.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut text = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 127 {
        text.push(length as u8 & 127 | 128);
        length >>= 7;
    }
    text.push(length as u8);
    text.extend_from_slice(content);
    text
}

fn object(name: &str, i: u64) -> String {
    let content = format!("{i}-{}", "v".repeat(CONTENT));
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": content}}).to_string()
}

async fn answer(response: http::Response<Incoming>) -> Bytes {
    let status = response.status();
    let code = response.headers().get("grpc-status").cloned();
    let body = response.into_body().collect().await.unwrap();
    let code = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()).or(code);
    let bytes = body.to_bytes();
    assert!(status.is_success() && code.is_none_or(|code| code == "0"), "{status} {bytes:?}");
    bytes
}

/// As many requests as that many clients get answered one after the other.
async fn requests(target: &Target, part: &str, clients: u64, time: Duration) -> Value {
    let counter = Arc::new(AtomicU64::new(0));
    let mut senders = vec![];
    for _ in 0..clients {
        senders.push(target.connect().await);
    }
    let begin = Instant::now();
    let tasks: Vec<_> = senders
        .into_iter()
        .map(|mut sender| {
            let (target, part, counter) = (target.clone(), part.to_owned(), counter.clone());
            tokio::spawn(async move {
                let mut times = vec![];
                while begin.elapsed() < time {
                    let request = target.request(&part, counter.fetch_add(1, Ordering::Relaxed));
                    let start = Instant::now();
                    answer(sender.send_request(request).await.unwrap()).await;
                    times.push(start.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = vec![];
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    let seconds = begin.elapsed().as_secs_f64();
    summary(part, clients, times, seconds)
}

async fn fill(target: &Target, count: u64) -> Value {
    let begin = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = vec![];
    for _ in 0..64 {
        let (target, next, mut sender) = (target.clone(), next.clone(), target.connect().await);
        tasks.push(tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return;
                }
                let response = sender.send_request(target.request("fill", i)).await.unwrap();
                // What an earlier part left is as good.
                if response.status() != 409 {
                    answer(response).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    json!({"part": "fill", "count": count, "seconds": begin.elapsed().as_secs_f64()})
}

/// From the moment a change is asked for to the moment each watch has it.
async fn watch(target: &Target) -> Value {
    const TICKS: u64 = 100;
    let mut writer = target.connect().await;
    answer(writer.send_request(target.request("tick", 0)).await.unwrap()).await;
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..WATCHES / STREAMS {
        let mut sender = target.connect().await;
        for _ in 0..STREAMS {
            let response = sender.send_request(target.request("watch", 0)).await.unwrap();
            assert!(response.status().is_success());
            let seen = seen.clone();
            let mut body = response.into_body();
            tokio::spawn(async move {
                // Each event, and what a watch begins with, is a frame of its own in both protocols.
                while let Some(Ok(frame)) = body.frame().await {
                    if frame.is_data() && seen.send(Instant::now()).is_err() {
                        return;
                    }
                }
            });
        }
    }
    for _ in 0..WATCHES {
        arrivals.recv().await.unwrap();
    }
    let (mut times, mut slowest) = (vec![], vec![]);
    let begin = Instant::now();
    for tick in 1..=TICKS {
        let start = Instant::now();
        let answered = writer.send_request(target.request("tick", tick));
        let sent = tokio::spawn(async move { answer(answered.await.unwrap()).await });
        let mut last = Duration::ZERO;
        for _ in 0..WATCHES {
            last = arrivals.recv().await.unwrap().duration_since(start);
            times.push(last);
        }
        slowest.push(last);
        sent.await.unwrap();
    }
    let mut result = summary("watch", WATCHES as u64, times, begin.elapsed().as_secs_f64());
    slowest.sort();
    result["last_p50_ms"] = (slowest[slowest.len() / 2].as_secs_f64() * 1e3).into();
    result
}

fn summary(part: &str, clients: u64, mut times: Vec<Duration>, seconds: f64) -> Value {
    times.sort();
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)].as_secs_f64() * 1e3;
    json!({
        "part": part, "clients": clients, "count": times.len(), "seconds": seconds,
        "per_second": times.len() as f64 / seconds, "p50_ms": at(0.5), "p99_ms": at(0.99),
    })
}
