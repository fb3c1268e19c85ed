//! What all back ends share: the clock's zero, the list of busy revisions, the line to the autoscaler.
//!
//! Owns: pokes and reports, and the ticks that end waits and suspensions. Must not know: HTTP, tables. The surprise: it
//! sleeps for good when no revision has traffic, so an idle gateway costs nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use api::wire::{GatewayMessage, Poke};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use crate::backend::Backend;
use crate::metrics::Metrics;

/// How soon an owed poke follows the one before it.
const POKE_GAP: Duration = Duration::from_millis(2);
/// How exactly deadlines in the queue are kept.
const PRESSING: Duration = Duration::from_millis(50);
const REPORT_MICROS: u64 = 1_000_000;
/// Quiet reports before a revision leaves the list: the autoscaler must see it go to zero, even if it misses one.
const QUIET_REPORTS: u8 = 2;

#[derive(Debug)]
pub(crate) struct Hub {
    epoch: Instant,
    ids: AtomicU64,
    /// Revisions that got traffic and that the loop has not seen yet.
    arrivals: Mutex<Vec<Arc<Backend>>>,
    wake: Notify,
    autoscaler: OnceLock<mpsc::Sender<GatewayMessage>>,
    /// One per gateway thread: instances went away, so close their idle connections.
    sweeps: Mutex<Vec<Arc<Notify>>>,
    /// Revisions with addresses to probe that the prober has not seen yet.
    to_probe: Mutex<Vec<Arc<Backend>>>,
    pub probe_wake: Notify,
    /// What this gateway calls itself in its messages.
    pub name: String,
    /// Whether kubelets say what is ready, and late, so that addresses are probed from here.
    pub probes: bool,
    pub metrics: Metrics,
    /// Requests that may wait for one revision.
    pub queue_bound: usize,
}

struct Active {
    backend: Arc<Backend>,
    quiet: u8,
}

impl Hub {
    pub fn new(metrics: Metrics, queue_bound: usize, name: String, probes: bool) -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            ids: AtomicU64::new(0),
            arrivals: Mutex::default(),
            wake: Notify::new(),
            autoscaler: OnceLock::new(),
            sweeps: Mutex::default(),
            to_probe: Mutex::default(),
            probe_wake: Notify::new(),
            name,
            probes,
            metrics,
            queue_bound,
        })
    }

    /// Microseconds since the gateway was made.
    pub fn micros(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub fn activate(&self, backend: Arc<Backend>) {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(backend);
        self.wake();
    }

    pub fn register_sweep(&self, notify: Arc<Notify>) {
        self.sweeps.lock().unwrap_or_else(PoisonError::into_inner).push(notify);
    }

    pub fn sweep(&self) {
        for thread in self.sweeps.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            thread.notify_one();
        }
    }

    /// Each revision is handed over once, until the prober is done with it.
    pub fn probe(&self, backend: Arc<Backend>) {
        self.to_probe.lock().unwrap_or_else(PoisonError::into_inner).push(backend);
        self.probe_wake.notify_one();
    }

    pub fn to_probe(&self) -> Vec<Arc<Backend>> {
        std::mem::take(&mut *self.to_probe.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn send_poke(&self, poke: Poke) {
        self.send(GatewayMessage::Poke(poke));
    }

    /// Never waits: the next report or repeated poke says the same with newer numbers.
    fn send(&self, message: GatewayMessage) {
        let sent = self.autoscaler.get().is_some_and(|autoscaler| autoscaler.try_send(message).is_ok());
        if !sent {
            self.metrics.messages_dropped.inc();
        }
    }

    /// Runs until it is dropped.
    pub async fn run(&self, autoscaler: mpsc::Sender<GatewayMessage>) {
        // A second call would be a second gateway around the same hub, which cannot be made.
        let _ = self.autoscaler.set(autoscaler);
        let mut active: Vec<Active> = vec![];
        let mut next_report = 0;
        loop {
            let pressing = self.tick(&mut active);
            let now = self.micros();
            if next_report <= now && !active.is_empty() {
                self.report(&mut active, now);
                next_report = now + REPORT_MICROS;
            }
            let woken = if active.is_empty() {
                self.wake.notified().await;
                next_report = self.micros() + REPORT_MICROS;
                true
            } else {
                let until_report = Duration::from_micros(next_report.saturating_sub(now));
                let pause = if pressing { until_report.min(PRESSING) } else { until_report };
                timeout(pause, self.wake.notified()).await.is_ok()
            };
            if woken {
                sleep(POKE_GAP).await;
            }
        }
    }

    fn tick(&self, active: &mut Vec<Active>) -> bool {
        let arrivals = std::mem::take(&mut *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner));
        active.extend(arrivals.into_iter().map(|backend| Active { backend, quiet: 0 }));
        let now = self.micros();
        active.iter().filter(|one| one.backend.tick(now)).count() > 0
    }

    fn report(&self, active: &mut Vec<Active>, now: u64) {
        let mut stats = vec![];
        active.retain_mut(|one| match one.backend.report(now) {
            Some(stat) => {
                one.quiet = 0;
                stats.push(stat);
                true
            }
            None if one.quiet < QUIET_REPORTS => {
                one.quiet += 1;
                stats.push(one.backend.quiet_report());
                true
            }
            None => !one.backend.retire(),
        });
        if !stats.is_empty() {
            self.send(GatewayMessage::Report(stats));
        }
    }
}
