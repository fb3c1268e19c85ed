//! The process provider: pods as sandboxed processes of this machine.
//!
//! Owns the launcher, the pods' output and what is known of their state. Must not know how a sandbox is made; that
//! is the launcher's. Nothing here forks or changes namespaces, since this process has threads. The surprise: the
//! end of a container is only made known once its output has been read to the end.

mod attend;
mod log;
mod state;
mod visit;
mod volumes;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::Clock;
use async_trait::async_trait;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::attend::Attendant;
use self::log::Log;
use self::state::{Progress, State};
use self::visit::Visits;
use crate::access::{Access, Connection, OutputStream, Session};
use crate::assets;
use crate::launcher::{Cidr, refusal};
use crate::provider::*;
use crate::wire::{self, Hello, MESSAGE_BYTES, Refusal, Report, Request, Resource, Start};

/// Requests on their way to the launcher. A caller waits while it is full.
const REQUESTS: usize = 1024;
/// How long the launcher may take to start: it sweeps what a dead platform left.
const START: Duration = Duration::from_secs(30);
/// How long it may take to end: it kills everything first.
const END: Duration = Duration::from_secs(15);

/// Everything the process provider must be told.
#[derive(Clone)]
pub struct ProcessConfig {
    /// The program whose `main` calls [`crate::launcher::main`] when started with `launcher_args`.
    pub executable: PathBuf,
    pub launcher_args: Vec<String>,
    /// Where sandboxes' output, sockets and the runtimes' files are kept.
    pub data_dir: PathBuf,
    pub python: PathBuf,
    /// The range of this platform's pods; by default a part of 10.201.0.0/16.
    pub pod_cidr: Option<Cidr>,
    /// The first user a sandbox may get on this machine; by default 200000. Each platform on it takes 2048.
    pub uid_base: Option<u32>,
    pub egress: EgressPolicy,
    pub clock: Clock,
}

/// What pods may reach besides public addresses. Only IPv4 addresses count, since pods speak nothing else.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    pub allow: Vec<SocketAddr>,
    /// The resolvers; by default the host's.
    pub dns: Vec<IpAddr>,
}

pub struct ProcessProvider {
    shared: Arc<Shared>,
    hello: Hello,
    requests: mpsc::Sender<Outgoing>,
    child: Mutex<Child>,
    tasks: TaskTracker,
}

/// What the tasks share.
struct Shared {
    state: State,
    visits: Visits,
    folder: PathBuf,
    clock: Clock,
    /// The addresses pods have been let through to.
    permitted: watch::Sender<BTreeSet<SocketAddrV4>>,
    /// Ends every task; cancelled when the launcher is gone or the provider is dropped.
    gone: CancellationToken,
}

struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl ProcessProvider {
    /// Starts the launcher and waits until it can make sandboxes.
    pub async fn start(config: ProcessConfig) -> Result<Self, ProviderError> {
        let folder = config.data_dir.join("sandboxes");
        let (data_dir, cleared) = (config.data_dir.clone(), folder.clone());
        let prepare = move || prepare(&data_dir, &cleared);
        let assets = tokio::task::spawn_blocking(prepare).await.map_err(io::Error::other).and_then(|r| r);
        let assets = assets.map_err(doing(format!("prepare {}", config.data_dir.display())))?;
        let (ours, theirs) = wire::pair().map_err(doing("make the launcher's socket"))?;
        // Also reports of pods' processes go through this socket, so it must never be inherited: it is not.
        let child = Command::new(&config.executable)
            .args(&config.launcher_args)
            .env_clear()
            .stdin(theirs)
            .current_dir("/")
            .spawn()
            .map_err(doing(format!("start the launcher {}", config.executable.display())))?;
        let socket = nonblocking(ours).map_err(doing("watch the launcher's socket"))?;
        let start = Request::Start(Box::new(start_message(&config, assets)));
        let start = Outgoing { bytes: wire::encode(&start, 0).map_err(doing("greet the launcher"))?, fds: vec![] };
        send(&socket, &start).await.map_err(doing("greet the launcher"))?;
        let mut buffer = vec![0; MESSAGE_BYTES];
        let answer = tokio::time::timeout(START, receive(&socket, &mut buffer)).await;
        let hello = match answer.map_err(io::Error::from).and_then(|r| r).map_err(doing("start the launcher"))? {
            Some((Report::Hello(hello), _)) => hello,
            Some((Report::Failed { reason }, _)) => return Err(doing("start the launcher")(io::Error::other(reason))),
            _ => return Err(ProviderError::LauncherGone),
        };
        Ok(Self::run(config.clock, folder, child, socket, hello))
    }

    fn run(clock: Clock, folder: PathBuf, child: Child, socket: AsyncFd<OwnedFd>, hello: Hello) -> Self {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let shared = Arc::new(Shared {
            state: State::new(Arc::clone(&clock)),
            visits: Visits::default(),
            folder,
            clock,
            permitted: watch::channel(BTreeSet::new()).0,
            gone: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        let socket = Arc::new(socket);
        tasks.spawn(write(Arc::clone(&socket), outgoing, shared.gone.clone()));
        tasks.spawn(read(Arc::clone(&shared), socket));
        Self { shared, hello, requests, child: Mutex::new(child), tasks }
    }

    /// The host's address as pods see it; `None` where pods have no network.
    pub fn host_address(&self) -> Option<IpAddr> {
        self.hello.host_address.map(IpAddr::V4)
    }

    /// The slot of this machine that this platform has; `None` without isolation.
    pub fn slot(&self) -> Option<u32> {
        self.hello.slot
    }

    /// Lets pods reach one TCP address of the platform, such as the gateway's internal listener. Returns when they
    /// can.
    pub async fn permit(&self, address: SocketAddr) -> Result<(), ProviderError> {
        let SocketAddr::V4(address) = address else {
            return Err(ProviderError::Unsupported { reason: format!("pods speak IPv4 only, not {address}") });
        };
        let mut permitted = self.shared.permitted.subscribe();
        self.ask(&Request::Permit { address }, vec![]).await?;
        tokio::select! {
            _ = permitted.wait_for(|all| all.contains(&address)) => Ok(()),
            () = self.shared.gone.cancelled() => Err(ProviderError::LauncherGone),
        }
    }

    /// Completes when the launcher has ended, by `shutdown` or by accident; no sandbox is left then.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.gone.clone().cancelled_owned()
    }

    /// Kills every sandbox, and returns when the launcher has removed everything and ended.
    pub async fn shutdown(&self) {
        // A launcher that is gone has nothing left to do.
        let _ = self.ask(&Request::Shutdown, vec![]).await;
        let mut child = self.child.lock().await;
        if tokio::time::timeout(END, child.wait()).await.is_err() {
            tracing::warn!("the launcher did not end in time and is killed");
            let _ = child.kill().await;
        }
        self.shared.gone.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn ask(&self, request: &Request, fds: Vec<OwnedFd>) -> Result<(), ProviderError> {
        let bytes = wire::encode(request, fds.len()).map_err(doing("ask the launcher"))?;
        self.requests.send(Outgoing { bytes, fds }).await.map_err(|_| ProviderError::LauncherGone)
    }

    async fn volumes(&self, spec: &Arc<SandboxSpec>) -> Result<Vec<OwnedFd>, ProviderError> {
        if spec.volumes.is_empty() {
            return Ok(vec![]);
        }
        if self.hello.slot.is_none() {
            let reason = "volumes are mounted, and sandboxes have no mounts here; start dhow as root".to_owned();
            return Err(ProviderError::Unsupported { reason });
        }
        let spec = Arc::clone(spec);
        let made = tokio::task::spawn_blocking(move || spec.volumes.iter().map(volumes::make).collect());
        made.await.map_err(io::Error::other).and_then(|made| made).map_err(doing("make a volume"))
    }

    /// Registers a sandbox, its output and its tasks; `None` if it exists.
    fn register(&self, spec: &Arc<SandboxSpec>) -> Result<Option<Vec<OwnedFd>>, ProviderError> {
        let folder = self.shared.folder.join(&spec.uid);
        let mut logs = vec![];
        for container in &spec.containers {
            logs.push(Arc::new(Log::new(&folder, &container.name, container.limits.log_bytes)));
        }
        let Some(exits) = self.shared.state.insert(spec, &logs) else { return Ok(None) };
        let mut fds = vec![];
        for (place, ((container, log), exit)) in spec.containers.iter().zip(logs).zip(exits).enumerate() {
            let mut pipe = || -> io::Result<pipe::Receiver> {
                let (read, write) = io::pipe()?;
                fds.push(OwnedFd::from(write));
                pipe::Receiver::from_owned_fd(OwnedFd::from(read))
            };
            let pipes = (|| {
                let ready = container.serve == Serve::Socket;
                Ok((pipe()?, pipe()?, if ready { Some(pipe()?) } else { None }))
            })();
            let (stdout, stderr, ready) = pipes.map_err(|source| {
                self.shared.state.forget(&spec.uid);
                ProviderError::Io { action: "make pipes".to_owned(), source }
            })?;
            let attendant = Attendant {
                shared: Arc::clone(&self.shared),
                uid: spec.uid.clone(),
                place,
                serve: container.serve,
                log,
            };
            self.tasks.spawn(attendant.run(stdout, stderr, ready, exit));
        }
        Ok(Some(fds))
    }
}

impl Drop for ProcessProvider {
    fn drop(&mut self) {
        // The tasks hold the socket; once they end, the launcher sees it close and kills everything.
        self.shared.gone.cancel();
    }
}

#[async_trait]
impl Provider for ProcessProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            runtime_class: api::names::runtime_class::PROCESS,
            pod_network: self.hello.host_address.is_some(),
            missing_isolation: self.hello.missing_isolation.clone(),
        }
    }

    async fn create(&self, spec: Arc<SandboxSpec>) -> Result<Sandbox, ProviderError> {
        if let Some(reason) = refusal(&spec) {
            return Err(ProviderError::Invalid { uid: spec.uid.clone(), reason });
        }
        let fds = spec.volumes.len() + spec.containers.len() * 3;
        let bytes = wire::encode(&Request::Create(Box::new((*spec).clone())), fds)
            .map_err(|e| ProviderError::Invalid { uid: spec.uid.clone(), reason: e.to_string() })?;
        let volumes = self.volumes(&spec).await?;
        // Room for the request first: from registering to sending nothing can be interrupted.
        let room = self.requests.reserve().await.map_err(|_| ProviderError::LauncherGone)?;
        if self.shared.gone.is_cancelled() {
            return Err(ProviderError::LauncherGone);
        }
        match self.register(&spec)? {
            Some(pipes) => room.send(Outgoing { bytes, fds: volumes.into_iter().chain(pipes).collect() }),
            None => drop(room),
        }
        if self.shared.gone.is_cancelled() {
            // It went just now, and nobody else would settle what was registered after that.
            self.shared.state.lose_all();
        }
        match self.shared.state.settled(&spec.uid).await {
            Progress::Made(sandbox) => Ok(*sandbox),
            Progress::Refused(refusal) => Err(refused(&spec.uid, refusal)),
            Progress::Creating | Progress::Removed => match self.shared.gone.is_cancelled() {
                true => Err(ProviderError::LauncherGone),
                false => Err(ProviderError::NotFound { uid: spec.uid.clone() }),
            },
        }
    }

    async fn stop(&self, uid: &str, grace: Duration) -> Result<(), ProviderError> {
        let room = self.requests.reserve().await.map_err(|_| ProviderError::LauncherGone)?;
        let Some(removed) = self.shared.state.stopping(uid) else { return Ok(()) };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Stop { uid: uid.to_owned(), grace_ms: grace_ms.min(1 << 40) };
        let bytes = wire::encode(&request, 0).map_err(doing("ask the launcher"))?;
        room.send(Outgoing { bytes, fds: vec![] });
        removed.await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Sandbox>, ProviderError> {
        Ok(self.shared.state.list())
    }

    fn events(&self) -> broadcast::Receiver<Sandbox> {
        self.shared.state.events()
    }
}

#[async_trait]
impl Access for ProcessProvider {
    async fn logs(&self, uid: &str, container: &str, options: LogOptions) -> Result<LogStream, ProviderError> {
        let log = self.shared.state.log(uid, container);
        let log = log.ok_or_else(|| ProviderError::NotFound { uid: uid.to_owned() })?;
        Ok(log.read(options).await)
    }

    async fn attach(&self, uid: &str, container: &str) -> Result<OutputStream, ProviderError> {
        self.follow(uid, container)
    }

    async fn exec(
        &self,
        uid: &str,
        container: &str,
        command: crate::access::Command,
    ) -> Result<Session, ProviderError> {
        self.visit(uid, container, command).await
    }

    async fn connect(&self, uid: &str, port: u16) -> Result<Connection, ProviderError> {
        self.reach(uid, port).await
    }
}

/// Forgets what earlier sandboxes left, and unpacks the runtimes.
fn prepare(data_dir: &Path, sandboxes: &Path) -> io::Result<PathBuf> {
    match std::fs::remove_dir_all(sandboxes) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::fs::create_dir_all(sandboxes)?;
    assets::unpack(data_dir)
}

fn start_message(config: &ProcessConfig, assets: PathBuf) -> Start {
    let v4 = |address: &SocketAddr| match address {
        SocketAddr::V4(v4) => Some(*v4),
        SocketAddr::V6(_) => None,
    };
    let resolver = |address: &IpAddr| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    };
    Start {
        data_dir: config.data_dir.clone(),
        assets,
        python: config.python.clone(),
        pod_cidr: config.pod_cidr,
        uid_base: config.uid_base,
        allow: config.egress.allow.iter().filter_map(v4).collect(),
        dns: config.egress.dns.iter().filter_map(resolver).collect(),
    }
}

fn doing(action: impl Into<String>) -> impl FnOnce(io::Error) -> ProviderError {
    |source| ProviderError::Io { action: action.into(), source }
}

fn refused(uid: &str, refusal: Refusal) -> ProviderError {
    match refusal {
        Refusal::Unsupported { reason } => ProviderError::Unsupported { reason },
        Refusal::Invalid { reason } => ProviderError::Invalid { uid: uid.to_owned(), reason },
        Refusal::NotRunning => ProviderError::NotRunning { uid: uid.to_owned(), what: "a container".to_owned() },
        Refusal::Exhausted { what: Resource::Sandboxes } => ProviderError::Exhausted { what: "sandboxes" },
        Refusal::Exhausted { what: Resource::Descriptors } => ProviderError::Exhausted { what: "file descriptors" },
        Refusal::Failed { action, text, .. } => ProviderError::Io { action, source: io::Error::other(text) },
    }
}

#[allow(unsafe_code, reason = "registering a descriptor asks for a promise about its owner")]
fn nonblocking(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, which is after its registration.
    unsafe { AsyncFd::register(socket) }.map_err(Into::into)
}

async fn send(socket: &AsyncFd<OwnedFd>, message: &Outgoing) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let raw: Vec<_> = message.fds.iter().map(|fd| fd.as_raw_fd()).collect();
    socket.async_io(Interest::WRITABLE, |fd| wire::send_now(fd, &message.bytes, &raw)).await
}

async fn receive(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
    socket.async_io(Interest::READABLE, |fd| wire::receive::<Report>(fd, buffer)).await
}

/// Sends requests to the launcher, in order.
async fn write(socket: Arc<AsyncFd<OwnedFd>>, mut outgoing: mpsc::Receiver<Outgoing>, gone: CancellationToken) {
    while let Some(Some(message)) = gone.run_until_cancelled(outgoing.recv()).await {
        // Its end is noticed by the reader.
        if let Some(Err(e)) = gone.run_until_cancelled(send(&socket, &message)).await {
            tracing::debug!(error = %e, "a request did not reach the launcher");
        }
    }
}

/// Takes note of everything the launcher says, until it is gone.
async fn read(shared: Arc<Shared>, socket: Arc<AsyncFd<OwnedFd>>) {
    let mut buffer = vec![0; MESSAGE_BYTES];
    loop {
        match shared.gone.run_until_cancelled(receive(&socket, &mut buffer)).await {
            Some(Ok(Some((report, fds)))) => shared.note(report, fds),
            Some(Ok(None)) => break,
            Some(Err(e)) => {
                tracing::warn!(error = %e, "the launcher cannot be understood");
                break;
            }
            None => break,
        }
    }
    shared.gone.cancel();
    shared.state.lose_all();
    shared.visits.lose_all();
}

impl Shared {
    fn note(&self, report: Report, fds: Vec<OwnedFd>) {
        match report {
            Report::Created { uid, address } => self.state.created(&uid, address),
            Report::Started { uid, container } => self.state.started(&uid, container),
            Report::Refused { uid, refusal } => {
                self.state.refused(&uid, refusal);
                self.forget_logs(&uid);
            }
            Report::Exited { uid, container, status, out_of_memory } => {
                self.state.exited(&uid, container, status, out_of_memory);
            }
            Report::Stopped { uid } => {
                self.state.stopped(&uid);
                self.forget_logs(&uid);
            }
            Report::Permitted { address } => {
                self.permitted.send_if_modified(|all| all.insert(address));
            }
            Report::Entered { visit } => self.visits.entered(visit, Ok(fds)),
            Report::NotEntered { visit, refusal } => self.visits.entered(visit, Err(refusal)),
            Report::Left { visit, status } => self.visits.left(visit, status),
            Report::Notice { text } => tracing::warn!("{text}"),
            Report::Hello(_) | Report::Failed { .. } => {}
        }
    }

    /// Removes the output of a sandbox that is no more.
    fn forget_logs(&self, uid: &str) {
        if self.state.contains(uid) {
            return;
        }
        // A few files; whoever is still reading one keeps it until the end.
        if let Err(e) = std::fs::remove_dir_all(self.folder.join(uid))
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(uid, error = %e, "the output of a sandbox was not removed");
        }
    }
}
