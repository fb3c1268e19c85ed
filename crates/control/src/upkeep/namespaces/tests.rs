use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use reconcile::{Held, Key, Plan, View};
use serde_json::json;

use super::plan::{is_last_step, plan};
use crate::fixtures::*;

fn given(leaving: bool) -> World {
    let at = leaving.then(start);
    let object = |name: &str, owners| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "n", "name": name, "ownerReferences": owners}})
    };
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "z", "uid": "z"}]);
    world()
        .with_json(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "deletionTimestamp": at},
            "spec": {"finalizers": ["kubernetes"]}}))
        .with_json(object("a", owner))
        .with_json(object("z", json!(null)))
}

fn gather(world: &World, key: &Key, _: jiff::Timestamp) -> Plan {
    let contents = world.list::<ConfigMap>("n").iter().map(|c| Held::of(c.as_ref())).collect();
    world.get::<Namespace>("", &key.name).map_or_else(Plan::default, |n| plan(&n, contents))
}

#[test]
fn contents_first() {
    let key = Key::new("", "n");
    assert!(converge("alive", &given(false), &key, gather).writes.is_empty());
    let outcome = converge("leaving", &given(true), &key, gather);
    assert_eq!(outcome.writes, ["delete ConfigMap n/z", "delete ConfigMap n/a", "replace Namespace n"], "owners first");
    let first = gather(&given(true), &key, start());
    assert!(!is_last_step(&first));
}
