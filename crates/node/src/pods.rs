//! Every pod bound to this node gets a worker, and every worker its news.
//!
//! Owns the watch of pods, the listening to Providers, and the workers' lives. News are the newest state, never a
//! queue: a worker that was busy sees what is, not what was.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::build::SANDBOX_PREFIX;
use futures::{StreamExt, future::join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use runtime::{Provider, ProviderError, Sandbox};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::images::Images;
use crate::logs::Directory;
use crate::start::Shared;
use crate::worker::Worker;
use crate::{Config, NodeError, events};

/// What a worker is told.
#[derive(Clone)]
pub struct News {
    pub pod: Arc<Pod>,
    /// It is not in the API any more; `pod` is how it was last seen.
    pub gone: bool,
    pub sandbox: Option<Sandbox>,
}

/// The workers, by the uid of their pod.
#[derive(Default)]
struct Workers {
    news: Mutex<HashMap<String, watch::Sender<News>>>,
}

impl Workers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<News>>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, sandbox: Sandbox) {
        if let Some(worker) = self.lock().get(&sandbox.uid) {
            worker.send_modify(|news| news.sandbox = Some(sandbox));
        }
    }
}

/// Stops everything that the Providers have, except what builds are doing: no pod knows it.
pub async fn sweep(providers: &[Arc<dyn Provider>], grace: Duration) -> Result<(), ProviderError> {
    for provider in providers {
        let left = provider.list().await?.into_iter().filter(|s| !s.uid.starts_with(SANDBOX_PREFIX));
        let stops = left.map(|sandbox| async move { provider.stop(&sandbox.uid, grace).await });
        for stopped in join_all(stops).await {
            stopped?;
        }
    }
    Ok(())
}

/// Runs the node's pods until shutdown; then the workers end at once and leave the sandboxes to [`sweep`].
pub async fn run(
    client: Client,
    config: Arc<Config>,
    directory: Arc<Directory>,
    shutdown: CancellationToken,
) -> Result<(), NodeError> {
    let (recorder, teller) = events::recorder(client.clone(), config.node_name.clone());
    let (fatal, mut failure) = mpsc::channel(1);
    let shared = Arc::new(Shared {
        images: Images::new(config.registry.clone(), config.cache_dir.clone()),
        classes: config.providers.iter().map(|p| p.capabilities().runtime_class).collect(),
        client: client.clone(),
        config: config.clone(),
        directory,
        recorder,
        fatal,
    });
    let workers = Arc::new(Workers::default());
    let mut listeners = JoinSet::new();
    for provider in &config.providers {
        listeners.spawn(listen(provider.clone(), workers.clone()));
    }
    listeners.spawn(teller.run(shutdown.clone()));
    let mut pods = Pods { shared, workers, tasks: JoinSet::new(), listed: HashSet::new() };
    let bound = watcher::Config::default().fields(&format!("spec.nodeName={}", config.node_name));
    let mut changes = watcher(Api::<Pod>::all(client), bound).default_backoff().boxed();
    let ended = loop {
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            Some(error) = failure.recv() => break Err(NodeError::Provider(error)),
            change = changes.next() => match change {
                Some(Ok(change)) => pods.take(change),
                Some(Err(error)) => tracing::warn!(%error, "the watch of pods was interrupted"),
                // A watcher never ends by itself.
                None => break Ok(()),
            },
            Some(worker) = pods.tasks.join_next() => match worker {
                Ok(uid) => drop(pods.workers.lock().remove(&uid)),
                Err(error) => break Err(NodeError::Task(error)),
            },
        }
    };
    pods.tasks.shutdown().await;
    listeners.shutdown().await;
    ended
}

/// Hands on what a Provider says of its sandboxes, as long as it lives.
async fn listen(provider: Arc<dyn Provider>, workers: Arc<Workers>) {
    let mut events = provider.events();
    loop {
        match events.recv().await {
            Ok(sandbox) => workers.tell(sandbox),
            Err(RecvError::Closed) => return,
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "the provider says more than is listened to; listing");
                match provider.list().await {
                    Ok(all) => all.into_iter().for_each(|sandbox| workers.tell(sandbox)),
                    Err(error) => tracing::warn!(%error, "the provider cannot say what it runs"),
                }
            }
        }
    }
}

struct Pods {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    /// Each returns the uid of its pod.
    tasks: JoinSet<String>,
    /// The uids of the list under way.
    listed: HashSet<String>,
}

impl Pods {
    fn take(&mut self, change: watcher::Event<Pod>) {
        match change {
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => self.gone(&uid(&pod)),
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(pod) => {
                self.listed.insert(uid(&pod));
                self.apply(pod);
            }
            watcher::Event::InitDone => {
                let known: Vec<String> = self.workers.lock().keys().cloned().collect();
                let listed = std::mem::take(&mut self.listed);
                known.iter().filter(|uid| !listed.contains(*uid)).for_each(|uid| self.gone(uid));
            }
        }
    }

    fn apply(&mut self, mut pod: Pod) {
        pod.metadata.managed_fields = None;
        let (uid, pod) = (uid(&pod), Arc::new(pod));
        let mut workers = self.workers.lock();
        if let Some(worker) = workers.get(&uid) {
            worker.send_modify(|news| news.pod = pod);
            return;
        }
        let (sender, receiver) = watch::channel(News { pod, gone: false, sandbox: None });
        workers.insert(uid.clone(), sender);
        drop(workers);
        let worker = Worker::new(self.shared.clone(), receiver);
        self.tasks.spawn(async move {
            worker.run().await;
            uid
        });
    }

    fn gone(&self, uid: &str) {
        if let Some(worker) = self.workers.lock().get(uid) {
            worker.send_modify(|news| news.gone = true);
        }
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}
