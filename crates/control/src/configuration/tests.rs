use api::serving::{Configuration, Revision};
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;
use crate::settings::Settings;

fn given(name: Value) -> World {
    let configuration: Configuration = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
        "metadata": {"namespace": "default", "name": "hello", "labels": {"serving.knative.dev/service": "hello", "own": "x"}},
        "spec": {"template": {"metadata": {"name": name, "labels": {"l": "v"}, "annotations": {"a": "v"}},
            "spec": {"containers": [{"name": "", "image": "i"}]}}},
    }))
    .unwrap();
    world().with(configuration)
}

fn run(case: &str, world: &World) -> Outcome {
    let settings = Settings { namespace: "dhow-system".into() };
    settle(case, world, |world, key, now| gather(world, &settings, key, now))
}

fn say(world: &mut World, revision: &str, status: &str, message: &str) {
    let reason = if status == "False" { "ExitCode1" } else { "" };
    set_status::<Revision>(
        world,
        "default",
        revision,
        json!({"conditions": [ready("Ready", status, reason, message)]}),
    );
}

fn next_generation(world: &mut World, timeout: i64) {
    world.edit::<Configuration>("default", "hello", |c| c.spec.template.spec.timeout_seconds = Some(timeout));
}

fn status(world: &World) -> (Option<String>, Option<String>, String) {
    let status = world.expect::<Configuration>("default", "hello").status.unwrap();
    (status.latest_created_revision_name, status.latest_ready_revision_name, tell(&status.conditions, "Ready"))
}

#[test]
fn stamps_a_revision() {
    let outcome = run("new", &given(Value::Null));
    assert_eq!(outcome.writes[0], "create Revision default/hello-00001");
    let revision = outcome.world.expect::<Revision>("default", "hello-00001");
    let labels = revision.metadata.labels.unwrap();
    for (label, want) in [
        ("serving.knative.dev/configuration", "hello"),
        ("serving.knative.dev/configurationGeneration", "1"),
        ("serving.knative.dev/service", "hello"),
        ("l", "v"),
    ] {
        assert_eq!(labels.get(label).map(String::as_str), Some(want), "{label}");
    }
    assert!(!labels.contains_key("own"), "the Configuration's own metadata stays with it");
    assert_eq!(revision.metadata.annotations.unwrap()["a"], "v");
    assert_eq!((revision.spec.container_concurrency, revision.spec.timeout_seconds), (Some(0), Some(300)));
    assert_eq!(revision.spec.pod.containers[0].name, "user-container");
}

#[test]
fn latest_created_and_latest_ready() {
    let mut world = run("new", &given(Value::Null)).world;
    say(&mut world, "hello-00001", "True", "");
    let mut world = run("first ready", &world).world;
    let name = |n: &str| Some(n.to_owned());
    assert_eq!(status(&world), (name("hello-00001"), name("hello-00001"), "True".into()));

    next_generation(&mut world, 5);
    let mut world = run("second", &world).world;
    assert_eq!(status(&world), (name("hello-00002"), name("hello-00001"), "Unknown".into()));

    say(&mut world, "hello-00002", "False", "Container failed with: boom");
    let mut world = run("second fails", &world).world;
    let message = "False RevisionFailed: Revision \"hello-00002\" failed with message: Container failed with: boom.";
    assert_eq!(status(&world), (name("hello-00002"), name("hello-00001"), message.into()));

    say(&mut world, "hello-00002", "True", "");
    let world = run("second recovers", &world).world;
    assert_eq!(status(&world), (name("hello-00002"), name("hello-00002"), "True".into()));
}

#[test]
fn a_name_of_ones_own() {
    let mut world = run("named", &given(json!("hello-blue"))).world;
    say(&mut world, "hello-blue", "True", "");
    let mut world = run("ready", &world).world;
    assert_eq!(status(&world).2, "True");
    next_generation(&mut world, 5);
    let mut world = run("changed without a new name", &world).world;
    assert_eq!(status(&world).2, "False RevisionFailed: Revision \"hello-blue\" exists and is not of this template");
    world.edit::<Configuration>("default", "hello", |c| c.spec.template.spec.timeout_seconds = None);
    let world = run("back again", &world).world;
    assert_eq!(status(&world).2, "True");
    let labels = world.expect::<Revision>("default", "hello-blue").metadata.labels.unwrap();
    assert_eq!(labels["serving.knative.dev/configurationGeneration"], "3");
}

#[test]
fn keeps_twenty_without_traffic() {
    let mut world = run("new", &given(Value::Null)).world;
    for generation in 2..=25 {
        next_generation(&mut world, generation);
        world = run("next", &world).world;
        if generation == 3 {
            world.edit::<Revision>("default", "hello-00003", |r| {
                r.metadata
                    .labels
                    .get_or_insert_default()
                    .insert("serving.knative.dev/routingState".into(), "active".into());
            });
        }
    }
    let kept = |world: &World| world.names().iter().filter(|n| n.starts_with("Revision")).count();
    let soon = run("soon", &world);
    assert_eq!((kept(&soon.world), soon.requeue_after.map(|d| d.as_hours())), (25, Some(48)));
    world.set_now(after(49 * 3600));
    let world = run("two days later", &world).world;
    assert_eq!(kept(&world), 22, "the latest, the routed one and twenty others");
    assert!(exists::<Revision>(&world, "hello-00003") && exists::<Revision>(&world, "hello-00025"));
    assert!(!exists::<Revision>(&world, "hello-00001"));
}
