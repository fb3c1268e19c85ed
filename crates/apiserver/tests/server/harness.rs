//! A server over a memory store, its in-process client, and a TLS listener for clients outside.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use apiserver::{ApiServer, Config, ObjectStore, User};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tower::Service;

pub const TOKEN: &str = "test-token";

pub fn clock() -> api::Clock {
    // Tests of behaviour do not depend on the time, but ages are shown relative to a moving one.
    #[allow(clippy::disallowed_methods)]
    Arc::new(jiff::Timestamp::now)
}

pub fn config() -> Config {
    let admin = User { name: "admin".into(), groups: vec!["system:masters".into()] };
    Config { tokens: vec![(TOKEN.into(), admin)], ..Config::new(clock()) }
}

pub fn store() -> ObjectStore {
    store::Store::memory(apiserver::index, store::Options::default())
}

pub fn server() -> ApiServer {
    ApiServer::new(store(), config()).unwrap()
}

/// One request as the program itself would send it.
pub async fn call(
    server: &ApiServer,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    let response = server.local().call(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into())))
}

/// Serves the external side over TLS on a loopback port until the test's runtime ends.
///
/// TLS because kubectl sends its token over nothing else.
pub async fn listen(server: &ApiServer) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = acceptor();
    let external = server.external();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (external, acceptor) = (external.clone(), acceptor.clone());
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = external.clone().call(request);
                async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
            });
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // A client that goes away in the middle is no failure of the test.
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// The same without TLS, for clients of the tests' own.
pub async fn listen_plainly(server: &ApiServer) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let external = server.external();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper_util::service::TowerToHyperService::new(external.clone());
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away in the middle is no failure of the test.
            tokio::spawn(async move { drop(builder.serve_connection(TokioIo::new(stream), service).await) });
        }
    });
    address
}

fn acceptor() -> tokio_rustls::TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config).into()
}
