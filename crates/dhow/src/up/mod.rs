//! `dhow up`: the whole platform in one process, built from its rooms, ready, drained.
//!
//! Owns: the order of start and stop, and every connection between rooms. Must not know: what any room decides.

mod bootstrap;
mod credentials;
mod images;
mod listeners;
mod settings;
mod storage;
mod visits;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use api::wire::Endpoints;
use apiserver::{ApiServer, ObjectStore};
use daemon::{OnExit, Supervisor};
use gateway::Gateway;
use prometheus_client::registry::Registry as Metrics;
use runtime::{ProcessProvider, Provider};
use tokio::sync::mpsc;

pub use credentials::bearer;
use settings::Settings;

/// Stopped in this order; each gets the time its slowest task may need.
const GATEWAY: &str = "gateway";
const CONTROL: &str = "control";
const NODE: &str = "node";
const API: &str = "api";
/// For requests in flight when the platform stops.
pub const GATEWAY_GRACE: Duration = Duration::from_secs(30);
const PHASES: [(&str, Duration); 4] = [
    (GATEWAY, Duration::from_secs(32)),
    (CONTROL, Duration::from_secs(5)),
    (NODE, Duration::from_secs(12)),
    (API, Duration::from_secs(6)),
];
/// Messages between gateway and autoscaler; pokes are repeated, so one that finds it full is not lost.
pub const POKES: usize = 4096;

pub async fn run(args: &cli::UpArgs) -> Result<()> {
    let settings = Settings::from_args(args)?;
    if args.print_config {
        println!("{}", settings.to_json());
        return Ok(());
    }
    daemon::telemetry::init_logs(&std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
    let files = daemon::files::open_many().context("raising the limit of open files")?;
    tracing::debug!(files, "files and connections may be open");
    daemon::files::create_private_dir(&settings.data_dir)?;
    let store = open_store(&settings.data_dir)?;
    daemon::files::remove_if_present(&settings.endpoints_file())?;
    let result = serve(&settings, &store).await;
    let closed = store.close().await.context("closing the store");
    result.and(closed)
}

/// Creates the folder first, so that a folder in use is found before anything in it is touched.
fn open_store(data_dir: &Path) -> Result<ObjectStore> {
    Ok(ObjectStore::open(&crate::data::file(data_dir), apiserver::index, store::Options::default())?)
}

/// Everything between an open store and a stopped platform.
async fn serve(settings: &Settings, store: &ObjectStore) -> Result<()> {
    let bound = listeners::Bound::bind(settings).await?;
    let provider = Arc::new(ProcessProvider::start(settings.provider()?).await.context("starting the launcher")?);
    report_isolation(provider.as_ref());
    let result = run_rooms(settings, store, bound, &provider).await;
    provider.shutdown().await;
    result
}

/// The same words as on the Node object and in `dhow status`.
fn report_isolation(provider: &ProcessProvider) {
    for missing in provider.capabilities().missing_isolation {
        tracing::warn!("isolation is incomplete: {missing}");
    }
}

async fn run_rooms(
    settings: &Settings,
    store: &ObjectStore,
    bound: listeners::Bound,
    provider: &Arc<ProcessProvider>,
) -> Result<()> {
    let mut metrics = Metrics::default();
    metrics.register_collector(Box::new(storage::Counting(store.clone())));
    let gateway = Gateway::bind(settings.gateway(provider.host_address()), &mut metrics)
        .map_err(|error| settings::with_flag(error, settings))?;
    let endpoints = endpoints(&bound, &gateway, provider);
    if let Some(internal) = gateway.addresses().internal {
        provider.permit(internal).await.context("opening the gateway to instances")?;
    }
    let registry = registry::Registry::open(&settings.data_dir.join("registry"))?;
    let feed = gateway.feed();
    let mut synced = feed.synced();
    let traffic = Arc::new(feed.clone());
    let started = Arc::new(move |started| feed.started(&started));
    let node = settings.node(&endpoints.registry, registry.clone(), provider.clone(), started, traffic);
    let node = node::Node::new(node);
    let mut tasks = Supervisor::new(&PHASES);
    let token = credentials::token(&settings.data_dir)?;
    let mut config = apiserver::Config::new(settings.clock.clone());
    config.tokens = vec![(token.clone(), credentials::administrator())];
    config.node_proxy = Some(node.kubelet_service());
    config.stop = tasks.token(API);
    let api = ApiServer::new(store.clone(), config)?;
    metrics.register_collector(Box::new(visits::Visits(api.clone())));
    let client = api.client("default");

    let (to_autoscaler, from_gateways) = mpsc::channel(POKES);
    let tags = Arc::new(images::BuiltIn { registry: registry.clone(), host: endpoints.registry.clone() });
    let controllers = settings.control(gateway.addresses(), tags);
    let builds = settings.build(&endpoints.registry, provider.host_address());
    let builder = build::run(client.clone(), registry.clone(), provider.clone(), builds, tasks.token(CONTROL));
    let control =
        control::run(client.clone(), controllers, control::Duty::Standalone(from_gateways), tasks.token(CONTROL));
    let for_node = client.clone();
    let (for_gateway, stopping) = (client.clone(), tasks.token(GATEWAY));
    tasks.spawn(GATEWAY, "gateway", OnExit::ShutDown, |_| gateway.run(for_gateway, to_autoscaler, stopping));
    tasks.spawn(CONTROL, "controllers", OnExit::ShutDown, |_| control);
    tasks.spawn(CONTROL, "build worker", OnExit::ShutDown, |_| builder);
    tasks.spawn(NODE, "node", OnExit::ShutDown, |token| async move { node.run(for_node, token).await });
    let authority = bound.counted(&mut metrics).serve(&mut tasks, settings, &api, &registry, &token, metrics)?;
    let housekeeping = bootstrap::keep_house(registry, client.clone(), settings.clone());
    tasks.spawn(API, "housekeeping", OnExit::ShutDown, |token| housekeeping.run(token));

    bootstrap::publish(&client, settings, &endpoints).await?;
    // Ready means, too, that a host the gateway does not know does not exist.
    tokio::select! {
        _ = synced.wait_for(|synced| *synced) => {}
        error = tasks.failed() => return Err(error.into()),
    }
    let kubeconfig = credentials::kubeconfig(endpoints.api.parse()?, &authority, &token);
    daemon::files::write_atomically(&settings.data_dir.join("kubeconfig"), 0o600, kubeconfig.as_bytes())?;
    let text = serde_json::to_vec(&endpoints)?;
    daemon::files::write_atomically(&settings.endpoints_file(), 0o644, &text)?;
    tracing::info!(api = %endpoints.api, gateway = %endpoints.gateway, kubeconfig = %settings.data_dir.join("kubeconfig").display(), "ready");

    let result = until_stopped(&mut tasks, store, provider).await;
    tracing::info!("stopping");
    tasks.drain().await;
    api.visits_ended().await;
    result
}

fn endpoints(bound: &listeners::Bound, gateway: &Gateway, provider: &ProcessProvider) -> Endpoints {
    let addresses = gateway.addresses();
    Endpoints {
        api: bound.api.address().to_string(),
        gateway: addresses.public.to_string(),
        console: bound.console.address().to_string(),
        metrics: bound.metrics.address().to_string(),
        registry: bound.registry.address().to_string(),
        gateway_tls: addresses.secure.map(|a| a.to_string()),
        gateway_internal: addresses.internal.map(|a| a.to_string()),
        slot: provider.slot().and_then(|slot| slot.try_into().ok()),
    }
}

/// A signal is a wish; everything else is a failure.
async fn until_stopped(tasks: &mut Supervisor, store: &ObjectStore, provider: &ProcessProvider) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        error = tasks.failed() => Err(error.into()),
        error = store.failed() => Err(error).context("the store"),
        _ = provider.gone() => anyhow::bail!("the launcher ended; every instance ended with it"),
    }
}
