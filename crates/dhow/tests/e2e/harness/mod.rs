//! A real platform and the clients that people use against it: a `dhow up` on free ports in a temporary data directory, or,
//! where `DHOW_TEST_CLUSTER` names a kubeconfig, a namespace of its own on a cluster that Dhow is installed on.
//!
//! Tests that hold on both call [`able`]; those about one machine and its processes call [`machine`]. Waits for states, never for time: [`eventually`] polls a condition up to a generous limit and says what it saw last.

mod client;
mod cluster;
mod flood;
mod footprint;
mod image;
mod load;
mod service;

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

pub use client::{client, sources};
pub use cluster::{admin, kubeconfig as cluster_kubeconfig};
pub use flood::{Flood, Seeded, Target};
pub use footprint::{Footprint, cpu_shares, footprint};
pub use load::Load;
pub use service::{IMAGE, always, container};

pub struct Platform {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
    flags: Vec<String>,
    cluster: Option<cluster::Tenant>,
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

/// Whether a platform can be had here; says so when not.
pub fn able() -> bool {
    cluster::kubeconfig().is_some() || machine()
}

/// Whether the tests run against a cluster; says so when not.
pub fn on_cluster() -> bool {
    let there = cluster::kubeconfig().is_some();
    if !there {
        eprintln!("skipped: needs a cluster (make test-cluster)");
    }
    there
}

/// Whether the platform of one machine, with the whole sandbox, can be had here; says so when not.
pub fn machine() -> bool {
    if cluster::kubeconfig().is_some() {
        eprintln!("skipped: about one machine, and this is a cluster");
        return false;
    }
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root for namespaces and cgroups");
    }
    root
}

impl Platform {
    pub async fn start() -> Self {
        if cluster::kubeconfig().is_none() {
            return Self::start_with(&[]).await;
        }
        let mut platform = Self::new(&[]);
        platform.cluster = Some(cluster::Tenant::new(&platform.kubeconfig(), platform.dir.path()));
        platform
    }

    pub async fn start_with(flags: &[&str]) -> Self {
        let mut platform = Self::new(flags);
        platform.launch().await;
        platform
    }

    /// Not running yet.
    pub fn new(flags: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("dhow-e2e-").tempdir().expect("a temporary folder");
        Self { dir, child: None, flags: flags.iter().map(|f| (*f).to_owned()).collect(), cluster: None }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.path().join("dhow.log")
    }

    pub fn log(&self) -> String {
        if let Some(tenant) = &self.cluster {
            return tenant.log();
        }
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    pub fn namespace(&self) -> &str {
        self.cluster.as_ref().map_or("default", |tenant| &tenant.namespace)
    }

    pub fn domain(&self) -> &str {
        if self.cluster.is_some() { cluster::DOMAIN } else { "localhost" }
    }

    pub fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    pub fn up_command(&self) -> Command {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log file");
        let mut command = Command::new(DHOW);
        command.arg("up").arg("--data-dir").arg(self.data_dir());
        for listener in ["api", "gateway", "gateway-tls", "console", "metrics", "registry"] {
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
        let lock =
            eventually("the slot is free", || async { footprint::hold(&slot).ok_or("held by another platform") }).await;
        let left = footprint(&slot);
        drop(lock);
        let none = Footprint { sandboxed_processes: 0, cgroups: 0, links: 0, tables: 0, mounts: 0 };
        assert_eq!(left, none);
    }

    pub fn endpoint(&self, name: &str) -> String {
        if let Some(tenant) = &self.cluster {
            return tenant.endpoint(name);
        }
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
        format!("{function}.{}.{}", self.namespace(), self.domain())
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

    /// What all gateways count.
    pub async fn metrics(&self) -> String {
        if let Some(tenant) = &self.cluster {
            let mut text = String::new();
            for address in tenant.gateways() {
                let request = Request::get("/metrics").header("host", "localhost").body(Full::default());
                let reply = send(&address, request.expect("a request")).await.expect("metrics answer");
                text.push_str(&reply.text());
            }
            return text;
        }
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
