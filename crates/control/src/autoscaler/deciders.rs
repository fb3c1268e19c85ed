//! The deciders of all Revisions that have instances or traffic, their messages and their ticks.
//!
//! A Revision at zero costs nothing here. The lock is held for one decision, never over a wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use api::autoscaling::{PodAutoscaler, ScaleRequest};
use api::names::{annotation, label};
use api::wire::{GatewayMessage, Poke, RevisionKey};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Caches, Change, Key, Queue, View, view};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::kpa::{Decider, Wanted};
use super::plan::is_ready;
use super::settings::Settings;

pub struct Deciders {
    caches: Caches,
    clock: api::Clock,
    by_key: Mutex<HashMap<Key, Decider>>,
    queue: OnceLock<Arc<Queue<Key>>>,
}

/// What the caches say about one Revision.
struct Facts {
    settings: Settings,
    request: Option<ScaleRequest>,
    ready: i32,
    replicas: i32,
}

impl Deciders {
    pub fn new(caches: Caches, clock: api::Clock) -> Self {
        Self { caches, clock, by_key: Mutex::default(), queue: OnceLock::new() }
    }

    /// Changed decisions run keys of this queue; instances and scale requests start deciders.
    pub fn wake(self: &Arc<Self>, queue: Arc<Queue<Key>>) {
        let _ = self.queue.set(queue);
        let deciders = self.clone();
        self.caches.of::<Deployment>().subscribe(move |change: &Change<Deployment>| {
            let running = change.new.as_ref().filter(|d| d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1) > 0);
            if let Some(revision) = running.and_then(|d| view::label(d.as_ref(), label::REVISION)) {
                deciders.with(&Key::new(&change.key.namespace, revision), |_, _, _| ());
            }
        });
        let deciders = self.clone();
        self.caches.of::<PodAutoscaler>().subscribe(move |change: &Change<PodAutoscaler>| {
            if change.new.as_ref().is_some_and(|a| view::annotation(a.as_ref(), annotation::SCALE_REQUEST).is_some()) {
                deciders.with(&change.key, |_, _, _| ());
            }
        });
    }

    pub fn wanted(&self, key: &Key, now: Timestamp) -> Wanted {
        let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.get(key).map(|d| d.wanted(now)).unwrap_or_default()
    }

    /// Takes in one message of a gateway; a changed answer runs the key before this returns.
    pub fn message(&self, message: GatewayMessage) {
        match message {
            GatewayMessage::Poke(poke) => {
                self.with(&key_of(&poke.key), |decider, facts, now| {
                    decider.poke(&poke, facts.ready, now);
                });
            }
            GatewayMessage::Report(stats) => {
                for stat in stats {
                    self.with(&key_of(&stat.key), |decider, facts, now| {
                        decider.report(&stat, now);
                        // The first requests of a Revision at zero poke, but a gateway may have restarted.
                        if facts.replicas == 0 && stat.in_flight > 0 {
                            let (key, gateway) = (stat.key.clone(), stat.gateway.clone());
                            decider.poke(
                                &Poke { key, gateway, queued: stat.in_flight, in_flight: 0 },
                                facts.ready,
                                now,
                            );
                        }
                    });
                }
            }
        }
    }

    /// Once a second: silence is data where instances run. Every second time: decisions.
    pub fn second(&self, decide: bool) {
        let now = (self.clock)();
        let keys: Vec<Key> = self.by_key.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        for key in keys {
            self.with(&key, |decider, facts, now| {
                if facts.replicas > 0 {
                    decider.quiet_second(now);
                }
                if decide {
                    decider.tick(facts.ready, facts.replicas, now);
                }
            });
            self.forget(&key, now);
        }
    }

    /// Drops a decider whose Revision is gone, or at zero and silent.
    fn forget(&self, key: &Key, now: Timestamp) {
        let replicas = self.facts(key).map(|f| f.replicas);
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if by_key.get(key).is_some_and(|d| replicas.is_none() || (replicas == Some(0) && d.is_idle(now))) {
            by_key.remove(key);
        }
    }

    /// Lets `act` change the decider of a Revision, and runs its key when that changed what is wanted.
    fn with(&self, key: &Key, act: impl FnOnce(&mut Decider, &Facts, Timestamp)) {
        let now = (self.clock)();
        let Some(facts) = self.facts(key) else { return };
        let (changed, again_at) = {
            let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
            let before = by_key.get(key).map(|d| d.wanted(now)).unwrap_or_default();
            let new = || Decider::new(facts.settings.clone(), facts.ready, now);
            let decider = by_key.entry(key.clone()).or_insert_with(new);
            decider.configure(&facts.settings);
            if let Some(request) = facts.request {
                decider.request(request, now);
            }
            act(decider, &facts, now);
            let after = decider.wanted(now);
            let changed = (before.scale, before.floor, before.drain) != (after.scale, after.floor, after.drain);
            (changed, decider.next_change(now))
        };
        let Some(queue) = self.queue.get() else { return };
        if changed {
            queue.add(key.clone());
            if let Some(at) = again_at {
                queue.add_after(key.clone(), Duration::try_from(at.duration_since(now)).unwrap_or_default());
            }
        }
    }

    fn facts(&self, key: &Key) -> Option<Facts> {
        let autoscaler = self.caches.get::<PodAutoscaler>(&key.namespace, &key.name)?;
        let target = &autoscaler.spec.scale_target_ref.name;
        let deployment = self.caches.get::<Deployment>(&key.namespace, target)?;
        let pods = self.caches.labelled::<Pod>(&key.namespace, label::REVISION, &key.name);
        Some(Facts {
            settings: Settings::of(&autoscaler),
            request: view::annotation(autoscaler.as_ref(), annotation::SCALE_REQUEST).and_then(ScaleRequest::parse),
            ready: pods.iter().filter(|p| is_ready(p) && !view::is_deleting(p.as_ref())).count() as i32,
            replicas: deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
        })
    }
}

fn key_of(key: &RevisionKey) -> Key {
    Key::new(&key.namespace, &key.revision)
}

/// Takes in messages and ticks until shutdown or until the last gateway is gone.
pub async fn run(deciders: Arc<Deciders>, mut messages: mpsc::Receiver<GatewayMessage>, shutdown: CancellationToken) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut decide = false;
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            message = messages.recv(), if open => match message {
                Some(message) => deciders.message(message),
                None => open = false,
            },
            _ = seconds.tick() => {
                deciders.second(decide);
                decide = !decide;
            }
        }
    }
}
