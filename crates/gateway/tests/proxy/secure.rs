//! Hosts with a certificate: real handshakes, and what becomes of plain HTTP.

use std::sync::Arc;

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Client, HOST, Instance, Setup, split};

/// A certificate of its own for [`HOST`], and its Secret.
fn certificate(namespace: &str) -> (rustls::pki_types::CertificateDer<'static>, Secret) {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let mut secret = Secret::default();
    secret.metadata.namespace = Some(namespace.into());
    secret.metadata.name = Some("certificate".into());
    let entry = |text: String| ByteString(text.into_bytes());
    let data = [("tls.crt", entry(made.cert.pem())), ("tls.key", entry(made.signing_key.serialize_pem()))];
    secret.data = Some(data.map(|(name, bytes)| (name.to_owned(), bytes)).into());
    (made.cert.der().clone(), secret)
}

fn ingress(setup: &Setup, spec: Value) {
    let mut object = json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": {"rules": [{"hosts": [HOST], "http": {"paths": [{"splits": [split("rev", 100, json!({}))]}]}}]},
    });
    for (name, value) in spec.as_object().into_iter().flatten() {
        object["spec"][name] = value.clone();
    }
    setup.feed.ingress(&serde_json::from_value(object).unwrap());
    setup.feed.complete();
}

fn tls() -> Value {
    json!([{"hosts": [HOST], "secretName": "certificate", "secretNamespace": "default"}])
}

async fn shake(
    setup: &Setup,
    trusted: rustls::pki_types::CertificateDer<'static>,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(setup.at.secure.unwrap()).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(HOST).unwrap(), stream).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_certificate_is_served_over_tls_in_both_protocols() {
    let (setup, instance) = (Setup::new(), Instance::start("rev").await);
    setup.instances("rev", &[("rev-1", instance.at)]);
    let (trusted, secret) = certificate("default");
    setup.feed.secret(&secret);
    ingress(&setup, json!({"tls": tls()}));

    let stream = shake(&setup, trusted.clone(), &["http/1.1"]).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let one = tokio::spawn(connection);
    let request = Request::get("/").header("host", HOST).body(Full::<bytes::Bytes>::default()).unwrap();
    let reply = sender.send_request(request).await.unwrap();
    assert_eq!((reply.status().as_u16(), reply.collect().await.unwrap().to_bytes().as_ref()), (200, &b"rev"[..]));

    let stream = shake(&setup, trusted, &["h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let executor = TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    let two = tokio::spawn(connection);
    // More than the buffers of TLS and of the connection hold together.
    let body = bytes::Bytes::from(vec![7; 3 << 20]);
    let request = Request::post(format!("https://{HOST}/echo")).body(Full::new(body.clone())).unwrap();
    let reply = sender.send_request(request).await.unwrap();
    assert_eq!(reply.collect().await.unwrap().to_bytes(), body);

    let heads = instance.seen.heads.lock().unwrap();
    for head in heads.iter() {
        assert_eq!(head.headers["x-forwarded-proto"], "https");
        assert!(head.headers["forwarded"].to_str().unwrap().ends_with(";proto=https"));
    }
    assert_eq!(heads.len(), 2);
    one.abort();
    two.abort();
}

#[tokio::test]
async fn without_a_certificate_of_the_hosts_own_namespace_there_is_no_handshake() {
    let setup = Setup::new();
    let (trusted, foreign) = certificate("other");
    setup.feed.secret(&foreign);
    ingress(&setup, json!({"tls": tls()}));
    assert!(shake(&setup, trusted.clone(), &[]).await.is_err(), "no Secret");
    ingress(&setup, json!({"tls": [{"hosts": [HOST], "secretName": "certificate", "secretNamespace": "other"}]}));
    assert!(shake(&setup, trusted, &[]).await.is_err(), "another namespace's Secret");

    let (trusted, mut secret) = certificate("default");
    let key = certificate("default").1.data.unwrap().remove("tls.key").unwrap();
    let good = secret.clone();
    secret.data.as_mut().unwrap().insert("tls.key".into(), key);
    setup.feed.secret(&secret);
    ingress(&setup, json!({"tls": tls()}));
    assert!(shake(&setup, trusted.clone(), &[]).await.is_err(), "a key of something else");
    setup.feed.secret(&good);
    setup.feed.publish();
    assert!(shake(&setup, trusted.clone(), &[]).await.is_ok(), "put right");
    setup.feed.remove_secret(&good);
    setup.feed.publish();
    assert!(shake(&setup, trusted, &[]).await.is_err(), "gone");
}

#[tokio::test]
async fn plain_http_is_sent_to_tls_where_the_ingress_says_so() {
    let (setup, instance) = (Setup::new(), Instance::start("rev").await);
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.feed.secret(&certificate("default").1);
    ingress(&setup, json!({"tls": tls(), "httpOption": "Redirected"}));
    let port = setup.at.secure.unwrap().port();
    for (method, status) in [("GET", 301), ("HEAD", 301), ("POST", 308)] {
        let request = Request::builder().method(method).uri("/a?b=c").header("host", format!("{HOST}:8080"));
        let reply = setup.client().await.send(request.body(Full::default()).unwrap()).await;
        let location = reply.headers["location"].to_str().unwrap().to_owned();
        assert_eq!((reply.status, location), (status, format!("https://{HOST}:{port}/a?b=c")), "{method}");
    }
    // TLS ended in front of the gateway, or the client is one of the cluster's own.
    let request = Request::get("/").header("host", HOST).header("x-forwarded-proto", "https");
    assert_eq!(setup.client().await.send(request.body(Full::default()).unwrap()).await.status, 200);
    assert_eq!(Client::connect(setup.at.internal.unwrap()).await.get("/").await.status, 200);
}
