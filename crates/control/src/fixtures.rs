//! Objects that the rows of several controllers start from.

use api::condition::{self, Condition};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use reconcile::view::Kind;
use reconcile::{Key, Plan, View};
use serde_json::{Value, json};

pub use reconcile::table::{Outcome, World, converge};

/// The moment every row starts at.
pub fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

pub fn after(seconds: i64) -> Timestamp {
    start() + jiff::SignedDuration::from_secs(seconds)
}

pub fn key() -> Key {
    Key::new("default", "hello")
}

pub fn world() -> World {
    World::new(start())
}

pub fn ready(type_: &str, status: &str, reason: &str, message: &str) -> Condition {
    let mut conditions = vec![];
    condition::put(&mut conditions, type_, status, reason, message, start());
    conditions.remove(0)
}

/// `type=status reason: message` of each condition, in order.
pub fn told(conditions: &[Condition]) -> Vec<String> {
    conditions.iter().map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)).collect()
}

/// One condition as `status reason: message`.
pub fn tell(conditions: &[Condition], type_: &str) -> String {
    let c = condition::find(conditions, type_).unwrap_or_else(|| panic!("no {type_}"));
    format!("{} {}: {}", c.status, c.reason, c.message).trim_end_matches(": ").trim_end().to_owned()
}

/// A pod of a revision, written as JSON; `status` is merged in.
pub fn pod(name: &str, labels: Value, owner: Value, status: Value) -> Pod {
    let meta = json!({"namespace": "default", "name": name, "labels": labels, "ownerReferences": owner});
    let spec = json!({"containers": [{"name": "user-container"}], "nodeName": "node"});
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}))
        .unwrap()
}

pub fn is_ready(ready: bool) -> Value {
    json!({"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]})
}

/// The owner references of a child of `owner`, as JSON.
pub fn owned<K: Kind>(world: &World, namespace: &str, name: &str) -> Value {
    json!([crate::ownership::owner_reference(&world.expect::<K>(namespace, name))])
}

/// Sets the whole status of an object.
pub fn set_status<K: Kind>(world: &mut World, namespace: &str, name: &str, status: Value) {
    world.edit::<K>(namespace, name, |object| {
        let mut value = json!(object);
        value["status"] = status;
        *object = serde_json::from_value(value).unwrap();
    });
}

/// Runs one row to its end.
pub fn settle(case: &str, world: &World, planner: impl Fn(&World, &Key, Timestamp) -> Plan) -> Outcome {
    converge(case, world, &key(), planner)
}

pub fn exists<K: Kind>(world: &World, name: &str) -> bool {
    world.get::<K>("default", name).is_some()
}
