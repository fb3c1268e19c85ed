//! One revision, as every gateway thread sees it: its slots and queue behind one short lock.
//!
//! Owns: a request's arrival, the queue, what is left on an instance that goes, pokes, and when an instance that is not said to
//! be ready takes requests all the same. Must not know: HTTP or connections.
//! The surprise: a waiting request is handed its slot by whoever frees or adds it, on that one's thread, so nobody
//! wakes up to find that another was faster; and a waiter that vanishes hands the slot on.

mod visit;

use probe::Check;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::wire::{ConcurrencyStat, InstanceLoad, Poke, RevisionKey};
use tokio::sync::{Notify, oneshot};

pub(crate) use visit::{Arrival, Origin, Ticket, Visit};

use crate::budget::Budget;
use crate::endpoints::{Address, Listed, Ready};
use crate::hub::Hub;
use crate::metrics::Handles;
use crate::peers;
use crate::probe::{Candidates, Change, Step};
use crate::slots::{Failure, Instance, Refusal, Slots};

/// Pokes of one revision are at least this far apart, so that a burst is one message or two.
const POKE_GAP_MICROS: u64 = 2_000;
/// How often a revision is poked while requests wait: a poke may be lost.
const POKE_AGAIN_MICROS: u64 = 1_000_000;
/// How long a request to a revision that cannot start waits for it to recover, since its poke may start a new try.
const FAILURE_GRACE_MICROS: u64 = 1_000_000;

type Grant = Result<Arc<Instance>, Refusal>;

#[derive(Debug)]
pub(crate) struct Backend {
    pub key: RevisionKey,
    /// The Knative Service, which people know.
    pub service: String,
    pub metrics: Handles,
    hub: Arc<Hub>,
    state: Mutex<State>,
    last_poke: AtomicU64,
    poke_owed: AtomicBool,
    /// There is something new to probe.
    pub probe_wake: Notify,
    /// An instance that gets no more requests has none left.
    emptied: Notify,
}

#[derive(Debug)]
struct State {
    slots: Slots<oneshot::Sender<Grant>>,
    candidates: Candidates,
    /// How they are probed; `None` where only the kubelet can tell, or nothing is known yet.
    check: Option<Arc<Check>>,
    /// In the prober's hands.
    probing: bool,
    /// In the hub's list of revisions with traffic.
    active: bool,
    limit: u32,
    budget: Budget,
    /// The gateway that counts for this revision, when it is another one: spoken to in HTTP/1.1, and in HTTP/2.
    away: Option<[Arc<Instance>; 2]>,
}

impl Backend {
    pub fn new(key: RevisionKey, service: String, limit: u32, metrics: Handles, hub: Arc<Hub>) -> Arc<Self> {
        let slots = Slots::new(limit, hub.queue_bound);
        Arc::new(Self {
            key,
            service,
            metrics,
            hub,
            state: Mutex::new(State {
                slots,
                candidates: Candidates::default(),
                check: None,
                probing: false,
                active: false,
                limit,
                budget: Budget::default(),
                away: None,
            }),
            last_poke: AtomicU64::new(0),
            poke_owed: AtomicBool::new(false),
            probe_wake: Notify::new(),
            emptied: Notify::new(),
        })
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// No code panics while it holds the lock, so a poisoned one still guards sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request arrives: it gets a slot, or a place in the queue, or a refusal; or it is another gateway's to seat,
    /// unless that is where it comes from.
    pub fn arrive(
        self: &Arc<Self>,
        now: u64,
        timeout: u64,
        origin: Origin,
        dice: impl FnMut(usize) -> usize,
    ) -> (Visit, Arrival) {
        let mut visit = Visit {
            backend: self.clone(),
            instance: None,
            away: false,
            started: now,
            cold: None,
            code: Visit::CLIENT_GONE,
        };
        let mut state = self.lock();
        if let (Some([plain, h2]), Origin::Client { http2 }) = (&state.away, origin) {
            visit.instance = Some(if http2 { h2.clone() } else { plain.clone() });
            visit.away = true;
            return (visit, Arrival::Serve);
        }
        self.enter(&mut state, now);
        let arrival = self.seat(state, &mut visit, now, now + timeout, dice);
        (visit, arrival)
    }

    fn enter(self: &Arc<Self>, state: &mut State, now: u64) {
        if !state.active {
            state.active = true;
            state.slots.load.begin(now);
            self.hub.activate(self.clone());
        }
        state.slots.load.enter(now);
        state.budget.earn();
    }

    /// Whether a request that an instance has had may be given to another one.
    pub fn may_resend(&self) -> bool {
        self.lock().budget.spend()
    }

    fn seat(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        visit: &mut Visit,
        now: u64,
        deadline: u64,
        dice: impl FnMut(usize) -> usize,
    ) -> Arrival {
        visit.instance = state.slots.acquire(dice);
        if visit.instance.is_some() {
            return Arrival::Serve;
        }
        let (sender, grant) = oneshot::channel();
        let Ok(number) = state.slots.wait(sender, now, deadline) else {
            return Arrival::Refused(Refusal::QueueFull);
        };
        if state.slots.instances().is_empty() && visit.cold.is_none() {
            visit.cold = Some(0);
            self.metrics.cold_starts.inc();
        }
        self.metrics.queue_depth.set(state.slots.queued() as i64);
        self.look_for_probes(&mut state, now);
        drop(state);
        self.poke(now);
        Arrival::Wait(Ticket { backend: self.clone(), number, grant })
    }

    /// Tells the autoscaler that requests wait, unless it was told a moment ago; then the hub does so a moment later.
    pub fn poke(&self, now: u64) {
        let last = self.last_poke.load(Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= POKE_GAP_MICROS;
        if due && self.last_poke.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok() {
            self.poke_owed.store(false, Relaxed);
            let (queued, in_flight) = {
                let state = self.lock();
                let queued = state.slots.queued() as u32;
                (queued, state.slots.load.inside().saturating_sub(queued))
            };
            self.hub.send_poke(Poke { key: self.key.clone(), gateway: self.hub.name.clone(), queued, in_flight });
        } else if !self.poke_owed.swap(true, Relaxed) {
            self.hub.wake();
        }
    }

    /// What time brings: owed and repeated pokes, suspensions and waits that are over. Says whether to come back soon.
    pub fn tick(&self, now: u64) -> bool {
        let (queued, suspended) = {
            let mut state = self.lock();
            if state.slots.has_suspended() {
                state.slots.resume(now);
                self.settle(&mut state);
            }
            for (waiter, refusal) in state.slots.expire(now, FAILURE_GRACE_MICROS) {
                // A receiver is dropped only after its ticket left the queue under this lock.
                let _ = waiter.send(Err(refusal));
            }
            self.metrics.queue_depth.set(state.slots.queued() as i64);
            (state.slots.queued() > 0, state.slots.has_suspended())
        };
        let silent = now.saturating_sub(self.last_poke.load(Relaxed));
        let owed = self.poke_owed.load(Relaxed);
        if queued && (owed || silent >= POKE_AGAIN_MICROS) {
            self.poke(now);
        }
        queued || suspended
    }

    /// Hands free slots to those who wait.
    fn settle(&self, state: &mut State) {
        let mut granted = false;
        while let Some((waiter, instance)) = state.slots.grant() {
            granted = true;
            if let Err(Ok(instance)) = waiter.send(Ok(instance)) {
                self.release(state, &instance);
            }
        }
        if granted {
            self.metrics.queue_depth.set(state.slots.queued() as i64);
        }
    }

    /// The instances are now these.
    pub fn set_instances(self: &Arc<Self>, mut listed: Listed) {
        let now = self.hub.micros();
        let mut state = self.lock();
        let State { slots, candidates, .. } = &mut *state;
        // An instance that is not a candidate was ready until now.
        candidates.list(&listed.starting, |one| slots.instances().iter().any(|i| i.ready == *one), now);
        listed.ready.extend(candidates.answered().cloned());
        self.replace(state, &listed.ready, now);
    }

    fn replace(self: &Arc<Self>, mut state: MutexGuard<'_, State>, instances: &[Ready], now: u64) {
        let lost = state.slots.replace(instances, || self.hub.next_id());
        self.settle(&mut state);
        self.metrics.instances.set(state.slots.instances().len() as i64);
        self.look_for_probes(&mut state, now);
        drop(state);
        if lost {
            self.hub.sweep();
        }
    }

    /// Hands the revision to the prober if it has something to do.
    fn look_for_probes(self: &Arc<Self>, state: &mut State, now: u64) {
        let waiting = state.slots.queued() > 0;
        if state.check.is_none() || !state.candidates.has_work(now, waiting) {
            return;
        }
        if state.probing {
            self.probe_wake.notify_one();
        } else {
            state.probing = true;
            self.hub.probe(self.clone());
        }
    }

    /// How this revision's instances are probed.
    pub fn set_check(self: &Arc<Self>, check: Option<Arc<Check>>) {
        let mut state = self.lock();
        state.check = check;
        self.look_for_probes(&mut state, self.hub.micros());
    }

    /// What the prober does next. After a rest it is told anew.
    pub fn next_probe(&self) -> (Step, Option<Arc<Check>>) {
        let now = self.hub.micros();
        let mut state = self.lock();
        let waiting = state.slots.queued() > 0;
        let step = if state.check.is_some() { state.candidates.next(now, waiting) } else { Step::Rest };
        state.probing = step != Step::Rest;
        (step, state.check.clone())
    }

    /// A probe ended. The first that is enough lets the instance take requests at once.
    pub fn probed(self: &Arc<Self>, ready: &Ready, passed: bool, needed: u32) {
        let now = self.hub.micros();
        let mut state = self.lock();
        let change = state.candidates.outcome(ready, passed, needed, now);
        if change == Change::None {
            return;
        }
        let mut instances = state.slots.listed();
        instances.retain(|one| one != ready);
        if change == Change::Taken {
            self.hub.metrics.early_instances.inc();
            instances.push(ready.clone());
        }
        self.replace(state, &instances, now);
    }

    /// These pods are about to be removed.
    pub fn drain(&self, pods: BTreeSet<String>) {
        let mut state = self.lock();
        state.slots.drain(pods);
        self.settle(&mut state);
    }

    /// Once no request is left on this pod, which gets no new ones.
    pub async fn empty(&self, pod: &str) {
        loop {
            let mut emptied = pin!(self.emptied.notified());
            // Before the look, so that what happens between the two is not missed.
            emptied.as_mut().enable();
            if self.lock().slots.busy_on(pod) == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn release(&self, state: &mut State, instance: &Arc<Instance>) {
        state.slots.release(instance);
        if instance.busy() == 0 && (instance.is_draining() || instance.is_gone()) {
            self.emptied.notify_waiters();
        }
    }

    /// An instance became ready on its node; what else its oldest request waited for was scheduling. An instance that
    /// nobody waits for is no cold start.
    pub fn started(&self, sandbox: f64, runtime: f64) {
        let now = self.hub.micros();
        let since = self.lock().slots.oldest();
        if let Some(since) = since {
            let waited = now.saturating_sub(since) as f64 / 1e6;
            self.metrics.started((waited - sandbox - runtime).max(0.0), sandbox, runtime);
        }
    }

    pub fn limit(&self) -> u32 {
        self.lock().limit
    }

    /// Another gateway counts for this revision, or again this one. Requests that have a slot keep it.
    pub fn set_away(&self, to: Option<SocketAddr>) {
        let mut state = self.lock();
        let known = state.away.as_ref().map(|[plain, _]| plain.ready.address.clone());
        if known != to.map(Address::Tcp) {
            state.away = to.map(|address| peers::instances(address, || self.hub.next_id()));
        }
    }

    pub fn set_limit(&self, limit: u32) {
        let mut state = self.lock();
        state.limit = limit;
        state.slots.set_limit(limit);
        self.settle(&mut state);
    }

    pub fn set_failure(&self, failure: Option<Arc<Failure>>) {
        self.lock().slots.failure = failure;
    }

    /// What the autoscaler is told once a second; `None` for an interval without any request.
    pub fn report(&self, now: u64) -> Option<ConcurrencyStat> {
        let mut state = self.lock();
        let load = state.slots.load.report(now);
        let quiet = load.arrived == 0 && load.inside == 0 && load.average == 0.0;
        let stat = |state: &State| ConcurrencyStat {
            key: self.key.clone(),
            gateway: self.hub.name.clone(),
            average_concurrency: load.average,
            requests_per_second: load.per_second,
            in_flight: load.inside,
            instances: loads(state),
        };
        (!quiet).then(|| stat(&state))
    }

    /// The report of a revision that has just gone quiet, so that the autoscaler sees the zero.
    pub fn quiet_report(&self) -> ConcurrencyStat {
        ConcurrencyStat {
            key: self.key.clone(),
            gateway: self.hub.name.clone(),
            average_concurrency: 0.0,
            requests_per_second: 0.0,
            in_flight: 0,
            instances: loads(&self.lock()),
        }
    }

    /// Leaves the hub's list, unless a request came in.
    pub fn retire(&self) -> bool {
        let mut state = self.lock();
        state.active = state.slots.load.inside() > 0;
        !state.active
    }
}

fn loads(state: &State) -> Vec<InstanceLoad> {
    let load =
        |i: &Arc<Instance>| InstanceLoad { pod: i.ready.pod.clone(), in_flight: i.busy(), draining: i.is_draining() };
    state.slots.instances().iter().map(load).collect()
}
