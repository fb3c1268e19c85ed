//! The client of other registries against real ones: our own behind every kind of door, and Debian's docker-registry
//! where it is installed.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use registry::image::{ImageConfig, ImageRef, Layer, Reference, ensure_unpacked, layer_from_dir};
use registry::remote::{
    LayerSource, Location, Remote, RemoteConfig, RemoteError, cached_layers, keep_blob, keep_layers, pull_base,
    push_image_on,
};
use registry::{Body, Digest, Registry, Service};

/// `dhow:secret`
const PASSWORD: &str = "Basic ZGhvdzpzZWNyZXQ=";
const PATIENCE: Duration = Duration::from_secs(30);

/// What stands between a client and the registry.
#[derive(Clone)]
enum Door {
    /// Reading is open, everything else wants a password.
    Open,
    /// A token, which costs the password.
    Bearer,
    /// Blobs come from another host.
    Elsewhere(SocketAddr),
    /// Every fifth answer is a weak one.
    Weak(Arc<AtomicUsize>),
    /// One byte of every blob is another.
    Damaged,
    /// Mounting is not known here.
    NoMounts,
}

/// The request lines and credentials that came.
type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

struct Server {
    address: SocketAddr,
    registry: Registry,
    seen: Seen,
    folder: tempfile::TempDir,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(door: Door, tls: Option<Arc<rustls::ServerConfig>>) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(&folder.path().join("registry")).unwrap();
    let guarded = matches!(door, Door::Open);
    let service = registry.service(Arc::new(move |parts| !guarded || is(&parts.headers, PASSWORD)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let log = seen.clone();
    let accepting = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (service, door, log, tls) = (service.clone(), door.clone(), log.clone(), tls.clone());
            connections.spawn(async move {
                let answer = service_fn(move |request| {
                    let (service, door, log) = (service.clone(), door.clone(), log.clone());
                    async move { Ok::<_, Infallible>(answer(&service, &door, address, &log, request).await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                match tls {
                    None => drop(http.serve_connection(TokioIo::new(stream), answer).await),
                    Some(tls) => {
                        let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else { return };
                        drop(http.serve_connection(TokioIo::new(stream), answer).await);
                    }
                }
            });
        }
    });
    Server { address, registry, seen, folder, accepting }
}

fn is(headers: &HeaderMap, value: &str) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|given| given == value)
}

fn text(status: StatusCode, name: header::HeaderName, value: String, body: &str) -> Response<Body> {
    let body = Full::from(body.to_owned()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header(name, value).body(body).unwrap()
}

async fn answer(
    service: &Service,
    door: &Door,
    address: SocketAddr,
    log: &Seen,
    request: Request<Incoming>,
) -> Response<Body> {
    let (path, headers) = (request.uri().to_string(), request.headers().clone());
    let given = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    log.lock().unwrap().push((format!("{} {path}", request.method()), given));
    let is_blob = request.method() == "GET" && path.contains("/blobs/sha256:");
    match door {
        Door::Bearer if path.starts_with("/token?") => {
            if !is(&headers, PASSWORD) {
                return text(StatusCode::UNAUTHORIZED, header::WWW_AUTHENTICATE, "Basic".into(), "");
            }
            let scopes =
                path.split("scope=").skip(1).map(|scope| scope.trim_end_matches('&')).collect::<Vec<_>>().join("+");
            text(StatusCode::OK, header::CONTENT_TYPE, "application/json".into(), &format!(r#"{{"token":"{scopes}"}}"#))
        }
        Door::Bearer => {
            let repository = path.trim_start_matches("/v2/").split("/blobs/").next().unwrap_or_default();
            let repository = repository.split("/manifests/").next().unwrap_or_default().replace('/', "%2F");
            let writes = !matches!(request.method().as_str(), "GET" | "HEAD");
            let wanted = format!("repository%3A{repository}%3Apull{}", if writes { "%2Cpush" } else { "" });
            let token = headers.get(header::AUTHORIZATION).map_or("", |value| value.to_str().unwrap());
            match token.starts_with("Bearer ") && token.contains(&wanted) {
                true => service.handle(request).await,
                false => {
                    let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"a, b\",scope=\"x\"");
                    text(StatusCode::UNAUTHORIZED, header::WWW_AUTHENTICATE, challenge, "")
                }
            }
        }
        Door::Elsewhere(other) if is_blob => {
            text(StatusCode::TEMPORARY_REDIRECT, header::LOCATION, format!("http://{other}{path}"), "")
        }
        // A stream cannot be sent again, so its sender hears of it.
        Door::Weak(_) if headers.contains_key(header::TRANSFER_ENCODING) => service.handle(request).await,
        Door::Weak(count) if count.fetch_add(1, Ordering::SeqCst).is_multiple_of(5) => {
            text(StatusCode::SERVICE_UNAVAILABLE, header::RETRY_AFTER, "1".into(), "")
        }
        Door::Damaged if is_blob => {
            let (parts, body) = service.handle(request).await.into_parts();
            let mut bytes = body.collect().await.unwrap().to_bytes().to_vec();
            bytes[0] ^= 1;
            Response::from_parts(parts, Full::from(bytes).map_err(|never| match never {}).boxed_unsync())
        }
        Door::NoMounts if path.contains("mount=") => text(
            StatusCode::ACCEPTED,
            header::LOCATION,
            format!("/v2/nothing/here/blobs/uploads/{}", "0".repeat(32)),
            "",
        ),
        _ => service.handle(request).await,
    }
}

impl Server {
    fn at(&self, repository: &str) -> Location {
        Location { registry: self.address.to_string(), repository: repository.into() }
    }

    fn remote(&self, with_password: bool) -> Remote {
        let path = self.folder.path().join("config.json");
        let auths =
            serde_json::json!({"auths": {self.address.to_string(): {"username": "dhow", "password": "secret"}}});
        std::fs::write(&path, auths.to_string()).unwrap();
        let config = RemoteConfig { credentials: with_password.then_some(path), ..RemoteConfig::default() };
        Remote::new(&config).unwrap()
    }
}

fn layer(folder: &Path, name: &str, content: &str) -> Layer {
    let tree = folder.join(name);
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join(name), content).unwrap();
    let path = folder.join(format!("{name}.tar.gz"));
    let info = layer_from_dir(&tree, "", std::fs::File::create(&path).unwrap()).unwrap();
    Layer { info, path }
}

/// Everything that a builder does with a registry.
async fn everything(remote: &Remote, registry: &str, folder: &Path) -> Digest {
    let at = |repository: &str| Location { registry: registry.into(), repository: repository.into() };
    let (sources, base, hello) = (at("default/sources"), at("bases/python"), at("default/hello"));

    // A source, as it is uploaded.
    let source = Bytes::from(vec![7_u8; 300_000]);
    let digest = Digest::of(&source);
    assert_eq!(remote.has_blob(&sources, &digest).await.unwrap(), None);
    let halves = futures::stream::iter([Ok::<_, Infallible>(source.slice(..1000)), Ok(source.slice(1000..))]);
    assert_eq!(remote.push_stream(&sources, &digest, 1 << 20, halves).await.unwrap(), 300_000);
    keep_blob(remote, &sources, &digest, 300_000).await.unwrap();
    assert_eq!(remote.has_blob(&sources, &digest).await.unwrap(), Some(300_000));
    assert_eq!(remote.read_blob(&sources, &digest, 1 << 20).await.unwrap(), source);
    let file = folder.join("pulled");
    assert_eq!(remote.pull_blob(&sources, &digest, 1 << 20, &file).await.unwrap(), 300_000);
    assert_eq!(std::fs::read(&file).unwrap(), source);
    let too_small = remote.pull_blob(&sources, &digest, 1000, &file).await;
    assert!(matches!(too_small, Err(RemoteError::TooLarge { limit: 1000 })), "{too_small:?}");

    // What is not what it says it is leaves nothing behind.
    let other = Digest::of(b"other");
    let lie = futures::stream::iter([Ok::<_, Infallible>(source.clone())]);
    let ended = remote.push_stream(&sources, &other, 1 << 20, lie).await;
    assert!(matches!(ended, Err(RemoteError::DigestMismatch { expected, .. }) if expected == other), "{ended:?}");
    let long = futures::stream::iter([Ok::<_, Infallible>(source.clone())]);
    let ended = remote.push_stream(&sources, &other, 1000, long).await;
    assert!(matches!(ended, Err(RemoteError::TooLarge { limit: 1000 })), "{ended:?}");
    let broken = futures::stream::iter([Ok(source.slice(..10)), Err("gone")]);
    let ended = remote.push_stream(&sources, &digest, 1000, broken).await;
    assert!(matches!(&ended, Err(RemoteError::Body { reason }) if reason == "gone"), "{ended:?}");
    assert_eq!(remote.has_blob(&sources, &other).await.unwrap(), None);

    // A base, which is an image on nothing.
    let system = layer(folder, "system", "the system");
    remote.push_file(&base, &system.info.digest, system.info.size, &system.path).await.unwrap();
    keep_layers(remote, &base, "1", &[system.info]).await.unwrap();
    let name: ImageRef = format!("{registry}/bases/python:1").parse().unwrap();
    let found = pull_base(remote, &name).await.unwrap();
    assert!(found.name().starts_with(&format!("{registry}/bases/python@sha256:")));

    // An image on it, twice the same.
    let code = layer(folder, "code", "the code");
    let config = ImageConfig { entrypoint: vec!["python3".into()], ..found.config().clone() };
    let layers = [LayerSource::File(code.clone())];
    let image = push_image_on(remote, &hello, &found, &layers, config.clone(), folder).await.unwrap();
    assert_eq!(push_image_on(remote, &hello, &found, &layers, config, folder).await.unwrap(), image);
    let manifest = remote.manifest(&hello, &Reference::Digest(image)).await.unwrap();
    assert_eq!(manifest.digest, image);

    // What was installed is found again, and only under its own name.
    assert_eq!(cached_layers(remote, &hello, "cache-1").await.unwrap(), None);
    keep_layers(remote, &hello, "cache-1", &[code.info]).await.unwrap();
    assert_eq!(cached_layers(remote, &hello, "cache-1").await.unwrap(), Some(vec![code.info]));
    let held = [LayerSource::Held(code.info)];
    let config = ImageConfig { entrypoint: vec!["python3".into()], ..found.config().clone() };
    assert_eq!(push_image_on(remote, &hello, &found, &held, config, folder).await.unwrap(), image);

    let missing = remote.manifest(&hello, &Reference::Tag("none".into())).await;
    assert!(matches!(&missing, Err(error) if error.is_not_found()), "{missing:?}");
    image
}

#[tokio::test]
async fn our_own_registry_behind_every_door() {
    let mut images = vec![];
    for (case, door) in [
        ("a password", Door::Open),
        ("a token", Door::Bearer),
        ("weak answers", Door::Weak(Arc::default())),
        ("no mounts", Door::NoMounts),
    ] {
        let server = serve(door, None).await;
        let folder = tempfile::tempdir().unwrap();
        println!("{case}");
        let image = everything(&server.remote(true), &server.address.to_string(), folder.path()).await;
        // The image is one that runs.
        let name: ImageRef = format!("x.example/default/hello@{image}").parse().unwrap();
        let unpacked = ensure_unpacked(&server.registry, &name, &folder.path().join("cache")).await.unwrap();
        assert_eq!(std::fs::read_to_string(unpacked.root.join("system")).unwrap(), "the system", "{case}");
        assert_eq!(std::fs::read_to_string(unpacked.root.join("code")).unwrap(), "the code", "{case}");
        images.push(image);
    }
    images.dedup();
    assert_eq!(images.len(), 1, "the same image, wherever it is put together");
}

#[tokio::test]
async fn a_base_from_another_registry_is_copied_once() {
    let (from, into) = (serve(Door::Open, None).await, serve(Door::Open, None).await);
    let folder = tempfile::tempdir().unwrap();
    let system = layer(folder.path(), "system", "the system");
    let there = from.at("bases/python");
    let remote = from.remote(true);
    remote.push_file(&there, &system.info.digest, system.info.size, &system.path).await.unwrap();
    keep_layers(&remote, &there, "1", &[system.info]).await.unwrap();
    let remote = into.remote(true);
    let base = pull_base(&remote, &format!("{}/bases/python:1", from.address).parse().unwrap()).await.unwrap();
    for _ in 0..2 {
        let config = base.config().clone();
        push_image_on(&remote, &into.at("default/hello"), &base, &[], config, folder.path()).await.unwrap();
    }
    let pulls = |server: &Server| {
        let seen = server.seen.lock().unwrap();
        seen.iter()
            .filter(|(line, _)| line.ends_with(&format!("/blobs/{}", system.info.digest)) && line.starts_with("GET"))
            .count()
    };
    assert_eq!(pulls(&from), 1);
}

#[tokio::test]
async fn what_is_refused() {
    let server = serve(Door::Open, None).await;
    let denied = server.remote(false).push_bytes(&server.at("a/b"), Bytes::from_static(b"x")).await;
    assert!(matches!(denied, Err(RemoteError::Denied { .. })), "{denied:?}");

    let damaged = serve(Door::Damaged, None).await;
    let remote = damaged.remote(false);
    let digest = remote.push_bytes(&damaged.at("a/b"), Bytes::from_static(b"content")).await.unwrap();
    let read = remote.read_blob(&damaged.at("a/b"), &digest, 100).await;
    assert!(matches!(read, Err(RemoteError::DigestMismatch { .. })), "{read:?}");
    let pulled = remote.pull_blob(&damaged.at("a/b"), &digest, 100, &damaged.folder.path().join("x")).await;
    assert!(matches!(pulled, Err(RemoteError::DigestMismatch { .. })), "{pulled:?}");

    let nobody = Location { registry: "127.0.0.1:1".into(), repository: "a/b".into() };
    let gone = remote.has_blob(&nobody, &digest).await;
    assert!(matches!(&gone, Err(RemoteError::Unreachable { reason, .. }) if reason.contains("refused")), "{gone:?}");
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let store = serve(Door::NoMounts, None).await;
    let digest = store.remote(false).push_bytes(&store.at("a/b"), Bytes::from_static(b"content")).await.unwrap();
    let server = serve(Door::Elsewhere(store.address), None).await;
    let remote = server.remote(true);
    remote.push_bytes(&server.at("a/b"), Bytes::from_static(b"content")).await.unwrap();
    assert_eq!(&remote.read_blob(&server.at("a/b"), &digest, 100).await.unwrap()[..], b"content");
    let seen = store.seen.lock().unwrap();
    let (line, credentials) = seen.last().unwrap();
    assert!(line.starts_with("GET ") && credentials.is_none(), "{line} {credentials:?}");
}

#[tokio::test]
async fn tls_by_an_authority_of_ones_own() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    let private = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], private).unwrap();
    let server = serve(Door::NoMounts, Some(Arc::new(tls))).await;

    let registry = format!("localhost:{}", server.address.port());
    let ca_file = server.folder.path().join("ca.pem");
    std::fs::write(&ca_file, authority.pem()).unwrap();
    let config = RemoteConfig { ca_file: Some(ca_file), secure: vec![registry.clone()], ..RemoteConfig::default() };
    let folder = tempfile::tempdir().unwrap();
    everything(&Remote::new(&config).unwrap(), &registry, folder.path()).await;

    let strangers = Remote::new(&RemoteConfig { ca_file: None, ..config }).unwrap();
    let at = Location { registry, repository: "a/b".into() };
    let refused = strangers.has_blob(&at, &Digest::of(b"")).await;
    let untrusted = |reason: &str| reason.to_lowercase().contains("unknownissuer");
    assert!(matches!(&refused, Err(RemoteError::Unreachable { reason, .. }) if untrusted(reason)), "{refused:?}");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody listened on a moment ago: this registry cannot be given a socket.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn docker_registry() {
    const PROGRAM: &str = "/usr/bin/docker-registry";
    if !Path::new(PROGRAM).exists() {
        println!("skipped: {PROGRAM} is not installed; apt-get install docker-registry");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let registry = format!("127.0.0.1:{}", free_port());
    let config = serde_json::json!({
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": folder.path().join("data")}, "delete": {"enabled": true}},
        "http": {"addr": registry, "secret": "of a test"},
    });
    let path = folder.path().join("config.yml");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Killed(command.spawn().unwrap());
    let listening = async {
        while tokio::net::TcpStream::connect(&registry).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listening).await.unwrap();
    let remote = Remote::new(&RemoteConfig::default()).unwrap();
    let image = everything(&remote, &registry, folder.path()).await;
    if !Path::new("/usr/bin/skopeo").exists() {
        println!("skipped: /usr/bin/skopeo is not installed; apt-get install skopeo");
        return;
    }
    // Others read what was put together.
    let mut command = Command::new("/usr/bin/skopeo");
    command.args(["copy", "--quiet", "--src-tls-verify=false", "--insecure-policy"]);
    command
        .arg(format!("docker://{registry}/default/hello@{image}"))
        .arg(format!("oci:{}", folder.path().join("copy").display()));
    let copied = command.stdin(Stdio::null()).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}
