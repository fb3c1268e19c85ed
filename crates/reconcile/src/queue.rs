//! The keyed work queue: each key once, never two runs of one key at once, failures later and later.
//!
//! Bound: one entry per distinct key, so never longer than the objects its controller watches.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The wait after the first failure; it doubles with each further one.
const BACKOFF_BASE: Duration = Duration::from_millis(5);
/// The longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Anything that can name a piece of work.
pub trait WorkKey: Clone + Debug + Eq + Hash + Ord + Send + Sync + 'static {}
impl<T: Clone + Debug + Eq + Hash + Ord + Send + Sync + 'static> WorkKey for T {}

pub struct Queue<Q = crate::Key> {
    state: Mutex<State<Q>>,
    changed: Notify,
}

struct State<Q> {
    ready: VecDeque<Q>,
    queued: HashSet<Q>,
    running: HashSet<Q>,
    /// Keys added while they ran: run again right after.
    again: HashSet<Q>,
    delayed: BTreeSet<(Instant, Q)>,
    due: HashMap<Q, Instant>,
    failures: HashMap<Q, u32>,
}

impl<Q: WorkKey> Default for Queue<Q> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            running: HashSet::new(),
            again: HashSet::new(),
            delayed: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }
}

impl<Q: WorkKey> Queue<Q> {
    /// Runs the key as soon as a worker is free.
    pub fn add(&self, key: Q) {
        if self.lock().push(key) {
            self.changed.notify_one();
        }
    }

    /// Runs the key after a while; an earlier time already set wins.
    pub fn add_after(&self, key: Q, delay: Duration) {
        self.lock().delay(key, Instant::now() + delay);
        self.changed.notify_one();
    }

    /// The next key to run; it must be given back with [`Queue::done`] or [`Queue::failed`].
    pub async fn next(&self) -> Q {
        loop {
            let changed = self.changed.notified();
            let wake_at = {
                let mut state = self.lock();
                state.ripen(Instant::now());
                if let Some(key) = state.pop() {
                    if !state.ready.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match wake_at {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// The run went well; perhaps again after a while.
    pub fn done(&self, key: Q, again_after: Option<Duration>) {
        let mut state = self.lock();
        state.failures.remove(&key);
        if let Some(delay) = again_after {
            state.delay(key.clone(), Instant::now() + delay);
        }
        state.finish(key);
        drop(state);
        self.changed.notify_one();
    }

    /// The run failed: again after a backoff, which is returned.
    pub fn failed(&self, key: Q) -> Duration {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let delay = BACKOFF_BASE.saturating_mul(1 << (*failures).min(16)).min(BACKOFF_MAX);
        *failures = failures.saturating_add(1);
        // A change that came meanwhile must not skip the wait, or a broken object would spin.
        state.again.remove(&key);
        state.delay(key.clone(), Instant::now() + delay);
        state.finish(key);
        drop(state);
        self.changed.notify_one();
        delay
    }

    /// Keys that wait, now or later.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.ready.len() + state.delayed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State<Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q: WorkKey> State<Q> {
    fn push(&mut self, key: Q) -> bool {
        if self.running.contains(&key) {
            self.again.insert(key);
            return false;
        }
        let new = self.queued.insert(key.clone());
        if new {
            self.ready.push_back(key);
        }
        new
    }

    fn delay(&mut self, key: Q, at: Instant) {
        match self.due.get(&key) {
            Some(old) if *old <= at => return,
            Some(old) => {
                self.delayed.remove(&(*old, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    fn ripen(&mut self, now: Instant) {
        while self.delayed.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.push(key);
            }
        }
    }

    fn pop(&mut self) -> Option<Q> {
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn finish(&mut self, key: Q) {
        self.running.remove(&key);
        if self.again.remove(&key) {
            self.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn now_or_never(queue: &Queue<&'static str>) -> Option<&'static str> {
        queue.next().now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_runs_once() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(now_or_never(&queue), Some("a"));
        assert_eq!(now_or_never(&queue), None);
        queue.add("a");
        assert_eq!(now_or_never(&queue), None, "it is running");
        queue.done("a", None);
        assert_eq!(now_or_never(&queue), Some("a"), "it changed while it ran");
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_delay_wins() {
        let queue = Queue::default();
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(5));
        let start = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        queue.done("a", None);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_to_a_bound_and_success_forgets() {
        let queue = Queue::default();
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            queue.add_after("a", Duration::ZERO);
            assert_eq!(queue.next().await, "a");
            last = queue.failed("a");
        }
        assert_eq!(last, BACKOFF_MAX);
        assert_eq!(queue.next().await, "a");
        queue.done("a", None);
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        assert_eq!(queue.failed("a"), BACKOFF_BASE);
    }

    #[tokio::test]
    async fn every_worker_wakes() {
        let queue = std::sync::Arc::new(Queue::default());
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        for key in ["a", "b", "c"] {
            queue.add(key);
        }
        let mut got = vec![];
        for worker in workers {
            got.push(worker.await.unwrap());
        }
        got.sort_unstable();
        assert_eq!(got, ["a", "b", "c"]);
    }
}
