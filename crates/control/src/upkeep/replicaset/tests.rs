use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Key, Plan, View};
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;

fn plan(world: &World, key: &Key, now: jiff::Timestamp) -> Plan {
    gather(world, "node", key, now)
}

fn given(replicas: i32) -> World {
    world().with_json(json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"namespace": "default", "name": "hello"},
        "spec": {"replicas": replicas, "selector": {}, "template": {
            "metadata": {"labels": {"app": "hello"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}}},
    }))
}

fn run(case: &str, world: &World) -> Outcome {
    settle(case, world, plan)
}

fn with_pod(world: World, name: &str, second: i64, cost: &str, status: Value) -> World {
    let owner = owned::<ReplicaSet>(&world, "default", "hello");
    let mut pod = json!(pod(name, json!({}), owner, status));
    pod["metadata"]["creationTimestamp"] = json!(after(second));
    pod["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": cost});
    world.with_json(pod)
}

fn names(world: &World) -> Vec<String> {
    world.list::<Pod>("default").iter().map(|p| p.metadata.name.clone().unwrap()).collect()
}

#[test]
fn makes_what_is_missing() {
    let outcome = run("three", &given(3));
    assert_eq!(names(&outcome.world).len(), 3);
    let pod = outcome.world.list::<Pod>("default")[0].clone();
    assert!(pod.metadata.name.as_deref().unwrap().starts_with("hello-"));
    assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("node"));
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["app"], "hello");
    let owner = &pod.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.controller, owner.block_owner_deletion),
        ("ReplicaSet", Some(true), Some(true))
    );
    let status = outcome.world.expect::<ReplicaSet>("default", "hello").status.unwrap();
    assert_eq!((status.replicas, status.ready_replicas, status.observed_generation), (3, None, Some(1)));
}

#[test]
fn the_cheapest_go_first() {
    for (case, wanted, kept) in [
        ("none", 4, vec!["busy", "old", "unready", "young"]),
        ("not ready before ready", 3, vec!["busy", "old", "young"]),
        ("young before old", 2, vec!["busy", "old"]),
        ("cheap before dear", 1, vec!["busy"]),
        ("all", 0, vec![]),
    ] {
        let mut world = given(wanted);
        for (name, second, cost, status) in [
            ("busy", 3, "5", is_ready(false)),
            ("old", 1, "0", is_ready(true)),
            ("young", 2, "0", is_ready(true)),
            ("unready", 0, "0", is_ready(false)),
        ] {
            world = with_pod(world, name, second, cost, status);
        }
        assert_eq!(names(&run(case, &world).world), kept, "{case}");
    }
}

#[test]
fn what_leaves_or_ended_does_not_count() {
    let leaving = |mut pod: Value| {
        pod["metadata"]["deletionTimestamp"] = json!(start());
        pod["metadata"]["finalizers"] = json!(["x"]);
        pod
    };
    let world = with_pod(given(1), "ended", -100, "0", json!({"phase": "Failed"}));
    let world = with_pod(world, "leaving", 0, "0", is_ready(true));
    let pod = leaving(json!(world.expect::<Pod>("default", "leaving")));
    let outcome = run("replaced", &world.with_json(pod));
    assert_eq!(names(&outcome.world).len(), 3);
    assert_eq!(outcome.world.expect::<ReplicaSet>("default", "hello").status.unwrap().replicas, 1);
}

#[test]
fn a_node_that_refuses_is_not_hurried() {
    let mut world = given(1);
    for (i, second) in [-9, -5, -3].into_iter().enumerate() {
        world =
            with_pod(world, &format!("refused-{i}"), second, "0", json!({"phase": "Failed", "reason": "NoProvider"}));
    }
    // Three have failed, the last 3 s ago: the next comes 2^3 s after it.
    let outcome = run("wait", &world);
    assert_eq!(names(&outcome.world).len(), 3);
    assert_eq!(outcome.requeue_after.unwrap().as_secs(), 5);
    world.set_now(after(5));
    assert_eq!(names(&run("again", &world).world).len(), 4);
}

#[test]
fn a_burst_is_cut() {
    let plan = plan(&given(700), &key(), start());
    assert_eq!(plan.writes.len(), 500);
    let mut names: Vec<String> = plan.writes.iter().map(|w| w.target().name).collect();
    names.dedup();
    assert_eq!(names.len(), 500, "every name is new");
}

#[test]
fn labels_decide_whose_a_pod_is() {
    let ours = |world: &World| owned::<ReplicaSet>(world, "default", "hello");
    let other =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "other", "uid": "other", "controller": true}]);
    for (case, wanted, labels, owner, want) in [
        ("one that was left is taken", 1, json!({"app": "hello"}), Some(json!([])), vec!["patch"]),
        ("but only when one is missing", 0, json!({"app": "hello"}), Some(json!([])), vec![]),
        ("not with other labels", 1, json!({"app": "bye"}), Some(json!([])), vec!["create"]),
        ("not another's", 1, json!({"app": "hello"}), Some(other), vec!["create"]),
        ("one with other labels is let go", 1, json!({"app": "bye"}), None, vec!["patch", "create"]),
        ("one of its own is kept", 1, json!({"app": "hello"}), None, vec![]),
    ] {
        let mut world = given(wanted);
        world.edit::<ReplicaSet>("default", "hello", |set| {
            let labels = [("app".to_owned(), "hello".to_owned())].into();
            set.spec.as_mut().unwrap().selector.match_labels = Some(labels);
        });
        let owner = owner.unwrap_or_else(|| ours(&world));
        let outcome = run(case, &world.with_json(json!(pod("p", labels, owner, is_ready(true)))));
        let writes: Vec<&str> = outcome.writes.iter().filter_map(|w| w.split(' ').next()).collect();
        assert_eq!(writes.into_iter().filter(|w| *w != "status").collect::<Vec<_>>(), want, "{case}");
    }
}
