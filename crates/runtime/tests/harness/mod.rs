//! A test runner that is also the launcher: `main` must decide which before a thread exists.

mod machine;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtime::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use machine::*;

pub const LAUNCHER: &str = "internal-launcher";
const OWNER: &str = "internal-owner";

pub type Test = (&'static str, fn() -> futures::future::BoxFuture<'static, ()>);

/// The tests of these names.
macro_rules! tests {
    ($($test:ident),* $(,)?) => { [$((stringify!($test), || Box::pin($test()))),*] };
}

/// Is the launcher or an owner if asked to be; else runs the tests whose names contain an argument, or all.
pub fn main(tests: &[Test]) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == LAUNCHER) {
        launcher::main(std::io::stdin().as_fd().try_clone_to_owned().expect("a control socket"));
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the tests of the process provider need root");
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if arguments.first().is_some_and(|a| a == OWNER) {
        return runtime.block_on(own());
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    // An emulated processor says so; it is many times slower.
    let limit = std::env::var("DHOW_TEST_SECONDS").map_or(120, |s| s.parse().expect("a number of seconds"));
    let mut failed = vec![];
    for (name, test) in tests.iter().filter(|(n, _)| filters.is_empty() || filters.iter().any(|f| n.contains(*f))) {
        let test = test();
        let timed = async move { tokio::time::timeout(Duration::from_secs(limit), test).await };
        match runtime.block_on(runtime.spawn(timed)) {
            Ok(Ok(())) => println!("test {name} ... ok"),
            Ok(Err(_)) => failed.push((name, "timed out")),
            Err(_) => failed.push((name, "panicked")),
        }
    }
    failed.iter().for_each(|(name, why)| println!("test {name} ... FAILED: {why}"));
    std::process::exit(i32::from(!failed.is_empty()));
}

/// A platform that waits for its end with two instances running.
async fn own() {
    let platform = Platform::start().await;
    let code = platform.code("code", "def handle(request):\n    return 'fine'\n");
    for spec in [server("a"), function("b", &code)] {
        platform.provider.create(Arc::new(spec)).await.expect("created");
    }
    platform.ready("b").await;
    println!("{} {}", platform.provider.slot().expect("a slot"), platform.launcher());
    std::future::pending().await
}

/// A platform in a process of its own.
pub struct Owner {
    pub pid: i32,
    pub launcher: i32,
    pub slot: u32,
    child: std::process::Child,
}

impl Owner {
    pub fn start() -> Self {
        use std::io::BufRead as _;
        let exe = std::env::current_exe().expect("the test binary");
        let mut child =
            std::process::Command::new(exe).arg(OWNER).stdout(std::process::Stdio::piped()).spawn().expect("an owner");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        std::io::BufReader::new(stdout).read_line(&mut line).expect("it says that it is ready");
        let mut numbers = line.split_whitespace().map(|n| n.parse::<i32>().expect("a number"));
        let (slot, launcher) = (numbers.next().expect("a slot") as u32, numbers.next().expect("a pid"));
        Self { pid: child.id() as i32, launcher, slot, child }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A provider with a data directory of its own.
pub struct Platform {
    pub provider: Arc<ProcessProvider>,
    pub folder: tempfile::TempDir,
}

#[expect(clippy::disallowed_methods, reason = "a test's clock is the wall clock")]
fn clock() -> api::Clock {
    Arc::new(jiff::Timestamp::now)
}

fn config(data_dir: PathBuf) -> ProcessConfig {
    ProcessConfig {
        executable: std::env::current_exe().expect("the test binary"),
        launcher_args: vec![LAUNCHER.to_owned()],
        data_dir,
        python: "/usr/bin/python3".into(),
        pod_cidr: None,
        uid_base: None,
        egress: EgressPolicy::default(),
        clock: clock(),
    }
}

impl Platform {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// The launcher is started by another program, which gets its path and argument as the last ones.
    pub async fn wrapped(program: &str, arguments: &[&str]) -> Self {
        Self::with(|config| wrap(config, program, arguments)).await
    }

    /// The same, with a launcher that is a copy anybody may run, on a folder of `nobody`.
    pub async fn as_nobody(program: &str, arguments: &[&str]) -> Self {
        Self::with(|config| {
            let copy = config.data_dir.join("launcher");
            std::fs::copy(&config.executable, &copy).expect("a copy");
            config.executable = copy;
            for path in [config.data_dir.clone(), config.data_dir.join("x")] {
                let _ = std::fs::create_dir(&path);
                std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("chown");
            }
            wrap(config, program, arguments);
        })
        .await
    }

    async fn with(edit: impl FnOnce(&mut ProcessConfig)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config(folder.path().to_owned());
        edit(&mut config);
        let provider = ProcessProvider::start(config).await.expect("a provider");
        Self { provider: Arc::new(provider), folder }
    }

    /// The launcher's pid.
    pub fn launcher(&self) -> i32 {
        child_named(std::process::id() as i32, "dhow-launcher").expect("a launcher")
    }

    /// A folder with one `main.py`.
    pub fn code(&self, name: &str, text: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("main.py"), text).expect("a file");
        folder
    }

    /// Runs a sandbox to its end, and gives what it printed and how it ended.
    pub async fn run(&self, spec: SandboxSpec) -> (String, Exit) {
        let mut events = self.provider.events();
        let uid = spec.uid.clone();
        self.provider.create(Arc::new(spec)).await.expect("a sandbox");
        let exit = loop {
            let sandbox = events.recv().await.expect("events");
            if sandbox.uid == uid
                && let Phase::Exited(exit) = &sandbox.containers[0].phase
            {
                break exit.clone();
            }
        };
        let text = self.output(&uid).await;
        self.provider.stop(&uid, Duration::ZERO).await.expect("stopped");
        (text, exit)
    }

    pub async fn output(&self, uid: &str) -> String {
        use futures::StreamExt as _;
        let mut stream = self.provider.logs(uid, "main", LogOptions::default()).await.expect("logs");
        let mut text = Vec::new();
        while let Some(bytes) = stream.next().await {
            text.extend(bytes.expect("output"));
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until a sandbox is ready, and gives it.
    pub async fn ready(&self, uid: &str) -> Sandbox {
        let mut events = self.provider.events();
        let here = self.provider.list().await.expect("a list").into_iter().find(|s| s.uid == uid);
        let mut sandbox = here.expect("it was created");
        while !sandbox.is_ready() {
            assert!(!sandbox.is_exited(), "{uid} ended: {sandbox:?}\n{}", self.output(uid).await);
            let next = events.recv().await.expect("events");
            if next.uid == uid {
                sandbox = next;
            }
        }
        sandbox
    }
}

fn wrap(config: &mut ProcessConfig, program: &str, arguments: &[&str]) {
    let executable = std::mem::replace(&mut config.executable, program.into());
    config.launcher_args = arguments.iter().map(|a| (*a).to_owned()).collect();
    config.launcher_args.extend([executable.display().to_string(), LAUNCHER.to_owned()]);
}

pub fn python(uid: &str, code: &str) -> SandboxSpec {
    let argv = ["/usr/bin/python3", "-I", "-S", "-c", code].map(str::to_owned).to_vec();
    exec(uid, argv)
}

pub fn exec(uid: &str, argv: Vec<String>) -> SandboxSpec {
    let container = ContainerSpec {
        name: "main".to_owned(),
        init: false,
        root: Root::Host,
        program: Program::Exec { argv },
        user: None,
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        working_dir: "/".to_owned(),
        mounts: vec![],
        limits: Limits::default(),
        serve: Serve::Nothing,
    };
    SandboxSpec {
        uid: uid.to_owned(),
        namespace: "default".to_owned(),
        name: format!("pod-{uid}"),
        network: Network::Pod,
        volumes: vec![],
        containers: vec![container],
    }
}

/// Serves its socket: answers every connection with one line.
const SERVER: &str = r#"
import os, socket
s = socket.socket(fileno=3)
os.write(4, b"r"); os.close(4)
while True:
    c, _ = s.accept()
    c.recv(100)
    c.sendall(b"hello from %d\n" % os.getuid())
    c.close()
"#;

pub fn server(uid: &str) -> SandboxSpec {
    let mut spec = python(uid, SERVER);
    spec.containers[0].serve = Serve::Socket;
    spec
}

/// A Python function, forked from its tenant's zygote.
pub fn function(uid: &str, code: &std::path::Path) -> SandboxSpec {
    let mut spec = exec(uid, vec![]);
    let container = &mut spec.containers[0];
    container.program = Program::Zygote { runtime: "python".to_owned() };
    container.mounts =
        vec![Mount { source: Source::Host(code.to_owned()), inside: "/app".to_owned(), writable: false }];
    container.working_dir = "/app".to_owned();
    container.env.push(("DHOW_HANDLER".to_owned(), "main.handle".to_owned()));
    container.serve = Serve::Socket;
    spec
}

/// Sends a few bytes, and gives everything that comes back.
pub async fn ask(address: &Address) -> std::io::Result<String> {
    exchange(address, "x").await
}

pub async fn get(address: &Address, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    exchange(address, &request).await.expect("an answer")
}

async fn exchange(address: &Address, request: &str) -> std::io::Result<String> {
    async fn over(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> std::io::Result<String> {
        let mut text = String::new();
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
    match address {
        Address::Ip(ip) => over(tokio::net::TcpStream::connect(ip).await?, request).await,
        Address::Unix(path) => over(tokio::net::UnixStream::connect(path).await?, request).await,
    }
}

/// Waits for a state of the machine that nobody announces.
pub async fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "waited for {what} in vain");
}
