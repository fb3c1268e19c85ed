//! Source upload over a real socket.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use platform::{Authorization, Limits, Sink, service, sources_repository};
use registry::remote::{Remote, RemoteConfig};
use registry::{Digest, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The token `owner` owns the namespace `default`.
fn authorize(parts: &Parts, namespace: &str) -> BoxFuture<'static, Authorization> {
    let decided = match parts.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()) {
        Some(b"Bearer owner") if namespace == "default" => Authorization::Allowed,
        Some(b"Bearer owner") => Authorization::Forbidden,
        Some(b"Bearer of-one-who-is-away") => Authorization::Unknown,
        _ => Authorization::Unauthenticated,
    };
    std::future::ready(decided).boxed()
}

struct Server {
    address: SocketAddr,
    registry: Registry,
    folder: tempfile::TempDir,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

const MAX: u64 = 1 << 20;

async fn serve(limits: Limits) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    let (listener, address) = listen().await;
    let service = service(registry.clone(), Arc::new(authorize), limits);
    let accepting = tokio::spawn(accept(listener, service));
    Server { address, registry, folder, accepting }
}

/// The same, and sources lie in a registry behind it, below a path.
async fn serve_beside_a_registry(limits: Limits) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    let (listener, address) = listen().await;
    let behind = tokio::spawn(accept(listener, registry.service(Arc::new(|_| true))));
    let (remote, prefix) = (Remote::new(&RemoteConfig::default()).unwrap(), address.to_string().parse().unwrap());
    let (listener, address) = listen().await;
    let service = service(Sink::Remote { remote, prefix }, Arc::new(authorize), limits);
    let accepting = tokio::spawn(async move {
        accept(listener, service).await;
        behind.abort();
    });
    Server { address, registry, folder, accepting }
}

async fn listen() -> (tokio::net::TcpListener, SocketAddr) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// One of each kind.
async fn both() -> [Server; 2] {
    let limits = Limits { max_source_bytes: MAX, ..Limits::default() };
    [serve(limits.clone()).await, serve_beside_a_registry(limits).await]
}

async fn serve_small() -> Server {
    serve(Limits { max_source_bytes: MAX, ..Limits::default() }).await
}

async fn accept<S, B>(listener: tokio::net::TcpListener, service: S)
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(service.clone());
        connections.spawn(async move {
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: serde_json::Value,
}

type Content = BoxBody<Bytes, Infallible>;

fn whole(bytes: &[u8]) -> Content {
    Full::new(Bytes::copy_from_slice(bytes)).boxed()
}

/// Without a length in front.
fn chunked(bytes: &[u8]) -> Content {
    let chunks: Vec<_> = bytes.chunks(10_000).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
    BodyExt::boxed(StreamBody::new(futures::stream::iter(chunks)))
}

impl Server {
    async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Content) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client: Client<HttpConnector, Content> = Client::builder(TokioExecutor::new()).build_http();
        let (parts, body) = client.request(request.body(body).unwrap()).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn owner(&self, method: Method, path: &str, body: Content) -> Answer {
        self.call(method, path, &[("authorization", "Bearer owner")], body).await
    }

    fn unfinished(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("uploads")).unwrap().count()
    }
}

fn path(digest: &Digest) -> String {
    format!("/v1/namespaces/default/blobs/{digest}")
}

#[tokio::test]
async fn upload_once_ask_and_upload_again() {
    for server in both().await {
        uploads(&server).await;
    }
}

async fn uploads(server: &Server) {
    let content = vec![7; 100_000];
    let digest = Digest::of(&content);
    let encoded = path(&digest).replace("sha256:", "sha256%3A");
    let rows: [(&str, Method, &str, Content, StatusCode); 6] = [
        ("not there yet", Method::HEAD, &path(&digest), whole(b""), StatusCode::NOT_FOUND),
        ("uploaded", Method::PUT, &path(&digest), chunked(&content), StatusCode::CREATED),
        ("there", Method::HEAD, &path(&digest), whole(b""), StatusCode::OK),
        ("there, encoded", Method::HEAD, &encoded, whole(b""), StatusCode::OK),
        ("again", Method::PUT, &path(&digest), whole(&content), StatusCode::OK),
        ("again, chunked", Method::PUT, &path(&digest), chunked(&content), StatusCode::OK),
    ];
    for (name, method, path, body, want) in rows {
        let head = method == Method::HEAD;
        let answer = server.owner(method, path, body).await;
        assert_eq!(answer.status, want, "{name}: {}", answer.body);
        if want.is_success() && !head {
            assert_eq!(answer.body["digest"], digest.to_string(), "{name}");
        }
    }
    let stored = server.registry.read_blob(&sources_repository("default"), &digest, MAX).await.unwrap();
    assert_eq!(stored, content);
    let empty = Digest::of(b"");
    assert_eq!(server.owner(Method::PUT, &path(&empty), whole(b"")).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    for server in both().await {
        refusals(&server).await;
    }
}

async fn refusals(server: &Server) {
    let digest = Digest::of(b"x");
    let good = path(&digest);
    let other = format!("/v1/namespaces/other/blobs/{digest}");
    let capital = format!("/v1/namespaces/Default/blobs/{digest}");
    let climbing = format!("/v1/namespaces/../blobs/{digest}");
    let too_large = vec![0; MAX as usize + 1];
    let owner = ("authorization", "Bearer owner");
    type Row<'a> = (&'a str, Method, &'a str, Vec<(&'a str, &'a str)>, Content, u16, &'a str);
    let rows: [Row<'_>; 18] = [
        ("a wrong digest", Method::PUT, &good, vec![owner], whole(b"y"), 400, "DigestMismatch"),
        ("no digest", Method::PUT, "/v1/namespaces/default/blobs/x", vec![owner], whole(b"x"), 400, "InvalidDigest"),
        ("too large, announced", Method::PUT, &good, vec![owner], whole(&too_large), 413, "SourceTooLarge"),
        ("too large, chunked", Method::PUT, &good, vec![owner], chunked(&too_large), 413, "SourceTooLarge"),
        ("no token", Method::PUT, &good, vec![], whole(b"x"), 401, "Unauthenticated"),
        ("a wrong token", Method::PUT, &good, vec![("authorization", "Bearer x")], whole(b"x"), 401, "Unauthenticated"),
        (
            "nobody knows",
            Method::PUT,
            &good,
            vec![("authorization", "Bearer of-one-who-is-away")],
            whole(b"x"),
            503,
            "Undecided",
        ),
        ("no token, large", Method::PUT, &good, vec![], whole(&too_large[1..]), 401, "Unauthenticated"),
        ("another's namespace", Method::PUT, &other, vec![owner], whole(b"x"), 403, "Forbidden"),
        ("not a namespace", Method::PUT, &capital, vec![owner], whole(b"x"), 400, "InvalidNamespace"),
        ("climbing", Method::PUT, &climbing, vec![owner], whole(b"x"), 400, "InvalidNamespace"),
        ("reading", Method::GET, &good, vec![owner], whole(b""), 405, "MethodNotAllowed"),
        ("posting", Method::POST, &good, vec![owner], whole(b"x"), 405, "MethodNotAllowed"),
        ("elsewhere", Method::GET, "/", vec![owner], whole(b""), 404, "NotFound"),
        ("deeper", Method::PUT, &format!("{good}/x"), vec![owner], whole(b"x"), 404, "NotFound"),
        ("a foreign host", Method::PUT, &good, vec![owner, ("host", "evil.example")], whole(b"x"), 421, "ForeignHost"),
        (
            "a foreign page",
            Method::PUT,
            &good,
            vec![owner, ("origin", "http://evil.example")],
            whole(b"x"),
            403,
            "ForeignOrigin",
        ),
        ("a sandboxed page", Method::HEAD, &good, vec![owner, ("origin", "null")], whole(b""), 403, ""),
    ];
    for (name, method, path, headers, body, status, error) in rows {
        let answer = server.call(method, path, &headers, body).await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {}", answer.body);
        if !error.is_empty() {
            assert_eq!(answer.body["error"], error, "{name}");
            for field in ["message", "next"] {
                assert!(answer.body[field].as_str().is_some_and(|text| text.len() > 5), "{name}: {}", answer.body);
            }
        }
    }
    let unauthenticated = server.call(Method::HEAD, &good, &[], whole(b"")).await;
    assert_eq!(unauthenticated.headers[header::WWW_AUTHENTICATE], "Bearer realm=\"dhow\"");
    // What was cut off on its way to the registry behind is noticed there a moment later.
    while server.unfinished() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(!server.registry.has_blob(&sources_repository("default"), &digest).await.unwrap());
    let health = server.call(Method::GET, "/healthz", &[("host", "10.1.2.3:8081")], whole(b"")).await;
    assert_eq!(health.status, StatusCode::OK, "a kubelet asks by address");
}

#[tokio::test]
async fn a_registry_that_is_away() {
    let (remote, prefix) = (Remote::new(&RemoteConfig::default()).unwrap(), "127.0.0.1:1".parse().unwrap());
    let (listener, address) = listen().await;
    let service = service(Sink::Remote { remote, prefix }, Arc::new(authorize), Limits::default());
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    let server = Server { address, registry, folder, accepting: tokio::spawn(accept(listener, service)) };
    let answer = server.owner(Method::PUT, &path(&Digest::of(b"x")), whole(b"x")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.body["error"], "RegistryFailed");
    assert!(!answer.body.to_string().contains("127.0.0.1"), "{}", answer.body);
}

/// Begins an upload of `content`, and sends only a part of it.
async fn hang(server: &Server) -> (Digest, tokio::net::TcpStream) {
    let digest = Digest::of(b"content");
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "PUT {} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer owner\r\ncontent-length: 7\r\n\r\ncon",
        path(&digest),
        server.address
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    (digest, stream)
}

#[tokio::test]
async fn uploads_are_few() {
    let server = serve(Limits { uploads: 1, ..Limits::default() }).await;
    let (digest, stream) = hang(&server).await;
    while server.unfinished() == 0 {
        tokio::task::yield_now().await;
    }
    let busy = server.owner(Method::PUT, &path(&digest), whole(b"content")).await;
    assert_eq!(busy.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((&busy.headers[header::RETRY_AFTER], &busy.body["error"]), (&"1".parse().unwrap(), &"Busy".into()));
    drop(stream);
    let freed = loop {
        let answer = server.owner(Method::PUT, &path(&digest), whole(b"content")).await;
        if answer.status != StatusCode::SERVICE_UNAVAILABLE {
            break answer;
        }
    };
    assert_eq!(freed.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_silent_upload_is_given_up() {
    let server = serve(Limits { body_idle: Duration::from_millis(50), ..Limits::default() }).await;
    let (_, mut stream) = hang(&server).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("nothing came for 50ms"), "{answer}");
    assert_eq!(server.unfinished(), 0);
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_nothing() {
    let server = serve_small().await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let receiving = futures::stream::unfold(receiver, |mut r| async { r.recv().await.map(|frame| (frame, r)) });
    let digest = Digest::of(b"never");
    let (address, path) = (server.address, path(&digest));
    let request = Request::put(format!("http://{address}{path}"))
        .header("authorization", "Bearer owner")
        .body(BodyExt::boxed(StreamBody::new(receiving.fuse())))
        .map(|request| request.map(|body: Content| body));
    let client: Client<HttpConnector, Content> = Client::builder(TokioExecutor::new()).build_http();
    let asking = tokio::spawn(async move { client.request(request.unwrap()).await.map(drop) });
    sender.send(Ok(Frame::data("nev".into()))).await.unwrap();
    while server.unfinished() == 0 {
        tokio::task::yield_now().await;
    }
    asking.abort();
    drop(sender);
    while server.unfinished() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(!server.registry.has_blob(&sources_repository("default"), &digest).await.unwrap());
}

#[tokio::test]
async fn http2_too() {
    let server = serve_small().await;
    let digest = Digest::of(b"content");
    let client: Client<HttpConnector, Content> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for want in [StatusCode::CREATED, StatusCode::OK] {
        let request = Request::put(format!("http://{}{}", server.address, path(&digest)))
            .header("authorization", "Bearer owner")
            .body(chunked(b"content"));
        assert_eq!(client.request(request.unwrap()).await.unwrap().status(), want);
    }
}
