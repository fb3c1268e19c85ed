//! Hosts of one's own: a DomainMapping from kubectl, plain and with a certificate, and what operators set about hosts.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

use crate::function::HELLO;
use crate::harness::{Platform, able, admin, eventually, kubectl, machine, send};

const HOST: &str = "www.example.org";

fn mapping(secret: Option<&str>) -> Value {
    let mut spec = json!({"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello"}});
    if let Some(name) = secret {
        spec["tls"] = json!({"secretName": name});
    }
    json!({"apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping", "metadata": {"name": HOST}, "spec": spec})
}

async fn status(platform: &Platform, host: &str) -> u16 {
    let request = Request::get("/").header("host", host).body(Default::default()).expect("a request");
    send(&platform.endpoint("gateway"), request).await.expect("an answer").status.as_u16()
}

async fn ready(platform: &Platform) {
    eventually("the mapping is ready", || async {
        let mapping = platform.object("domainmapping", HOST);
        let conditions = mapping["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let seen = mapping["status"]["observedGeneration"] == mapping["metadata"]["generation"];
        if ready && seen { Ok(()) } else { Err(mapping["status"].clone()) }
    })
    .await;
}

async fn over_tls(platform: &Platform, trusted: &str) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).expect("PEM")).expect("an authority");
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(platform.endpoint("gateway_tls")).await.expect("connected");
    let name = ServerName::try_from(HOST).expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("h1");
    let connection = tokio::spawn(connection);
    let request = Request::get("/").header("host", HOST).body(Full::<Bytes>::default()).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let status = response.status().as_u16();
    response.into_body().collect().await.expect("a body");
    connection.abort();
    status
}

#[tokio::test]
async fn a_host_of_ones_own_with_and_without_a_certificate() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    platform.apply(&mapping(None));
    ready(&platform).await;
    assert_eq!(status(&platform, HOST).await, 200);

    platform.apply(&mapping(Some("www")));
    eventually("the missing Secret is told", || async {
        let shown = platform.kubectl_ok(&["get", "domainmapping", HOST]);
        if shown.contains("SecretMissing") { Ok(()) } else { Err(shown) }
    })
    .await;
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("a certificate");
    let dir = tempfile::tempdir().expect("a folder");
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&cert, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let (cert, key) = (format!("--cert={}", cert.display()), format!("--key={}", key.display()));
    platform.kubectl_ok(&["create", "secret", "tls", "www", &cert, &key]);
    ready(&platform).await;
    assert_eq!(over_tls(&platform, &made.cert.pem()).await, 200);
    assert_eq!(status(&platform, HOST).await, 200, "plain HTTP goes on");
    platform.kubectl_ok(&["annotate", "domainmapping", HOST, "networking.knative.dev/http-protocol=Redirected"]);
    eventually("plain HTTP is sent to TLS", || async {
        let status = status(&platform, HOST).await;
        if status == 301 { Ok(()) } else { Err(status) }
    })
    .await;

    platform.kubectl_ok(&["delete", "domainmapping", HOST]);
    eventually("the host is nobody's", || async {
        let (status, claims) = (status(&platform, HOST).await, platform.kubectl_ok(&["get", "clusterdomainclaims"]));
        if status == 404 && !claims.contains(HOST) { Ok(()) } else { Err((status, claims)) }
    })
    .await;
}

#[tokio::test]
async fn a_host_leads_to_a_route_for_as_long_as_there_is_one() {
    if !able() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    if platform.is_cluster() {
        let claims = "--from-literal=autocreate-cluster-domain-claims=true";
        let made = admin(&["create", "configmap", "config-network", "--namespace=dhow-system", claims]);
        assert!(made.status.success(), "{}", crate::harness::said(&made));
    }
    platform.deploy("hello", HELLO);
    let route = |tag: Option<&str>| {
        let target = json!({"configurationName": "hello", "latestRevision": true, "percent": 100, "tag": tag});
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": {"name": "hand"},
            "spec": {"traffic": [target]}})
    };
    platform.apply(&route(Some("blue")));
    let host = format!("www.{}.example.org", platform.namespace());
    platform.apply(
        &json!({"apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping", "metadata": {"name": host},
        "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Route", "name": "hand"}}}),
    );
    eventually("the mapped host is served", || async {
        let status = status(&platform, &host).await;
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
    let services = || platform.kubectl_ok(&["get", "services", "--output=name"]);
    assert!(services().contains("service/blue-hand"), "{}", services());
    platform.apply(&route(None));
    eventually("the tag's Service is gone", || async {
        let services = services();
        if services.contains("blue-hand") { Err(services) } else { Ok(()) }
    })
    .await;
    platform.kubectl_ok(&["delete", "route.serving.knative.dev", "hand"]);
    eventually("the host leads nowhere, and says why", || async {
        let shown = platform.kubectl_ok(&["get", "domainmapping", &host, "--output=jsonpath={.status.conditions}"]);
        let status = status(&platform, &host).await;
        let told = shown.contains("routes.serving.knative.dev \\\"hand\\\" not found");
        if status == 404 && told { Ok(()) } else { Err((status, shown)) }
    })
    .await;
    platform.kubectl_ok(&["delete", "domainmapping", &host]);
    eventually("nobody has the host", || async {
        let claims = platform.kubectl_ok(&["get", "clusterdomainclaims", "--output=name"]);
        if claims.contains(&host) { Err(claims) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn operators_settings_are_read_live_and_checked() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    let set = |data: Value| {
        let meta = json!({"namespace": "dhow-system", "name": "config-network"});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
    };
    platform.apply(&set(json!({"domain-template": "{{.Name}}-{{.Namespace}}.{{.Domain}}"})));
    let host = format!("hello-{}.{}", platform.namespace(), platform.domain());
    eventually("the new host", || async {
        let shown = platform.kubectl_ok(&["get", "ksvc", "hello"]);
        if shown.contains(&host) && status(&platform, &host).await == 200 { Ok(()) } else { Err(shown) }
    })
    .await;
    let refused = platform.kubectl(&[
        "patch",
        "configmap",
        "config-network",
        "--namespace=dhow-system",
        "--type=merge",
        "--patch={\"data\":{\"domain-template\":\"{{.Name}}\"}}",
    ]);
    let said = crate::harness::stderr(&refused);
    assert!(
        !refused.status.success() && said.contains("must contain {{.Name}}, {{.Namespace}} and {{.Domain}}"),
        "{said}"
    );
}
