use api::serving::{Configuration, Route, Service};
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;

fn given(traffic: Value) -> World {
    let service: Service = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": "hello", "labels": {"a": "b"}, "annotations": {
            "serving.knative.dev/creator": "me", "kubectl.kubernetes.io/last-applied-configuration": "x"}},
        "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}, "traffic": traffic},
    }))
    .unwrap();
    world().with(service)
}

fn run(case: &str, world: &World) -> Outcome {
    settle(case, world, gather)
}

fn children_ready(world: &mut World, revision: &str) {
    let ready = ready("Ready", "True", "", "");
    let latest = json!({"observedGeneration": 1, "conditions": [ready],
        "latestCreatedRevisionName": revision, "latestReadyRevisionName": revision});
    set_status::<Configuration>(world, "default", "hello", latest);
    let traffic = json!([{"revisionName": revision, "percent": 100, "latestRevision": true}]);
    let route = json!({"observedGeneration": 1, "url": "http://u", "address": {"url": "http://a"}, "traffic": traffic, "conditions": [ready]});
    set_status::<Route>(world, "default", "hello", route);
}

#[test]
fn children_and_their_words() {
    let outcome = run("new", &given(json!([])));
    assert_eq!(outcome.writes[..2], ["apply Configuration default/hello", "apply Route default/hello"]);
    let mut world = outcome.world;
    let configuration = world.expect::<Configuration>("default", "hello");
    let labels = configuration.metadata.labels.unwrap();
    assert_eq!((labels["a"].as_str(), labels["serving.knative.dev/service"].as_str()), ("b", "hello"));
    let annotations = configuration.metadata.annotations.unwrap();
    assert!(annotations.contains_key("serving.knative.dev/creator"));
    assert!(!annotations.contains_key("kubectl.kubernetes.io/last-applied-configuration"));
    let route = world.expect::<Route>("default", "hello");
    assert_eq!(
        json!(route.spec.traffic),
        json!([{"configurationName": "hello", "latestRevision": true, "percent": 100}])
    );
    let status = world.expect::<Service>("default", "hello").status.unwrap();
    assert!(tell(&status.conditions, "Ready").starts_with("Unknown OutOfDate"));

    children_ready(&mut world, "hello-00001");
    let world = run("ready", &world).world;
    let status = world.expect::<Service>("default", "hello").status.unwrap();
    assert_eq!(told(&status.conditions), ["ConfigurationsReady=True : ", "Ready=True : ", "RoutesReady=True : "]);
    assert_eq!(
        (status.url.as_deref(), status.latest_ready_revision_name.as_deref()),
        (Some("http://u"), Some("hello-00001"))
    );
}

#[test]
fn a_change_is_not_ready_before_its_children_are() {
    let mut world = run("new", &given(json!([]))).world;
    children_ready(&mut world, "hello-00001");
    let mut world = run("ready", &world).world;
    world.edit::<Service>("default", "hello", |s| s.spec.template.spec.timeout_seconds = Some(5));
    let mut world = run("changed", &world).world;
    let status = world.expect::<Service>("default", "hello").status.unwrap();
    assert_eq!(status.observed_generation, Some(2));
    assert!(tell(&status.conditions, "Ready").starts_with("Unknown OutOfDate"), "{:?}", told(&status.conditions));

    // The configuration has the new revision ready, the route still shows the old one.
    let ready = ready("Ready", "True", "", "");
    let latest = json!({"observedGeneration": 2, "conditions": [ready],
        "latestCreatedRevisionName": "hello-00002", "latestReadyRevisionName": "hello-00002"});
    set_status::<Configuration>(&mut world, "default", "hello", latest);
    let world = run("half", &world).world;
    let status = world.expect::<Service>("default", "hello").status.unwrap();
    assert!(tell(&status.conditions, "RoutesReady").starts_with("Unknown TrafficNotMigrated"));
}

#[test]
fn children_of_others_are_left_alone() {
    for (kind, spec, condition) in [
        ("Configuration", json!({"template": {"spec": {"containers": []}}}), "ConfigurationsReady"),
        ("Route", json!({"traffic": []}), "RoutesReady"),
    ] {
        let foreign = json!({"apiVersion": "serving.knative.dev/v1", "kind": kind,
            "metadata": {"namespace": "default", "name": "hello"}, "spec": spec});
        let outcome = run(kind, &given(json!([])).with_json(foreign));
        assert!(!outcome.writes.contains(&format!("apply {kind} default/hello")));
        let status = outcome.world.expect::<Service>("default", "hello").status.unwrap();
        let want = format!("False NotOwned: There is an existing {kind} \"hello\" that we do not own.");
        assert_eq!(tell(&status.conditions, condition), want);
        assert_eq!(tell(&status.conditions, "Ready"), want);
    }
}

#[test]
fn pinned_traffic_names_no_configuration() {
    let traffic =
        json!([{"revisionName": "hello-00001", "percent": 90}, {"latestRevision": true, "percent": 10, "tag": "next"}]);
    let world = run("split", &given(traffic)).world;
    assert_eq!(
        json!(world.expect::<Route>("default", "hello").spec.traffic),
        json!([{"revisionName": "hello-00001", "percent": 90},
            {"configurationName": "hello", "latestRevision": true, "percent": 10, "tag": "next"}])
    );
}

#[test]
fn a_label_taken_away_goes_from_the_children() {
    let mut world = run("new", &given(json!([]))).world;
    world.edit::<Service>("default", "hello", |s| s.metadata.labels = None);
    let world = run("without", &world).world;
    assert!(!world.expect::<Route>("default", "hello").metadata.labels.unwrap().contains_key("a"));
}

#[test]
fn what_a_cluster_could_not_refuse_is_told() {
    let mut world = given(json!([]));
    world.edit::<Service>("default", "hello", |s| s.spec.template.spec.timeout_seconds = Some(1000));
    let outcome = run("too long", &world);
    assert_eq!(outcome.writes, ["status Service default/hello"]);
    let status = outcome.world.expect::<Service>("default", "hello").status.unwrap();
    let want = "False InvalidSpec: expected 0 <= 1000 <= 600: spec.template.spec.timeoutSeconds";
    assert_eq!(tell(&status.conditions, "Ready"), want);
}

#[test]
fn services_of_another_class_are_left_alone() {
    let mut world = given(json!([]));
    let class = |s: &mut Service| {
        s.metadata.annotations.get_or_insert_default().insert("dhow.dev/class".into(), "other".into());
    };
    world.edit::<Service>("default", "hello", class);
    assert_eq!(run("another's", &world).writes, [""; 0]);
}
