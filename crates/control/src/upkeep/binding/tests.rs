use k8s_openapi::api::core::v1::Pod;
use reconcile::{Key, View};
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;

/// Where a pod ends up, and what is told about it.
fn check(case: &str, spec: Value, with_node: bool) -> (Option<String>, Vec<String>) {
    let mut pod = pod("p", json!({}), json!([]), json!({}));
    let mut value = serde_json::to_value(&pod).unwrap();
    value["spec"] = json!({"containers": [{"name": "c", "image": "i"}]});
    for (field, given) in spec.as_object().unwrap() {
        value["spec"][field] = given.clone();
    }
    pod = serde_json::from_value(value).unwrap();
    let mut world = world().with(pod);
    if with_node {
        let labels = json!({"kubernetes.io/os": "linux"});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node", "labels": labels}});
        world = world.with_json(node);
    }
    let key = Key::new("default", "p");
    let told = gather(&world, &key, "node", after(0)).events.iter().map(ToString::to_string).collect();
    let outcome = converge(case, &world, &key, |view, key, now| {
        // The same words about the same pod are one Event, which the rows must not count as work.
        let mut plan = gather(view, key, "node", now);
        plan.events.clear();
        plan
    });
    let bound = outcome.world.get::<Pod>("default", "p").unwrap().spec.clone().unwrap().node_name;
    (bound.filter(|name| !name.is_empty()), told)
}

#[test]
fn rows() {
    let (bound, told) = check("by hand", json!({}), true);
    assert_eq!(bound.as_deref(), Some("node"));
    assert_eq!(told, ["event Pod Scheduled: Successfully assigned default/p to node"]);
    assert_eq!(check("elsewhere", json!({"nodeName": "other"}), true), (Some("other".into()), vec![]));
    assert_eq!(check("no node yet", json!({}), false), (None, vec![]));
    assert_eq!(check("another scheduler", json!({"schedulerName": "mine"}), true), (None, vec![]));
    let linux = json!({"nodeSelector": {"kubernetes.io/os": "linux"}});
    assert_eq!(check("selected", linux, true).0.as_deref(), Some("node"));
    let (bound, told) = check("not selected", json!({"nodeSelector": {"gpu": "yes"}}), true);
    assert_eq!(bound, None);
    assert!(told[0].contains("FailedScheduling") && told[0].contains("gpu=yes"), "{told:?}");
}
