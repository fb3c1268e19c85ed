//! Builds through a real API server into a real registry, in real sandboxes: as root the full ones, else what is left of
//! them. A scripted provider does what a sandbox cannot be brought to do. The test binary is its own launcher.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use api::build::{Build, BuildSpec, BuildStatus, SUCCEEDED, reason};
use api::condition::{UNKNOWN, find};
use api::function::{Blob, Inline, Runtime, Source};
use futures::{FutureExt as _, StreamExt as _};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use registry::image::{ImageRef, Unpacked, ensure_unpacked};
use registry::{Digest, Registry};
use runtime::fake::{Failure, FakeProvider, Script};
use runtime::{EgressPolicy, ExitReason, ProcessConfig, ProcessProvider, Program, Provider};
use tokio_util::sync::CancellationToken;

type Test = fn() -> futures::future::BoxFuture<'static, ()>;

const LAUNCHER: &str = "internal-launcher";
const REGISTRY: &str = "127.0.0.1:5000";
/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|argument| argument == LAUNCHER) {
        runtime::launcher::main(std::io::stdin().as_fd().try_clone_to_owned().expect("a control socket"));
    }
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let tests: [(&str, Test); 6] = [
        ("bad_sources", || bad_sources().boxed()),
        ("bad_steps", || bad_steps().boxed()),
        ("tried_again_after_a_restart", || tried_again_after_a_restart().boxed()),
        ("without_packages", || without_packages().boxed()),
        ("python_packages", || python_packages().boxed()),
        ("node_packages", || node_packages().boxed()),
    ];
    let mut failed = false;
    for (name, test) in tests {
        if arguments.iter().any(|a| !a.starts_with('-')) && !arguments.iter().any(|a| name.contains(a.as_str())) {
            continue;
        }
        let ended = tokio.block_on(async { tokio::spawn(tokio::time::timeout(PATIENCE, test())).await });
        let ok = matches!(ended, Ok(Ok(())));
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed |= !ok;
    }
    std::process::exit(i32::from(failed));
}

#[expect(clippy::disallowed_methods, reason = "a test's clock is the wall clock")]
fn clock() -> api::Clock {
    Arc::new(jiff::Timestamp::now)
}

/// A build worker at work, on an API server and a registry of its own.
struct World {
    client: kube::Client,
    registry: Registry,
    folder: tempfile::TempDir,
    provider: Arc<dyn Provider>,
    proxy: std::net::SocketAddr,
    timeout: Duration,
    running: Option<(CancellationToken, tokio::task::JoinHandle<Result<(), build::BuildError>>)>,
    number: usize,
}

impl World {
    async fn fake(provider: Arc<FakeProvider>) -> Self {
        Self::with(
            tempfile::tempdir().expect("a folder"),
            provider,
            ([127, 0, 0, 1], 0).into(),
            Duration::from_millis(200),
        )
    }

    async fn real() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = ProcessConfig {
            executable: std::env::current_exe().expect("the test binary"),
            launcher_args: vec![LAUNCHER.to_owned()],
            data_dir: folder.path().to_owned(),
            python: "/usr/bin/python3".into(),
            pod_cidr: None,
            uid_base: None,
            egress: EgressPolicy::default(),
            clock: clock(),
        };
        let provider = ProcessProvider::start(config).await.expect("a provider");
        let host = provider.host_address().unwrap_or([127, 0, 0, 1].into());
        Self::with(folder, Arc::new(provider), (host, 0).into(), build::Config::TIMEOUT)
    }

    fn with(
        folder: tempfile::TempDir,
        provider: Arc<dyn Provider>,
        proxy: std::net::SocketAddr,
        timeout: Duration,
    ) -> Self {
        let store = store::Store::memory(apiserver::index, store::Options::default());
        let server = apiserver::ApiServer::new(store, apiserver::Config::new(clock())).expect("an API server");
        let registry = Registry::open(&folder.path().join("registry")).expect("a registry");
        let client = server.client("default");
        let mut world = Self { client, registry, folder, provider, proxy, timeout, running: None, number: 0 };
        world.start();
        world
    }

    fn start(&mut self) {
        let config = build::Config {
            work_dir: self.folder.path().join("build"),
            registry_host: REGISTRY.into(),
            proxy_listen: self.proxy,
            allowed_hosts: build::Config::package_hosts(),
            max_source_bytes: 1 << 20,
            timeout: self.timeout,
            concurrency: build::Config::CONCURRENCY,
            clock: clock(),
        };
        let shutdown = CancellationToken::new();
        let (client, registry, provider) = (self.client.clone(), self.registry.clone(), self.provider.clone());
        let task = tokio::spawn(build::run(client, registry, provider, config, shutdown.clone()));
        self.running = Some((shutdown, task));
    }

    async fn stop(&mut self) {
        if let Some((shutdown, task)) = self.running.take() {
            shutdown.cancel();
            task.await.expect("it does not panic").expect("it ends well");
        }
    }

    async fn upload(&self, archive: Vec<u8>) -> Source {
        let digest = self.registry.put_blob("default/sources", archive.into()).await.expect("a blob");
        Source { blob: Some(Blob { digest: digest.to_string() }), inline: None }
    }

    async fn create(&mut self, spec: BuildSpec) -> String {
        self.number += 1;
        let name = format!("fn-{}", self.number);
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let build = Build { metadata, spec, status: None };
        self.builds().create(&PostParams::default(), &build).await.expect("created");
        name
    }

    fn builds(&self) -> Api<Build> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Waits for a state of the build's status.
    async fn until(&self, name: &str, done: impl Fn(&BuildStatus) -> bool) -> BuildStatus {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut changes = watcher(self.builds(), config).applied_objects().boxed();
        loop {
            let build = changes.next().await.expect("a watch does not end").expect("a watch");
            if let Some(status) = build.status.filter(&done) {
                return status;
            }
        }
    }

    async fn build(&mut self, spec: BuildSpec) -> BuildStatus {
        let name = self.create(spec).await;
        self.until(&name, |s| find(&s.conditions, SUCCEEDED).is_some_and(|c| c.status != UNKNOWN)).await
    }

    async fn image(&self, status: &BuildStatus) -> Unpacked {
        let reference = status.image.as_deref().unwrap_or_else(|| panic!("no image: {status:?}"));
        assert!(reference.starts_with(&format!("{REGISTRY}/default/fn@sha256:")), "{reference}");
        let image: ImageRef = reference.parse().expect("an image");
        ensure_unpacked(&self.registry, &image, &self.folder.path().join("images")).await.expect("unpacked")
    }

    fn left_over(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("build/builds")).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

fn spec(source: Source) -> BuildSpec {
    BuildSpec { source, repository: "default/fn".into(), ..BuildSpec::default() }
}

fn inline(files: &[(&str, &str)]) -> Source {
    let files: BTreeMap<String, String> = files.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Source { blob: None, inline: Some(Inline { files }) }
}

/// A gzipped tar of one entry, its path and link written as they are.
fn archive(kind: tar::EntryType, path: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut builder = tar::Builder::new(vec![]);
    builder.append(&header, content).expect("an entry");
    gzip(&builder.into_inner().expect("a tar"))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(bytes).expect("in memory");
    gzip.finish().expect("in memory")
}

fn check(name: &str, status: &BuildStatus, reason: &str, message: &str) {
    let condition = find(&status.conditions, SUCCEEDED).expect("a condition");
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", reason), "{name}: {condition:?}");
    assert!(condition.message.contains(message), "{name}: {} has no {message:?}", condition.message);
    assert_eq!(status.image, None, "{name}");
    assert_eq!(status.observed_generation, Some(1), "{name}");
}

async fn bad_sources() {
    use tar::EntryType::{Fifo, Link, Regular, Symlink};
    let mut world = World::fake(Arc::new(FakeProvider::new(clock()))).await;
    let noise: Vec<u8> = (0..(2u32 << 20)).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let empty = gzip(&tar::Builder::new(vec![]).into_inner().expect("a tar"));
    for (name, archive, message) in [
        ("empty", empty, "the source is empty"),
        ("no archive", b"PK\x03\x04 this is a zip".to_vec(), "the source cannot be used"),
        ("cut off", archive(Regular, "main.py", "", &[b'x'; 4096])[..60].to_vec(), "the source cannot be used"),
        ("climbs", archive(Regular, "../main.py", "", b"x"), "leaves the folder"),
        ("absolute", archive(Regular, "/etc/main.py", "", b"x"), "leaves the folder"),
        ("link out", archive(Symlink, "main.py", "/etc/passwd", b""), "leaves the folder"),
        ("link up", archive(Symlink, "main.py", "../../x", b""), "leaves the folder"),
        ("hard link", archive(Link, "main.py", "../x", b""), "leaves the folder"),
        ("pipe", archive(Fifo, "main.py", "", b""), "a pipe"),
        ("large", noise, "larger than 1 MiB"),
        ("a bomb", archive(Regular, "main.py", "", &vec![0; 8 << 20]), "more than 4194304 bytes"),
    ] {
        let source = world.upload(archive).await;
        check(name, &world.build(spec(source)).await, reason::SOURCE_INVALID, message);
    }
    let missing = Source { blob: Some(Blob { digest: Digest::of(b"never sent").to_string() }), inline: None };
    check("missing", &world.build(spec(missing)).await, reason::SOURCE_MISSING, "was not uploaded");
    let foreign = BuildSpec { repository: "other/fn".into(), ..spec(inline(&[("main.py", "")])) };
    check("foreign", &world.build(foreign).await, reason::SOURCE_INVALID, "not in the namespace default");
    for (name, files, reason, message) in [
        ("nothing", vec![], reason::SOURCE_INVALID, "empty"),
        ("inline climbs", vec![("../x.py", "")], reason::SOURCE_INVALID, "leaves the folder"),
        ("both", vec![("a", ""), ("a/b", "")], reason::SOURCE_INVALID, "\"a/b\" is a file and a folder at once"),
        ("unknown", vec![("README.md", "")], reason::RUNTIME_UNKNOWN, "package.json, *.py"),
        ("no handler", vec![("app.py", "")], reason::HANDLER_MISSING, "main.py is not in the source"),
        ("no index", vec![("package.json", "{}")], reason::HANDLER_MISSING, "index.mjs or index.js"),
    ] {
        check(name, &world.build(spec(inline(&files))).await, reason, message);
    }
    assert_eq!(world.left_over(), [""; 0]);
    world.stop().await;
}

async fn bad_steps() {
    let provider = Arc::new(FakeProvider::new(clock()));
    let mut world = World::fake(provider.clone()).await;
    let output: Vec<String> = (0..40).map(|n| format!("line {n}")).chain(["ERROR: No such thing".into()]).collect();
    let exit = |code, reason| Script { exit_after: Some((Duration::ZERO, code, reason)), ..Script::default() };
    for (name, script, reason, message, lines) in [
        (
            "pip fails",
            Script { output, ..exit(1, ExitReason::Error) },
            reason::DEPENDENCIES_FAILED,
            "requirements.txt failed: No such thing",
            20,
        ),
        ("no memory", exit(137, ExitReason::OutOfMemory), reason::DEPENDENCIES_FAILED, "1024 MiB of memory", 0),
        ("never ends", Script::default(), reason::TIMED_OUT, "took longer than", 0),
        (
            "no provider",
            Script { create: Err(Failure::Unsupported("no Python here".into())), ..Script::default() },
            reason::DEPENDENCIES_FAILED,
            "no Python here",
            0,
        ),
    ] {
        provider.default_script(script);
        let status = world.build(spec(inline(&[("main.py", ""), ("requirements.txt", "nope==1")]))).await;
        check(name, &status, reason, message);
        assert_eq!(status.log_tail.len(), lines, "{name}");
        assert_eq!(status.runtime, Some(Runtime::Python), "{name}");
        assert!(provider.list().await.expect("a list").is_empty(), "{name}: the sandbox is still there");
    }
    // What is not the author's fault is tried again until it works, and says why meanwhile.
    provider.default_script(Script { create: Err(Failure::Io("no space".into())), ..Script::default() });
    let name = world.create(spec(inline(&[("main.py", "")]))).await;
    let waiting = |s: &BuildStatus| find(&s.conditions, SUCCEEDED).is_some_and(|c| c.reason == reason::INTERNAL);
    let status = world.until(&name, waiting).await;
    assert!(find(&status.conditions, SUCCEEDED).is_some_and(|c| c.message.contains("no space")), "{status:?}");
    provider.default_script(exit(0, ExitReason::Completed));
    let status = world.until(&name, |s| s.image.is_some()).await;
    assert_eq!(world.image(&status).await.config.labels["dev.dhow.handler"], "main.handle");
    assert_eq!(world.left_over(), [""; 0]);
    world.stop().await;
}

async fn tried_again_after_a_restart() {
    let provider = Arc::new(FakeProvider::new(clock()));
    let mut world = World::fake(provider.clone()).await;
    world.timeout = Duration::from_secs(100);
    world.stop().await;
    world.start();
    let mut events = provider.events();
    let name = world.create(spec(inline(&[("main.py", "")]))).await;
    let started = events.recv().await.expect("a sandbox");
    assert!(started.uid.starts_with(api::build::SANDBOX_PREFIX));
    world.stop().await;
    assert!(provider.list().await.expect("a list").is_empty());
    let exit_after = Some((Duration::ZERO, 0, ExitReason::Completed));
    provider.default_script(Script { exit_after, ..Script::default() });
    world.start();
    world.until(&name, |s| s.image.is_some()).await;
    world.stop().await;
    let Program::Exec { argv } = &provider.created()[0].containers[0].program else { panic!("a zygote") };
    assert_eq!(argv[0], "/bin/sh");
}

async fn without_packages() {
    let mut world = World::real().await;
    let files = [("main.py", "def handle(request): return 'x'\n"), ("lib/part.py", "X = 1\n"), ("broken.py", "def (")];
    let status = world.build(spec(inline(&files))).await;
    assert_eq!((status.runtime, status.log_tail.len()), (Some(Runtime::Python), 0));
    let image = world.image(&status).await;
    for file in ["main.py", "lib/part.py", "broken.py"] {
        assert!(image.root.join("app").join(file).is_file(), "{file}");
    }
    let compiled = std::fs::read_dir(image.root.join("app/lib/__pycache__")).expect("bytecode").count();
    assert_eq!(compiled, 1);
    assert!(!image.root.join("deps").exists());
    let labels = &image.config.labels;
    assert_eq!(
        ["dev.dhow.runtime", "dev.dhow.handler", "dev.dhow.contract"].map(|l| labels[l].as_str()),
        ["python", "main.handle", "1"]
    );
    assert_eq!(image.config.working_dir, "/app");

    let node = BuildSpec { handler: Some("api.run".into()), ..spec(inline(&[("api.mjs", ""), ("index.js", "")])) };
    let status = world.build(node).await;
    let image = world.image(&status).await;
    assert_eq!((status.runtime, image.config.labels["dev.dhow.handler"].as_str()), (Some(Runtime::Node), "api.run"));
    assert!(image.root.join("app/api.mjs").is_file() && !image.root.join("app/node_modules").exists());
    assert_eq!(world.left_over(), [""; 0]);
    world.stop().await;
}

async fn has_network(host: &str) -> bool {
    let found = tokio::time::timeout(Duration::from_secs(10), tokio::net::TcpStream::connect((host, 443))).await;
    let reachable = matches!(found, Ok(Ok(_)));
    if !reachable {
        println!("skipped: {host} cannot be reached");
    }
    reachable
}

async fn python_packages() {
    if !has_network("pypi.org").await {
        return;
    }
    let mut world = World::real().await;
    let files =
        |requirements: &'static str| spec(inline(&[("main.py", "import idna\n"), ("requirements.txt", requirements)]));
    let status = world.build(files("idna==3.10\n")).await;
    let image = world.image(&status).await;
    assert!(image.root.join("deps/python/idna/core.py").is_file());
    let bytecode = std::fs::read_dir(image.root.join("deps/python/idna/__pycache__")).expect("bytecode").count();
    assert!(bytecode > 3, "{bytecode}");
    // The same packages for other code are not installed again: the layer is the same, down to the byte.
    let other = [("main.py", "import idna.core\n"), ("requirements.txt", "# pinned\nidna==3.10\n")];
    let status = world.build(spec(inline(&other))).await;
    let again = world.image(&status).await;
    assert_eq!(image.config.diff_ids[0], again.config.diff_ids[0]);
    assert_ne!(image.config.diff_ids[1], again.config.diff_ids[1]);

    let status = world.build(files("no-such-package-of-dhow==1\n")).await;
    check(
        "no such package",
        &status,
        reason::DEPENDENCIES_FAILED,
        "No matching distribution found for no-such-package",
    );
    assert!(status.log_tail.iter().any(|line| line.starts_with("ERROR: ")), "{:?}", status.log_tail);
    let status = world.build(files("idna @ https://example.com/idna-3.10-py3-none-any.whl\n")).await;
    check("another host", &status, reason::DEPENDENCIES_FAILED, "requirements.txt failed");
    assert!(status.log_tail.iter().any(|line| line.contains("403")), "{:?}", status.log_tail);
    assert_eq!(world.left_over(), [""; 0]);
    world.stop().await;
}

async fn node_packages() {
    if !has_network("registry.npmjs.org").await {
        return;
    }
    let mut world = World::real().await;
    let package = r#"{"main": "index.mjs", "dependencies": {"is-odd": "3.0.1"}}"#;
    let status = world.build(spec(inline(&[("index.mjs", "import 'is-odd'"), ("package.json", package)]))).await;
    let image = world.image(&status).await;
    assert!(image.root.join("deps/node_modules/is-odd/index.js").is_file());
    let link = std::fs::read_link(image.root.join("app/node_modules")).expect("a link");
    assert_eq!(link.to_str(), Some("../deps/node_modules"));
    let local = r#"{"main": "index.mjs", "dependencies": {"lib": "file:./lib"}}"#;
    let files = |text| {
        let lib = r#"{"name": "lib", "version": "1.0.0"}"#;
        inline(&[("index.mjs", ""), ("package.json", local), ("lib/package.json", lib), ("lib/index.js", text)])
    };
    for text in ["// first", "// changed"] {
        let status = world.build(spec(files(text))).await;
        let image = world.image(&status).await;
        let installed = std::fs::read_to_string(image.root.join("deps/node_modules/lib/index.js")).expect("installed");
        assert_eq!(installed, text, "a package of the source is installed, and again when it changed");
    }
    let missing = r#"{"dependencies": {"is-odd": "999.0.0"}}"#;
    let status = world.build(spec(inline(&[("index.mjs", ""), ("package.json", missing)]))).await;
    check("no such version", &status, reason::DEPENDENCIES_FAILED, "No matching version found for is-odd@999.0.0");
    world.stop().await;
}
