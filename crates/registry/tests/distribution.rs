//! The distribution API over a real socket: raw requests, curl, and skopeo where it is installed.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use registry::image::{ImageConfig, ImageRef, Layer, ensure_unpacked, layer_from_dir, push_image};
use registry::{Digest, Registry, Service};

const PASSWORD: &str = "Basic ZGhvdzpzZWNyZXQ=";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

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

async fn serve() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(&folder.path().join("registry")).unwrap();
    let authorized =
        |parts: &http::request::Parts| parts.headers.get(header::AUTHORIZATION).is_some_and(|value| value == PASSWORD);
    let service = registry.service(Arc::new(authorized));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = tokio::spawn(accept(listener, service));
    Server { address, registry, folder, accepting }
}

async fn accept(listener: tokio::net::TcpListener, service: Service) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(service.clone());
        connections.spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().into()
    }
}

impl Server {
    async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let (parts, body) = client.request(request).await.unwrap().into_parts();
        Answer { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    async fn write(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut all = vec![("authorization", PASSWORD)];
        all.extend_from_slice(headers);
        self.call(method, path, &all, body).await
    }

    /// The path of a new upload.
    async fn begin(&self, repository: &str) -> String {
        let answer = self.write(Method::POST, &format!("/v2/{repository}/blobs/uploads/"), &[], b"").await;
        assert_eq!((answer.status, answer.header("range")), (StatusCode::ACCEPTED, "0-0"));
        answer.header("location").into()
    }
}

#[tokio::test]
async fn push_in_chunks_and_pull() {
    let server = serve().await;
    let content = b"0123456789";
    let digest = Digest::of(content);
    let upload = server.begin("a/b").await;
    for (range, chunk, want, so_far) in [
        ("0-3", &content[..4], StatusCode::ACCEPTED, "0-3"),
        ("7-8", &content[7..9], StatusCode::RANGE_NOT_SATISFIABLE, ""),
        ("4-6", &content[4..7], StatusCode::ACCEPTED, "0-6"),
    ] {
        let answer = server.write(Method::PATCH, &upload, &[("content-range", range)], chunk).await;
        assert_eq!((answer.status, answer.header("range")), (want, so_far), "{range}");
    }
    let status = server.call(Method::GET, &upload, &[], b"").await;
    assert_eq!((status.status, status.header("range")), (StatusCode::NO_CONTENT, "0-6"));
    let done = server.write(Method::PUT, &format!("{upload}?digest={digest}"), &[], &content[7..]).await;
    assert_eq!(done.status, StatusCode::CREATED);
    assert_eq!(done.header("location"), format!("/v2/a/b/blobs/{digest}"));
    assert_eq!(server.write(Method::PATCH, &upload, &[], b"x").await.code(), "BLOB_UPLOAD_UNKNOWN", "it is over");

    let blob = format!("/v2/a/b/blobs/{digest}");
    let rows: [(Method, &str, StatusCode, &[u8], &str); 5] = [
        (Method::GET, "", StatusCode::OK, content, ""),
        (Method::HEAD, "", StatusCode::OK, b"", ""),
        (Method::GET, "bytes=2-4", StatusCode::PARTIAL_CONTENT, b"234", "bytes 2-4/10"),
        (Method::GET, "bytes=-2", StatusCode::PARTIAL_CONTENT, b"89", "bytes 8-9/10"),
        (Method::GET, "bytes=10-", StatusCode::RANGE_NOT_SATISFIABLE, b"", "bytes */10"),
    ];
    for (method, range, status, body, content_range) in rows {
        let headers: &[(&str, &str)] = if range.is_empty() { &[] } else { &[("range", range)] };
        let answer = server.call(method.clone(), &blob, headers, b"").await;
        assert_eq!((answer.status, answer.header("content-range")), (status, content_range), "{method} {range}");
        if status.is_success() {
            assert_eq!((&answer.body[..], answer.header("docker-content-digest")), (body, &*digest.to_string()));
        }
        if method == Method::HEAD {
            assert_eq!(answer.header("content-length"), "10");
        }
    }
}

#[tokio::test]
async fn manifests_tags_and_mounts() {
    let server = serve().await;
    let config = b"{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[]}}";
    let config_digest = Digest::of(config);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
    })
    .to_string();
    let digest = Digest::of(manifest.as_bytes());
    let typed = [("content-type", MANIFEST)];
    let put = |path: &'static str| server.write(Method::PUT, path, &typed, manifest.as_bytes());

    assert_eq!(put("/v2/a/b/manifests/v1").await.code(), "MANIFEST_BLOB_UNKNOWN");
    let at_once = format!("/v2/a/b/blobs/uploads/?digest={config_digest}");
    assert_eq!(server.write(Method::POST, &at_once, &[], config).await.status, StatusCode::CREATED);
    for tag in ["v1", "v2", "latest"] {
        let answer = server.write(Method::PUT, &format!("/v2/a/b/manifests/{tag}"), &typed, manifest.as_bytes()).await;
        assert_eq!(
            (answer.status, answer.header("docker-content-digest")),
            (StatusCode::CREATED, &*digest.to_string())
        );
    }
    for reference in ["v1", &digest.to_string()] {
        let answer = server.call(Method::GET, &format!("/v2/a/b/manifests/{reference}"), &[], b"").await;
        assert_eq!(
            (answer.status, answer.header("content-type"), &*answer.body),
            (StatusCode::OK, MANIFEST, manifest.as_bytes())
        );
    }
    let page = server.call(Method::GET, "/v2/a/b/tags/list?n=2", &[], b"").await;
    assert_eq!(page.body, r#"{"name":"a/b","tags":["latest","v1"]}"#);
    assert_eq!(page.header("link"), r#"</v2/a/b/tags/list?n=2&last=v1>; rel="next""#);
    let rest = server.call(Method::GET, "/v2/a/b/tags/list?n=2&last=v1", &[], b"").await;
    assert_eq!((&*rest.body, rest.header("link")), (&br#"{"name":"a/b","tags":["v2"]}"#[..], ""));

    // Another repository holds nothing until it is mounted.
    let elsewhere = format!("/v2/c/d/blobs/{config_digest}");
    assert_eq!(server.call(Method::HEAD, &elsewhere, &[], b"").await.status, StatusCode::NOT_FOUND);
    for (from, want) in [("x/y", StatusCode::ACCEPTED), ("a/b", StatusCode::CREATED)] {
        let mount = format!("/v2/c/d/blobs/uploads/?mount={config_digest}&from={from}");
        assert_eq!(server.write(Method::POST, &mount, &[], b"").await.status, want, "from {from}");
    }
    assert_eq!(server.call(Method::HEAD, &elsewhere, &[], b"").await.status, StatusCode::OK);

    assert_eq!(server.write(Method::DELETE, "/v2/a/b/manifests/v1", &[], b"").await.status, StatusCode::ACCEPTED);
    assert_eq!(server.call(Method::GET, "/v2/a/b/manifests/v1", &[], b"").await.code(), "MANIFEST_UNKNOWN");
    let whole = format!("/v2/a/b/manifests/{digest}");
    assert_eq!(server.write(Method::DELETE, &whole, &[], b"").await.status, StatusCode::ACCEPTED);
    let none = server.call(Method::GET, "/v2/a/b/tags/list", &[], b"").await;
    assert_eq!(none.body, r#"{"name":"a/b","tags":[]}"#, "its tags went with it");
}

#[tokio::test]
async fn refusals() {
    let server = serve().await;
    let digest = Digest::of(b"x");
    let wrong = format!("/v2/a/b/blobs/uploads/?digest={digest}");
    let unknown = format!("/v2/a/b/blobs/{digest}");
    let by_digest = format!("/v2/a/b/manifests/{digest}");
    let huge = vec![b' '; (4 << 20) + 1];
    type Row<'a> = (&'a str, Method, &'a str, &'a [u8], u16, &'a str);
    let rows: [Row<'_>; 19] = [
        ("a wrong digest", Method::POST, &wrong, b"y", 400, "DIGEST_INVALID"),
        ("no digest", Method::POST, "/v2/a/b/blobs/uploads/?digest=x", b"y", 400, "DIGEST_INVALID"),
        ("an unknown blob", Method::GET, &unknown, b"", 404, "BLOB_UNKNOWN"),
        ("not a digest", Method::GET, "/v2/a/b/blobs/x", b"", 400, "DIGEST_INVALID"),
        ("deleting a blob", Method::DELETE, &unknown, b"", 405, "UNSUPPORTED"),
        ("one component", Method::POST, "/v2/a/blobs/uploads/", b"", 400, "NAME_INVALID"),
        ("three components", Method::POST, "/v2/a/b/c/blobs/uploads/", b"", 400, "NAME_INVALID"),
        ("climbing", Method::POST, "/v2/..%2f../b/blobs/uploads/", b"", 400, "NAME_INVALID"),
        ("climbing name", Method::GET, "/v2/a/%2e%2e/tags/list", b"", 400, "NAME_INVALID"),
        ("climbing tag", Method::GET, "/v2/a/b/manifests/%2e%2e", b"", 400, "TAG_INVALID"),
        (
            "an upload that never was",
            Method::PUT,
            &format!("/v2/a/b/blobs/uploads/x?digest={digest}"),
            b"",
            404,
            "BLOB_UPLOAD_UNKNOWN",
        ),
        ("an unknown manifest", Method::GET, "/v2/a/b/manifests/x", b"", 404, "MANIFEST_UNKNOWN"),
        ("not JSON", Method::PUT, "/v2/a/b/manifests/x", b"[", 400, "MANIFEST_INVALID"),
        ("without a type", Method::PUT, "/v2/a/b/manifests/x", b"{}", 400, "MANIFEST_INVALID"),
        ("a manifest under another digest", Method::PUT, &by_digest, b"{}", 400, "DIGEST_INVALID"),
        ("too large", Method::PUT, "/v2/a/b/manifests/x", &huge, 413, "SIZE_INVALID"),
        ("an unknown verb", Method::POST, "/v2/a/b/manifests/x", b"", 405, "UNSUPPORTED"),
        ("elsewhere", Method::GET, "/v1/", b"", 404, "NAME_UNKNOWN"),
        ("catalogue", Method::GET, "/v2/_catalog", b"", 404, "NAME_UNKNOWN"),
    ];
    for (name, method, path, body, status, code) in rows {
        let answer = server.write(method, path, &[], body).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{name}");
    }
    // Whoever does not say the password may read, and nothing else; the root asks for it.
    for (method, path) in [
        (Method::GET, "/v2/"),
        (Method::POST, "/v2/a/b/blobs/uploads/"),
        (Method::PUT, "/v2/a/b/manifests/x"),
        (Method::DELETE, "/v2/a/b/manifests/x"),
    ] {
        let answer = server.call(method.clone(), path, &[], b"").await;
        assert_eq!((answer.status, &*answer.code()), (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"), "{method}");
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"dhow\"");
    }
    assert_eq!(server.write(Method::GET, "/v2/", &[], b"").await.status, StatusCode::OK);
}

/// A client that vanishes in the middle of a blob leaves nothing.
#[tokio::test]
async fn a_broken_upload_leaves_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = serve().await;
    let upload = server.begin("a/b").await;
    let partial = server.folder.path().join("registry/uploads");
    let count = || std::fs::read_dir(&partial).unwrap().count();
    assert_eq!(count(), 1);
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "PATCH {upload} HTTP/1.1\r\nhost: x\r\nauthorization: {PASSWORD}\r\ncontent-length: 100000\r\n\r\nonly this"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    while count() > 0 {
        tokio::task::yield_now().await;
    }
    let status = server.call(Method::GET, &upload, &[], b"").await;
    assert_eq!(status.code(), "BLOB_UPLOAD_UNKNOWN");
}

fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

async fn run(program: &'static str, arguments: Vec<String>) -> String {
    let output = tokio::task::spawn_blocking(move || Command::new(program).args(arguments).output()).await.unwrap();
    let output = output.unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(Into::into).collect()
}

#[tokio::test]
async fn curl_pushes_and_resumes() {
    if !installed("curl") {
        return;
    }
    let server = serve().await;
    let file = server.folder.path().join("blob");
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i * 31 % 251) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    let digest = Digest::of(&content);
    let (base, file) = (format!("http://{}/v2/a/b/blobs", server.address), file.display().to_string());
    run("curl", words(&format!("-sSf -u dhow:secret --data-binary @{file} {base}/uploads/?digest={digest}"))).await;
    let back = server.folder.path().join("back");
    // The first million, then curl asks for the rest.
    run("curl", words(&format!("-sSf -r 0-999999 -o {} {base}/{digest}", back.display()))).await;
    run("curl", words(&format!("-sSf -C - -o {} {base}/{digest}", back.display()))).await;
    assert_eq!(Digest::of(&std::fs::read(&back).unwrap()), digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_both_ways() {
    if !installed("skopeo") {
        return;
    }
    let server = serve().await;
    let folder = server.folder.path();
    let digest = ours(&server.registry, folder).await;
    let at = format!("docker://{}/default", server.address);
    let policy = folder.join("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let policy = policy.display();

    let out = folder.join("layout").display().to_string();
    run("skopeo", words(&format!("--policy {policy} copy --src-tls-verify=false {at}/ours@{digest} oci:{out}:x")))
        .await;
    let credentials = "--dest-tls-verify=false --dest-creds dhow:secret";
    run("skopeo", words(&format!("--policy {policy} copy {credentials} oci:{out}:x {at}/theirs:1"))).await;
    let shown = run("skopeo", words(&format!("inspect --raw --tls-verify=false {at}/theirs:1"))).await;
    assert_eq!(Digest::of(shown.as_bytes()), digest, "what comes back is what went out");
    let image: ImageRef = format!("default/theirs@{digest}").parse().unwrap();
    let unpacked = ensure_unpacked(&server.registry, &image, &folder.join("cache")).await.unwrap();
    assert_eq!(std::fs::read_to_string(unpacked.root.join("app/main.py")).unwrap(), "print('hello')");
}

/// An image made by us.
async fn ours(registry: &Registry, folder: &Path) -> Digest {
    let source = folder.join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("main.py"), "print('hello')").unwrap();
    let path = folder.join("layer");
    let info = layer_from_dir(&source, "app", std::fs::File::create(&path).unwrap()).unwrap();
    let config = ImageConfig { working_dir: "/app".into(), ..ImageConfig::default() };
    push_image(registry, "default/ours", vec![Layer { info, path }], config).await.unwrap()
}
