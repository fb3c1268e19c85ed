//! One decider: Knative's algorithm over what gateways reported, and what Dhow adds to it. Pure.
//!
//! Knative's: windows, rates, panic, activation scale, delayed scale-down, excess burst capacity; exact, see the
//! rows in `tests.rs`. Dhow's own, none of which is in Knative:
//! * a poke decides at once: with a hard limit as many instances as all requests need, else one; a jump beyond the
//!   panic threshold starts a panic as the tick would have, so a burst's instances stay one window;
//! * at zero only requests that are inside a gateway wake a Revision, never an average of the past;
//! * a hard-limited Revision keeps at least its busy instances;
//! * a one-shot scale request.

use std::collections::{BTreeMap, BTreeSet};

use api::autoscaling::ScaleRequest;
use api::wire::{ConcurrencyStat, InstanceLoad, Poke};
use jiff::{SignedDuration, Timestamp};

use super::buckets::{Buckets, Maxima};
use super::settings::{Metric, Settings, TICK};

/// What a gateway said is the present for this long; gateways report every second, and one that is silent is gone.
const REPORT_IS_FRESH: SignedDuration = SignedDuration::from_secs(3);
/// Gateways remembered for one Revision. The one that was silent for longest makes room.
const GATEWAYS: usize = 64;

/// What the decider wants of the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// What the algorithm says; `None` without any data: leave it as it is.
    pub scale: Option<i32>,
    /// At least this many, whatever the algorithm says: pokes, busy instances, a scale request.
    pub floor: i32,
    /// A request for zero: idle instances go now, without window or grace.
    pub drain: bool,
    /// What each instance was doing lately.
    pub loads: Vec<InstanceLoad>,
}

/// The two windows of one metric.
#[derive(Clone, Debug)]
struct Windows {
    stable: Buckets,
    panic: Buckets,
}

impl Windows {
    fn new(settings: &Settings) -> Self {
        Self { stable: Buckets::new(settings.stable_window), panic: Buckets::new(settings.panic_window) }
    }

    fn record(&mut self, now: Timestamp, value: f64) {
        self.stable.record(now, value);
        self.panic.record(now, value);
    }
}

#[derive(Clone, Debug)]
pub struct Decider {
    settings: Settings,
    concurrency: Windows,
    rps: Windows,
    panic_since: Option<Timestamp>,
    max_panic: i32,
    delay: Option<Maxima>,
    decided: Option<i32>,
    excess_burst: f64,
    poked: Option<(i32, Timestamp)>,
    held: Option<(i32, Timestamp)>,
    drained: bool,
    requested_at: Timestamp,
    /// What each gateway said last.
    shares: BTreeMap<String, Share>,
    reported_at: Option<Timestamp>,
}

/// One gateway's part of a Revision's requests.
#[derive(Clone, Debug)]
struct Share {
    in_flight: u32,
    loads: Vec<InstanceLoad>,
    at: Timestamp,
}

impl Decider {
    /// A decider that finds more than one ready instance starts in panic: after a restart it must not scale down
    /// before it has seen a whole window.
    pub fn new(settings: Settings, ready: i32, now: Timestamp) -> Self {
        let delay =
            (settings.scale_down_delay > SignedDuration::ZERO).then(|| Maxima::new(settings.scale_down_delay, TICK));
        Self {
            concurrency: Windows::new(&settings),
            rps: Windows::new(&settings),
            panic_since: (ready > 1).then_some(now),
            max_panic: if ready > 1 { ready } else { 0 },
            delay,
            decided: None,
            excess_burst: 0.0,
            poked: None,
            held: None,
            drained: false,
            requested_at: now - settings.stable_window,
            shares: BTreeMap::new(),
            reported_at: None,
            settings,
        }
    }

    /// Annotations may change; windows of another length start anew.
    pub fn configure(&mut self, settings: &Settings) {
        if *settings == self.settings {
            return;
        }
        let same_windows = (settings.stable_window, settings.panic_window)
            == (self.settings.stable_window, self.settings.panic_window);
        if !same_windows {
            self.concurrency = Windows::new(settings);
            self.rps = Windows::new(settings);
        }
        if settings.scale_down_delay != self.settings.scale_down_delay {
            self.delay = (settings.scale_down_delay > SignedDuration::ZERO)
                .then(|| Maxima::new(settings.scale_down_delay, TICK));
        }
        self.settings = settings.clone();
    }

    /// Takes in what one gateway saw in the last second.
    pub fn report(&mut self, stat: &ConcurrencyStat, now: Timestamp) {
        self.concurrency.record(now, stat.average_concurrency);
        self.rps.record(now, stat.requests_per_second);
        let share = Share { in_flight: stat.in_flight, loads: stat.instances.clone(), at: now };
        self.remember(&stat.gateway, share);
        self.reported_at = Some(now);
        // A report covers the second before it: only arrivals after a request for zero end it.
        if stat.requests_per_second > 0.0 && now.duration_since(self.requested_at) > REPORT_IS_FRESH {
            self.drained = false;
        }
    }

    /// A second in which no gateway saw anything, while there are instances: what a scrape would have said.
    pub fn quiet_second(&mut self, now: Timestamp) {
        if self.reported_at.is_some_and(|at| now.duration_since(at) < SignedDuration::from_secs(1)) {
            return;
        }
        self.concurrency.record(now, 0.0);
        self.rps.record(now, 0.0);
    }

    fn remember(&mut self, gateway: &str, share: Share) {
        self.shares.retain(|_, other| is_fresh(other, share.at));
        if self.shares.len() >= GATEWAYS && !self.shares.contains_key(gateway) {
            let silent = self.shares.iter().min_by_key(|(_, other)| other.at).map(|(name, _)| name.clone());
            silent.and_then(|name| self.shares.remove(&name));
        }
        self.shares.insert(gateway.to_owned(), share);
    }

    /// Requests inside all gateways.
    fn in_flight(&self, now: Timestamp) -> u32 {
        self.shares.values().filter(|share| is_fresh(share, now)).map(|share| share.in_flight).sum()
    }

    /// Each instance with what all gateways have on it. It drains when every gateway that knows it says so.
    fn loads(&self, now: Timestamp) -> Vec<InstanceLoad> {
        let mut loads: Vec<InstanceLoad> = vec![];
        for load in self.shares.values().filter(|share| is_fresh(share, now)).flat_map(|share| &share.loads) {
            match loads.iter_mut().find(|known| known.pod == load.pod) {
                Some(known) => {
                    known.in_flight += load.in_flight;
                    known.draining &= load.draining;
                }
                None => loads.push(load.clone()),
            }
        }
        loads
    }

    /// Requests wait in a gateway and no slot is free: decide now, for all gateways' requests.
    pub fn poke(&mut self, poke: &Poke, ready: i32, now: Timestamp) {
        self.drained = false;
        let limit = self.settings.container_concurrency;
        let loads = self.shares.remove(&poke.gateway).filter(|share| is_fresh(share, now)).map(|share| share.loads);
        let share = Share { in_flight: poke.queued + poke.in_flight, loads: loads.unwrap_or_default(), at: now };
        self.remember(&poke.gateway, share);
        let requests = i64::from(self.in_flight(now));
        let needed = if limit > 0 { (requests + limit - 1) / limit } else { 1 };
        let needed = i32::try_from(needed.max(1)).unwrap_or(i32::MAX).min(self.settings.ceiling());
        let still = self.poked.filter(|(_, until)| *until > now).map_or(0, |(n, _)| n);
        self.poked = Some((needed.max(still), now + TICK));
        if f64::from(needed) / f64::from(ready.max(1)) >= self.settings.panic_threshold {
            self.panic_since = Some(now);
            self.max_panic = self.max_panic.max(needed);
            self.decided = Some(self.decided.unwrap_or(0).max(needed));
        }
    }

    /// A one-shot request from a person. An old one, seen again after a restart, is over.
    pub fn request(&mut self, request: ScaleRequest, now: Timestamp) {
        if request.at <= self.requested_at {
            return;
        }
        self.requested_at = request.at;
        self.poked = None;
        self.panic_since = None;
        self.max_panic = 0;
        if request.replicas == 0 {
            self.concurrency = Windows::new(&self.settings);
            self.rps = Windows::new(&self.settings);
            self.held = None;
            self.drained = true;
            self.decided = Some(0);
        } else {
            self.drained = false;
            self.held = Some((request.replicas, now + self.settings.stable_window));
        }
    }

    /// Knative's decision. `ready` counts ready instances, `replicas` those there should be. Returns whether the
    /// decision, or the sign of the excess burst capacity, changed.
    pub fn tick(&mut self, ready: i32, replicas: i32, now: Timestamp) -> bool {
        if self.drained {
            return false;
        }
        let windows = if self.settings.metric == Metric::Rps { &self.rps } else { &self.concurrency };
        if windows.stable.is_empty(now) && windows.panic.is_empty(now) {
            return false;
        }
        let (stable, panic) = (windows.stable.average(now), windows.panic.average(now));
        let mut want = self.decide(stable, panic, ready, now);
        if replicas == 0 && self.in_flight(now) == 0 {
            want = 0;
        }
        let s = &self.settings;
        let excess = if s.burst_capacity == 0.0 {
            0.0
        } else if s.burst_capacity < 0.0 {
            -1.0
        } else {
            (f64::from(ready) * s.total - s.burst_capacity - panic).floor()
        };
        let changed = self.decided != Some(want) || (excess < 0.0) != (self.excess_burst < 0.0);
        self.decided = Some(want);
        self.excess_burst = excess;
        changed
    }

    fn decide(&mut self, stable: f64, panic: f64, ready: i32, now: Timestamp) -> i32 {
        let s = &self.settings;
        let ready = f64::from(ready.max(1));
        let up = (s.max_up_rate * ready).ceil();
        let down = if s.reachable { (ready / s.max_down_rate).floor() } else { 0.0 };
        let (dspc, dppc) = ((stable / s.target).ceil(), (panic / s.target).ceil());
        let activated = |pods: f64| {
            let bounded = pods.max(down).min(up) as i32;
            if s.activation > 1 && pods > 0.0 { bounded.max(s.activation) } else { bounded }
        };
        let (stable_want, panic_want) = (activated(dspc), activated(dppc));
        if dppc / ready >= s.panic_threshold {
            self.panic_since = Some(now);
        } else if self.panic_since.is_some_and(|since| since + s.stable_window < now) {
            self.panic_since = None;
            self.max_panic = 0;
        }
        let mut want = stable_want;
        if self.panic_since.is_some() {
            self.max_panic = self.max_panic.max(want.max(panic_want));
            want = self.max_panic;
        }
        match &mut self.delay {
            Some(delay) if s.reachable => delay.record(now, want),
            _ => want,
        }
    }

    /// What should be, as of now.
    pub fn wanted(&self, now: Timestamp) -> Wanted {
        let loads = self.loads(now);
        let hard = self.settings.container_concurrency > 0;
        let busy: BTreeSet<&str> = loads.iter().filter(|l| l.in_flight > 0).map(|l| l.pod.as_str()).collect();
        let busy = i32::try_from(busy.len()).unwrap_or(i32::MAX);
        let valid = |limit: &Option<(i32, Timestamp)>| limit.filter(|(_, until)| *until > now).map_or(0, |(n, _)| n);
        let floor = valid(&self.poked).max(valid(&self.held)).max(if hard || self.drained { busy } else { 0 });
        Wanted { scale: self.decided, floor, drain: self.drained, loads }
    }

    /// When a floor ends, so that the plan is made again.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        [self.poked, self.held].into_iter().flatten().map(|(_, until)| until).filter(|until| *until > now).min()
    }

    /// Nothing is remembered that matters.
    pub fn is_idle(&self, now: Timestamp) -> bool {
        self.concurrency.stable.is_empty(now) && self.next_change(now).is_none() && self.in_flight(now) == 0
    }

    #[cfg(test)]
    pub fn excess_burst(&self) -> f64 {
        self.excess_burst
    }

    #[cfg(test)]
    pub fn is_panicking(&self) -> bool {
        self.panic_since.is_some()
    }
}

fn is_fresh(share: &Share, now: Timestamp) -> bool {
    now.duration_since(share.at) <= REPORT_IS_FRESH
}
