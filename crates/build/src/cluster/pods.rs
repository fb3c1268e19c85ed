//! Whole builds: the source prepared, its Job's containers played one after another as a kubelet would, each step a
//! process of its own, the author's in a root of the base image; then the image is started and asked.
//!
//! Needs root for the roots, and the package indexes; without either it says so and does nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use api::build::{Build, BuildSpec, reason};
use api::function::{Blob, Inline, Runtime, Source};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use registry::image::{ImageRef, Reference, ensure_unpacked};
use registry::remote::{Remote, RemoteConfig};
use registry::{Digest, Registry};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::prepare::{Prepared, Work, prepare};
use super::result::{Verdict, verdict};
use super::{BaseImage, ClusterConfig, children, step};

const STEP: &str = "DHOW_TEST_STEP";
const ORDER: &str = "DHOW_TEST_ORDER";
const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test: what the steps' processes run, in this same binary.
#[test]
fn process() {
    let Ok(step) = std::env::var(STEP) else { return };
    let order = std::env::var(ORDER).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let code = match step.as_str() {
        "fetch" => runtime.block_on(step::fetch(&order)),
        _ => runtime.block_on(step::push(&order)),
    };
    std::process::exit(code);
}

struct Cluster {
    folder: tempfile::TempDir,
    registry: Registry,
    remote: Remote,
    config: ClusterConfig,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn cluster() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(&folder.path().join("registry")).unwrap();
    let service = registry.service(Arc::new(|_| true));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    let base = |name: &str| BaseImage { image: format!("{address}/bases/{name}:1"), interpreter: None };
    let config = ClusterConfig {
        work_dir: folder.path().join("work"),
        registry: address.to_string().parse().unwrap(),
        registry_for_nodes: None,
        secret: None,
        authority: None,
        proxy: None,
        // Whatever this machine's operator trusts.
        build_env: vec![("NODE_EXTRA_CA_CERTS".into(), "/etc/ssl/certs/ca-certificates.crt".into())],
        python: base("python"),
        node: base("node"),
        ..super::tests::config()
    };
    std::fs::create_dir_all(&config.work_dir).unwrap();
    Cluster { folder, registry, remote: Remote::new(&RemoteConfig::default()).unwrap(), config, serving }
}

fn build(source: Source) -> Build {
    let spec = BuildSpec { runtime: None, handler: None, source, repository: "default/hello".into() };
    let mut build = Build::new("hello-1", spec);
    build.metadata.namespace = Some("default".into());
    build.metadata.uid = Some("u1".into());
    build
}

fn inline(files: &[(&str, &str)]) -> Source {
    let files: BTreeMap<String, String> = files.iter().map(|(n, c)| ((*n).into(), (*c).into())).collect();
    Source { inline: Some(Inline { files }), ..Source::default() }
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

impl Cluster {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes the base image from this machine's packages, pushes it, and unpacks it as the node would.
    async fn base(&self, runtime: &str) -> bool {
        let (script, archive) =
            (concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/cluster/base-image.py"), self.path("b.tar"));
        let made = output(Command::new("/usr/bin/python3").arg(script).arg(runtime).arg(&archive));
        if !made.status.success() {
            println!("skipped: {}", String::from_utf8_lossy(&made.stderr));
            return false;
        }
        let layout = self.path("layout");
        std::fs::create_dir_all(&layout).unwrap();
        tar::Archive::new(std::fs::File::open(archive).unwrap()).unpack(&layout).unwrap();
        let at = self.config.location(&format!("bases/{runtime}"));
        let digest: Digest = String::from_utf8(made.stdout).unwrap().trim().parse().unwrap();
        for entry in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            self.remote.push_bytes(&at, bytes.into()).await.unwrap();
        }
        let manifest = std::fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.remote.put_manifest(&at, &Reference::Tag("1".into()), kind, manifest.into()).await.unwrap();
        std::fs::remove_dir_all(layout).unwrap();
        true
    }

    async fn prepared(&self, build: &Build) -> Work {
        match prepare(&self.remote, &self.config, build).await {
            Prepared::Ready(work) => *work,
            other => panic!("{other:?}"),
        }
    }

    async fn root(&self, image: &str) -> PathBuf {
        let image: ImageRef = image.parse().unwrap();
        ensure_unpacked(&self.registry, &image, &self.path("images")).await.unwrap().root
    }

    /// Plays the Job's pod. `between` is done to the build's result before it is pushed.
    async fn run(&self, job: &Job, between: impl Fn(&Path)) -> Pod {
        let spec = serde_json::to_value(job.spec.as_ref().unwrap().template.spec.as_ref().unwrap()).unwrap();
        let volumes = self.path("volumes");
        drop(std::fs::remove_dir_all(&volumes));
        for name in ["source", "result", "tmp", "scratch"] {
            std::fs::create_dir_all(volumes.join(name)).unwrap();
            let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(volumes.join(name), all).unwrap();
        }
        let containers =
            spec["initContainers"].as_array().unwrap().iter().chain(spec["containers"].as_array().unwrap());
        let (mut statuses, mut failed) = (vec![], false);
        for container in containers {
            if container["name"] == "push" {
                between(&volumes.join("result"));
            }
            let (code, message) = match container["name"].as_str().unwrap() {
                "build" => self.author(container, &volumes).await,
                _ => self.step(container, &volumes).await,
            };
            let ended = json!({"terminated": {"exitCode": code, "reason": "x", "message": message}});
            statuses.push(json!({
                "name": container["name"], "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": ended,
            }));
            failed = code != 0;
            if failed {
                break;
            }
        }
        let phase = if failed { "Failed" } else { "Succeeded" };
        serde_json::from_value(json!({"status": {"phase": phase, "containerStatuses": statuses}})).unwrap()
    }

    /// One of our own steps, in a process, on the volumes' real places.
    async fn step(&self, container: &Value, volumes: &Path) -> (i32, String) {
        let report = self.path("report");
        drop(std::fs::remove_file(&report));
        let mut order = container["args"][2].as_str().unwrap().replace("$$", "$");
        for (inside, outside) in [
            ("/source", volumes.join("source")),
            ("/out", volumes.join("result")),
            ("/scratch", volumes.join("scratch")),
            ("/dev/termination-log", report.clone()),
        ] {
            order = order.replace(&format!("\"{inside}\""), &format!("{:?}", outside));
        }
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cluster::pods::process", "--nocapture"]);
        command.env(STEP, container["args"][1].as_str().unwrap()).env(ORDER, order).stdin(Stdio::null());
        let ended = command.output().await.unwrap();
        let message = std::fs::read_to_string(report).unwrap_or_default();
        (ended.status.code().unwrap(), message)
    }

    /// The author's step, in the root of its image, with its volumes and nothing of ours.
    async fn author(&self, container: &Value, volumes: &Path) -> (i32, String) {
        let root = self.root(container["image"].as_str().unwrap()).await;
        let mut script = String::from("set -e\n");
        for mount in container["volumeMounts"].as_array().unwrap() {
            let (name, path) = (mount["name"].as_str().unwrap(), mount["mountPath"].as_str().unwrap());
            let target = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(&target).unwrap();
            script.push_str(&format!("mount --bind {:?} {target:?}\n", volumes.join(name)));
            if mount["readOnly"] == json!(true) {
                script.push_str(&format!("mount -o remount,bind,ro {target:?}\n"));
            }
        }
        for file in ["etc/resolv.conf", "dev/null", "dev/urandom"] {
            let target = root.join(file);
            std::fs::write(&target, b"").unwrap();
            script.push_str(&format!("mount --bind /{file} {target:?}\n"));
        }
        let folder = container["workingDir"].as_str().unwrap();
        script.push_str(&format!("exec chroot --userspec=65532:65532 {root:?} /usr/bin/env -C {folder} \"$@\"\n"));
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--mount", "/bin/sh", "-c", &script, "sh"]).stdin(Stdio::null());
        let literal = |value: &Value| value.as_str().unwrap().replace("$$", "$");
        command.args(container["command"].as_array().unwrap().iter().map(literal));
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(container["env"].as_array().unwrap().iter().map(|v| (literal(&v["name"]), literal(&v["value"]))));
        let ended = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let log = [ended.stdout, ended.stderr].concat();
        (ended.status.code().unwrap_or(-1), String::from_utf8_lossy(&log).into_owned())
    }

    /// Builds to the end and returns the image's name, or what the author is told.
    async fn built(&self, build: &Build, between: impl Fn(&Path)) -> Result<String, (String, String)> {
        let work = self.prepared(build).await;
        let job = children::job(build, &work, &self.config);
        let pod = self.run(&job, between).await;
        match verdict(&job, Some(&pod), &self.config) {
            Verdict::Ended(outcome) => outcome.result.map_err(|refusal| (refusal.reason.into(), refusal.message)),
            other => panic!("{other:?} {pod:#?}"),
        }
    }

    /// Starts the image as a node would, asks it once, and lets it end.
    async fn answer(&self, image: &str) -> String {
        let name: ImageRef = image.parse().unwrap();
        let unpacked = ensure_unpacked(&self.registry, &name, &self.path("images")).await.unwrap();
        assert_eq!(unpacked.config.user, "65532:65532");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = tokio::process::Command::new("chroot");
        command.arg("--userspec=65532:65532").arg(&unpacked.root);
        command.args(["/usr/bin/env", "-C", &unpacked.config.working_dir]).args(&unpacked.config.entrypoint);
        command.env_clear().envs(unpacked.config.env.clone()).env("PORT", port.to_string());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let mut running = command.spawn().unwrap();
        let asked = async {
            let mut connection = loop {
                match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                    Ok(connection) => break connection,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            connection.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n").await.unwrap();
            let mut text = String::new();
            connection.read_to_string(&mut text).await.unwrap();
            text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
        };
        let text = tokio::time::timeout(PATIENCE, asked).await.unwrap();
        let pid = running.id().unwrap().to_string();
        assert!(output(Command::new("kill").arg(pid)).status.success());
        assert_eq!(running.wait().await.unwrap().code(), Some(0));
        text
    }
}

/// Whether this machine can play pods, and reach a package index.
fn can_play(index: &str) -> bool {
    let root = output(Command::new("id").arg("-u")).stdout.starts_with(b"0");
    let reachable = std::net::ToSocketAddrs::to_socket_addrs(&(index, 443)).is_ok();
    if !root || !reachable {
        println!("skipped: needs root ({root}) and {index} ({reachable})");
    }
    root && reachable
}

#[tokio::test(flavor = "multi_thread")]
async fn python() {
    if !can_play("pypi.org") {
        return;
    }
    let cluster = cluster().await;
    if !cluster.base("python").await {
        return;
    }
    let code = "import iniconfig\ndef handle(request):\n    return iniconfig.__name__ + ' $(HOME)'\n";
    let source = build(inline(&[("main.py", code), ("requirements.txt", "iniconfig==2.0.0\n")]));
    let work = cluster.prepared(&source).await;
    assert!(!work.cached && work.plan.runtime == Runtime::Python, "{work:?}");
    assert_eq!(work.interpreter, "/usr/bin/python3", "as the base's label says");
    let image = cluster.built(&source, |_| {}).await.unwrap();
    assert_eq!(cluster.answer(&image).await, "iniconfig $(HOME)");

    // The second time nothing of the author's runs, and the image is the same.
    assert!(cluster.prepared(&source).await.cached);
    assert_eq!(cluster.built(&source, |_| panic_if_written(&cluster)).await.unwrap(), image);
    // Nor does it matter whether it was installed then or now.
    cluster.registry.delete_manifest("default/hello", work.cache.as_deref().unwrap()).await.unwrap();
    assert!(!cluster.prepared(&source).await.cached);
    assert_eq!(cluster.built(&source, |_| {}).await.unwrap(), image);
    // Another tenant's, and other packages, are not that one's.
    let other = build(inline(&[("main.py", code), ("requirements.txt", "iniconfig==2.1.0\n")]));
    assert!(!cluster.prepared(&other).await.cached);

    // A source that was uploaded, without packages.
    let archive = cluster.path("source.tar.gz");
    let tree = cluster.path("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("main.py"), "def handle(request):\n    return 'plain'\n").unwrap();
    let info = registry::image::layer_from_dir(&tree, "", std::fs::File::create(&archive).unwrap()).unwrap();
    let blob = Source { blob: Some(Blob { digest: info.digest.to_string() }), ..Source::default() };
    let missing = prepare(&cluster.remote, &cluster.config, &build(blob.clone())).await;
    assert!(matches!(&missing, Prepared::Refused(refusal) if refusal.reason == reason::SOURCE_MISSING), "{missing:?}");
    let body = futures::stream::iter([Ok::<_, Infallible>(std::fs::read(&archive).unwrap().into())]);
    let sources = cluster.config.location("default/sources");
    cluster.remote.push_stream(&sources, &info.digest, 1 << 20, body).await.unwrap();
    let image = cluster.built(&build(blob), |_| {}).await.unwrap();
    assert_eq!(cluster.answer(&image).await, "plain");

    // What an author can do wrong, or on purpose.
    let nothing = build(inline(&[("main.py", code), ("requirements.txt", "dhow-has-no-such-package==1\n")]));
    let (why, message) = cluster.built(&nothing, |_| {}).await.unwrap_err();
    assert_eq!(why, reason::DEPENDENCIES_FAILED);
    assert!(message.contains("No matching distribution found for dhow-has-no-such-package"), "{message}");
    let hostile = build(inline(&[("main.py", code), ("requirements.txt", "iniconfig==1.1.1\n")]));
    let (why, message) = cluster
        .built(&hostile, |result| {
            std::fs::remove_dir_all(result.join("deps")).unwrap();
            std::os::unix::fs::symlink("/etc", result.join("deps")).unwrap();
        })
        .await
        .unwrap_err();
    assert_eq!(why, reason::DEPENDENCIES_FAILED);
    assert!(message.contains("cannot be used"), "{message}");
}

fn panic_if_written(cluster: &Cluster) {
    let written = std::fs::read_dir(cluster.path("volumes/result")).unwrap().count();
    assert_eq!(written, 0, "the author's step ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn node() {
    if !can_play("registry.npmjs.org") {
        return;
    }
    let cluster = cluster().await;
    if !cluster.base("node").await {
        return;
    }
    let code =
        "import isNumber from 'is-number';\nexport default { fetch: () => new Response(String(isNumber(7))) };\n";
    let package = r#"{"type": "module", "dependencies": {"is-number": "7.0.0"}}"#;
    let source = build(inline(&[("index.mjs", code), ("package.json", package)]));
    let image = cluster.built(&source, |_| {}).await.unwrap();
    assert_eq!(cluster.answer(&image).await, "true");
    assert!(cluster.prepared(&source).await.cached);
    assert_eq!(cluster.built(&source, |_| panic_if_written(&cluster)).await.unwrap(), image);

    let plain = build(inline(&[("index.mjs", "export default { fetch: () => new Response('plain') };")]));
    let work = cluster.prepared(&plain).await;
    assert_eq!((work.cache.clone(), work.cached), (None, false));
    let image = cluster.built(&plain, |_| panic_if_written(&cluster)).await.unwrap();
    assert_eq!(cluster.answer(&image).await, "plain");
}
