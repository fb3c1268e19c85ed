//! The metadata of objects whose kind no type describes: the kinds that clients define.
//!
//! Owns one watch and one copy per kind, of metadata only. What collects garbage and what empties namespaces must know of
//! these objects as of all others; nobody else reads them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use futures::future::BoxFuture;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::caches::{AnyCache, AnySubscriber, Held, HeldChange};
use crate::plan::Target;
use crate::view::Key;

/// A kind that a client defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKind {
    /// The version that is watched.
    pub resource: ApiResource,
    /// Every served version's `apiVersion`: references may name any.
    pub api_versions: Vec<String>,
    pub namespaced: bool,
}

/// What is known of its objects.
pub struct Foreign {
    kind: ForeignKind,
    objects: RwLock<BTreeMap<Key, Arc<Held>>>,
    subscribers: RwLock<Vec<AnySubscriber>>,
    synced: watch::Sender<bool>,
}

/// All of them, by `apiVersion` and kind.
pub type Foreigners = HashMap<(String, String), Arc<Foreign>>;

impl Foreign {
    pub fn new(kind: ForeignKind) -> Self {
        Self { kind, objects: RwLock::default(), subscribers: RwLock::default(), synced: watch::Sender::new(false) }
    }

    pub fn kind(&self) -> &ForeignKind {
        &self.kind
    }

    async fn run(&self, client: Client, shutdown: CancellationToken) {
        let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(client, &self.kind.resource);
        let config = watcher::Config::default().page_size(500);
        let events = watcher(api, config).default_backoff();
        let mut events = std::pin::pin!(events.take_until(shutdown.cancelled_owned()));
        let mut listed = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    let (key, held) = self.held_of(object);
                    listed.insert(key, Arc::new(held));
                }
                Ok(watcher::Event::InitDone) => {
                    self.replace(std::mem::take(&mut listed));
                    self.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(object)) => {
                    let (key, held) = self.held_of(object);
                    self.set(&key, Some(Arc::new(held)));
                }
                Ok(watcher::Event::Delete(object)) => self.set(&self.held_of(object).0, None),
                Err(error) => {
                    tracing::debug!(kind = self.kind.resource.kind, %error, "watch failed, trying again");
                }
            }
        }
    }

    fn held_of(&self, object: PartialObjectMeta<DynamicObject>) -> (Key, Held) {
        let mut meta = object.metadata;
        meta.managed_fields = None;
        let key = Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let target = Target {
            api_version: self.kind.resource.api_version.clone(),
            kind: self.kind.resource.kind.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        (key, Held { target, meta })
    }

    fn replace(&self, listed: BTreeMap<Key, Arc<Held>>) {
        let known: Vec<Key> = self.read().keys().cloned().collect();
        for key in known.iter().filter(|key| !listed.contains_key(*key)) {
            self.set(key, None);
        }
        for (key, held) in listed {
            self.set(&key, Some(held));
        }
    }

    fn set(&self, key: &Key, new: Option<Arc<Held>>) {
        let old = {
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            match &new {
                Some(held) => objects.insert(key.clone(), held.clone()),
                None => objects.remove(key),
            }
        };
        if old.is_none() && new.is_none() {
            return;
        }
        let owned = |held: Option<Arc<Held>>| held.map(|held| held.as_ref().clone());
        let change = HeldChange { old: owned(old), new: owned(new) };
        let subscribers = self.subscribers.read().unwrap_or_else(PoisonError::into_inner).clone();
        subscribers.iter().for_each(|subscriber| subscriber(&change));
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Key, Arc<Held>>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn filter(&self, keep: impl Fn(&Held) -> bool) -> Vec<Held> {
        self.read().values().filter(|held| keep(held)).map(|held| held.as_ref().clone()).collect()
    }
}

impl AnyCache for Foreign {
    // Nobody's own writes are to these kinds' contents: the watch is all there is to learn from.
    fn epoch(&self) -> u64 {
        0
    }

    fn observe(&self, _: Value, _: u64) {}

    fn forget(&self, key: &Key, uid: &str) {
        if self.held(key).is_some_and(|held| held.uid() == uid) {
            self.set(key, None);
        }
    }

    fn watch(self: Arc<Self>, client: Client, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.run(client, shutdown).await })
    }

    fn wait(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // The sender lives in `self`, so waiting cannot fail.
            let _ = self.synced.subscribe().wait_for(|done| *done).await;
        })
    }

    fn held(&self, key: &Key) -> Option<Held> {
        self.read().get(key).map(|held| held.as_ref().clone())
    }

    fn dependents(&self, uid: &str) -> Vec<Held> {
        self.filter(|held| held.meta.owner_references.iter().flatten().any(|owner| owner.uid == uid))
    }

    fn in_namespace(&self, namespace: &str) -> Vec<Held> {
        self.filter(|held| held.target.namespace == namespace)
    }

    fn subscribe_any(&self, f: AnySubscriber) {
        self.subscribers.write().unwrap_or_else(PoisonError::into_inner).push(f.clone());
        for held in self.filter(|_| true) {
            f(&HeldChange { old: None, new: Some(held) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::GroupVersionKind;
    use serde_json::json;

    fn object(name: &str, owner: &str) -> PartialObjectMeta<DynamicObject> {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name,
            "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner}]}}))
        .unwrap()
    }

    #[test]
    fn follows_and_tells() {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("a.example", "v1", "Widget"));
        let foreign = Foreign::new(ForeignKind { resource, api_versions: vec![], namespaced: true });
        let told = Arc::new(RwLock::new(vec![]));
        let log = told.clone();
        let name = |held: &Option<Held>| held.as_ref().map(|held| held.target.name.clone());
        foreign
            .subscribe_any(Arc::new(move |change| log.write().unwrap().push((name(&change.old), name(&change.new)))));
        let (key, held) = foreign.held_of(object("a", "o"));
        foreign.set(&key, Some(Arc::new(held)));
        assert_eq!(foreign.dependents("o").len(), 1);
        assert_eq!(foreign.in_namespace("n")[0].target.kind, "Widget");
        let (other, held) = foreign.held_of(object("b", "p"));
        foreign.replace([(other, Arc::new(held))].into());
        assert!(foreign.held(&key).is_none() && foreign.dependents("p").len() == 1);
        foreign.forget(&Key::new("n", "b"), "another uid");
        assert_eq!(foreign.in_namespace("n").len(), 1);
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(*told.read().unwrap(), [(None, some("a")), (some("a"), None), (None, some("b"))]);
    }
}
