//! What is known of every sandbox, and who waits to know more.
//!
//! Owns the map of sandboxes and the stream of events. Must not know the launcher or files. Every change and its
//! event happen under one lock, so that events come in the order of the changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use api::Clock;
use tokio::sync::{broadcast, oneshot, watch};

use super::log::Log;
use super::visit::Room;
use crate::provider::*;
use crate::wire::{Refusal, Status};

/// Events a receiver may be behind by before it must list again.
const EVENTS: usize = 4096;

pub struct State {
    clock: Clock,
    entries: Mutex<BTreeMap<String, Entry>>,
    events: broadcast::Sender<Sandbox>,
}

struct Entry {
    sandbox: Sandbox,
    specs: Vec<ContainerSpec>,
    room: Room,
    logs: Vec<Arc<Log>>,
    /// Containers that were ready before the sandbox was known to exist.
    ready: Vec<bool>,
    /// Tells each container's attendant that it has ended.
    exits: Vec<Option<oneshot::Sender<Ended>>>,
    progress: watch::Sender<Progress>,
    /// Whether the launcher has made it.
    made: bool,
    asked_to_stop: bool,
    /// Whether the launcher has nothing of it any more.
    stopped: bool,
}

impl Entry {
    fn run(&mut self, place: usize, since: jiff::Timestamp) {
        let Some(container) = self.sandbox.containers.get_mut(place) else { return };
        if matches!(container.phase, Phase::Starting { .. }) {
            let ready = self.ready[place] || self.specs[place].serve == Serve::Nothing;
            container.phase = Phase::Running { since, ready };
        }
    }
}

/// A container that is there.
pub struct Present {
    pub place: usize,
    pub running: bool,
    pub container: ContainerSpec,
    pub log: Arc<Log>,
    pub room: Room,
}

/// How far a sandbox has come.
#[derive(Clone, Debug)]
pub enum Progress {
    Creating,
    Made(Box<Sandbox>),
    Refused(Refusal),
    Removed,
}

/// How a container ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub status: Status,
    pub out_of_memory: bool,
}

impl State {
    pub fn new(clock: Clock) -> Self {
        Self { clock, entries: Mutex::default(), events: broadcast::channel(EVENTS).0 }
    }

    /// Adds a sandbox that is about to be made; `None` if it is there.
    pub fn insert(&self, spec: &SandboxSpec, logs: &[Arc<Log>]) -> Option<Vec<oneshot::Receiver<Ended>>> {
        let mut entries = self.lock();
        if entries.contains_key(&spec.uid) {
            return None;
        }
        let since = (self.clock)();
        let starting =
            |c: &ContainerSpec| Container { name: c.name.clone(), init: c.init, phase: Phase::Starting { since } };
        let sandbox = Sandbox {
            uid: spec.uid.clone(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            address: None,
            containers: spec.containers.iter().map(starting).collect(),
        };
        let (senders, receivers): (Vec<_>, Vec<_>) = spec.containers.iter().map(|_| oneshot::channel()).unzip();
        let entry = Entry {
            sandbox,
            specs: spec.containers.clone(),
            room: Room::default(),
            logs: logs.to_vec(),
            ready: vec![false; spec.containers.len()],
            exits: senders.into_iter().map(Some).collect(),
            progress: watch::channel(Progress::Creating).0,
            made: false,
            asked_to_stop: false,
            stopped: false,
        };
        entries.insert(spec.uid.clone(), entry);
        Some(receivers)
    }

    /// Removes a sandbox that was never asked for.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    /// Waits until a sandbox is made or refused.
    pub async fn settled(&self, uid: &str) -> Progress {
        let progress = self.lock().get(uid).map(|e| e.progress.subscribe());
        let Some(mut progress) = progress else { return Progress::Removed };
        match progress.wait_for(|p| !matches!(p, Progress::Creating)).await {
            // For whoever asks again for one that exists, what counts is how it is now.
            Ok(settled) => settled.clone(),
            Err(_) => Progress::Removed,
        }
    }

    /// Notes that a sandbox is to end, and gives the wait for its end; `None` if it is not there.
    pub fn stopping(&self, uid: &str) -> Option<impl Future<Output = ()> + Send + 'static> {
        let mut entries = self.lock();
        let entry = entries.get_mut(uid)?;
        entry.asked_to_stop = true;
        let mut progress = entry.progress.subscribe();
        Some(async move {
            // An error means that the entry is gone, which is what is waited for.
            let _ = progress.wait_for(|p| matches!(p, Progress::Removed | Progress::Refused(_))).await;
        })
    }

    pub fn created(&self, uid: &str, address: Option<Address>) {
        let since = (self.clock)();
        self.change(uid, |entry| {
            entry.sandbox.address = address;
            entry.made = true;
            let first = entry.specs.iter().position(|spec| spec.init).map_or(entry.specs.len(), |place| place + 1);
            (0..first).for_each(|place| entry.run(place, since));
        });
    }

    /// A container that had waited for another's end runs.
    pub fn started(&self, uid: &str, place: usize) {
        let since = (self.clock)();
        self.change(uid, |entry| entry.run(place, since));
    }

    pub fn refused(&self, uid: &str, refusal: Refusal) {
        if let Some(entry) = self.lock().remove(uid) {
            entry.progress.send_replace(Progress::Refused(refusal));
        }
    }

    /// A container says that it is ready.
    pub fn ready(&self, uid: &str, place: usize) {
        self.change(uid, |entry| {
            entry.ready[place] = true;
            if let Phase::Running { ready, .. } = &mut entry.sandbox.containers[place].phase {
                *ready = true;
            }
        });
    }

    /// The launcher says that a container has ended; its attendant is told, which makes it known.
    pub fn exited(&self, uid: &str, place: usize, status: Status, out_of_memory: bool) {
        let sender = self.lock().get_mut(uid).and_then(|e| e.exits.get_mut(place)?.take());
        if let Some(sender) = sender {
            // An attendant that is gone has been told to go: everything ends.
            let _ = sender.send(Ended { status, out_of_memory });
        }
    }

    /// A container's output has been read to its end.
    pub fn ended(&self, uid: &str, place: usize, ended: Ended) {
        let finished = (self.clock)();
        self.change(uid, |entry| {
            let reason = match ended {
                _ if entry.asked_to_stop => ExitReason::Stopped,
                Ended { out_of_memory: true, .. } => ExitReason::OutOfMemory,
                Ended { status: Status::Code(0), .. } => ExitReason::Completed,
                Ended { .. } => ExitReason::Error,
            };
            end(&mut entry.sandbox.containers[place], ended.status, reason, finished);
        });
        self.remove_if_over(uid);
    }

    /// The launcher has nothing of it any more.
    pub fn stopped(&self, uid: &str) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.stopped = true;
        }
        self.remove_if_over(uid);
    }

    /// The launcher is gone, and with it every sandbox.
    pub fn lose_all(&self) {
        let finished = (self.clock)();
        let mut entries = self.lock();
        for (_, mut entry) in std::mem::take(&mut *entries) {
            let reason = if entry.asked_to_stop { ExitReason::Stopped } else { ExitReason::Error };
            for container in &mut entry.sandbox.containers {
                end(container, Status::Signal(libc::SIGKILL), reason, finished);
            }
            let _ = self.events.send(entry.sandbox);
            entry.progress.send_replace(Progress::Removed);
        }
    }

    pub fn list(&self) -> Vec<Sandbox> {
        self.lock().values().map(|e| e.sandbox.clone()).collect()
    }

    pub fn address(&self, uid: &str) -> Option<Address> {
        self.lock().get(uid).and_then(|e| e.sandbox.address.clone())
    }

    pub fn events(&self) -> broadcast::Receiver<Sandbox> {
        self.events.subscribe()
    }

    pub fn log(&self, uid: &str, container: &str) -> Option<Arc<Log>> {
        let entries = self.lock();
        let entry = entries.get(uid)?;
        let place = entry.sandbox.containers.iter().position(|c| c.name == container)?;
        Some(Arc::clone(&entry.logs[place]))
    }

    /// A container as somebody who wants to visit it must know it.
    pub fn present(&self, uid: &str, container: &str) -> Option<Present> {
        let entries = self.lock();
        let entry = entries.get(uid)?;
        let place = entry.sandbox.containers.iter().position(|c| c.name == container)?;
        Some(Present {
            place,
            running: matches!(entry.sandbox.containers[place].phase, Phase::Running { .. }),
            container: entry.specs[place].clone(),
            log: Arc::clone(&entry.logs[place]),
            room: entry.room.clone(),
        })
    }

    /// Where a sandbox is reached, what serves it, and its room for connections.
    pub fn reachable(&self, uid: &str) -> Option<(Room, Option<Address>, Vec<Serve>)> {
        let entries = self.lock();
        let entry = entries.get(uid)?;
        let serves = entry.specs.iter().map(|c| c.serve).collect();
        Some((entry.room.clone(), entry.sandbox.address.clone(), serves))
    }

    fn remove_if_over(&self, uid: &str) {
        let mut entries = self.lock();
        if entries.get(uid).is_some_and(|e| e.stopped && e.sandbox.is_exited())
            && let Some(entry) = entries.remove(uid)
        {
            entry.progress.send_replace(Progress::Removed);
        }
    }

    fn change(&self, uid: &str, edit: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(uid) else { return };
        let before = entry.sandbox.clone();
        edit(entry);
        if entry.sandbox == before {
            return;
        }
        // Nobody listening is no error: the state is in the list.
        let _ = self.events.send(entry.sandbox.clone());
        if entry.made {
            entry.progress.send_replace(Progress::Made(Box::new(entry.sandbox.clone())));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().expect("no holder of this lock panics")
    }
}

fn end(container: &mut Container, status: Status, reason: ExitReason, finished: jiff::Timestamp) {
    let (Phase::Starting { since: started } | Phase::Running { since: started, .. }) = container.phase else { return };
    let (code, signal) = match status {
        Status::Code(code) => (code, None),
        Status::Signal(signal) => (128 + signal, Some(signal)),
    };
    container.phase = Phase::Exited(Exit { code, signal, reason, started, finished });
}
