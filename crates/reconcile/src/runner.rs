//! A controller: a name, mappings that feed its queue, and workers that run one key each.
//!
//! No debounce and no polling: a change reaches its plan on the next free worker. On shutdown each worker
//! finishes the key in its hand.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::cache::{Cache, Change};
use crate::error::{Class, Error};
use crate::plan::Plan;
use crate::queue::{Queue, WorkKey};
use crate::view::{Key, Kind, controller_of};

/// Run the key again after this time although nothing changed; `None`: only when something changes.
pub type Requeue = Option<Duration>;

type Reconcile<Q> = Arc<dyn Fn(Q) -> BoxFuture<'static, Result<Requeue, Error>> + Send + Sync>;

/// A named controller. Build it with [`Controller::new`] or [`Controller::planned`], feed it with
/// [`Controller::watch`], then [`Controller::run`] it.
pub struct Controller<Q: WorkKey = Key> {
    name: &'static str,
    queue: Arc<Queue<Q>>,
    workers: usize,
    reconcile: Reconcile<Q>,
}

/// How many keys of one controller run at once, unless it says otherwise.
const WORKERS: usize = 4;

impl<Q: WorkKey> Controller<Q> {
    /// A controller with a free hand. `reconcile` may be called again for the same key at any time.
    pub fn new<F, R>(name: &'static str, reconcile: F) -> Self
    where
        F: Fn(Q) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Requeue, Error>> + Send + 'static,
    {
        let reconcile: Reconcile<Q> = Arc::new(move |key| reconcile(key).boxed());
        Self { name, queue: Arc::default(), workers: WORKERS, reconcile }
    }

    /// A controller that only plans: `plan` reads the caches and decides, the applier writes.
    pub fn planned<F>(name: &'static str, clock: api::Clock, applier: Applier, plan: F) -> Self
    where
        F: Fn(&Q, Timestamp) -> Plan + Send + Sync + 'static,
    {
        Self::asked(name, clock, applier, |_| std::future::ready(()), move |key, (), now| plan(key, now))
    }

    /// The same, with something that the caches do not know to be asked first. `ask` must come to an end by itself.
    pub fn asked<A, R, T, F>(name: &'static str, clock: api::Clock, applier: Applier, ask: A, plan: F) -> Self
    where
        A: Fn(&Q) -> R + Send + Sync + 'static,
        R: Future<Output = T> + Send + 'static,
        T: Send,
        F: Fn(&Q, T, Timestamp) -> Plan + Send + Sync + 'static,
    {
        let plan = Arc::new(plan);
        Self::new(name, move |key: Q| {
            let (asked, plan) = (ask(&key), plan.clone());
            let (applier, clock) = (applier.clone(), clock.clone());
            async move {
                let plan = plan(&key, asked.await, clock());
                applier.apply(&plan).await?;
                Ok(plan.requeue_after.map(|d| Duration::try_from(d).unwrap_or_default()))
            }
        })
    }

    /// Bounds how many keys run at once.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Every change of an object of `cache` runs the keys that `keys` names.
    pub fn watch<K: Kind>(self, cache: &Cache<K>, keys: impl Fn(&Change<K>) -> Vec<Q> + Send + Sync + 'static) -> Self {
        let queue = self.queue.clone();
        cache.subscribe(move |change| keys(change).into_iter().for_each(|key| queue.add(key)));
        self
    }

    /// For work that no watch tells.
    pub fn queue(&self) -> Arc<Queue<Q>> {
        self.queue.clone()
    }

    /// Works until shutdown, then finishes the keys in hand. Fails only when a reconcile panics.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut workers = JoinSet::new();
        for _ in 0..self.workers {
            workers.spawn(work(self.name, self.queue.clone(), self.reconcile.clone(), shutdown.clone()));
        }
        while let Some(ended) = workers.join_next().await {
            if ended.is_err() {
                return Err(Error::Panicked(self.name));
            }
        }
        Ok(())
    }
}

async fn work<Q: WorkKey>(name: &'static str, queue: Arc<Queue<Q>>, run: Reconcile<Q>, shutdown: CancellationToken) {
    loop {
        let key = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            key = queue.next() => key,
        };
        match run(key.clone()).await {
            Ok(again_after) => queue.done(key, again_after),
            Err(error) => {
                let class = error.class();
                let text = format!("{key:?}");
                let after = queue.failed(key);
                match class {
                    Class::Conflict | Class::NotFound => tracing::debug!(controller = name, key = text, %error, ?after),
                    _ => tracing::warn!(controller = name, key = text, %error, ?after, "will be tried again"),
                }
            }
        }
    }
}

/// The key of the changed object itself.
pub fn itself<K: Kind>(change: &Change<K>) -> Vec<Key> {
    vec![change.key.clone()]
}

/// The controller owner of the changed object, when it is of kind `P`.
pub fn owner<P: Kind, K: Kind>(change: &Change<K>) -> Vec<Key> {
    let mut keys: Vec<Key> = change
        .either()
        .filter_map(|o| controller_of(o.as_ref()))
        .filter(|o| o.kind == P::kind(&()) && o.api_version == P::api_version(&()))
        .map(|o| Key::new(&change.key.namespace, &o.name))
        .collect();
    keys.dedup();
    keys
}

/// The object of the same namespace that a label of the changed object names.
pub fn named_by_label<K: Kind>(label: &'static str) -> impl Fn(&Change<K>) -> Vec<Key> {
    move |change| {
        let mut keys: Vec<Key> = change
            .either()
            .filter_map(|o| crate::view::label(o.as_ref(), label))
            .map(|name| Key::new(&change.key.namespace, name))
            .collect();
        keys.dedup();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn retries_until_it_goes_well_and_ends_on_shutdown() {
        let runs = Arc::new(AtomicUsize::new(0));
        let shutdown = CancellationToken::new();
        let (count, end) = (runs.clone(), shutdown.clone());
        let controller = Controller::<Key>::new("test", move |_| {
            let (count, end) = (count.clone(), end.clone());
            async move {
                match count.fetch_add(1, Ordering::SeqCst) {
                    0..3 => Err(Error::Retry("not yet".into())),
                    3 => Ok(Some(Duration::from_secs(5))),
                    _ => {
                        end.cancel();
                        Ok(None)
                    }
                }
            }
        });
        controller.queue().add(Key::new("n", "a"));
        controller.run(shutdown).await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 5);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let controller = Controller::<Key>::new("test", |_| async { panic!("by the test") });
        controller.queue().add(Key::new("n", "a"));
        let result = controller.workers(1).run(CancellationToken::new()).await;
        assert!(matches!(result, Err(Error::Panicked("test"))));
    }
}
