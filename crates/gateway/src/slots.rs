//! The slots of one revision: its instances, who is on them, who waits, and how much was going on.
//!
//! Owns: exact concurrency per instance, the choice among instances, the queue's order and bound, load figures. Must
//! not know: sockets, locks, wakers or clocks; a waiter is a type parameter and `now` is microseconds on any axis. The
//! invariant everything rests on: while somebody waits nobody has a free slot, so whoever adds a slot must call
//! [`Slots::grant`] until it says `None`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::endpoints::Ready;

/// Up to this many requests per instance the most recently used instance is taken first, so that the others can go
/// idle and be stopped; above it, packing would overload one instance while its neighbours sleep.
const PACKED: u32 = 3;

/// One instance. Its counters change only under the lock around [`Slots`]; they are atomic so that they can be read
/// and shared without it.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Unique in this process: a pod that comes back at the same address is another instance.
    pub id: u64,
    pub ready: Ready,
    busy: AtomicU32,
    gone: AtomicBool,
    /// Its pod is about to be removed: it finishes what it has.
    draining: AtomicBool,
    /// Microseconds until which it gets no requests since it refused a connection; 0 for not suspended.
    suspended: AtomicU64,
}

/// Why a request gets no slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    QueueFull,
    TimedOut,
    /// The revision cannot start, and says why.
    Failed(Arc<Failure>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

#[derive(Debug)]
struct Queued<W> {
    waiter: W,
    since: u64,
    deadline: u64,
}

#[derive(Debug)]
pub(crate) struct Slots<W> {
    /// Simultaneous requests per instance; 0 for no limit.
    limit: u32,
    bound: usize,
    instances: Vec<Arc<Instance>>,
    /// Those that are gone and still have requests.
    departed: Vec<Arc<Instance>>,
    /// Those with a free slot. With a small limit the order matters: the last is the most recently used.
    free: Vec<Arc<Instance>>,
    queue: BTreeMap<u64, Queued<W>>,
    next_ticket: u64,
    /// Pods that are about to be removed, whether they are among the instances or not yet.
    draining: BTreeSet<String>,
    pub failure: Option<Arc<Failure>>,
    pub load: Load,
}

/// Requests in the gateway over time.
#[derive(Debug, Default)]
pub(crate) struct Load {
    inside: u32,
    arrived: u64,
    changed: u64,
    reported: u64,
    /// Requests times microseconds since the last report.
    area: u64,
}

#[derive(Debug, PartialEq)]
pub(crate) struct LoadReport {
    pub average: f64,
    pub per_second: f64,
    pub inside: u32,
    pub arrived: u64,
}

impl Instance {
    pub fn new(id: u64, ready: Ready) -> Arc<Self> {
        Arc::new(Self { id, ready, busy: 0.into(), gone: false.into(), draining: false.into(), suspended: 0.into() })
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    pub fn busy(&self) -> u32 {
        self.busy.load(Relaxed)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    fn is_free(&self, limit: u32) -> bool {
        !self.is_gone()
            && !self.is_draining()
            && self.suspended.load(Relaxed) == 0
            && (limit == 0 || self.busy() < limit)
    }
}

impl<W> Slots<W> {
    pub fn new(limit: u32, bound: usize) -> Self {
        Self {
            limit,
            bound,
            instances: vec![],
            departed: vec![],
            free: vec![],
            queue: BTreeMap::new(),
            next_ticket: 0,
            draining: BTreeSet::new(),
            failure: None,
            load: Load::default(),
        }
    }

    pub fn instances(&self) -> &[Arc<Instance>] {
        &self.instances
    }

    /// What was done on this pod and is not over.
    pub fn busy_on(&self, pod: &str) -> u32 {
        let all = self.instances.iter().chain(&self.departed);
        all.filter(|instance| instance.ready.pod == pod).map(|instance| instance.busy()).sum()
    }

    /// The instances as they were given.
    pub fn listed(&self) -> Vec<Ready> {
        self.instances.iter().map(|instance| instance.ready.clone()).collect()
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    pub fn has_suspended(&self) -> bool {
        self.instances.iter().any(|i| i.suspended.load(Relaxed) != 0)
    }

    /// Takes a slot if one is free. `dice(n)` is a random number below `n`.
    pub fn acquire(&mut self, mut dice: impl FnMut(usize) -> usize) -> Option<Arc<Instance>> {
        let count = self.free.len();
        let at = match count {
            0 => return None,
            1 => 0,
            _ if (1..=PACKED).contains(&self.limit) => count - 1,
            _ => {
                let (a, b) = (dice(count), dice(count));
                if self.free[a].busy() <= self.free[b].busy() { a } else { b }
            }
        };
        let busy = self.free[at].busy.fetch_add(1, Relaxed) + 1;
        Some(if busy == self.limit { self.free.swap_remove(at) } else { self.free[at].clone() })
    }

    /// Joins the queue; the ticket leaves it again.
    pub fn wait(&mut self, waiter: W, since: u64, deadline: u64) -> Result<u64, W> {
        if self.queue.len() >= self.bound {
            return Err(waiter);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.insert(ticket, Queued { waiter, since, deadline });
        Ok(ticket)
    }

    /// Since when the first in the queue has waited.
    pub fn oldest(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(_, queued)| queued.since)
    }

    /// Whether the ticket was still in the queue.
    pub fn cancel(&mut self, ticket: u64) -> bool {
        self.queue.remove(&ticket).is_some()
    }

    pub fn release(&mut self, instance: &Arc<Instance>) {
        let busy = instance.busy.fetch_sub(1, Relaxed);
        if busy == self.limit && instance.is_free(self.limit) {
            self.free.push(instance.clone());
        }
        if busy == 1 && instance.is_gone() {
            self.departed.retain(|departed| departed.id != instance.id);
        }
    }

    /// The first in the queue with a slot for it, taken; to be called until there is none.
    pub fn grant(&mut self) -> Option<(W, Arc<Instance>)> {
        if self.queue.is_empty() || self.free.is_empty() {
            return None;
        }
        // Spreading a burst evenly needs no dice: the least busy is looked for, since the queue is short-lived.
        let instance = if (1..=PACKED).contains(&self.limit) {
            self.acquire(|_| 0)?
        } else {
            let at = (0..self.free.len()).min_by_key(|at| self.free[*at].busy())?;
            self.acquire(|_| at)?
        };
        let (_, queued) = self.queue.pop_first()?;
        Some((queued.waiter, instance))
    }

    /// The instances are now these. Says whether one went away.
    pub fn replace(&mut self, ready: &[Ready], mut next_id: impl FnMut() -> u64) -> bool {
        let before = self.instances.len();
        self.instances.retain(|instance| {
            let stays = ready.contains(&instance.ready);
            instance.gone.store(!stays, Relaxed);
            if !stays && instance.busy() > 0 {
                self.departed.push(instance.clone());
            }
            stays
        });
        let lost = self.instances.len() < before;
        for new in ready {
            if !self.instances.iter().any(|instance| instance.ready == *new) {
                self.instances.push(Instance::new(next_id(), new.clone()));
            }
        }
        self.mark_draining();
        lost
    }

    /// These pods get no new requests.
    pub fn drain(&mut self, pods: BTreeSet<String>) {
        self.draining = pods;
        self.mark_draining();
    }

    fn mark_draining(&mut self) {
        for instance in &self.instances {
            instance.draining.store(self.draining.contains(&instance.ready.pod), Relaxed);
        }
        self.rebuild();
    }

    pub fn set_limit(&mut self, limit: u32) {
        if self.limit != limit {
            self.limit = limit;
            self.rebuild();
        }
    }

    /// Keeps the order of those that were free, since it tells which was used last.
    fn rebuild(&mut self) {
        let limit = self.limit;
        self.free.retain(|instance| instance.is_free(limit));
        for instance in &self.instances {
            if instance.is_free(limit) && !self.free.iter().any(|free| free.id == instance.id) {
                self.free.insert(0, instance.clone());
            }
        }
    }

    /// An instance that refused a connection gets no request until then.
    pub fn suspend(&mut self, instance: &Arc<Instance>, until: u64) {
        instance.suspended.store(until, Relaxed);
        self.free.retain(|free| free.id != instance.id);
    }

    /// Ends the suspensions that are over.
    pub fn resume(&mut self, now: u64) {
        for instance in &self.instances {
            let until = instance.suspended.load(Relaxed);
            if until != 0 && until <= now {
                instance.suspended.store(0, Relaxed);
            }
        }
        self.rebuild();
    }

    /// Those who waited long enough: past their deadline, or `grace` for a revision that cannot start.
    pub fn expire(&mut self, now: u64, grace: u64) -> Vec<(W, Refusal)> {
        let failure = self.failure.clone().filter(|_| self.instances.is_empty());
        let refusal = |queued: &Queued<W>| match &failure {
            _ if queued.deadline <= now => Some(Refusal::TimedOut),
            Some(failure) if queued.since + grace <= now => Some(Refusal::Failed(failure.clone())),
            _ => None,
        };
        let over: Vec<_> = self.queue.iter().filter_map(|(ticket, queued)| Some((*ticket, refusal(queued)?))).collect();
        over.into_iter().filter_map(|(ticket, refusal)| Some((self.queue.remove(&ticket)?.waiter, refusal))).collect()
    }
}

impl Load {
    pub fn inside(&self) -> u32 {
        self.inside
    }

    pub fn enter(&mut self, now: u64) {
        self.advance(now);
        self.inside += 1;
        self.arrived += 1;
    }

    pub fn leave(&mut self, now: u64) {
        self.advance(now);
        self.inside -= 1;
    }

    fn advance(&mut self, now: u64) {
        // Threads read the clock before they take the lock, so `now` may lie a little in the past.
        let now = now.max(self.changed);
        self.area += u64::from(self.inside) * (now - self.changed);
        self.changed = now;
    }

    /// What happened since the last report.
    pub fn report(&mut self, now: u64) -> LoadReport {
        self.advance(now);
        let micros = self.changed.saturating_sub(self.reported).max(1) as f64;
        let report = LoadReport {
            average: self.area as f64 / micros,
            per_second: self.arrived as f64 * 1e6 / micros,
            inside: self.inside,
            arrived: self.arrived,
        };
        (self.area, self.arrived, self.reported) = (0, 0, self.changed);
        report
    }

    /// Starts the first interval, before which nothing was counted.
    pub fn begin(&mut self, now: u64) {
        self.reported = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::Address;

    fn instance(pod: &str) -> Ready {
        Ready { pod: pod.into(), address: Address::Unix(pod.into()), h2c: false }
    }

    fn pods(names: &[&str]) -> Vec<Ready> {
        names.iter().map(|name| instance(name)).collect()
    }

    struct World {
        slots: Slots<&'static str>,
        held: Vec<Arc<Instance>>,
        id: u64,
    }

    enum Step {
        Pods(&'static [&'static str]),
        Limit(u32),
        Take,
        Give(&'static str),
        Wait(&'static str, u64),
        Cancel(u64),
        Suspend(&'static str, u64),
        Drain(&'static [&'static str]),
        Resume(u64),
        Fail,
        Expire(u64),
    }

    impl World {
        fn settle(&mut self, out: &mut Vec<String>) {
            while let Some((waiter, instance)) = self.slots.grant() {
                out.push(format!("{waiter}@{}", instance.ready.pod));
                self.held.push(instance);
            }
        }

        fn step(&mut self, step: &Step, out: &mut Vec<String>) {
            match step {
                Step::Pods(names) => {
                    let id = &mut self.id;
                    self.slots.replace(&pods(names), || {
                        *id += 1;
                        *id
                    });
                }
                Step::Limit(limit) => self.slots.set_limit(*limit),
                Step::Take => match self.slots.acquire(|n| n - 1) {
                    Some(instance) => {
                        out.push(instance.ready.pod.clone());
                        self.held.push(instance);
                    }
                    None => out.push("none".into()),
                },
                Step::Give(pod) => {
                    let at = self.held.iter().position(|i| i.ready.pod == *pod).unwrap();
                    let instance = self.held.remove(at);
                    self.slots.release(&instance);
                }
                Step::Wait(name, deadline) => match self.slots.wait(name, 0, *deadline) {
                    Ok(_) => {}
                    Err(name) => out.push(format!("{name} full")),
                },
                Step::Cancel(ticket) => out.push(format!("cancelled {}", self.slots.cancel(*ticket))),
                Step::Suspend(pod, until) => {
                    let instance = self.slots.instances().iter().find(|i| i.ready.pod == *pod).unwrap().clone();
                    self.slots.suspend(&instance, *until);
                }
                Step::Drain(pods) => self.slots.drain(pods.iter().map(|pod| (*pod).to_owned()).collect()),
                Step::Resume(now) => self.slots.resume(*now),
                Step::Fail => {
                    self.slots.failure = Some(Arc::new(Failure { reason: "R".into(), message: "M".into() }));
                }
                Step::Expire(now) => {
                    for (waiter, refusal) in self.slots.expire(*now, 10) {
                        let word = if refusal == Refusal::TimedOut { "timeout" } else { "failed" };
                        out.push(format!("{waiter} {word}"));
                    }
                }
            }
            self.settle(out);
        }
    }

    fn check(limit: u32, steps: &[Step], want: &[&str]) {
        let mut world = World { slots: Slots::new(limit, 3), held: vec![], id: 0 };
        let mut out = vec![];
        for step in steps {
            world.step(step, &mut out);
            for instance in world.slots.instances() {
                assert!(limit == 0 || instance.busy() <= limit.max(2), "{} is over its limit", instance.ready.pod);
            }
        }
        assert_eq!(out, want);
    }

    #[test]
    fn a_limit_of_one_is_exact_and_prefers_the_warmest() {
        use Step::*;
        check(1, &[Take], &["none"]);
        check(1, &[Pods(&["a", "b"]), Take, Take, Take], &["a", "b", "none"]);
        check(1, &[Pods(&["a", "b"]), Take, Take, Give("b"), Give("a"), Take], &["a", "b", "a"]);
        check(1, &[Pods(&["a", "b"]), Take, Give("a"), Take, Give("a"), Take], &["a", "a", "a"]);
    }

    #[test]
    fn no_limit_takes_the_less_busy_of_two() {
        use Step::*;
        check(0, &[Pods(&["a"]), Take, Take, Take], &["a", "a", "a"]);
    }

    #[test]
    fn the_queue_is_first_in_first_out_and_bounded() {
        use Step::*;
        check(1, &[Wait("x", 9), Wait("y", 9), Pods(&["a"]), Give("a")], &["x@a", "y@a"]);
        check(1, &[Wait("x", 9), Wait("y", 9), Wait("z", 9), Wait("w", 9)], &["w full"]);
        check(
            1,
            &[Wait("x", 9), Wait("y", 9), Cancel(0), Cancel(0), Pods(&["a"])],
            &["cancelled true", "cancelled false", "y@a"],
        );
        check(2, &[Wait("x", 9), Wait("y", 9), Wait("z", 9), Pods(&["a", "b"])], &["x@a", "y@a", "z@b"]);
        check(0, &[Wait("x", 9), Wait("y", 9), Pods(&["a", "b"])], &["x@b", "y@a"]);
        check(1, &[Pods(&["a"]), Take, Wait("x", 9), Limit(2)], &["a", "x@a"]);
    }

    #[test]
    fn an_instance_that_left_gets_nothing_and_keeps_what_it_has() {
        use Step::*;
        check(1, &[Pods(&["a"]), Take, Pods(&[]), Give("a"), Take], &["a", "none"]);
        check(1, &[Pods(&["a"]), Take, Pods(&["b"]), Take, Give("a"), Take], &["a", "b", "none"]);
        check(1, &[Pods(&["a"]), Take, Pods(&[]), Pods(&["a"]), Take], &["a", "a"]);
    }

    #[test]
    fn a_suspended_instance_rests_until_then() {
        use Step::*;
        let steps = [Pods(&["a"]), Take, Suspend("a", 5), Give("a"), Take, Wait("x", 9), Resume(4), Resume(5)];
        check(1, &steps, &["a", "none", "x@a"]);
    }

    #[test]
    fn a_draining_instance_finishes_what_it_has() {
        use Step::*;
        check(1, &[Pods(&["a", "b"]), Drain(&["a"]), Take, Take], &["b", "none"]);
        check(1, &[Pods(&["a"]), Take, Drain(&["a"]), Give("a"), Take], &["a", "none"]);
        check(1, &[Drain(&["a"]), Pods(&["a"]), Take, Wait("x", 9), Drain(&[])], &["none", "x@a"]);
        check(0, &[Pods(&["a", "b"]), Take, Drain(&["b"]), Take, Take], &["a", "a", "a"]);
    }

    #[test]
    fn those_who_wait_too_long_are_told_why() {
        use Step::*;
        check(1, &[Wait("x", 20), Wait("y", 30), Expire(19), Expire(20)], &["x timeout"]);
        check(1, &[Fail, Wait("x", 20), Expire(9), Expire(10)], &["x failed"]);
        check(1, &[Pods(&["a"]), Take, Fail, Wait("x", 20), Expire(15)], &["a"]);
    }

    #[test]
    fn the_average_is_weighted_by_time() {
        let mut load = Load::default();
        load.begin(0);
        load.enter(0);
        load.enter(500_000);
        load.leave(750_000);
        assert_eq!(load.report(1_000_000), LoadReport { average: 1.25, per_second: 2.0, inside: 1, arrived: 2 });
        assert_eq!(load.report(2_000_000), LoadReport { average: 1.0, per_second: 0.0, inside: 1, arrived: 0 });
        load.leave(1_900_000);
        assert_eq!(load.report(3_000_000).average, 0.0);
    }
}
