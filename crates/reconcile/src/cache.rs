//! One shared in-memory copy of each watched kind.
//!
//! Owns the watch, the copy, its indexes by controller owner and by chosen labels, and telling subscribers. The
//! surprise: answers to our own writes are put in too ([`Cache::observe`]), so that readers see their own writes.
//! A copy is only as new as its watch; `managedFields` are dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::caches::{AnyCache, AnySubscriber, Held, HeldChange};
use crate::view::{Key, Kind, controller_of};

/// The shortest and the longest pause between attempts to watch: after an outage of hours nobody waits for minutes.
const WATCH_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What happened to one object, as a subscriber is told.
#[derive(Debug)]
pub struct Change<K> {
    pub key: Key,
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object before and after, whichever there is.
    pub fn either(&self) -> impl Iterator<Item = &Arc<K>> {
        self.new.iter().chain(&self.old)
    }
}

type Subscriber<K> = Arc<dyn Fn(&Change<K>) + Send + Sync>;

pub struct Cache<K> {
    state: RwLock<State<K>>,
    subscribers: RwLock<Vec<Subscriber<K>>>,
    synced: watch::Sender<bool>,
    trim: fn(&mut K),
    only: Option<Only<K>>,
}

/// The part of a kind that is watched.
struct Only<K> {
    namespace: String,
    selector: String,
    api: fn(Client, &str) -> Api<K>,
}

impl<K: Kind + kube::Resource<Scope = NamespaceResourceScope>> Cache<K> {
    /// Watches nothing but the objects of one namespace that a label selector picks: elsewhere there are too many of
    /// this kind, or no right to read them.
    pub fn only(mut self, namespace: &str, selector: &str) -> Self {
        self.only = Some(Only { namespace: namespace.to_owned(), selector: selector.to_owned(), api: Api::namespaced });
        self
    }
}

/// `(namespace, value)` to keys.
type LabelIndex = HashMap<(String, String), BTreeSet<Key>>;

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    by_owner: HashMap<String, BTreeSet<Key>>,
    /// One index per label named at the start.
    by_label: Vec<(&'static str, LabelIndex)>,
    /// The newest resourceVersion the watch has delivered: anything older that we learn elsewhere is past.
    watched: u64,
    /// How often the watch has listed. An answer to a write sent before the last list may be past as well.
    epoch: u64,
}

impl<K: Kind> Cache<K> {
    /// A cache with an index for each of these labels.
    pub fn new(labels: &[&'static str]) -> Self {
        Self::trimmed(labels, |_| ())
    }

    /// The same, and `trim` removes what nobody reads before an object is kept.
    pub fn trimmed(labels: &[&'static str], trim: fn(&mut K)) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            by_owner: HashMap::new(),
            by_label: labels.iter().map(|l| (*l, HashMap::new())).collect(),
            watched: 0,
            epoch: 0,
        };
        let synced = watch::Sender::new(false);
        Self { state: RwLock::new(state), subscribers: RwLock::default(), synced, trim, only: None }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read().objects.get(&Key::new(namespace, name)).cloned()
    }

    /// Every object of a namespace, or of all when it is empty.
    pub fn list(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.read();
        if namespace.is_empty() {
            return state.objects.values().cloned().collect();
        }
        let from = Key::new(namespace, "");
        state.objects.range(from..).take_while(|(k, _)| k.namespace == namespace).map(|(_, o)| o.clone()).collect()
    }

    pub fn filter(&self, namespace: &str, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.list(namespace).into_iter().filter(|o| keep(o)).collect()
    }

    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        let mut objects = self.owned_by(uid);
        objects.retain(|o| controller_of(o.as_ref()).is_some_and(|c| c.uid == uid));
        objects
    }

    /// The objects that name this uid among their owners.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        let state = self.read();
        state.by_owner.get(uid).into_iter().flatten().filter_map(|k| state.objects.get(k)).cloned().collect()
    }

    pub fn labelled(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.read();
        let Some((_, index)) = state.by_label.iter().find(|(l, _)| *l == label) else {
            drop(state);
            return self.filter(namespace, |o| crate::view::label(o, label) == Some(value));
        };
        let keys = index.get(&(namespace.to_owned(), value.to_owned()));
        keys.into_iter().flatten().filter_map(|k| state.objects.get(k)).cloned().collect()
    }

    /// How many objects are known.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends when the first list is complete.
    pub async fn synced(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|done| *done).await;
    }

    /// Calls `f` for every object there is and for every later change, on the task that saw it: `f` must be
    /// quick and must not write to this cache.
    pub fn subscribe(&self, f: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let f: Subscriber<K> = Arc::new(f);
        write(&self.subscribers).push(f.clone());
        for object in self.list("") {
            f(&Change { key: Key::of(object.as_ref()), old: None, new: Some(object) });
        }
    }

    /// Watches until shutdown, with bounded backoff after errors.
    pub async fn run(&self, client: Client, shutdown: CancellationToken) {
        let config = watcher::Config::default().page_size(500);
        let (api, config) = match &self.only {
            Some(only) => ((only.api)(client, &only.namespace), config.labels(&only.selector)),
            None => (Api::all(client), config),
        };
        let (least, most) = WATCH_AGAIN;
        let again = ExponentialBuilder::new().with_min_delay(least).with_max_delay(most).with_jitter();
        let again: watcher::ExponentialBackoff = again.without_max_times().into();
        let events = watcher(api, config).backoff(again).into_stream();
        let mut events = std::pin::pin!(events.take_until(shutdown.cancelled_owned()));
        let mut listed = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed = Some(BTreeMap::new()),
                Ok(watcher::Event::InitApply(object)) => {
                    let object = self.prepare(object);
                    listed.get_or_insert_default().insert(Key::of(&object), Arc::new(object));
                }
                Ok(watcher::Event::InitDone) => self.replace(listed.take().unwrap_or_default()),
                Ok(watcher::Event::Apply(object)) => self.put(self.prepare(object)),
                Ok(watcher::Event::Delete(object)) => self.remove(&object),
                Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "watch failed, trying again"),
            }
        }
    }

    fn prepare(&self, mut object: K) -> K {
        object.meta_mut().managed_fields = None;
        (self.trim)(&mut object);
        object
    }

    fn replace(&self, mut listed: BTreeMap<Key, Arc<K>>) {
        let mut changes = vec![];
        {
            let mut state = write(&self.state);
            state.epoch += 1;
            state.watched = listed.values().map(|o| version(o.as_ref())).max().unwrap_or(0).max(state.watched);
            let gone: Vec<Key> = state.objects.keys().filter(|k| !listed.contains_key(*k)).cloned().collect();
            for key in gone {
                let old = state.set(&key, None);
                changes.push(Change { key, old, new: None });
            }
            while let Some((key, new)) = listed.pop_first() {
                let known = state.objects.get(&key).map(|o| version(o.as_ref()));
                if known.is_none_or(|known| known < version(new.as_ref())) || version(new.as_ref()) == 0 {
                    let old = state.set(&key, Some(new.clone()));
                    changes.push(Change { key, old, new: Some(new) });
                }
            }
        }
        self.tell(&changes);
        self.synced.send_replace(true);
    }

    fn put(&self, object: K) {
        let key = Key::of(&object);
        let change = {
            let mut state = write(&self.state);
            state.watched = state.watched.max(version(&object));
            if state.objects.get(&key).is_some_and(|o| version(o.as_ref()) >= version(&object) && version(&object) > 0)
            {
                return;
            }
            let new = Some(Arc::new(object));
            let old = state.set(&key, new.clone());
            Change { key, old, new }
        };
        self.tell(&[change]);
    }

    fn remove(&self, object: &K) {
        let key = Key::of(object);
        let change = {
            let mut state = write(&self.state);
            state.watched = state.watched.max(version(object));
            if state.objects.get(&key).is_none_or(|o| version(o.as_ref()) > version(object)) {
                return;
            }
            let old = state.set(&key, None);
            Change { key, old, new: None }
        };
        self.tell(&[change]);
    }

    fn tell(&self, changes: &[Change<K>]) {
        let subscribers = read(&self.subscribers).clone();
        for change in changes {
            for f in &subscribers {
                f(change);
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        read(&self.state)
    }
}

impl<K: Kind> State<K> {
    fn set(&mut self, key: &Key, new: Option<Arc<K>>) -> Option<Arc<K>> {
        let old = match &new {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(key),
        };
        if let Some(old) = &old {
            self.index(key, old, false);
        }
        if let Some(new) = &new {
            self.index(key, new, true);
        }
        old
    }

    fn index(&mut self, key: &Key, object: &K, present: bool) {
        for owner in object.meta().owner_references.iter().flatten() {
            toggle(&mut self.by_owner, owner.uid.clone(), key, present);
        }
        for (label, index) in &mut self.by_label {
            if let Some(value) = crate::view::label(object, label) {
                toggle(index, (key.namespace.clone(), value.to_owned()), key, present);
            }
        }
    }
}

fn toggle<I: std::hash::Hash + Eq>(index: &mut HashMap<I, BTreeSet<Key>>, entry: I, key: &Key, present: bool) {
    if present {
        index.entry(entry).or_default().insert(key.clone());
    } else if let Some(keys) = index.get_mut(&entry) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(&entry);
        }
    }
}

/// resourceVersions of one kind are comparable numbers (guaranteed by Kubernetes since 1.35); 0 when not.
fn version<K: Kind>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// A poisoned lock only says that a subscriber panicked elsewhere; the maps are never left half-written.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Kind> AnyCache for Cache<K> {
    fn epoch(&self) -> u64 {
        self.read().epoch
    }

    fn observe(&self, value: Value, epoch: u64) {
        let Ok(object) = serde_json::from_value::<K>(value) else { return };
        let object = self.prepare(object);
        {
            let state = self.read();
            if state.epoch != epoch || epoch == 0 || version(&object) <= state.watched {
                return;
            }
        }
        self.put_unwatched(object);
    }

    fn forget(&self, key: &Key, uid: &str) {
        let change = {
            let mut state = write(&self.state);
            if state.objects.get(key).is_none_or(|o| crate::view::uid(o.as_ref()) != uid) {
                return;
            }
            let old = state.set(key, None);
            Change { key: key.clone(), old, new: None }
        };
        self.tell(&[change]);
    }

    fn watch(self: Arc<Self>, client: Client, shutdown: CancellationToken) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(async move { self.run(client, shutdown).await })
    }

    fn wait(self: Arc<Self>) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(async move { self.synced().await })
    }

    fn held(&self, key: &Key) -> Option<Held> {
        self.get(&key.namespace, &key.name).map(|o| Held::of(o.as_ref()))
    }

    fn dependents(&self, uid: &str) -> Vec<Held> {
        self.owned_by(uid).iter().map(|o| Held::of(o.as_ref())).collect()
    }

    fn in_namespace(&self, namespace: &str) -> Vec<Held> {
        self.list(namespace).iter().map(|o| Held::of(o.as_ref())).collect()
    }

    fn subscribe_any(&self, f: AnySubscriber) {
        self.subscribe(move |change| {
            let held = |o: &Option<Arc<K>>| o.as_ref().map(|o| Held::of(o.as_ref()));
            f(&HeldChange { old: held(&change.old), new: held(&change.new) });
        });
    }
}

impl<K: Kind> Cache<K> {
    /// Like `put`, for an object that the watch has not delivered yet. The watch may overtake between the check
    /// and this, so the check is made again under the lock.
    fn put_unwatched(&self, object: K) {
        let key = Key::of(&object);
        let change = {
            let mut state = write(&self.state);
            let known = state.objects.get(&key).map(|o| version(o.as_ref()));
            if version(&object) <= state.watched || known.is_some_and(|known| known >= version(&object)) {
                return;
            }
            let new = Some(Arc::new(object));
            let old = state.set(&key, new.clone());
            Change { key, old, new }
        };
        self.tell(&[change]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    fn object(name: &str, version: u64, owner: &str) -> Value {
        json!({"metadata": {"namespace": "n", "name": name, "uid": format!("u-{name}"), "labels": {"l": owner},
            "resourceVersion": version.to_string(),
            "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner, "controller": true}]}})
    }

    fn typed(value: Value) -> ConfigMap {
        serde_json::from_value(value).unwrap()
    }

    fn names(list: &[Arc<ConfigMap>]) -> Vec<&str> {
        list.iter().filter_map(|o| o.metadata.name.as_deref()).collect()
    }

    #[test]
    fn indexes_follow_objects() {
        let cache = Cache::<ConfigMap>::new(&["l"]);
        cache.put(typed(object("a", 1, "one")));
        cache.put(typed(object("b", 2, "one")));
        assert_eq!(names(&cache.controlled_by("one")), ["a", "b"]);
        cache.put(typed(object("a", 3, "two")));
        assert_eq!(names(&cache.controlled_by("one")), ["b"]);
        assert_eq!(names(&cache.labelled("n", "l", "two")), ["a"]);
        cache.remove(&typed(object("b", 4, "one")));
        assert!(cache.controlled_by("one").is_empty());
        assert_eq!(names(&cache.list("n")), ["a"]);
    }

    #[test]
    fn own_writes_are_seen_and_never_bring_back_the_past() {
        let cache = Cache::<ConfigMap>::new(&[]);
        cache.observe(object("a", 1, "o"), 0);
        assert!(cache.is_empty(), "before the first list nothing is taken in");
        cache.replace(BTreeMap::new());
        cache.observe(object("a", 5, "o"), 1);
        assert_eq!(names(&cache.list("")), ["a"]);
        cache.put(typed(object("a", 4, "stale")));
        assert_eq!(names(&cache.controlled_by("o")), ["a"], "the watch is behind our own write");
        cache.remove(&typed(object("a", 6, "o")));
        cache.observe(object("a", 5, "o"), 1);
        assert!(cache.is_empty(), "the answer came after the watch told the end");
        cache.replace(BTreeMap::new());
        cache.observe(object("a", 9, "o"), 1);
        assert!(cache.is_empty(), "sent before the last list");
    }

    #[test]
    fn a_list_replaces_everything_and_tells_each_change() {
        let cache = Cache::<ConfigMap>::new(&[]);
        cache.put(typed(object("a", 1, "o")));
        cache.put(typed(object("b", 2, "o")));
        let seen = Arc::new(std::sync::Mutex::new(vec![]));
        let log = seen.clone();
        cache.subscribe(move |c| log.lock().unwrap().push(format!("{} {}", c.key, c.new.is_some())));
        seen.lock().unwrap().clear();
        let listed = [typed(object("b", 2, "o")), typed(object("c", 3, "o"))];
        cache.replace(listed.into_iter().map(|o| (Key::of(&o), Arc::new(o))).collect());
        assert_eq!(*seen.lock().unwrap(), ["n/a false", "n/c true"]);
    }
}
