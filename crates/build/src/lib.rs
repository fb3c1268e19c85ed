//! The build worker: a Build's source becomes an image in the registry. On a cluster, [`cluster`] does it in Jobs.
//!
//! Owns: unpacking sources, installing packages in a sandbox, the proxy those sandboxes reach the world through, and
//! the status of Builds. Must not know: Functions, how images are run, who asked. The surprise: installing runs the
//! author's code, so what comes out of a sandbox is trusted no more than what goes in.

pub mod cluster;
mod egress;
mod layers;
mod plan;
mod source;
mod status;
mod step;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::build::{Build, BuildStatus};
use kube::Client;
use reconcile::{Applier, Cache, Caches, Class, Controller, Plan, Requeue};
use registry::image::ImageError;
use registry::{Registry, RegistryError};
use runtime::{Provider, ProviderError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::egress::Egress;
use self::worker::Worker;

#[derive(Clone)]
pub struct Config {
    /// The folder of this room, below the provider's data directory, reached through no link.
    pub work_dir: PathBuf,
    /// How images name the registry, such as `127.0.0.1:5000`.
    pub registry_host: String,
    /// Where the builds' proxy listens: the host's address as sandboxes see it, or loopback where they share the host's
    /// network. Port 0 picks a free one.
    pub proxy_listen: SocketAddr,
    /// What builds may reach, port 443 only.
    pub allowed_hosts: Vec<String>,
    /// Of an uploaded archive; four times as much may come out of it.
    pub max_source_bytes: u64,
    /// How long installing may take.
    pub timeout: Duration,
    /// Builds at once; in one namespace there is only ever one.
    pub concurrency: usize,
    pub clock: api::Clock,
}

impl Config {
    pub const MAX_SOURCE_BYTES: u64 = 256 << 20;
    pub const TIMEOUT: Duration = Duration::from_secs(300);
    pub const CONCURRENCY: usize = 2;

    /// The hosts that pip and npm install from.
    pub fn package_hosts() -> Vec<String> {
        ["pypi.org", "files.pythonhosted.org", "registry.npmjs.org"].map(str::to_owned).into()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{path}: {source}", path = .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the builds' proxy cannot listen on {address}: {source}")]
    Proxy {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Remote(#[from] registry::remote::RemoteError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("builds: {0}")]
    Controller(#[from] reconcile::Error),
    #[error("a task of the build worker ended without a result: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the platform is stopping")]
    Interrupted,
}

impl BuildError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Builds every Build there is until shutdown; one that is under way then is cut off, and done again at the next start.
pub async fn run(
    client: Client,
    registry: Registry,
    provider: Arc<dyn Provider>,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), BuildError> {
    let address = config.proxy_listen;
    let listening = |source| BuildError::Proxy { address, source };
    let egress = Egress::bind(address, &config.allowed_hosts).await.map_err(listening)?;
    let proxy = egress.address().map_err(listening)?;
    let caches = Caches::builder().kind::<Build>(&[]).build();
    let applier = Applier::new(client.clone(), "build", caches.clone());
    let (concurrency, clock) = (config.concurrency, config.clock.clone());
    let worker = Arc::new(Worker::new(registry, provider, config, proxy));
    worker.clear().await?;

    // What serves the builds ends after them.
    let serving = CancellationToken::new();
    let _stop_serving = serving.clone().drop_guard();
    let mut servers = JoinSet::new();
    servers.spawn(egress.run(serving.clone()));
    let watching = caches.clone();
    servers.spawn({
        let serving = serving.clone();
        async move { watching.run(client, serving).await }
    });

    let builds = Builds { cache: caches.of::<Build>(), applier, worker, clock, shutdown: shutdown.clone() };
    let controller = builds.controller(concurrency);
    let ended = controller.run(shutdown).await;
    serving.cancel();
    while servers.join_next().await.is_some() {}
    Ok(ended?)
}

/// The Builds of the cluster, a namespace at a time.
#[derive(Clone)]
struct Builds {
    cache: Arc<Cache<Build>>,
    applier: Applier,
    worker: Arc<Worker>,
    clock: api::Clock,
    shutdown: CancellationToken,
}

impl Builds {
    /// Its keys are namespaces, so that a tenant's builds wait for one another and not for another tenant's.
    fn controller(self, concurrency: usize) -> Controller<String> {
        let cache = self.cache.clone();
        let controller = Controller::new("build", move |namespace: String| {
            let builds = self.clone();
            async move { builds.work(&namespace).await }
        });
        controller.workers(concurrency).watch(&cache, |change| match &change.new {
            Some(build) if status::is_pending(build) => vec![change.key.namespace.clone()],
            _ => vec![],
        })
    }

    async fn work(&self, namespace: &str) -> Result<Requeue, reconcile::Error> {
        let mut pending = self.cache.filter(namespace, status::is_pending);
        pending.sort_by_key(|build| build.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let mut ended = Ok(None);
        for build in pending {
            if self.shutdown.is_cancelled() {
                break;
            }
            // One that fails for our own reasons must not keep the others waiting.
            if let Err(error) = self.work_on(&build).await {
                ended = Err(error);
            }
        }
        ended
    }

    async fn work_on(&self, build: &Build) -> Result<(), reconcile::Error> {
        let name = build.metadata.name.as_deref().unwrap_or_default();
        let namespace = build.metadata.namespace.as_deref().unwrap_or_default();
        if self.cache.get(namespace, name).is_none() {
            return Ok(());
        }
        tracing::info!(namespace, build = name, "building");
        self.write(build, status::running(build, self.now())).await?;
        match self.worker.build(build, &self.shutdown).await {
            Ok(outcome) => {
                let result = outcome.result.as_ref().map_err(|refusal| refusal.reason);
                tracing::info!(namespace, build = name, ?result, "built");
                self.write(build, status::ended(build, &outcome, self.now())).await
            }
            Err(BuildError::Interrupted) => Ok(()),
            Err(error) => {
                self.write(build, status::failed_here(build, &error.to_string(), self.now())).await?;
                Err(reconcile::Error::Retry(format!("build {namespace}/{name}: {error}")))
            }
        }
    }

    async fn write(&self, build: &Build, status: BuildStatus) -> Result<(), reconcile::Error> {
        // The cache holds what we wrote last; a Build that is gone needs no status.
        let key = reconcile::Key::of(build);
        let Some(current) = self.cache.get(&key.namespace, &key.name) else { return Ok(()) };
        let mut plan = Plan::default();
        plan.status(current.as_ref(), &status, self.now());
        match self.applier.apply(&plan).await {
            Err(error) if error.class() == Class::NotFound => Ok(()),
            ended => ended,
        }
    }

    fn now(&self) -> jiff::Timestamp {
        (self.clock)()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BuildError> {
    Ok(tokio::task::spawn_blocking(work).await?)
}
