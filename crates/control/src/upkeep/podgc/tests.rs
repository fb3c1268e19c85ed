use k8s_openapi::api::core::v1::Pod;
use reconcile::Key;
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;

fn with_pod(world: World, name: &str, status: Value) -> World {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    world.with(pod(name, json!({}), owner, status))
}

fn node(world: World) -> World {
    world.with_json(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}))
}

fn kept(case: &str, mut world: World, second: i64, name: &str) -> (bool, Option<i64>) {
    world.set_now(after(second));
    let outcome = converge(case, &world, &Key::new("default", name), gather);
    (exists::<Pod>(&outcome.world, name), outcome.requeue_after.map(|d| d.as_secs()))
}

#[test]
fn rows() {
    let one = |status| with_pod(world(), "p", status);
    assert_eq!(kept("running", node(one(is_ready(true))), 999, "p"), (true, None));
    assert_eq!(kept("node not there yet", one(is_ready(true)), 10, "p"), (true, Some(50)));
    assert_eq!(kept("node gone", one(is_ready(true)), 60, "p"), (false, None));
    assert_eq!(kept("finished", node(one(json!({"phase": "Failed"}))), 999, "p"), (true, None));
    let mut many = node(world());
    for i in 0..5 {
        many.set_now(after(i));
        many = with_pod(many, &format!("p{i}"), json!({"phase": "Failed"}));
    }
    for (name, want) in [("p0", false), ("p1", false), ("p2", true), ("p4", true)] {
        assert_eq!(kept("pile", many.clone(), 999, name).0, want, "{name}");
    }
}
