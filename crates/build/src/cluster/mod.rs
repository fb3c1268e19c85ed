//! Builds on a cluster: each in a Job of its own, none of them in this process.
//!
//! Owns the Jobs of builds in the system namespace, the network policy around them, and the status of Builds. Must not
//! run anything of an author's: it reads sources to plan, and everything else happens in pods. The surprise: the Jobs lie
//! in another namespace than their Builds, where the owner of one cannot be the other, so this controller removes them.

mod children;
mod image;
mod plan;
#[cfg(test)]
mod pods;
mod prepare;
mod report;
mod result;
mod status;
pub mod step;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::build::Build;
use api::function::Runtime;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule};
use kube::Client;
use reconcile::{Applier, Cache, Caches, Controller, Key, Kind, Plan, Requeue, View};
use registry::remote::{Location, Prefix, Remote, RemoteConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::BuildError;
use crate::egress::Egress;

#[derive(Clone)]
pub struct ClusterConfig {
    /// Where the Jobs run: Dhow's own namespace.
    pub namespace: String,
    /// A folder for sources that are looked at.
    pub work_dir: PathBuf,
    /// The image of this program, for the steps before and after a build.
    pub image: String,
    /// Below it lie all repositories: `host[:port][/path]`.
    pub registry: Prefix,
    /// What nodes call it, where that is something else.
    pub registry_for_nodes: Option<String>,
    /// How this process reaches it. The pods take `insecure` from here, and the rest from the two objects below.
    pub remote: RemoteConfig,
    /// A Secret of type `kubernetes.io/dockerconfigjson` in that namespace.
    pub secret: Option<String>,
    /// A ConfigMap in that namespace and its key that holds the registry's authority.
    pub authority: Option<(String, String)>,
    /// Secrets by which nodes pull this program's image and the bases.
    pub pull_secrets: Vec<String>,
    pub python: BaseImage,
    pub node: BaseImage,
    /// The way out for builds that this process offers, by name instead of by address.
    pub proxy: Option<Proxy>,
    /// Variables of every build, such as `PIP_INDEX_URL`; authors can read them.
    pub build_env: Vec<(String, String)>,
    /// Where build pods may connect to, DNS apart: the registry, and the proxy or package indexes.
    pub egress: Vec<NetworkPolicyEgressRule>,
    pub cpu: String,
    pub memory_bytes: u64,
    pub runtime_class: Option<String>,
    /// Of an uploaded archive; four times as much may come out of it.
    pub max_source_bytes: u64,
    /// How long installing may take.
    pub timeout: Duration,
    /// Builds at once, in all and in one namespace.
    pub concurrency: usize,
    pub per_namespace: usize,
    /// How long a Job that has ended can be looked at.
    pub keep_jobs: Duration,
    pub clock: api::Clock,
}

/// What functions of a runtime are built upon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseImage {
    pub image: String,
    /// Where its interpreter is; by the image's label or its PATH when absent.
    pub interpreter: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    pub listen: SocketAddr,
    /// How pods reach it, such as `http://dhow-builder.dhow-system:3128`.
    pub url: String,
    /// What may be reached through it, port 443 only.
    pub hosts: Vec<String>,
}

impl ClusterConfig {
    pub const CPU: &str = "1";
    pub const MEMORY_BYTES: u64 = 1 << 30;
    pub const CONCURRENCY: usize = 10;
    pub const PER_NAMESPACE: usize = 2;
    pub const KEEP_JOBS: Duration = Duration::from_secs(600);

    /// Out to the world on port 443, and to no private, local or shared address.
    pub fn public_egress() -> Vec<NetworkPolicyEgressRule> {
        let private =
            ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"];
        let rule = serde_json::json!({
            "ports": [{"port": 443, "protocol": "TCP"}],
            "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": private}}],
        });
        vec![serde_json::from_value(rule).expect("what is written here is a rule")]
    }

    fn base(&self, runtime: Runtime) -> &BaseImage {
        match runtime {
            Runtime::Python => &self.python,
            Runtime::Node => &self.node,
        }
    }

    fn location(&self, repository: &str) -> Location {
        self.registry.location(repository)
    }

    /// A name in our registry, as nodes have to say it.
    fn for_nodes(&self, name: &str) -> String {
        let ours = self.registry.to_string();
        let rest = name.strip_prefix(&ours).filter(|rest| rest.starts_with('/'));
        match (&self.registry_for_nodes, rest) {
            (Some(theirs), Some(rest)) => format!("{theirs}{rest}"),
            _ => name.to_owned(),
        }
    }

    fn image_name(&self, repository: &str) -> String {
        self.for_nodes(&self.location(repository).to_string())
    }
}

/// Builds every Build there is until shutdown. Builds that are under way then go on in their pods. One process at a time.
pub async fn run(client: Client, config: ClusterConfig, shutdown: CancellationToken) -> Result<(), BuildError> {
    let remote = Remote::new(&config.remote)?;
    clear(&config).await?;
    let selector = children::selector();
    let caches = Caches::builder()
        .kind::<Build>(&[])
        .with(Cache::<Job>::new(&[]).only(&config.namespace, &selector))
        .with(Cache::<Pod>::new(&[]).only(&config.namespace, &selector))
        .with(Cache::<NetworkPolicy>::new(&[]).only(&config.namespace, &selector))
        .build();
    let applier = Applier::new(client.clone(), "build", caches.clone());

    // What serves the builds ends after them.
    let serving = CancellationToken::new();
    let _stop_serving = serving.clone().drop_guard();
    let mut servers = JoinSet::new();
    if let Some(proxy) = &config.proxy {
        let listening = |source| BuildError::Proxy { address: proxy.listen, source };
        let egress = Egress::bind(proxy.listen, &proxy.hosts).await.map_err(listening)?;
        servers.spawn(egress.run(serving.clone()));
    }
    let watching = (caches.clone(), serving.clone());
    servers.spawn(async move { watching.0.run(client, watching.1).await });
    // A Job that is there and not known yet would be made again, and a place that is taken be given away.
    tokio::select! {
        () = caches.synced() => {}
        () = shutdown.cancelled() => return Ok(()),
    }

    let policy = policy(&config, &caches, applier.clone());
    let builds = Builds { caches, applier, remote, config: Arc::new(config), shutdown: shutdown.clone() };
    let (builds, policy) = tokio::join!(builds.controller().run(shutdown.clone()), policy.run(shutdown));
    serving.cancel();
    while servers.join_next().await.is_some() {}
    builds.and(policy)?;
    Ok(())
}

/// Sources that a process was looking at when it ended.
async fn clear(config: &ClusterConfig) -> Result<(), BuildError> {
    let folder = config.work_dir.clone();
    let made = crate::blocking(move || {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(BuildError::io(&folder)(error)),
            _ => {}
        }
        std::fs::create_dir_all(&folder).map_err(BuildError::io(&folder))
    });
    made.await?
}

/// Keeps the one policy as it should be.
fn policy(config: &ClusterConfig, caches: &Caches, applier: Applier) -> Controller<Key> {
    let wanted = children::network_policy(config);
    let (key, view) = (Key::of(&wanted), caches.clone());
    let controller = Controller::planned("build-policy", config.clock.clone(), applier, move |key: &Key, _| {
        let mut plan = Plan::default();
        plan.apply(view.get::<NetworkPolicy>(&key.namespace, &key.name).as_deref(), &wanted);
        plan
    });
    controller.queue().add(key.clone());
    controller
        .workers(1)
        .watch(&caches.of::<NetworkPolicy>(), move |change| if change.key == key { vec![key.clone()] } else { vec![] })
}

#[derive(Clone)]
struct Builds {
    caches: Caches,
    applier: Applier,
    remote: Remote,
    config: Arc<ClusterConfig>,
    shutdown: CancellationToken,
}

/// Sources that are looked at at the same time.
const WORKERS: usize = 4;

impl Builds {
    fn controller(self) -> Controller<Key> {
        fn of_build<K: Kind>(change: &reconcile::Change<K>) -> Vec<Key> {
            change.either().filter_map(|object| children::build_of(object.as_ref())).take(1).collect()
        }
        let caches = self.caches.clone();
        let controller = Controller::new("build", move |key: Key| {
            let builds = self.clone();
            async move { builds.work(&key).await }
        });
        controller
            .workers(WORKERS)
            .watch(&caches.of::<Build>(), reconcile::runner::itself)
            .watch(&caches.of::<Job>(), of_build)
            .watch(&caches.of::<Pod>(), of_build)
    }

    async fn work(&self, key: &Key) -> Result<Requeue, reconcile::Error> {
        let mut inputs = plan::gather(&self.caches, key, &self.config);
        let mut decision = plan::decide(&inputs, &self.config, (self.config.clock)());
        if decision.prepare
            && let Some(build) = inputs.build.clone()
        {
            self.applier.apply(&decision.plan).await?;
            let prepared = tokio::select! {
                prepared = prepare::prepare(&self.remote, &self.config, &build) => prepared,
                () = self.shutdown.cancelled() => return Ok(None),
            };
            // The world went on meanwhile.
            inputs = plan::gather(&self.caches, key, &self.config);
            inputs.prepared = Some(prepared);
            decision = plan::decide(&inputs, &self.config, (self.config.clock)());
        }
        self.applier.apply(&decision.plan).await?;
        if let Some(prepare::Prepared::Failed(error)) = inputs.prepared {
            return Err(reconcile::Error::Retry(format!("build {key}: {error}")));
        }
        Ok(decision.plan.requeue_after.map(|after| Duration::try_from(after).unwrap_or_default()))
    }
}
