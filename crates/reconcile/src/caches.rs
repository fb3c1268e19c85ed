//! All caches of one process, and what can be asked of them without knowing a kind.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::foreign::{Foreign, ForeignKind, Foreigners};
use crate::plan::Target;
use crate::view::{Key, Kind, View};

/// All caches of one process: one per kind, shared by every controller.
#[derive(Clone, Default)]
pub struct Caches {
    by_type: Arc<HashMap<TypeId, Entry>>,
    by_name: Arc<HashMap<(String, String), Arc<dyn AnyCache>>>,
    /// Kinds that clients define, which come and go.
    foreign: Arc<RwLock<Foreigners>>,
    /// Who is told of everything, of what comes later as well.
    subscribers: Arc<RwLock<Vec<AnySubscriber>>>,
}

struct Entry {
    typed: Arc<dyn Any + Send + Sync>,
    any: Arc<dyn AnyCache>,
}

/// Collects caches before they are shared.
#[derive(Default)]
pub struct CachesBuilder {
    by_type: HashMap<TypeId, Entry>,
    by_name: HashMap<(String, String), Arc<dyn AnyCache>>,
}

impl CachesBuilder {
    pub fn with<K: Kind>(mut self, cache: Cache<K>) -> Self {
        let cache = Arc::new(cache);
        let name = (K::api_version(&()).into_owned(), K::kind(&()).into_owned());
        self.by_name.insert(name, cache.clone());
        self.by_type.insert(TypeId::of::<K>(), Entry { typed: cache.clone(), any: cache });
        self
    }

    /// A plain cache of this kind with an index for each of these labels.
    pub fn kind<K: Kind>(self, labels: &[&'static str]) -> Self {
        self.with(Cache::<K>::new(labels))
    }

    pub fn build(self) -> Caches {
        Caches { by_type: Arc::new(self.by_type), by_name: Arc::new(self.by_name), ..Caches::default() }
    }
}

impl Caches {
    pub fn builder() -> CachesBuilder {
        CachesBuilder::default()
    }

    /// The cache of a kind. Panics for a kind that was not named to the builder: a mistake in wiring, found by
    /// the first start.
    pub fn of<K: Kind>(&self) -> Arc<Cache<K>> {
        let entry = self.by_type.get(&TypeId::of::<K>());
        let typed = entry.unwrap_or_else(|| panic!("no cache for {}", K::kind(&()))).typed.clone();
        typed.downcast().expect("an entry is stored under its own type")
    }

    /// Watches every kind until shutdown.
    pub async fn run(&self, client: Client, shutdown: CancellationToken) {
        let mut watches = tokio::task::JoinSet::new();
        for entry in self.by_type.values() {
            watches.spawn(entry.any.clone().watch(client.clone(), shutdown.clone()));
        }
        while watches.join_next().await.is_some() {}
    }

    /// Ends when the first list of every kind is complete.
    pub async fn synced(&self) {
        futures::future::join_all(self.by_type.values().map(|e| e.any.clone().wait())).await;
    }

    /// The apiVersion and kind of everything that is watched, once each.
    pub fn kinds(&self) -> Vec<(String, String)> {
        let foreign = self.foreigners();
        let watched = foreign.values().map(|f| (f.kind().resource.api_version.clone(), f.kind().resource.kind.clone()));
        let mut kinds: Vec<_> = self.by_name.keys().cloned().chain(watched).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }

    /// How a kind that a client defined is addressed; `None`: it is none of those.
    pub fn foreign(&self, api_version: &str, kind: &str) -> Option<Arc<Foreign>> {
        self.foreigners().get(&(api_version.to_owned(), kind.to_owned())).cloned()
    }

    /// Whether there is a typed cache of that kind.
    pub fn is_typed(&self, api_version: &str, kind: &str) -> bool {
        self.by_name.contains_key(&(api_version.to_owned(), kind.to_owned()))
    }

    /// From now on objects of this kind are known, too: its watch is to be run, and ended with [`Caches::abandon`].
    pub fn adopt(&self, kind: ForeignKind) -> Arc<Foreign> {
        let foreign = Arc::new(Foreign::new(kind));
        for subscriber in self.subscribers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            foreign.subscribe_any(subscriber.clone());
        }
        let mut all = self.foreign.write().unwrap_or_else(PoisonError::into_inner);
        for api_version in &foreign.kind().api_versions {
            all.insert((api_version.clone(), foreign.kind().resource.kind.clone()), foreign.clone());
        }
        drop(all);
        foreign
    }

    pub fn abandon(&self, foreign: &Arc<Foreign>) {
        let mut all = self.foreign.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, known| !Arc::ptr_eq(known, foreign));
    }

    fn foreigners(&self) -> RwLockReadGuard<'_, Foreigners> {
        self.foreign.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every cache, whatever its kind, once.
    fn every(&self) -> Vec<Arc<dyn AnyCache>> {
        let mut foreign: Vec<Arc<Foreign>> = self.foreigners().values().cloned().collect();
        foreign.sort_by_key(|foreign| Arc::as_ptr(foreign) as usize);
        foreign.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let foreign = foreign.into_iter().map(|foreign| foreign as Arc<dyn AnyCache>);
        self.by_name.values().cloned().chain(foreign).collect()
    }

    /// The metadata of an object of any watched kind.
    pub fn held(&self, target: &Target) -> Option<Held> {
        self.named(target)?.held(&Key::new(&target.namespace, &target.name))
    }

    /// Every known object, of any watched kind, that names this uid among its owners.
    pub fn dependents(&self, uid: &str) -> Vec<Held> {
        self.every().iter().flat_map(|c| c.dependents(uid)).collect()
    }

    /// Every known object of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Held> {
        let mut held: Vec<Held> = self.every().iter().flat_map(|c| c.in_namespace(namespace)).collect();
        held.retain(|h| h.target.namespace == namespace);
        held
    }

    /// Calls `f` for every object of every watched kind and for each later change, like [`Cache::subscribe`].
    pub fn subscribe_all(&self, f: impl Fn(&HeldChange) + Send + Sync + 'static) {
        let f: AnySubscriber = Arc::new(f);
        self.subscribers.write().unwrap_or_else(PoisonError::into_inner).push(f.clone());
        self.every().iter().for_each(|c| c.subscribe_any(f.clone()));
    }

    pub(crate) fn epoch(&self, target: &Target) -> u64 {
        self.named(target).map_or(0, |c| c.epoch())
    }

    /// Takes in the answer to a write that was sent in `epoch`.
    pub(crate) fn observe(&self, target: &Target, value: Value, epoch: u64) {
        if let Some(cache) = self.named(target) {
            cache.observe(value, epoch);
        }
    }

    /// The object is gone, as the answer to our own delete said.
    pub(crate) fn forget(&self, target: &Target, uid: &str) {
        if let Some(cache) = self.named(target) {
            cache.forget(&Key::new(&target.namespace, &target.name), uid);
        }
    }

    fn named(&self, target: &Target) -> Option<Arc<dyn AnyCache>> {
        let typed = self.by_name.get(&(target.api_version.clone(), target.kind.clone())).cloned();
        typed.or_else(|| Some(self.foreign(&target.api_version, &target.kind)?))
    }
}

impl View for Caches {
    fn get<K: Kind>(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.of::<K>().get(namespace, name)
    }

    fn list<K: Kind>(&self, namespace: &str) -> Vec<Arc<K>> {
        self.of::<K>().list(namespace)
    }

    fn controlled_by<K: Kind>(&self, uid: &str) -> Vec<Arc<K>> {
        self.of::<K>().controlled_by(uid)
    }

    fn labelled<K: Kind>(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<K>> {
        self.of::<K>().labelled(namespace, label, value)
    }
}

/// What the applier and the collection of all caches need of one cache, whatever its kind.
pub trait AnyCache: Send + Sync {
    fn epoch(&self) -> u64;
    fn observe(&self, value: Value, epoch: u64);
    fn forget(&self, key: &Key, uid: &str);
    fn watch(self: Arc<Self>, client: Client, shutdown: CancellationToken) -> futures::future::BoxFuture<'static, ()>;
    fn wait(self: Arc<Self>) -> futures::future::BoxFuture<'static, ()>;
    fn held(&self, key: &Key) -> Option<Held>;
    fn dependents(&self, uid: &str) -> Vec<Held>;
    fn in_namespace(&self, namespace: &str) -> Vec<Held>;
    fn subscribe_any(&self, f: AnySubscriber);
}

pub type AnySubscriber = Arc<dyn Fn(&HeldChange) + Send + Sync>;

/// The metadata of one known object, whatever its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    pub target: Target,
    pub meta: ObjectMeta,
}

impl Held {
    pub fn of<K: Kind>(object: &K) -> Self {
        Self { target: Target::of(object), meta: object.meta().clone() }
    }

    pub fn uid(&self) -> &str {
        self.meta.uid.as_deref().unwrap_or_default()
    }
}

/// A [`Change`] of an object of any kind.
#[derive(Debug)]
pub struct HeldChange {
    pub old: Option<Held>,
    pub new: Option<Held>,
}
