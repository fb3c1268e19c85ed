//! How a planner reads the world: by name, by namespace, by owner, by label.
//!
//! Two things can be read this way: the live [`crate::Caches`] and the [`crate::table::World`] of a test, so the
//! same gathering code runs in both.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A namespaced name; `namespace` is empty for cluster-wide objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: Kind>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Any typed object that can be watched.
pub trait Kind:
    kube::Resource<DynamicType = ()> + Clone + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<T> Kind for T where
    T: kube::Resource<DynamicType = ()> + Clone + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// A readable picture of the objects. Contract: answers at once, from memory; a later call may see more.
pub trait View {
    fn get<K: Kind>(&self, namespace: &str, name: &str) -> Option<Arc<K>>;

    /// Every object of a namespace, or of all when `namespace` is empty, by key.
    fn list<K: Kind>(&self, namespace: &str) -> Vec<Arc<K>>;

    /// The objects whose controller owner has this uid, by key.
    fn controlled_by<K: Kind>(&self, uid: &str) -> Vec<Arc<K>>;

    /// The objects of a namespace with this label, by key.
    fn labelled<K: Kind>(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<K>>;
}

/// The uid of an object that came from the API server.
pub fn uid<K: Kind>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

/// The controller owner of an object: its kind, name and uid.
pub fn controller_of<K: Kind>(object: &K) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// The value of a label.
pub fn label<'a, K: Kind>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(name).map(String::as_str)
}

/// The value of an annotation.
pub fn annotation<'a, K: Kind>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether the object is on its way out.
pub fn is_deleting<K: Kind>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}
