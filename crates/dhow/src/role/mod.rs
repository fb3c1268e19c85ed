//! `dhow role`: one part of the platform as a process of its own, on a cluster.
//!
//! Owns: what every role has (a client, metrics, health, a supervisor), and the connections between a role's rooms.
//! Must not know: what any room decides. The surprise: a copy that waits to lead is ready too, or a roll-out of two
//! copies would never end.

mod builder;
mod gateway;
mod leaders;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::listener::{Limits, Listener};
use daemon::readiness::Readiness;
use daemon::{OnExit, Supervisor, telemetry};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use prometheus_client::registry::Registry as Metrics;
use reconcile::lease::{Candidate, Timing};

/// Stopped in this order. Metrics are served to the end, so that a draining role can still be watched.
const GATEWAY: &str = "gateway";
const WORK: &str = "work";
const HEALTH: &str = "health";
const PHASES: [(&str, Duration); 3] = [
    (GATEWAY, Duration::from_secs(super::up::GATEWAY_GRACE.as_secs() + 2)),
    (WORK, Duration::from_secs(8)),
    (HEALTH, Duration::from_secs(2)),
];

/// The port of the gateways' Service that leads to TLS.
const HTTPS: u16 = 443;

/// What every role has.
struct Process {
    common: cli::roles::CommonArgs,
    client: Client,
    clock: api::Clock,
    metrics: Metrics,
    readiness: Readiness,
    tasks: Supervisor,
}

pub async fn run(args: &cli::roles::RoleArgs, kubeconfig: Option<&Path>) -> Result<()> {
    telemetry::init_logs(&std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
    daemon::files::open_many().context("raising the limit of open files")?;
    // Before anything waits for the API server, so that health can be asked.
    let health = Listener::bind(&args.common.metrics_listen.to_string(), "--metrics-listen").await?;
    let mut process = Process {
        common: args.common.clone(),
        client: client(kubeconfig).await?,
        clock: daemon::system_clock(),
        metrics: Metrics::default(),
        readiness: Readiness::default(),
        tasks: Supervisor::new(&PHASES),
    };
    match &args.role {
        cli::roles::Role::Controller(args) => leaders::controller(&mut process, args)?,
        cli::roles::Role::Autoscaler(args) => leaders::autoscaler(&mut process, args).await?,
        cli::roles::Role::Gateway(args) => gateway::start(&mut process, args)?,
        cli::roles::Role::Builder(args) => builder::start(&mut process, args).await?,
    }
    process.until_stopped(health).await
}

/// The cluster this runs in, or the one that a kubeconfig names.
async fn client(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no cluster: run this in a pod, or name a --kubeconfig")?,
    };
    Ok(Client::try_from(config)?)
}

impl Process {
    /// One of the copies of this role, reached at `port`.
    fn candidate(&self, lease: &str, port: u16) -> Candidate {
        Candidate {
            client: self.client.clone(),
            namespace: self.common.pod_namespace.clone(),
            lease: lease.to_owned(),
            identity: format!("{}@{}", self.common.pod_name, std::net::SocketAddr::new(self.common.pod_ip, port)),
            timing: Timing::default(),
            clock: self.clock.clone(),
        }
    }

    async fn until_stopped(mut self, health: Listener) -> Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (metrics, readiness) = (Arc::new(self.metrics), self.readiness);
        let answer = move |request| {
            let response = telemetry::answer(&metrics, &readiness, &request);
            async move { response }
        };
        self.tasks.spawn(HEALTH, "metrics listener", OnExit::ShutDown, |stop| {
            health.serve(None, Limits::default(), answer, stop)
        });
        let result = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            error = self.tasks.failed() => Err(error.into()),
        };
        tracing::info!("stopping");
        self.tasks.drain().await;
        result
    }
}

/// One of the trusted steps of a build pod, told all that it needs in one argument.
pub async fn build_step(args: &cli::roles::BuildStepArgs) -> i32 {
    telemetry::init_logs(&std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
    match args.step {
        cli::roles::BuildStep::Fetch => build::cluster::step::fetch(&args.order).await,
        cli::roles::BuildStep::Push => build::cluster::step::push(&args.order).await,
    }
}
