//! Brings objects from the API server to the [`Feed`].
//!
//! Owns: four watches, and on a cluster a fifth for the few pods that are about to be removed, each of which starts over by
//! itself for as long as the gateway runs. Must not know: what the
//! objects mean. The surprise: changes that arrive together are published together, so a burst costs one new table.

use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;

use api::names::label;
use backon::ExponentialBuilder;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::runtime::watcher::{self, Event, ExponentialBackoff};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::feed::{Feed, Name};

/// Changes applied before the tables are published at the latest.
const BATCH: usize = 256;

/// Which watches have brought their first list.
enum First {
    Ingresses,
    Slices,
    Revisions,
    Secrets,
    Draining,
}

/// Runs until it is dropped.
pub(crate) async fn run(client: Client, feed: &Feed, is_secure: bool) {
    let (first, mut listed) = mpsc::channel(8);
    let all = watcher::Config::default;
    let ingresses = follow(
        Api::all(client.clone()),
        all(),
        first.clone(),
        || First::Ingresses,
        |event| match event {
            Change::Now(ingress) => feed.ingress(&ingress),
            Change::Gone(ingress) => feed.remove_ingress(&ingress),
            Change::Listed(seen) => feed.retain_ingresses(&seen),
            Change::Flush => feed.publish(),
        },
    );
    let slices = follow(
        Api::all(client.clone()),
        all(),
        first.clone(),
        || First::Slices,
        |event| match event {
            Change::Now(slice) => feed.slice(&slice),
            Change::Gone(slice) => feed.remove_slice(&slice),
            Change::Listed(seen) => feed.retain_slices(&seen),
            Change::Flush => {}
        },
    );
    let revisions = follow(
        Api::all(client.clone()),
        all(),
        first.clone(),
        || First::Revisions,
        |event| match event {
            Change::Now(revision) => feed.revision(&revision),
            Change::Gone(revision) => feed.remove_revision(&revision),
            Change::Listed(seen) => feed.retain_revisions(&seen),
            Change::Flush => {}
        },
    );
    let secrets = certificates(is_secure.then(|| client.clone()), first.clone(), feed);
    let draining = async {
        // Where the node itself drains nobody marks a pod.
        if feed.hub().probes {
            drains(client, first, feed).await;
        }
    };
    let completion = async {
        let (mut seen_ingresses, mut seen_slices) = (false, false);
        while let Some(which) = listed.recv().await {
            match which {
                First::Ingresses => seen_ingresses = true,
                First::Slices => seen_slices = true,
                // A revision's failure only words an answer; nothing waits for it.
                First::Revisions => {}
                // Without a certificate a client does not come so far as to ask for a host.
                First::Secrets => {}
                // Until it is seen that a pod drains, its end has not been written either.
                First::Draining => {}
            }
            if seen_ingresses && seen_slices && !*feed.synced().borrow() {
                feed.complete();
            }
        }
    };
    tokio::join!(ingresses, slices, revisions, secrets, draining, completion);
}

/// The Secrets that hold certificates, and none of the others. Where nobody speaks TLS they are nobody's to read.
async fn certificates(client: Option<Client>, first: mpsc::Sender<First>, feed: &Feed) {
    let Some(client) = client else { return };
    follow(
        Api::all(client),
        watcher::Config::default().fields("type=kubernetes.io/tls"),
        first,
        || First::Secrets,
        |event: Change<Secret>| match event {
            Change::Now(secret) => feed.secret(&secret),
            Change::Gone(secret) => feed.remove_secret(&secret),
            Change::Listed(seen) => feed.retain_secrets(&seen),
            Change::Flush => feed.publish(),
        },
    )
    .await;
}

/// The pods that are about to be removed, which are few, and none of the others.
async fn drains(client: Client, first: mpsc::Sender<First>, feed: &Feed) {
    follow(
        Api::all(client),
        watcher::Config::default().labels(label::DRAINING),
        first,
        || First::Draining,
        |event: Change<Pod>| match event {
            Change::Now(pod) => feed.pod(&pod),
            Change::Gone(pod) => feed.remove_pod(&pod),
            Change::Listed(seen) => feed.retain_pods(&seen),
            Change::Flush => {}
        },
    )
    .await;
}

enum Change<K> {
    Now(K),
    Gone(K),
    /// A whole list has been seen, with these names.
    Listed(HashSet<Name>),
    /// Nothing more is known for now.
    Flush,
}

/// Between attempts to watch: short, since whoever comes at zero after an outage waits for it.
pub(crate) fn patience() -> ExponentialBackoff {
    let (least, most) = (Duration::from_millis(200), Duration::from_secs(2));
    ExponentialBuilder::new().with_min_delay(least).with_max_delay(most).with_jitter().without_max_times().into()
}

async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    first: mpsc::Sender<First>,
    which: impl Fn() -> First,
    on_change: impl Fn(Change<K>),
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let events = watch(api, config).backoff(patience()).ready_chunks(BATCH);
    let mut events = pin!(events);
    let mut seen = HashSet::new();
    while let Some(batch) = events.next().await {
        let mut listed = false;
        for event in batch {
            match event {
                Ok(Event::Apply(object)) => on_change(Change::Now(object)),
                Ok(Event::Delete(object)) => on_change(Change::Gone(object)),
                Ok(Event::Init) => seen.clear(),
                Ok(Event::InitApply(object)) => {
                    seen.insert((object.namespace().unwrap_or_default(), object.name_any()));
                    on_change(Change::Now(object));
                }
                Ok(Event::InitDone) => {
                    on_change(Change::Listed(std::mem::take(&mut seen)));
                    listed = true;
                }
                // The watcher backs off and lists again; the last published table goes on serving.
                Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted, trying again"),
            }
        }
        on_change(Change::Flush);
        if listed {
            // Only a completion loop that ended could refuse, and it lives as long as this future.
            let _ = first.send(which()).await;
        }
    }
}
