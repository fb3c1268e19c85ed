//! What people read under `Events:` of a pod.
//!
//! Events are told late and in bulk: nobody waits for them, and a cold start must not wait behind them. The same event
//! again only raises a count. What does not fit into the queue is dropped and counted.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::condition::whole_seconds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::MANAGER;

const QUEUE: usize = 4096;
/// Events whose counts are remembered; beyond it all are forgotten and told as new.
const REMEMBERED: usize = 4096;
/// How long events are gathered before they are told.
const DELAY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Said {
    namespace: String,
    pod: String,
    uid: String,
    kind: &'static str,
    reason: &'static str,
    message: String,
}

pub struct Recorder {
    queue: mpsc::Sender<(Said, Timestamp)>,
    dropped: AtomicU64,
}

/// Tells what a [`Recorder`] is told.
pub struct Teller {
    queue: mpsc::Receiver<(Said, Timestamp)>,
    client: Client,
    node: String,
    told: HashMap<Said, Told>,
}

struct Told {
    name: String,
    count: i32,
}

pub fn recorder(client: Client, node: String) -> (Recorder, Teller) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (Recorder { queue: sender, dropped: AtomicU64::new(0) }, Teller { queue, client, node, told: HashMap::new() })
}

impl Recorder {
    pub fn normal(&self, pod: &Pod, reason: &'static str, message: String, now: Timestamp) {
        self.record(pod, "Normal", reason, message, now);
    }

    pub fn warning(&self, pod: &Pod, reason: &'static str, message: String, now: Timestamp) {
        self.record(pod, "Warning", reason, message, now);
    }

    fn record(&self, pod: &Pod, kind: &'static str, reason: &'static str, message: String, now: Timestamp) {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (namespace, uid) = (text(&pod.metadata.namespace), text(&pod.metadata.uid));
        let said = Said { namespace, pod: text(&pod.metadata.name), uid, kind, reason, message };
        if self.queue.try_send((said, now)).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::debug!(dropped, reason, "an event was dropped");
        }
    }
}

impl Teller {
    /// Until the shutdown; what has not been told then is not worth a delay.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let telling = async {
            let mut batch = vec![];
            while self.queue.recv_many(&mut batch, QUEUE).await > 0 {
                tokio::time::sleep(DELAY).await;
                while batch.len() < QUEUE
                    && let Ok(more) = self.queue.try_recv()
                {
                    batch.push(more);
                }
                self.tell(batch.drain(..)).await;
            }
        };
        shutdown.run_until_cancelled(telling).await;
    }

    async fn tell(&mut self, batch: impl Iterator<Item = (Said, Timestamp)>) {
        // In order of their first saying, each once.
        let mut merged: Vec<(Said, Timestamp, Timestamp, i32)> = vec![];
        for (said, now) in batch {
            match merged.iter_mut().rev().take(64).find(|(other, ..)| *other == said) {
                Some((_, _, last, count)) => (*last, *count) = (now, *count + 1),
                None => merged.push((said, now, now, 1)),
            }
        }
        for (said, first, last, count) in merged {
            if let Err(error) = self.send(said, first, last, count).await {
                tracing::debug!(%error, "an event was not recorded");
            }
        }
    }

    async fn send(&mut self, said: Said, first: Timestamp, last: Timestamp, count: i32) -> kube::Result<()> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &said.namespace);
        if let Some(told) = self.told.get_mut(&said) {
            told.count += count;
            let patch = json!({"count": told.count, "lastTimestamp": Time(whole_seconds(last))});
            let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            match events.patch(&told.name, &params, &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => self.told.remove(&said),
                other => return other.map(drop),
            };
        }
        let event = event(&said, &self.node, first, last, count);
        let name = event.metadata.name.clone().unwrap_or_default();
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        events.create(&params, &event).await?;
        if self.told.len() >= REMEMBERED {
            self.told.clear();
        }
        self.told.insert(said, Told { name, count });
        Ok(())
    }
}

fn event(said: &Said, node: &str, first: Timestamp, last: Timestamp, count: i32) -> Event {
    let mut hasher = DefaultHasher::new();
    (said, first.as_nanosecond()).hash(&mut hasher);
    let metadata = ObjectMeta {
        // As long as a pod's name may be, this stays a name.
        name: Some(format!("{}.{:016x}", said.pod.chars().take(200).collect::<String>(), hasher.finish())),
        namespace: Some(said.namespace.clone()),
        ..ObjectMeta::default()
    };
    Event {
        metadata,
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(said.namespace.clone()),
            name: Some(said.pod.clone()),
            uid: Some(said.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some(said.kind.into()),
        reason: Some(said.reason.into()),
        message: Some(said.message.clone()),
        source: Some(EventSource { component: Some(MANAGER.into()), host: Some(node.to_owned()) }),
        reporting_component: Some(MANAGER.into()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(Time(whole_seconds(first))),
        last_timestamp: Some(Time(whole_seconds(last))),
        count: Some(count),
        ..Event::default()
    }
}
