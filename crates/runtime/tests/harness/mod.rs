//! A test runner that is also the launcher: `main` must decide which before a thread exists.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtime::*;

pub const LAUNCHER: &str = "internal-launcher";

pub type Test = (&'static str, fn() -> futures::future::BoxFuture<'static, ()>);

/// The tests of these names.
macro_rules! tests {
    ($($test:ident),* $(,)?) => { [$((stringify!($test), || Box::pin($test()))),*] };
}

/// Is the launcher if asked to be; else runs the tests whose names contain an argument, or all.
pub fn main(tests: &[Test]) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == LAUNCHER) {
        launcher::main(std::io::stdin().as_fd().try_clone_to_owned().expect("a control socket"));
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the tests of the process provider need root");
        return;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut failed = vec![];
    for (name, test) in tests.iter().filter(|(n, _)| filters.is_empty() || filters.iter().any(|f| n.contains(*f))) {
        let test = test();
        let timed = async move { tokio::time::timeout(Duration::from_secs(120), test).await };
        let outcome = runtime.block_on(runtime.spawn(timed));
        match outcome {
            Ok(Ok(())) => println!("test {name} ... ok"),
            Ok(Err(_)) => failed.push((name, "timed out")),
            Err(_) => failed.push((name, "panicked")),
        }
    }
    failed.iter().for_each(|(name, why)| println!("test {name} ... FAILED: {why}"));
    std::process::exit(i32::from(!failed.is_empty()));
}

/// A provider with a data directory of its own.
pub struct Platform {
    pub provider: Arc<ProcessProvider>,
    pub folder: tempfile::TempDir,
}

#[expect(clippy::disallowed_methods, reason = "a test's clock is the wall clock")]
pub fn clock() -> api::Clock {
    Arc::new(jiff::Timestamp::now)
}

pub fn config(data_dir: PathBuf) -> ProcessConfig {
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
        let folder = tempfile::tempdir().expect("a folder");
        let provider = ProcessProvider::start(config(folder.path().to_owned())).await.expect("a provider");
        Self { provider: Arc::new(provider), folder }
    }

    /// Runs a Python program to its end, and gives what it printed and how it ended.
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

pub fn python(uid: &str, code: &str) -> SandboxSpec {
    let argv = ["/usr/bin/python3", "-I", "-S", "-c", code].map(str::to_owned).to_vec();
    exec(uid, argv)
}

pub fn exec(uid: &str, argv: Vec<String>) -> SandboxSpec {
    let container = ContainerSpec {
        name: "main".to_owned(),
        program: Program::Exec { argv },
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
        containers: vec![container],
    }
}

/// Serves its socket: answers every connection with one line.
pub const SERVER: &str = r#"
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
    container.mounts = vec![Mount { host: code.to_owned(), inside: "/app".to_owned(), writable: false }];
    container.working_dir = "/app".to_owned();
    container.env.push(("DHOW_HANDLER".to_owned(), "main.handle".to_owned()));
    container.serve = Serve::Socket;
    spec
}

impl Platform {
    /// A folder with one `main.py`.
    pub fn code(&self, name: &str, text: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("main.py"), text).expect("a file");
        folder
    }
}
