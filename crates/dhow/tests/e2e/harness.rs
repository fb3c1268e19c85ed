//! A real `dhow up` on free ports in a temporary data directory, and the clients that people use against it.
//!
//! Waits for states, never for time: [`eventually`] polls a condition up to a generous limit and says what it saw last.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;

pub const DHOW: &str = env!("CARGO_BIN_EXE_dhow");
/// Far longer than anything takes; a test that needs it all has failed.
pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Platform {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
    flags: Vec<String>,
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }
}

/// Whether the whole sandbox can be tested here; says so when not.
pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root for namespaces and cgroups");
    }
    root
}

impl Platform {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(flags: &[&str]) -> Self {
        let mut platform = Self::new(flags);
        platform.launch().await;
        platform
    }

    /// Not running yet.
    pub fn new(flags: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("dhow-e2e-").tempdir().expect("a temporary folder");
        Self { dir, child: None, flags: flags.iter().map(|f| (*f).to_owned()).collect() }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.path().join("dhow.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    pub fn up_command(&self) -> Command {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log file");
        let mut command = Command::new(DHOW);
        command.arg("up").arg("--data-dir").arg(self.data_dir());
        for listener in ["api", "gateway", "console", "metrics", "registry"] {
            let flag = format!("--{listener}-listen");
            if !self.flags.contains(&flag) {
                command.arg(flag).arg("127.0.0.1:0");
            }
        }
        command.args(&self.flags).env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    pub async fn launch(&mut self) {
        assert!(self.child.is_none(), "it is running");
        // A killed platform leaves the file; the new one removes it too, but perhaps after we have looked.
        let _ = std::fs::remove_file(self.data_dir().join("endpoints.json"));
        self.child = Some(self.up_command().spawn().expect("dhow up starts"));
        eventually("dhow up is ready", || async {
            let child_ended = self.exit_status();
            assert!(child_ended.is_none(), "dhow up ended: {child_ended:?}\n{}", self.log());
            self.data_dir().join("endpoints.json").exists().then_some(()).ok_or_else(|| self.log())
        })
        .await;
    }

    fn exit_status(&self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.as_ref()?.id()).ok()?);
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitid};
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(nix::sys::wait::Id::Pid(pid), flags) {
            Ok(WaitStatus::Exited(_, code)) => Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
            _ => None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is running").id()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("the signal is sent");
    }

    /// SIGKILL, and nothing else: what is left is what a crash leaves.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it is running");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    /// SIGTERM; returns the exit code.
    pub async fn stop(&mut self) -> i32 {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        eventually("dhow up stops", || async { self.exit_status().ok_or("still running") }).await;
        let status = self.child.take().expect("it is running").wait().expect("reaped");
        status.code().unwrap_or(-1)
    }

    /// Stops it cleanly; nothing of it may be left on the machine then.
    pub async fn stop_and_count(&mut self) {
        let slot = self.slot();
        assert_eq!(self.stop().await, 0, "{}", self.log());
        // Another platform of this machine may take the slot at once: what is counted must be nobody's.
        let lock = eventually("the slot is free", || async { hold(&slot).ok_or("held by another platform") }).await;
        let left = footprint(&slot);
        drop(lock);
        let none = Footprint { sandboxed_processes: 0, cgroups: 0, links: 0, tables: 0, mounts: 0 };
        assert_eq!(left, none);
    }

    pub fn endpoint(&self, name: &str) -> String {
        let text = std::fs::read(self.data_dir().join("endpoints.json")).expect("endpoints.json");
        let endpoints: Value = serde_json::from_slice(&text).expect("JSON");
        endpoints[name].as_str().unwrap_or_else(|| panic!("no endpoint {name} in {endpoints}")).to_owned()
    }

    /// The machine-wide slot that the platform holds.
    pub fn slot(&self) -> String {
        let text = std::fs::read(self.data_dir().join("endpoints.json")).expect("endpoints.json");
        let endpoints: Value = serde_json::from_slice(&text).expect("JSON");
        endpoints["slot"].as_u64().expect("a slot").to_string()
    }

    pub fn dhow(&self, args: &[&str]) -> Output {
        let output = Command::new(DHOW).args(args).env("DHOW_KUBECONFIG", self.kubeconfig()).output();
        output.expect("dhow runs")
    }

    /// Runs `dhow` and panics with all it said when it fails.
    pub fn dhow_ok(&self, args: &[&str]) -> String {
        let output = self.dhow(args);
        assert!(output.status.success(), "dhow {args:?}: {}\n--- platform\n{}", said(&output), tail(&self.log()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn kubectl(&self, args: &[&str]) -> Output {
        let kubectl = kubectl().expect("checked by the test");
        Command::new(kubectl)
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .output()
            .expect("kubectl runs")
    }

    pub fn kubectl_ok(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(output.status.success(), "kubectl {args:?}: {}\n--- platform\n{}", said(&output), tail(&self.log()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// An object as JSON, or null.
    pub fn object(&self, kind: &str, name: &str) -> Value {
        let output = self.kubectl(&["get", kind, name, "-o", "json", "--ignore-not-found"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    pub fn write_function(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.dir.path().join(name);
        write_files(&dir, files);
        dir
    }

    /// Writes the files, deploys them and waits until ready.
    pub fn deploy(&self, name: &str, files: &[(&str, &str)]) {
        let dir = self.write_function(name, files);
        self.dhow_ok(&["deploy", dir.to_str().expect("UTF-8")]);
    }

    pub fn host(&self, function: &str) -> String {
        format!("{function}.default.localhost")
    }

    pub async fn get(&self, function: &str, path: &str) -> Reply {
        self.send(function, Request::get(path), Bytes::new()).await
    }

    pub async fn send(&self, function: &str, request: http::request::Builder, body: impl Into<Bytes>) -> Reply {
        let request = request.header("host", self.host(function)).body(Full::new(body.into())).expect("a request");
        send(&self.endpoint("gateway"), request).await.expect("the gateway answers")
    }

    /// The names of the function's pods that are not on their way out.
    pub fn pods(&self, function: &str) -> Vec<String> {
        let selector = format!("dhow.dev/function={function}");
        let output = self.kubectl(&["get", "pods", "-l", &selector, "-o", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        pods.iter()
            .filter(|p| p["metadata"]["deletionTimestamp"].is_null())
            .filter_map(|p| p["metadata"]["name"].as_str().map(str::to_owned))
            .collect()
    }

    pub fn scale_to_zero(&self, function: &str) {
        self.dhow_ok(&["scale", function, "--to", "0"]);
    }

    pub async fn metrics(&self) -> String {
        let request = Request::get("/metrics").header("host", "localhost").body(Full::default()).expect("a request");
        send(&self.endpoint("metrics"), request).await.expect("metrics answer").text()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        drop(self.child.take().map(Running));
    }
}

/// A process that a failing test, too, takes with it.
pub struct Running(pub Child);

impl Drop for Running {
    #[expect(clippy::disallowed_methods, reason = "a destructor cannot wait for anything but time")]
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).expect("a pid");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        for _ in 0..200 {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn send(
    address: &str,
    request: Request<Full<Bytes>>,
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(sender);
    connection.abort();
    Ok(Reply { status: parts.status, headers: parts.headers, body })
}

/// Polls until the condition holds; panics with what it saw last.
pub async fn eventually<T, E: Debug, F: Future<Output = Result<T, E>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(seen) if tokio::time::Instant::now() > deadline => panic!("never: {what}; last seen: {seen:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n--- stdout\n{out}\n--- stderr\n{err}", output.status)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// The kubectl of the tests: `DHOW_KUBECTL`, else the one on PATH; says so when there is none.
pub fn kubectl() -> Option<String> {
    let kubectl = std::env::var("DHOW_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let works = Command::new(&kubectl).args(["version", "--client"]).output().is_ok_and(|o| o.status.success());
    if !works {
        assert!(std::env::var("CI").is_err(), "CI needs kubectl: install it or Go");
        eprintln!("skipped: no kubectl on PATH (or DHOW_KUBECTL)");
    }
    works.then_some(kubectl)
}

pub fn write_files(dir: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("inside the folder")).expect("a folder");
        std::fs::write(path, content).expect("written");
    }
}

/// Everything on this machine that only running instances need, and that must be gone after them.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Footprint {
    pub sandboxed_processes: usize,
    pub cgroups: usize,
    pub links: usize,
    pub tables: usize,
    pub mounts: usize,
}

/// Keeps platforms that start from taking the slot.
fn hold(slot: &str) -> Option<nix::fcntl::Flock<std::fs::File>> {
    let file = std::fs::File::open(format!("/run/dhow/slots/{slot}.lock")).expect("the slot's lock");
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).ok()
}

/// What is left of platforms whose slot nobody holds. Only meaningful while no other platform can take it.
pub fn footprint(slot: &str) -> Footprint {
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
    };
    let prefix = format!("dhow-{slot}");
    let count_dirs = |root: &str| walk_dirs(Path::new(root)).iter().filter(|d| d.contains(&prefix)).count();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten().filter(|entry| {
        std::fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|c| c.contains(&format!("/{prefix}")))
    });
    Footprint {
        sandboxed_processes: processes.count(),
        cgroups: count_dirs("/sys/fs/cgroup"),
        links: run("ip", &["-o", "link"]).matches(&format!("dh{slot}-")).count(),
        tables: run("nft", &["list", "tables"]).matches(&format!("dhow_{slot}\n")).count(),
        mounts: std::fs::read_to_string("/proc/self/mounts").expect("mounts").matches("dhow-e2e-").count(),
    }
}

/// The shares of a processor that the platform's cgroups may use at most, those without a limit left out.
pub fn cpu_shares(slot: &str) -> Vec<f64> {
    let number = |dir: &str, file: &str| -> Option<f64> {
        std::fs::read_to_string(Path::new(dir).join(file)).ok()?.trim().parse().ok()
    };
    let of_group = |dir: &String| match number(dir, "cpu.cfs_quota_us") {
        Some(quota) => Some(quota / number(dir, "cpu.cfs_period_us")?),
        None => {
            let text = std::fs::read_to_string(Path::new(dir).join("cpu.max")).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
        }
    };
    let prefix = format!("dhow-{slot}");
    let groups = walk_dirs(Path::new("/sys/fs/cgroup")).into_iter().filter(|d| d.contains(&prefix));
    groups.filter_map(|dir| of_group(&dir)).filter(|share| *share > 0.0).collect()
}

fn walk_dirs(dir: &Path) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.push(path.display().to_string());
            found.extend(walk_dirs(&path));
        }
    }
    found
}
