//! The Provider port: what a node asks of whatever runs its pods.
//!
//! Owned by the node, its consumer. A Provider knows sandboxes, processes and limits; it knows no Kubernetes
//! object, no image registry and no request. Adapters are held against [`crate::conformance`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::access::Access;

/// # Contract
/// The unit is a pod sandbox with its containers, identified by the pod's uid. Every state change is sent to
/// every receiver of [`Provider::events`]; one that lags must call [`Provider::list`] again.
/// # Idempotency
/// `create` of a uid that exists returns its present state; `stop` of one that is gone succeeds.
/// # Errors
/// [`ProviderError::class`] says what the caller may do.
/// # Cancellation
/// Dropping a future never leaves a half-made sandbox: it is finished and listed, or undone.
#[async_trait]
pub trait Provider: Access + Send + Sync {
    fn capabilities(&self) -> Capabilities;

    /// Starts a sandbox and returns once its processes exist, before they are ready.
    async fn create(&self, spec: Arc<SandboxSpec>) -> Result<Sandbox, ProviderError>;

    /// Asks every container to end, kills what is left after `grace`, and removes the sandbox with everything it
    /// held. Returns when nothing of it is left; the last event of the uid is [`Phase::Exited`].
    async fn stop(&self, uid: &str, grace: Duration) -> Result<(), ProviderError>;

    /// Every sandbox that exists, exited ones included until they are stopped.
    async fn list(&self) -> Result<Vec<Sandbox>, ProviderError>;

    fn events(&self) -> broadcast::Receiver<Sandbox>;
}

pub type LogStream = BoxStream<'static, Result<Bytes, ProviderError>>;

/// What a Provider can and cannot do here, as far as a user or operator must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The runtime class it serves, such as `dhow-process`.
    pub runtime_class: &'static str,
    /// Whether a pod gets an address of its own; otherwise it is served over a Unix socket.
    pub pod_network: bool,
    /// Isolation properties that are missing, each a sentence saying what is missing, why, and what would help.
    pub missing_isolation: Vec<String>,
}

/// Everything needed to start one pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The pod's uid.
    pub uid: String,
    /// The tenant: what a zygote is never shared across.
    pub namespace: String,
    /// The pod's name, its host name, and `HOSTNAME` inside.
    pub name: String,
    pub network: Network,
    pub volumes: Vec<Volume>,
    pub containers: Vec<ContainerSpec>,
}

/// A file system in memory that lives as long as its sandbox. What a container writes into it counts as that container's
/// memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    /// The most that it holds.
    pub bytes: u64,
    /// What is in it from the start.
    #[serde(skip)]
    pub files: Vec<VolumeFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    /// Below the volume's own folder, without `.` and `..`.
    pub path: String,
    /// What the owner may read or run, the containers may as well: their user, who is not known yet, is not the owner.
    pub mode: u32,
    pub content: Bytes,
}

/// What the sandbox may talk to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Public addresses, DNS, and the gateway's internal listener; reachable from the gateway.
    Pod,
    /// Nothing but one TCP address: the build worker's egress proxy.
    Only(std::net::SocketAddr),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    /// Whether those after it start only once it has ended well. If it ends otherwise, they never start: they end, too.
    pub init: bool,
    pub root: Root,
    pub program: Program,
    /// Who its processes take themselves for, if not for the user that the sandbox happens to have here.
    pub user: Option<User>,
    /// Complete: nothing is inherited from the platform.
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub mounts: Vec<Mount>,
    pub limits: Limits,
    pub serve: Serve,
}

/// What a container sees as `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The host's programs and the platform's runtimes, read-only: what functions run on.
    Host,
    /// An unpacked image, in a folder that nobody changes. Its files appear as the sandbox's own user's, whoever they
    /// belong to here. What is written over it counts as [`Limits::tmp_bytes`], as `/tmp` does, and goes with the container.
    Image { folder: PathBuf, read_only: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A fresh process; `argv[0]` is a path inside the sandbox.
    Exec { argv: Vec<String> },
    /// A fork of the tenant's zygote of that runtime (only `python` today).
    Zygote { runtime: String },
}

/// A user of no more rights than any other: to the host it is the sandbox's own, and so are its files to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub user: u32,
    pub group: u32,
}

/// A folder or file that appears in the container. Never follows a link at either end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: Source,
    pub inside: String,
    pub writable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Of the host. The top folder of a writable one is given to the container's own user.
    Host(PathBuf),
    /// Of the sandbox's volumes the one of this name, or what is at this path in it: a folder that is made, if nothing is.
    Volume { name: String, path: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub cpu_millis: Option<u64>,
    /// What it gets of the processors when all want them, against the others'.
    pub cpu_request_millis: Option<u64>,
    pub pids: u32,
    pub tmp_bytes: u64,
    pub open_files: u64,
    /// Bytes of output kept; older output is dropped.
    pub log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            cpu_millis: None,
            cpu_request_millis: None,
            pids: 256,
            tmp_bytes: 64 << 20,
            open_files: 4096,
            log_bytes: 8 << 20,
        }
    }
}

/// How the container is reached and how it says that it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Serve {
    /// fd 3 is a listening socket made inside the sandbox's network; ready when a byte is written to fd 4.
    Socket,
    /// The container listens on this port itself; ready when it accepts a connection.
    Port(u16),
    /// Not a server: a build step or a job. Ready as soon as it runs.
    Nothing,
}

/// A sandbox as the Provider sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub address: Option<Address>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    Ip(std::net::SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    pub init: bool,
    pub phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting { since: Timestamp },
    Running { since: Timestamp, ready: bool },
    Exited(Exit),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal's number.
    pub code: i32,
    pub signal: Option<i32>,
    pub reason: ExitReason,
    pub started: Timestamp,
    pub finished: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    Completed,
    Error,
    /// The kernel killed it for exceeding its memory limit.
    OutOfMemory,
    /// `stop` was asked for.
    Stopped,
}

impl Sandbox {
    pub fn is_ready(&self) -> bool {
        let mut serving = self.containers.iter().filter(|c| !c.init).peekable();
        serving.peek().is_some() && serving.all(|c| matches!(c.phase, Phase::Running { ready: true, .. }))
    }

    pub fn is_exited(&self) -> bool {
        self.containers.iter().all(|c| matches!(c.phase, Phase::Exited(_)))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub tail_lines: Option<usize>,
    pub limit_bytes: Option<u64>,
    pub since: Option<Timestamp>,
    /// Puts an RFC 3339 time before each line.
    pub timestamps: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("no sandbox {uid}")]
    NotFound { uid: String },
    #[error("this provider cannot run it: {reason}")]
    Unsupported { reason: String },
    #[error("invalid sandbox {uid}: {reason}")]
    Invalid { uid: String, reason: String },
    #[error("{what} of sandbox {uid} is not running")]
    NotRunning { uid: String, what: String },
    #[error("out of {what}")]
    Exhausted { what: &'static str },
    #[error("{action}: {source}")]
    Io {
        action: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the launcher is gone; the platform must restart")]
    LauncherGone,
}

/// What a caller may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    Retry,
    NotFound,
    Invalid,
    Fatal,
}

impl ProviderError {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotFound { .. } => ErrorClass::NotFound,
            Self::Unsupported { .. } | Self::Invalid { .. } | Self::NotRunning { .. } => ErrorClass::Invalid,
            Self::Exhausted { .. } | Self::Io { .. } => ErrorClass::Retry,
            Self::LauncherGone => ErrorClass::Fatal,
        }
    }
}
