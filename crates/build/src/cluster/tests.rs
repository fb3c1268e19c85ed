//! Rows: what a Build on a cluster leads to, from nothing to its end.

use std::path::PathBuf;
use std::sync::Arc;

use api::build::{Build, BuildSpec, SUCCEEDED, reason};
use api::condition::find;
use api::function::{Runtime, Source};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::table::{Outcome, World, converge};
use reconcile::{Key, View};
use registry::Digest;
use serde_json::{Value, json};

use super::plan::{decide, gather};
use super::prepare::{Prepared, Work};
use super::report::Report;
use super::{BaseImage, ClusterConfig, Proxy, children};
use crate::plan::{BuildPlan, Dependencies, Refusal};

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

pub fn config() -> ClusterConfig {
    ClusterConfig {
        namespace: "dhow-system".into(),
        work_dir: PathBuf::from("/work"),
        image: "registry.example/dhow@sha256:1".into(),
        registry: "registry.example/functions".parse().unwrap(),
        registry_for_nodes: Some("localhost:5000/functions".into()),
        remote: registry::remote::RemoteConfig::default(),
        secret: Some("registry".into()),
        authority: Some(("registry-ca".into(), "ca.pem".into())),
        pull_secrets: vec!["pull".into()],
        python: BaseImage { image: "registry.example/functions/bases/python:3".into(), interpreter: None },
        node: BaseImage { image: "node:22".into(), interpreter: None },
        proxy: Some(Proxy { listen: ([0, 0, 0, 0], 3128).into(), url: "http://proxy:3128".into(), hosts: vec![] }),
        build_env: vec![("PIP_INDEX_URL".into(), "https://pypi.example/$(HOME)".into())],
        egress: ClusterConfig::public_egress(),
        cpu: ClusterConfig::CPU.into(),
        memory_bytes: ClusterConfig::MEMORY_BYTES,
        runtime_class: None,
        max_source_bytes: 1 << 20,
        timeout: std::time::Duration::from_secs(300),
        concurrency: 3,
        per_namespace: 1,
        keep_jobs: ClusterConfig::KEEP_JOBS,
        clock: Arc::new(now),
    }
}

fn work() -> Work {
    let dependencies = Dependencies { manifest: "requirements.txt", inputs: Some(b"x".to_vec()) };
    Work {
        source: Digest::of(b"source"),
        plan: BuildPlan {
            runtime: Runtime::Python,
            handler: "main.$(handle)".into(),
            dependencies: Some(dependencies),
        },
        base: format!("registry.example/functions/bases/python@{}", Digest::of(b"base")),
        interpreter: "python3".into(),
        cache: Some("cache-1".into()),
        cached: false,
    }
}

fn build(repository: &str) -> Build {
    let spec = BuildSpec { runtime: None, handler: None, source: Source::default(), repository: repository.into() };
    let mut build = Build::new("hello-1", spec);
    build.metadata.namespace = Some("default".into());
    build.metadata.uid = Some("u1".into());
    build.metadata.creation_timestamp = Some(Time(now() - SignedDuration::from_secs(60)));
    build
}

fn world() -> World {
    World::new(now()).with(build("default/hello"))
}

fn key() -> Key {
    Key::new("default", "hello-1")
}

fn settle(case: &str, world: &World, prepared: &Prepared) -> Outcome {
    converge(case, world, &key(), |world, key, now| {
        let mut inputs = gather(world, key, &config());
        let decision = decide(&inputs, &config(), now);
        if !decision.prepare {
            return decision.plan;
        }
        inputs.prepared = Some(prepared.clone());
        decide(&inputs, &config(), now).plan
    })
}

fn ready() -> Prepared {
    Prepared::Ready(Box::new(work()))
}

/// `status reason: message`, then the image or the lines of the log.
fn said(outcome: &Outcome) -> String {
    let status = outcome.world.expect::<Build>("default", "hello-1").status.unwrap_or_default();
    let condition = find(&status.conditions, SUCCEEDED).unwrap_or_else(|| panic!("no condition")).clone();
    let mut text = format!("{} {}: {}", condition.status, condition.reason, condition.message);
    for more in status.image.iter().chain(&status.log_tail) {
        text.push_str(&format!(" | {more}"));
    }
    text
}

/// The Job of the Build, as it is made, and its pod in this state.
fn with_pod(age_seconds: i64, status: Value) -> World {
    let mut job = children::job(&build("default/hello"), &work(), &config());
    job.metadata.uid = Some("j1".into());
    job.metadata.creation_timestamp = Some(Time(now() - SignedDuration::from_secs(age_seconds)));
    let annotations = job.metadata.annotations.clone();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "dhow-system", "name": "build-u1-x", "annotations": annotations,
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "build-u1", "uid": "j1", "controller": true}],
        },
        "spec": {"containers": []},
        "status": status,
    });
    world().with(job).with_json(pod)
}

fn step(name: &str, code: i32, reason: &str, message: &str) -> Value {
    json!({
        "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": code, "reason": reason, "message": message}},
    })
}

#[test]
fn from_a_source_to_a_job() {
    let outcome = settle("a new build", &world(), &ready());
    assert_eq!(outcome.writes, ["create Job dhow-system/build-u1", "status Build default/hello-1"]);
    assert_eq!(said(&outcome), "Unknown Running: the build is running");

    let refusal = Refusal::new(reason::HANDLER_MISSING, "main.py is not in the source");
    let outcome = settle("a source that cannot be built", &world(), &Prepared::Refused(refusal));
    assert_eq!(outcome.writes, ["status Build default/hello-1"]);
    assert_eq!(said(&outcome), "False HandlerMissing: main.py is not in the source");

    let outcome = settle("a registry that is away", &world(), &Prepared::Failed("it is away".into()));
    assert_eq!(said(&outcome), "Unknown InternalError: the build will be tried again: it is away");

    let foreign = World::new(now()).with(build("other/hello"));
    let outcome = settle("another tenant's repository", &foreign, &ready());
    assert_eq!(
        said(&outcome),
        "False SourceInvalid: spec.repository is other/hello, which is not in the namespace default"
    );
}

#[test]
fn turns() {
    let other = |namespace: &str, name: &str, ended: bool| {
        let condition = json!({"type": "Complete", "status": if ended { "True" } else { "False" }});
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "namespace": "dhow-system", "name": format!("build-{name}"), "labels": {"dhow.dev/build-uid": name},
                "annotations": {"dhow.dev/build": format!("{namespace}/{name}")},
            },
            "status": {"conditions": [condition]},
        })
    };
    for (case, others, want) in [
        ("one of the same namespace", vec![other("default", "a", false)], false),
        ("one of the same namespace that has ended", vec![other("default", "a", true)], true),
        ("two of others", vec![other("b", "b", false), other("c", "c", false)], true),
        ("too many of others", vec![other("b", "b", false), other("c", "c", false), other("d", "d", false)], false),
    ] {
        let world = others.into_iter().fold(world(), World::with_json);
        let outcome = settle(case, &world, &ready());
        let made = outcome.world.get::<Job>("dhow-system", "build-u1").is_some();
        assert_eq!(made, want, "{case}");
        if !made {
            assert_eq!(said(&outcome), "Unknown Running: the build waits: other builds have to end first", "{case}");
            assert!(outcome.requeue_after.is_some(), "{case}");
        }
    }
}

#[test]
fn what_a_pod_says() {
    let digest = Digest::of(b"image");
    let image = serde_json::to_string(&Report::Image { digest }).unwrap();
    let refused = Report::refused(&Refusal::new(reason::SOURCE_INVALID, "the source cannot be used: \"x\" leaves"));
    let refused = serde_json::to_string(&refused).unwrap();
    let away = serde_json::to_string(&Report::failed("the registry is away")).unwrap();
    let pip = "Collecting x\nERROR: No matching distribution found for x\n";
    let failed = |init: Value, containers: Value| json!({"phase": "Failed", "initContainerStatuses": init, "containerStatuses": containers});
    let fetched = step("fetch", 0, "Completed", "");
    let waiting = json!({
        "name": "build", "image": "python:3", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
    });
    let unscheduled =
        json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]);
    for (case, status, want) in [
        (
            "pushed",
            json!({"phase": "Succeeded", "containerStatuses": [step("push", 0, "Completed", &image)]}),
            format!("True : | localhost:5000/functions/default/hello@{digest}").replace(" : |", " :  |"),
        ),
        ("running", json!({"phase": "Running"}), "Unknown Running: the build is running".into()),
        (
            "no node",
            json!({"phase": "Pending", "conditions": unscheduled}),
            "Unknown Running: the build waits: no node takes its pod: 0/1 nodes".into(),
        ),
        (
            "no image",
            json!({"phase": "Pending", "initContainerStatuses": [fetched, waiting]}),
            "Unknown Running: the build waits: ImagePullBackOff of python:3: Back-off pulling image".into(),
        ),
        (
            "a bad source",
            failed(json!([step("fetch", 1, "Error", &refused)]), json!([])),
            "False SourceInvalid: the source cannot be used: \"x\" leaves".into(),
        ),
        (
            "pip",
            failed(json!([fetched, step("build", 1, "Error", pip)]), json!([])),
            "False DependenciesFailed: installing the packages of requirements.txt failed: No matching distribution \
             found for x | Collecting x | ERROR: No matching distribution found for x"
                .into(),
        ),
        (
            "memory",
            failed(json!([fetched, step("build", 137, "OOMKilled", "")]), json!([])),
            "False DependenciesFailed: installing the packages of requirements.txt needed more than 1024 MiB of memory"
                .into(),
        ),
        (
            "no shell",
            failed(json!([fetched, step("build", 128, "StartError", "exec: \"/bin/sh\": not found")]), json!([])),
            "False DependenciesFailed: the build cannot run on its base image: exec: \"/bin/sh\": not found".into(),
        ),
        (
            "too slow",
            json!({"phase": "Failed", "reason": "DeadlineExceeded", "message": "active"}),
            "False TimedOut: installing the packages of requirements.txt took longer than 300 s".into(),
        ),
        (
            "too large",
            json!({"phase": "Failed", "reason": "Evicted", "message": "Usage of EmptyDir volume \"result\" exceeds the limit"}),
            "False DependenciesFailed: installing the packages of requirements.txt made more than 2048 MiB of files"
                .into(),
        ),
        (
            "an author who says what only we may",
            failed(json!([fetched, step("build", 1, "Error", &image)]), json!([])),
            format!("False DependenciesFailed: installing the packages of requirements.txt failed: {image} | {image}"),
        ),
    ] {
        let outcome = settle(case, &with_pod(0, status), &ready());
        assert_eq!(said(&outcome), want, "{case}");
        assert!(outcome.world.get::<Job>("dhow-system", "build-u1").is_some(), "{case}: its Job can be looked at");
    }

    // Our own failures are told, waited for, and tried again with a new Job.
    for (case, status, want) in [
        ("the registry", failed(json!([]), json!([step("push", 1, "Error", &away)])), "the registry is away"),
        (
            "a killed step",
            failed(json!([step("fetch", 137, "OOMKilled", "")]), json!([])),
            "the step fetch ran out of memory",
        ),
        ("a lost node", json!({"phase": "Failed", "reason": "NodeLost"}), "its pod failed: NodeLost"),
        ("no report", json!({"phase": "Succeeded"}), "the step that pushes the image did not say its digest"),
    ] {
        let outcome = settle(case, &with_pod(10, status.clone()), &ready());
        let told = format!("Unknown InternalError: the build will be tried again: {want}");
        assert_eq!(said(&outcome), told, "{case}");
        assert_eq!(outcome.requeue_after, Some(SignedDuration::from_secs(40)), "{case}");
        let outcome = settle(case, &with_pod(55, status), &ready());
        let writes =
            ["status Build default/hello-1", "delete Job dhow-system/build-u1", "create Job dhow-system/build-u1"];
        assert_eq!(outcome.writes, writes, "{case}");
        assert_eq!(said(&outcome), told, "{case}: until it is over");
    }
}

#[test]
fn a_job_without_a_pod() {
    let given = |age: i64| {
        let mut job = children::job(&build("default/hello"), &work(), &config());
        job.metadata.creation_timestamp = Some(Time(now() - SignedDuration::from_secs(age)));
        world().with(job)
    };
    let outcome = settle("just made", &given(1), &ready());
    assert_eq!(said(&outcome), "Unknown Running: the build is running");
    assert_eq!(outcome.requeue_after, Some(SignedDuration::from_secs(9)));
    let outcome = settle("refused", &given(60), &ready());
    assert_eq!(
        said(&outcome),
        "Unknown Running: the build waits: its Job has no pod; see: kubectl -n dhow-system describe job build-u1"
    );
}

#[test]
fn jobs_whose_build_is_gone_go() {
    let job = || children::job(&build("default/hello"), &work(), &config());
    let outcome = settle("gone", &World::new(now()).with(job()), &ready());
    assert_eq!(outcome.writes, ["delete Job dhow-system/build-u1"]);

    let mut again = build("default/hello");
    again.metadata.uid = Some("u2".into());
    let outcome = settle("another of its name", &World::new(now()).with(job()).with(again), &ready());
    assert!(outcome.writes.contains(&"delete Job dhow-system/build-u1".to_owned()), "{:?}", outcome.writes);
    assert!(outcome.world.get::<Job>("dhow-system", "build-u2").is_some());
}

#[test]
fn who_sees_what_in_the_pod() {
    let pod = |work: &Work| {
        let job = children::job(&build("default/hello"), work, &config());
        serde_json::to_value(job.spec.unwrap().template.spec.unwrap()).unwrap()
    };
    let spec = pod(&work());
    let all: Vec<Value> = [&spec["initContainers"], &spec["containers"]]
        .into_iter()
        .flat_map(|c| c.as_array().unwrap().clone())
        .collect();
    let names: Vec<&str> = all.iter().map(|container| container["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["fetch", "build", "push"]);
    assert_eq!(spec["automountServiceAccountToken"], json!(false));
    assert_eq!(spec["securityContext"]["runAsNonRoot"], json!(true));
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], json!("RuntimeDefault"));
    for container in &all {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], json!(false));
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(security["readOnlyRootFilesystem"], json!(true));
        assert!(container["resources"]["limits"]["memory"].is_string());
        let mounts: Vec<&str> =
            container["volumeMounts"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
        let trusted = container["name"] != "build";
        assert_eq!(mounts.contains(&"registry"), trusted);
        assert_eq!(mounts.contains(&"registry-ca"), trusted);
    }
    let install = &all[1];
    assert_eq!(install["image"], format!("localhost:5000/functions/bases/python@{}", Digest::of(b"base")));
    assert_eq!(install["volumeMounts"][0], json!({"name": "source", "mountPath": "/source", "readOnly": true}));
    let variable = |name: &str| install["env"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned();
    assert_eq!(variable("PIP_INDEX_URL").unwrap()["value"], "https://pypi.example/$$(HOME)");
    assert_eq!(variable("HTTPS_PROXY").unwrap()["value"], "http://proxy:3128");
    // The kubelet makes one dollar of two.
    let order: super::step::PushOrder =
        serde_json::from_str(&all[2]["args"][2].as_str().unwrap().replace("$$", "$")).unwrap();
    assert_eq!((&*order.handler, &*order.into.repository), ("main.$(handle)", "functions/default/hello"));

    let cached = pod(&Work { cached: true, ..work() });
    assert_eq!(cached["initContainers"].as_array().unwrap().len(), 1, "nothing of the author's runs");
}
