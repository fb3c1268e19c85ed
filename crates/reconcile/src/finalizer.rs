//! Finalizers: the names an object waits for before it goes.

use serde_json::{Value, json};

use crate::view::Kind;

pub fn has<K: Kind>(object: &K, finalizer: &str) -> bool {
    object.meta().finalizers.iter().flatten().any(|f| f == finalizer)
}

/// A merge patch that adds the finalizer; it carries the resourceVersion, since the list has several writers.
pub fn add<K: Kind>(object: &K, finalizer: &str) -> Value {
    let mut list: Vec<&str> = object.meta().finalizers.iter().flatten().map(String::as_str).collect();
    list.push(finalizer);
    patch(object, &list)
}

/// A merge patch that removes the finalizer.
pub fn remove<K: Kind>(object: &K, finalizer: &str) -> Value {
    let list: Vec<&str> =
        object.meta().finalizers.iter().flatten().map(String::as_str).filter(|f| *f != finalizer).collect();
    patch(object, &list)
}

fn patch<K: Kind>(object: &K, list: &[&str]) -> Value {
    json!({"metadata": {"resourceVersion": object.meta().resource_version, "finalizers": list}})
}
