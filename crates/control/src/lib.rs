//! Every controller of Dhow, one folder each.
//!
//! Owns: the way from a Function to running instances and back to none. Must not know: other rooms; it meets them
//! at objects. Each folder has the same shape: `mod.rs` says what is watched and gathers inputs, `plan.rs` decides,
//! `children.rs` builds child objects, `tests.rs` holds the rows. The surprise: `upkeep/` holds a few of
//! Kubernetes' own controllers, started only where there is no cluster.

mod autoscaler;
mod configuration;
mod domain;
mod exposure;
#[cfg(test)]
mod fixtures;
mod function;
mod hosts;
mod ownership;
mod revision;
mod route;
mod service;
mod settings;
mod upkeep;

use std::sync::Arc;

use api::autoscaling::PodAutoscaler;
use api::build::Build;
use api::function::Function;
use api::names::{SYSTEM_NAMESPACE, label};
use api::networking::Ingress;
use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use api::serving::{Configuration, Revision, Route, Service};
use api::wire::GatewayMessage;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{self as core, ConfigMap, Namespace, Node, Pod, Secret, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use reconcile::{Applier, Cache, Caches, Controller};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use autoscaler::{Answer, receive};
pub use exposure::{Exposure, GatewayRef};
pub use revision::Tags;

/// What the controllers are told from outside.
#[derive(Clone)]
pub struct Config {
    /// The domain of public hosts: `{name}.{namespace}.{domain}`.
    pub domain: String,
    /// The port at which people reach the gateway; part of every URL unless it is 80.
    pub gateway_port: u16,
    /// The same for TLS, and 443.
    pub gateway_tls_port: u16,
    /// Dhow's own namespace, where operators put their settings.
    pub namespace: String,
    /// The node that pods are bound to where no scheduler runs.
    pub node_name: String,
    /// `None` on one machine, where Dhow's own node runs the pods.
    pub cluster: Option<Cluster>,
    /// Where tags of images are looked up; `None` leaves them to nodes.
    pub tags: Option<Arc<dyn Tags>>,
    pub clock: api::Clock,
}

/// What kubelets, and the outside world of a cluster, need to be told.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Seconds between the moment a pod is on its way out and its SIGTERM, in which every gateway learns of it.
    pub pre_stop_seconds: i64,
    /// The whole DNS name of the gateways' Service; its port 80 leads to their listener on the pods' side.
    pub gateway: String,
    /// How the outside world comes to that Service.
    pub exposure: Exposure,
    /// Secrets in each namespace of functions by which nodes pull their images.
    pub pull_secrets: Vec<String>,
}

impl Cluster {
    /// Watches are a second behind at worst; the rest is for a node that is busy.
    pub const PRE_STOP_SECONDS: i64 = 5;
    pub const GATEWAY: &str = "dhow-gateway.dhow-system.svc.cluster.local";
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("controllers: {0}")]
    Controller(#[from] reconcile::Error),
    #[error("a task of the controllers ended without a result: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the cluster has no {0}, which Dhow was told to make: install its definitions, or choose another way in")]
    NoSuchKind(String),
}

/// Which of the controllers a process runs. Gateways speak through the channel; it may close early.
pub enum Duty {
    /// All of them, and what a cluster would bring along.
    Standalone(mpsc::Receiver<GatewayMessage>),
    /// On a cluster: all but the autoscaler.
    Controllers,
    /// On a cluster: the one that hears from gateways, so that nothing else delays it.
    Autoscaler(mpsc::Receiver<GatewayMessage>),
}

/// Runs the controllers of `duty` until shutdown, then lets each finish the keys in hand.
pub async fn run(client: Client, config: Config, duty: Duty, shutdown: CancellationToken) -> Result<(), ControlError> {
    // A failure in here stops all in here, and nothing outside.
    let shutdown = shutdown.child_token();
    let exposure = config.cluster.as_ref().map(|cluster| cluster.exposure.clone());
    let caches = caches(&duty, exposure.as_ref(), &config.namespace);
    let mut controllers = vec![];
    let (mut collector, mut feed) = (None, None);
    if !matches!(duty, Duty::Autoscaler(_)) {
        if let Some(exposure) = &exposure
            && let Some(Some(kind)) = shutdown.run_until_cancelled(exposure::missing(&client, exposure)).await
        {
            return Err(ControlError::NoSuchKind(kind));
        }
        controllers.extend(serving(&client, &caches, &config));
    }
    if let Duty::Standalone(_) = duty {
        controllers.extend(upkeep(&client, &caches, &config));
        let applier = Applier::new(client.clone(), "gc", caches.clone());
        collector = Some(upkeep::gc::controller(&caches, applier, client.clone()));
    }
    let is_controllers = matches!(duty, Duty::Controllers);
    if let Duty::Standalone(from_gateways) | Duty::Autoscaler(from_gateways) = duty {
        let applier = Applier::new(client.clone(), "autoscaler", caches.clone());
        let autoscaler = autoscaler::autoscaler(&caches, applier, config.clock.clone(), config.cluster.is_some());
        feed = Some(autoscaler.feed(from_gateways, shutdown.clone()));
        controllers.push(autoscaler.controller);
    }
    // The caches outlive the controllers, which still plan from them while they finish.
    let watching = CancellationToken::new();
    let stop_watching = watching.clone().drop_guard();
    let mut tasks = JoinSet::new();
    let (reading, watch_client) = (caches.clone(), client.clone());
    let mut watches = JoinSet::new();
    watches.spawn(async move { reading.run(watch_client, watching).await });
    tokio::select! {
        () = caches.synced() => {}
        () = shutdown.cancelled() => {}
    }
    if let Some(feed) = feed {
        tasks.spawn(async move {
            feed.await;
            Ok(())
        });
    }
    if let Some(exposure) = exposure.filter(|_| is_controllers) {
        let (client, shutdown) = (client.clone(), shutdown.clone());
        tasks.spawn(async move {
            exposure::sweep(client, exposure, shutdown).await;
            Ok(())
        });
    }
    if collector.is_some() {
        let (caches, client, shutdown) = (caches.clone(), client.clone(), shutdown.clone());
        tasks.spawn(async move {
            upkeep::definitions::watch(caches, client, shutdown).await;
            Ok(())
        });
    }
    start(controllers, collector, &caches, &shutdown, &mut tasks);
    let ended = drain(&mut tasks, &shutdown).await;
    drop(stop_watching);
    while watches.join_next().await.is_some() {}
    ended
}

/// From a Function, or a Knative Service, to a Deployment and a route to it.
fn serving(client: &Client, caches: &Caches, config: &Config) -> [Controller; 7] {
    let applier = |name: &str| Applier::new(client.clone(), name, caches.clone());
    let clock = || config.clock.clone();
    let hosts = hosts::Hosts {
        domain: config.domain.clone(),
        port: config.gateway_port,
        tls_port: config.gateway_tls_port,
        cluster: config.cluster.clone(),
    };
    let settings = settings::Settings { namespace: config.namespace.clone() };
    [
        function::controller(caches, applier("function"), clock(), config.cluster.clone().map(Arc::new)),
        service::controller(caches, applier("service"), clock()),
        configuration::controller(caches, applier("configuration"), clock(), settings.clone()),
        revision::controller(caches, applier("revision"), clock(), config.cluster.clone(), config.tags.clone()),
        route::controller(caches, applier("route"), clock(), hosts.clone(), settings.clone()),
        domain::controller(caches, applier("domain"), clock(), hosts, settings.clone()),
        settings::controller(caches, applier("settings"), clock(), settings),
    ]
}

/// What a cluster would bring along, but for the collector of garbage.
fn upkeep(client: &Client, caches: &Caches, config: &Config) -> [Controller; 8] {
    let applier = |name: &str| Applier::new(client.clone(), name, caches.clone());
    let clock = || config.clock.clone();
    [
        upkeep::deployment::controller(caches, applier("deployment"), clock()),
        upkeep::replicaset::controller(caches, applier("replicaset"), clock(), config.node_name.clone()),
        upkeep::endpoints::controller(caches, applier("endpoints"), clock()),
        upkeep::accounts::controller(caches, applier("accounts"), clock()),
        upkeep::namespaces::controller(caches, applier("namespaces"), client.clone()),
        upkeep::definitions::controller(caches, applier("definitions"), client.clone()),
        upkeep::podgc::controller(caches, applier("podgc"), clock()),
        upkeep::binding::controller(caches, applier("binding"), clock(), config.node_name.clone()),
    ]
}

fn start(
    controllers: Vec<Controller>,
    collector: Option<Controller<reconcile::Target>>,
    caches: &Caches,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<Result<(), reconcile::Error>>,
) {
    for controller in controllers {
        tasks.spawn(controller.run(shutdown.clone()));
    }
    if let Some(collector) = collector {
        upkeep::gc::listen(caches, &collector);
        tasks.spawn(collector.run(shutdown.clone()));
    }
}

/// Waits for every task; the first failure stops the others.
async fn drain(
    tasks: &mut JoinSet<Result<(), reconcile::Error>>,
    shutdown: &CancellationToken,
) -> Result<(), ControlError> {
    let mut ended = Ok(());
    while let Some(task) = tasks.join_next().await {
        let result = task.map_err(ControlError::from).and_then(|r| r.map_err(ControlError::from));
        if result.is_err() && ended.is_ok() {
            ended = result;
            shutdown.cancel();
        }
    }
    ended
}

/// One shared copy of every kind that any controller of this duty reads.
fn caches(duty: &Duty, exposure: Option<&Exposure>, namespace: &str) -> Caches {
    let scaled = Caches::builder()
        .kind::<PodAutoscaler>(&[])
        .kind::<Deployment>(&[])
        .kind::<Pod>(&[label::REVISION, label::REVISION_UID]);
    if let Duty::Autoscaler(_) = duty {
        return scaled.build();
    }
    let served = scaled
        .kind::<Function>(&[])
        .kind::<Build>(&[])
        .kind::<Service>(&[])
        .kind::<Configuration>(&[])
        .kind::<Revision>(&[label::SERVICE])
        .kind::<Route>(&[])
        .kind::<DomainMapping>(&[])
        .kind::<ClusterDomainClaim>(&[])
        .kind::<Ingress>(&[])
        .kind::<core::Service>(&[]);
    let served = match exposure {
        Some(exposure) => exposure.cached(served),
        None => served,
    };
    if let Duty::Controllers = duty {
        return served.with(Cache::<ConfigMap>::new(&[]).only(namespace, "")).build();
    }
    served
        .kind::<ReplicaSet>(&[])
        .kind::<EndpointSlice>(&[])
        .kind::<Namespace>(&[])
        .with(Cache::<Node>::trimmed(&[], |n| n.status = None))
        .kind::<ServiceAccount>(&[])
        .kind::<Lease>(&[])
        .with(upkeep::definitions::cache())
        // But for operators' settings only their metadata is read, by the collector; contents may be large or secret.
        .with(Cache::<ConfigMap>::trimmed(&[], |c| {
            c.binary_data = None;
            if c.metadata.namespace.as_deref() != Some(SYSTEM_NAMESPACE) {
                c.data = None;
            }
        }))
        .with(Cache::<Secret>::trimmed(&[], |s| (s.data, s.string_data) = (None, None)))
        .build()
}
