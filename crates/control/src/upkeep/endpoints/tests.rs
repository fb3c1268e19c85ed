use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::View;
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;

fn given(spec: Value) -> World {
    world().with_json(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": "hello", "labels": {"l": "v"}}, "spec": spec}))
}

fn selecting() -> World {
    given(json!({"selector": {"app": "hello"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}))
}

fn run(case: &str, world: &World) -> Outcome {
    settle(case, world, gather)
}

fn with_pod(world: World, name: &str, app: &str, status: Value) -> World {
    world.with(pod(name, json!({"app": app}), json!([]), status))
}

fn endpoints(world: &World) -> Vec<String> {
    let slice = world.expect::<EndpointSlice>("default", "hello-0");
    slice
        .endpoints
        .iter()
        .map(|e| {
            let c = e.conditions.as_ref().unwrap();
            let name = e.target_ref.as_ref().unwrap().name.clone().unwrap();
            format!(
                "{name} {} ready={} serving={} terminating={}",
                e.addresses[0],
                c.ready.unwrap(),
                c.serving.unwrap(),
                c.terminating.unwrap()
            )
        })
        .collect()
}

#[test]
fn follows_its_pods() {
    let outcome = run("none", &selecting());
    assert_eq!(outcome.writes, ["create EndpointSlice default/hello-0"]);
    let slice = outcome.world.expect::<EndpointSlice>("default", "hello-0");
    let labels = slice.metadata.labels.unwrap();
    assert_eq!((labels["kubernetes.io/service-name"].as_str(), labels["l"].as_str()), ("hello", "v"));
    assert_eq!(slice.ports.unwrap()[0].port, Some(8080));

    let world = with_pod(outcome.world, "a", "hello", is_ready(true));
    let world = with_pod(world, "b", "hello", is_ready(false));
    let world = with_pod(world, "c", "other", is_ready(true));
    let world = with_pod(world, "no-address", "hello", json!({"phase": "Pending"}));
    let world = with_pod(world, "ended", "hello", json!({"phase": "Failed", "podIP": "10.0.0.1"}));
    let outcome = run("pods", &world);
    assert_eq!(outcome.writes, ["patch EndpointSlice default/hello-0"]);
    assert_eq!(
        endpoints(&outcome.world),
        [
            "a 10.0.0.1 ready=true serving=true terminating=false",
            "b 10.0.0.1 ready=false serving=false terminating=false"
        ]
    );

    let mut world = outcome.world;
    world.remove::<Pod>("default", "b");
    let mut leaving = json!(world.expect::<Pod>("default", "a"));
    leaving["metadata"]["deletionTimestamp"] = json!(start());
    let outcome = run("leaving", &world.with_json(leaving));
    assert_eq!(endpoints(&outcome.world), ["a 10.0.0.1 ready=false serving=true terminating=true"]);
}

#[test]
fn sockets_stand_beside() {
    let mut pod = json!(pod("a", json!({"app": "hello"}), json!([]), json!({"phase": "Running"})));
    pod["metadata"]["annotations"] = json!({"dhow.dev/socket": "/run/a.sock"});
    let mut world = run("socket", &selecting().with_json(pod)).world;
    let slice = world.expect::<EndpointSlice>("default", "hello-0");
    assert_eq!(slice.metadata.annotations.unwrap()["dhow.dev/sockets"], r#"{"a":"/run/a.sock"}"#);
    assert_eq!(slice.endpoints[0].addresses, ["127.0.0.1"]);
    world.remove::<Pod>("default", "a");
    let slice = run("gone", &world).world.expect::<EndpointSlice>("default", "hello-0");
    assert!(!slice.metadata.annotations.unwrap_or_default().contains_key("dhow.dev/sockets"));
}

#[test]
fn ports() {
    for (case, target, want) in [
        ("number", json!(9000), Some(9000)),
        ("same", Value::Null, Some(80)),
        ("name", json!("web"), Some(7000)),
        ("no such name", json!("nope"), None),
    ] {
        let world = given(json!({"selector": {"app": "hello"}, "ports": [{"port": 80, "targetPort": target}]}));
        let mut pod = json!(pod("a", json!({"app": "hello"}), json!([]), is_ready(true)));
        pod["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 7000}]);
        let world = run(case, &world.with_json(pod)).world;
        assert_eq!(world.expect::<EndpointSlice>("default", "hello-0").ports.unwrap()[0].port, want, "{case}");
    }
}

#[test]
fn services_without_pods_of_ours() {
    for (case, spec) in [
        ("no selector", json!({"ports": [{"port": 80}]})),
        ("external name", json!({"type": "ExternalName", "externalName": "x", "selector": {"app": "hello"}})),
    ] {
        let outcome = run(case, &with_pod(given(spec), "a", "hello", is_ready(true)));
        assert!(outcome.writes.is_empty(), "{case}");
    }
}

#[test]
fn a_selector_taken_away_takes_its_slices() {
    let mut world = run("with", &with_pod(selecting(), "a", "hello", is_ready(true))).world;
    world.edit::<Service>("default", "hello", |s| s.spec.as_mut().unwrap().selector = None);
    assert_eq!(run("without", &world).world.list::<EndpointSlice>("").len(), 0);
}

#[test]
fn many_pods_are_many_slices() {
    let world = (0..1001).fold(selecting(), |w, i| with_pod(w, &format!("p{i:04}"), "hello", is_ready(true)));
    let plan = gather(&world, &key(), start());
    let targets: Vec<String> = plan.writes.iter().map(ToString::to_string).collect();
    assert_eq!(targets, ["create EndpointSlice default/hello-0", "create EndpointSlice default/hello-1"]);
}
