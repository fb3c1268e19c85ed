//! A virtual kubelet: one node of the cluster whose pods are run by Providers.
//!
//! Owns: the Node object and its lease, the status of the node's pods, their logs, and visits to them. Must not know: how a pod is
//! isolated, who made it, or who calls it. What one pod needs next is decided in `plan`, what its manifest means for a
//! Provider in `translate`. The surprise: a status that nobody waits for is written late or never, so that between the
//! birth of a pod and its first request there is one write.

mod drain;
mod environment;
mod events;
mod health;
mod images;
mod kubelet;
mod logs;
mod machine;
mod plan;
mod pods;
mod registration;
mod sources;
mod start;
mod startup;
mod status;
mod translate;
mod visit;
mod volumes;
mod worker;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::wire::{StartReport, Traffic};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use kube::Client;
use registry::Registry;
use runtime::{Limits, Provider, ProviderError};
use tokio_util::sync::CancellationToken;

pub use machine::Machine;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// What the node's API is told, as it comes.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
/// The node's own API, as the API server calls it.
pub type KubeletService = tower::util::BoxCloneSyncService<
    http::Request<RequestBody>,
    http::Response<UnsyncBoxBody<Bytes, BoxError>>,
    BoxError,
>;

/// The field manager of everything the node writes.
pub(crate) const MANAGER: &str = "dhow-node";

/// Everything that the composition root decides.
#[derive(Clone)]
pub struct Config {
    pub node_name: String,
    /// The first runs pods that name no runtime class.
    pub providers: Vec<Arc<dyn Provider>>,
    pub registry: Registry,
    /// How images name the registry, such as `127.0.0.1:5000`.
    pub registry_host: String,
    /// Where images are unpacked.
    pub cache_dir: PathBuf,
    /// The host's address, as pods and people see it.
    pub host_ip: IpAddr,
    pub machine: Machine,
    /// What a container gets where its manifest sets no limit.
    pub default_limits: Limits,
    /// Drains an instance before it is told to end.
    pub traffic: Arc<dyn Traffic>,
    /// What instances get to end by themselves when the platform stops.
    pub stop_grace: Duration,
    /// Told of every instance of a revision that becomes ready.
    pub started: StartReport,
    pub clock: api::Clock,
}

impl Config {
    pub const STOP_GRACE: Duration = Duration::from_secs(5);
    /// Memory of a container without a limit of its own: one function must not take the whole machine.
    pub const MEMORY_BYTES: u64 = 512 << 20;

    pub fn default_limits() -> Limits {
        Limits { memory_bytes: Some(Self::MEMORY_BYTES), ..Limits::default() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("node {node} could not be registered: {source}")]
    Register {
        node: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("instances of an earlier run could not be removed: {0}")]
    Sweep(#[source] ProviderError),
    #[error("the provider of pods failed: {0}")]
    Provider(#[from] ProviderError),
    #[error("a task of the node ended without a result: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A node that is about to run, or runs.
pub struct Node {
    config: Arc<Config>,
    directory: Arc<logs::Directory>,
}

impl Node {
    pub fn new(config: Config) -> Self {
        Self { config: Arc::new(config), directory: Arc::default() }
    }

    /// Answers for the pods of this node: their logs, and visits to them.
    pub fn kubelet_service(&self) -> KubeletService {
        kubelet::service(self.directory.clone(), self.config.clock.clone())
    }

    /// Registers, runs every pod bound to this node, and stops them all at shutdown. An error means that the node
    /// cannot go on; nothing of it is left running then either, as far as the Providers still answer.
    pub async fn run(&self, client: Client, shutdown: CancellationToken) -> Result<(), NodeError> {
        pods::sweep(&self.config.providers, Duration::ZERO).await.map_err(NodeError::Sweep)?;
        let registration = registration::Registration::new(client.clone(), self.config.clone());
        tokio::select! {
            registered = registration.register() => registered?,
            () = shutdown.cancelled() => return Ok(()),
        }
        tracing::info!(node = self.config.node_name, "the node is registered");
        let stop = shutdown.child_token();
        let beating = registration.keep(stop.clone());
        let running = pods::run(client, self.config.clone(), self.directory.clone(), stop.clone());
        let ended = async {
            let ended = running.await;
            stop.cancel();
            ended
        };
        let ((), ended) = tokio::join!(beating, ended);
        let swept = pods::sweep(&self.config.providers, self.config.stop_grace).await;
        registration.leave().await;
        ended.and(swept.map_err(NodeError::Provider))
    }
}
