use api::build::Build;
use api::function::Function;
use api::serving::Service;
use serde_json::{Value, json};

use super::{children, gather};
use crate::fixtures::*;

fn function(spec: Value) -> Function {
    let mut spec = spec;
    if spec["source"].is_null() {
        spec["source"] = json!({"inline": {"files": {"main.py": "def handle(r): return 'hi'"}}});
    }
    serde_json::from_value(json!({
        "apiVersion": "dhow.dev/v1alpha1", "kind": "Function",
        "metadata": {"namespace": "default", "name": "hello", "labels": {"team": "a"}},
        "spec": spec,
    }))
    .unwrap()
}

fn given(spec: Value) -> World {
    world().with(function(spec))
}

fn run(case: &str, world: &World) -> Outcome {
    settle(case, world, |view, key, now| gather(view, key, None, now))
}

fn build_name(world: &World) -> String {
    children::build_name(&world.expect::<Function>("default", "hello"))
}

fn finish_build(world: &mut World, status: Value) {
    let name = build_name(world);
    set_status::<Build>(world, "default", &name, status);
}

fn built(world: &mut World) {
    let succeeded = ready("Succeeded", "True", "", "");
    finish_build(world, json!({"image": "localhost:5000/default/hello@sha256:aa", "conditions": [succeeded]}));
}

fn conditions(world: &World) -> Vec<String> {
    told(&world.expect::<Function>("default", "hello").status.unwrap().conditions)
}

#[test]
fn from_source_to_url() {
    let outcome = run("new", &given(json!({"runtime": "python"})));
    let mut world = outcome.world;
    let name = build_name(&world);
    assert_eq!(
        outcome.writes,
        [
            format!("apply Build default/{name}"),
            "status Function default/hello".into(),
            "status Function default/hello".into()
        ]
    );
    let build = world.expect::<Build>("default", &name);
    assert_eq!(build.spec.repository, "default/hello");
    assert_eq!(
        tell(&world.expect::<Function>("default", "hello").status.unwrap().conditions, "Built"),
        "Unknown Building"
    );

    built(&mut world);
    let mut world = run("built", &world).world;
    let service = world.expect::<Service>("default", "hello");
    let container = &service.spec.template.spec.pod.containers[0];
    assert_eq!(container.image.as_deref(), Some("localhost:5000/default/hello@sha256:aa"));
    assert_eq!(service.spec.template.spec.concurrency(), 1);
    assert_eq!(service.spec.template.spec.pod.runtime_class_name.as_deref(), Some("dhow-process"));
    assert_eq!(service.spec.template.spec.pod.automount_service_account_token, Some(false));
    let labels = service.metadata.labels.unwrap();
    assert_eq!((labels["dhow.dev/function"].as_str(), labels["team"].as_str()), ("hello", "a"));

    let ready = ready("Ready", "True", "", "");
    let url = "http://hello.default.localhost:8080";
    let status =
        json!({"observedGeneration": 1, "url": url, "latestReadyRevisionName": "hello-00001", "conditions": [ready]});
    set_status::<Service>(&mut world, "default", "hello", status);
    let outcome = run("serving", &world);
    let status = outcome.world.expect::<Function>("default", "hello").status.unwrap();
    assert_eq!(status.url.as_deref(), Some(url));
    assert_eq!(status.revision.as_deref(), Some("hello-00001"));
    assert_eq!(told(&status.conditions), ["Built=True : ", "Ready=True : ", "Serving=True : ", "SourceReady=True : "]);
    assert_eq!(outcome.events.last().map(String::as_str), Some("event Function Ready: Ready is now true"));
}

#[test]
fn words_climb_verbatim() {
    let failed = |reason: &str| ready("Succeeded", "False", reason, "it broke");
    for (case, status, want) in [
        (
            "dependencies",
            json!({"conditions": [failed("DependenciesFailed")], "logTail": ["one", "two"]}),
            [
                "Built=False DependenciesFailed: it broke\none\ntwo",
                "Ready=False DependenciesFailed: it broke\none\ntwo",
                "SourceReady=True : ",
            ],
        ),
        (
            "no blob",
            json!({"conditions": [failed("SourceMissing")]}),
            [
                "Built=False SourceMissing: it broke",
                "Ready=False SourceMissing: it broke",
                "SourceReady=False SourceMissing: it broke",
            ],
        ),
        (
            "running",
            json!({"conditions": [ready("Succeeded", "Unknown", "Running", "installing")]}),
            ["Built=Unknown Running: installing", "Ready=Unknown Running: installing", "SourceReady=True : "],
        ),
    ] {
        let mut world = run(case, &given(json!({}))).world;
        finish_build(&mut world, status);
        let world = run(case, &world).world;
        let told: Vec<String> = conditions(&world).into_iter().filter(|c| !c.starts_with("Serving")).collect();
        assert_eq!(told, want, "{case}");
        assert!(!exists::<Service>(&world, "hello"), "{case}");
    }
}

#[test]
fn a_bad_source_builds_nothing() {
    for (case, spec, message) in [
        ("none", json!({"source": {}}), "spec.source: expected exactly one of blob, inline"),
        (
            "empty",
            json!({"source": {"inline": {"files": {}}}}),
            "spec.source.inline.files: must hold at least one file",
        ),
    ] {
        let world = run(case, &given(spec)).world;
        let status = world.expect::<Function>("default", "hello").status.unwrap();
        assert_eq!(tell(&status.conditions, "SourceReady"), format!("False SourceInvalid: {message}"), "{case}");
        assert_eq!(tell(&status.conditions, "Ready"), format!("False SourceInvalid: {message}"), "{case}");
        assert_eq!(world.names(), ["Function default/hello"], "{case}");
    }
}

#[test]
fn a_foreign_service_is_left_alone() {
    let foreign: Service = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"namespace": "default", "name": "hello"},
        "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "theirs"}]}}},
    }))
    .unwrap();
    let mut world = run("taken", &given(json!({})).with(foreign)).world;
    built(&mut world);
    let world = run("built", &world).world;
    let service = world.expect::<Service>("default", "hello");
    assert_eq!(service.spec.template.spec.pod.containers[0].image.as_deref(), Some("theirs"));
    assert!(
        conditions(&world)
            .contains(&"Ready=False NameTaken: a Knative Service hello exists and belongs to something else".into())
    );
}

#[test]
fn a_new_source_is_a_new_build_and_the_old_one_serves_on() {
    let mut world = run("new", &given(json!({}))).world;
    built(&mut world);
    let mut world = run("built", &world).world;
    world.edit::<Function>("default", "hello", |f| f.spec.handler = Some("main.other".into()));
    let world = run("changed", &world).world;
    assert_eq!(world.names().iter().filter(|n| n.starts_with("Build")).count(), 2);
    assert!(exists::<Service>(&world, "hello"));
    assert!(conditions(&world).contains(&"Built=Unknown Building: ".into()));
}

#[test]
fn old_builds_are_pruned() {
    let mut world = run("new", &given(json!({}))).world;
    for i in 0..6 {
        world.set_now(after(i));
        world.edit::<Function>("default", "hello", |f| f.spec.handler = Some(format!("main.h{i}")));
        world = run("changed", &world).world;
    }
    let builds = world.names().iter().filter(|n| n.starts_with("Build")).count();
    assert_eq!(builds, 4, "the current one and three others: {:?}", world.names());
    assert!(exists::<Build>(&world, &build_name(&world)));
}

#[test]
fn scale_becomes_annotations() {
    let mut world = run(
        "new",
        &given(json!({"scale": {"min": 1, "max": 5, "idleSeconds": 10}, "concurrency": 0, "timeoutSeconds": 7})),
    )
    .world;
    built(&mut world);
    let world = run("built", &world).world;
    let template = world.expect::<Service>("default", "hello").spec.template;
    let annotations = template.metadata.unwrap().annotations.unwrap();
    assert_eq!(
        annotations
            .iter()
            .map(|(k, v)| format!("{}={v}", k.trim_start_matches("autoscaling.knative.dev/")))
            .collect::<Vec<_>>(),
        ["max-scale=5", "min-scale=1", "scale-to-zero-pod-retention-period=0s", "window=10s"]
    );
    assert_eq!((template.spec.concurrency(), template.spec.timeout()), (0, 7));
}

#[test]
fn on_a_cluster_a_kubelet_runs_it_with_as_few_rights_as_our_own_node_does() {
    let cluster = std::sync::Arc::new(crate::Cluster {
        pre_stop_seconds: 5,
        gateway: crate::Cluster::GATEWAY.into(),
        exposure: crate::Exposure::None,
        pull_secrets: vec!["pull".into()],
    });
    for (spec, class, memory) in [
        (json!({"runtime": "python"}), None, "512Mi"),
        (json!({"isolation": "container", "resources": {"limits": {"memory": "1Gi"}}}), None, "1Gi"),
        (json!({"isolation": "wasm"}), Some("dhow-wasm"), "512Mi"),
    ] {
        let on_cluster = |world: &World, key: &reconcile::Key, now| gather(world, key, Some(&cluster), now);
        let mut world = settle("new", &given(spec.clone()), on_cluster).world;
        built(&mut world);
        let world = settle("built", &world, on_cluster).world;
        let service = world.expect::<Service>("default", "hello");
        let pod = &service.spec.template.spec.pod;
        assert_eq!(pod.runtime_class_name.as_deref(), class, "{spec}");
        assert_eq!(pod.image_pull_secrets.as_ref().map(|s| s[0].name.as_str()), Some("pull"), "{spec}");
        let container = serde_json::to_value(&pod.containers[0]).unwrap();
        assert_eq!(container["resources"]["limits"]["memory"], memory, "{spec}");
        assert_eq!(container["securityContext"]["runAsNonRoot"], true, "{spec}");
        assert_eq!(pod.share_process_namespace, Some(true), "{spec}");
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]), "{spec}");
    }
}
