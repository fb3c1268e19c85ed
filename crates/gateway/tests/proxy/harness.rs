//! A real gateway on real sockets, fed by hand, and the instances behind it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::wire::{ConcurrencyStat, GatewayMessage, Poke};
use bytes::Bytes;
use gateway::{Addresses, Config, Feed, Gateway, GatewayError, Limits, Own};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub const HOST: &str = "hello.default.test";
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Setup {
    pub feed: Feed,
    pub at: Addresses,
    pub registry: Registry,
    pub shutdown: CancellationToken,
    pub served: Option<JoinHandle<Result<(), GatewayError>>>,
    messages: mpsc::Receiver<GatewayMessage>,
}

/// Waits, bounded, for something that must happen.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// Looks again until it is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    soon(what, async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

impl Setup {
    pub fn new() -> Self {
        Self::with(Limits::default(), Duration::from_secs(20))
    }

    pub fn with(limits: Limits, grace: Duration) -> Self {
        Self::of(limits, grace, None)
    }

    /// A gateway on a cluster.
    pub fn on_cluster() -> Self {
        Self::gateway_at([127, 0, 0, 1])
    }

    /// One of the gateways of a cluster.
    pub fn gateway_at(ip: [u8; 4]) -> Self {
        let own = Own { ip: ip.into(), namespace: "default".into() };
        Self::of(Limits::default(), Duration::from_secs(20), Some(own))
    }

    fn of(limits: Limits, grace: Duration, cluster: Option<Own>) -> Self {
        let any = SocketAddr::new(cluster.as_ref().map_or([127, 0, 0, 1].into(), |own| own.ip), 0);
        let mut registry = Registry::default();
        let name = if cluster.is_some() { "gateway-0".to_owned() } else { String::new() };
        let (secure, internal) = (Some(any), Some(any));
        let config =
            Config { public: any, secure, secure_port: None, internal, threads: 2, limits, grace, name, cluster };
        let gateway = Gateway::bind(config, &mut registry).unwrap();
        let (feed, at) = (gateway.feed(), gateway.addresses());
        let (to_autoscaler, messages) = mpsc::channel(1024);
        let shutdown = CancellationToken::new();
        let served = Some(tokio::spawn(gateway.serve(to_autoscaler, shutdown.clone())));
        Self { feed, at, registry, shutdown, served, messages }
    }

    /// Serves [`HOST`] from the revision `rev`.
    pub fn route(&self, concurrency: i64) {
        self.route_with(json!({"containerConcurrency": concurrency}));
    }

    pub fn route_with(&self, policy: Value) {
        self.ingress(json!([{"hosts": [HOST], "visibility": "ExternalIP",
            "http": {"paths": [{"splits": [split("rev", 100, policy)]}]}}]));
    }

    pub fn ingress(&self, rules: Value) {
        let object = json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": "hello", "namespace": "default"}, "spec": {"rules": rules},
        });
        self.feed.ingress(&serde_json::from_value(object).unwrap());
        self.feed.complete();
    }

    /// The instances of a revision: pod names and where they listen.
    pub fn instances(&self, revision: &str, instances: &[(&str, SocketAddr)]) {
        self.instances_on(revision, instances, "http");
    }

    /// Every instance listens on a port of its own, so each has a slice of its own.
    pub fn instances_on(&self, revision: &str, instances: &[(&str, SocketAddr)], port_name: &str) {
        for at in 0..8 {
            let mut object = slice(revision, at);
            if let Some((pod, address)) = instances.get(at) {
                object["ports"] = json!([{"name": port_name, "port": address.port()}]);
                object["endpoints"] = json!([{"addresses": [address.ip()], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": pod}}]);
            }
            self.feed.slice(&serde_json::from_value(object).unwrap());
        }
    }

    /// Instances by what their slice says of them, each with a slice of its own.
    pub fn listed(&self, revision: &str, instances: &[(&str, SocketAddr, Value)]) {
        for at in 0..8 {
            let mut object = slice(revision, at);
            if let Some((pod, address, conditions)) = instances.get(at) {
                object["ports"] = json!([{"name": "http", "port": address.port()}]);
                object["endpoints"] = json!([{"addresses": [address.ip()], "conditions": conditions,
                    "targetRef": {"kind": "Pod", "name": pod}}]);
            }
            self.feed.slice(&serde_json::from_value(object).unwrap());
        }
    }

    /// A revision as it was written, with one container.
    pub fn probed_by(&self, name: &str, container: Value) {
        let object = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": name, "namespace": "default"}, "spec": {"containers": [container]}});
        self.feed.revision(&serde_json::from_value(object).unwrap());
    }

    pub fn unix_instance(&self, revision: &str, pod: &str, path: &Path) {
        let mut object = slice(revision, 0);
        object["metadata"]["annotations"] = json!({"dhow.dev/sockets": json!({pod: path}).to_string()});
        object["endpoints"] = json!([{"addresses": ["127.0.0.1"], "targetRef": {"kind": "Pod", "name": pod}}]);
        self.feed.slice(&serde_json::from_value(object).unwrap());
    }

    pub fn revision(&self, name: &str, conditions: Value) {
        let object = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": []}, "status": {"conditions": conditions}});
        self.feed.revision(&serde_json::from_value(object).unwrap());
    }

    pub async fn poke(&mut self) -> Poke {
        soon("a poke", async {
            loop {
                if let Some(GatewayMessage::Poke(poke)) = self.messages.recv().await {
                    return poke;
                }
            }
        })
        .await
    }

    pub async fn report(&mut self, mut wanted: impl FnMut(&ConcurrencyStat) -> bool) -> ConcurrencyStat {
        soon("a report", async {
            loop {
                if let Some(GatewayMessage::Report(stats)) = self.messages.recv().await
                    && let Some(stat) = stats.into_iter().find(|stat| wanted(stat))
                {
                    return stat;
                }
            }
        })
        .await
    }

    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// The sum of a metric's series whose labels contain these.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics();
        let lines = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|r| r.starts_with(['{', ' '])) && labels.iter().all(|label| line.contains(label))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.at.public).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.client().await.get(path).await
    }
}

fn slice(revision: &str, number: usize) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{revision}-{number}"), "namespace": "default",
                     "labels": {"kubernetes.io/service-name": revision}},
        "ports": [], "endpoints": []})
}

pub fn split(revision: &str, percent: i64, policy: Value) -> Value {
    let mut whole = json!({"service": "hello", "containerConcurrency": 0, "timeoutSeconds": 300});
    for (name, value) in policy.as_object().into_iter().flatten() {
        whole[name] = value.clone();
    }
    json!({"serviceName": revision, "serviceNamespace": "default", "servicePort": 80, "percent": percent, "policy": whole})
}

/// One kept HTTP/1 connection to the gateway.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    _connection: JoinSet<()>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut set = JoinSet::new();
        set.spawn(async move {
            let _ = connection.await;
        });
        Self { sender, _connection: set }
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        self.send(Request::get(path).header("host", HOST).body(Full::default()).unwrap()).await
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Reply {
        self.try_send(request).await.expect("an answer")
    }

    pub async fn try_send(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, hyper::Error> {
        soon("an answer", async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
        })
        .await
    }

    /// The answer's head, its body still to come.
    pub async fn start(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }
}

/// Sends bytes as they are, and returns all that comes back until the gateway closes the connection.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut all = vec![];
    let _ = soon(
        &format!("a close after {}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)])),
        stream.read_to_end(&mut all),
    )
    .await;
    String::from_utf8_lossy(&all).into_owned()
}

/// An instance: what it does with each request, and what was seen of it.
#[derive(Default)]
pub struct Seen {
    pub requests: AtomicUsize,
    pub now: AtomicUsize,
    pub most: AtomicUsize,
    pub connections: AtomicUsize,
    pub heads: Mutex<Vec<http::request::Parts>>,
    pub bodies: Mutex<Vec<Bytes>>,
    /// Requests to `/hold` wait for it.
    pub release: Notify,
}

pub struct Instance {
    pub at: SocketAddr,
    pub seen: Arc<Seen>,
    tasks: JoinSet<()>,
}

impl Instance {
    /// Answers with its name; see [`answer`].
    pub async fn start(name: &str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), name).await
    }

    pub async fn at(address: SocketAddr, name: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let at = listener.local_addr().unwrap();
        let (seen, name) = (Arc::new(Seen::default()), name.to_owned());
        let mut tasks = JoinSet::new();
        let shared = seen.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, SeqCst);
                connections.spawn(speak(stream, name.clone(), shared.clone()));
            }
        });
        Self { at, seen, tasks }
    }

    /// Ends it as a crash would.
    pub async fn crash(mut self) {
        self.tasks.shutdown().await;
    }
}

pub async fn unix_instance(path: &Path, name: &str) -> JoinSet<()> {
    let listener = UnixListener::bind(path).unwrap();
    let name = name.to_owned();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(speak(stream, name.clone(), Arc::default()));
        }
    });
    tasks
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, name: String, seen: Arc<Seen>) {
    let service = service_fn(move |request| {
        let (name, seen) = (name.clone(), seen.clone());
        async move { Ok::<_, Infallible>(answer(&name, &seen, request).await) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// `/hold` waits to be released, `/slow` takes a little while, `/echo` returns the body; all else is the name.
async fn answer(name: &str, seen: &Seen, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let now = seen.now.fetch_add(1, SeqCst) + 1;
    seen.most.fetch_max(now, SeqCst);
    seen.requests.fetch_add(1, SeqCst);
    let path = head.uri.path().to_owned();
    seen.heads.lock().unwrap().push(head);
    let body = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
    seen.bodies.lock().unwrap().push(body.clone());
    match path.as_str() {
        "/hold" => seen.release.notified().await,
        "/slow" => tokio::time::sleep(Duration::from_millis(2)).await,
        _ => {}
    }
    seen.now.fetch_sub(1, SeqCst);
    let body = if path == "/echo" { body } else { Bytes::from(name.to_owned()) };
    Response::new(Full::new(body))
}

/// An instance that does with each connection what the test says.
pub async fn scripted<F>(script: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(script(stream));
        }
    });
    (at, tasks)
}

/// Reads one request's head; `None` at the end of the connection.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// How often each answer came.
pub fn tally(replies: &[Reply]) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for reply in replies {
        *counts.entry(format!("{} {}", reply.status, reply.text().trim())).or_default() += 1;
    }
    counts
}
