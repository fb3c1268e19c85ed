use api::autoscaling::PodAutoscaler;
use api::serving::Revision;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use reconcile::Key;
use serde_json::{Value, json};

use super::digests::{self, Digests, Tags};
use super::gather;
use crate::fixtures::*;
use crate::{Cluster, Exposure};

const NAME: &str = "hello-00001";

fn given(annotations: Value, container: Value) -> World {
    let mut container = container;
    container["name"] = json!("user-container");
    container["image"] = json!("localhost:5000/default/hello@sha256:aa");
    let revision: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"namespace": "default", "name": NAME, "annotations": annotations, "labels": {
            "serving.knative.dev/configuration": "hello", "serving.knative.dev/service": "hello", "dhow.dev/function": "hello"}},
        "spec": {"containers": [container], "containerConcurrency": 1, "timeoutSeconds": 30, "runtimeClassName": "dhow-process"},
    }))
    .unwrap();
    world().with(revision)
}

fn run(case: &str, world: &World) -> Outcome {
    run_on(case, world, None)
}

fn run_on(case: &str, world: &World, cluster: Option<&Cluster>) -> Outcome {
    converge(case, world, &Key::new("default", NAME), |w, key, now| gather(w, cluster, Digests::default(), key, now))
}

fn with_pod(world: World, status: Value) -> World {
    world.with(pod("p", json!({"serving.knative.dev/revision": NAME}), json!([]), status))
}

fn container(state: Value, last: Value) -> Value {
    json!({"containerStatuses": [{"name": "user-container", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": state, "lastState": last}]})
}

fn autoscaler_says(world: &mut World, conditions: Value, desired: i32, actual: i32) {
    let status = json!({"conditions": conditions, "desiredScale": desired, "actualScale": actual});
    set_status::<PodAutoscaler>(world, "default", NAME, status);
}

fn conditions(world: &World) -> Vec<String> {
    told(&world.expect::<Revision>("default", NAME).status.unwrap().conditions)
}

#[test]
fn children() {
    let outcome = run("new", &given(json!({"autoscaling.knative.dev/max-scale": "3", "x": "y"}), json!({})));
    assert_eq!(
        outcome.writes[..3],
        [
            "apply PodAutoscaler default/hello-00001",
            "apply Service default/hello-00001",
            "create Deployment default/hello-00001-deployment"
        ]
    );
    let world = outcome.world;
    let deployment = world.expect::<Deployment>("default", "hello-00001-deployment").spec.unwrap();
    assert_eq!(deployment.replicas, Some(1));
    let template = deployment.template;
    let pod = template.spec.unwrap();
    assert_eq!(pod.termination_grace_period_seconds, Some(30));
    assert_eq!((pod.automount_service_account_token, pod.enable_service_links), (Some(false), Some(false)));
    assert_eq!(pod.runtime_class_name.as_deref(), Some("dhow-process"));
    let env: Vec<_> =
        pod.containers[0].env.iter().flatten().map(|e| format!("{}={}", e.name, e.value.as_deref().unwrap())).collect();
    assert_eq!(env, ["PORT=8080", "K_REVISION=hello-00001", "K_CONFIGURATION=hello", "K_SERVICE=hello"]);
    assert_eq!(pod.containers[0].ports.as_ref().unwrap()[0].container_port, 8080);
    let labels = template.metadata.unwrap().labels.unwrap();
    assert_eq!(
        (labels["dhow.dev/function"].as_str(), labels["serving.knative.dev/revision"].as_str()),
        ("hello", NAME)
    );

    let autoscaler = world.expect::<PodAutoscaler>("default", NAME);
    assert_eq!((autoscaler.spec.container_concurrency, autoscaler.spec.reachability.as_str()), (1, ""));
    let annotations: Vec<String> = autoscaler.metadata.annotations.unwrap().into_keys().collect();
    assert_eq!(annotations, ["autoscaling.knative.dev/max-scale", "dhow.dev/applied"]);
    let service = world.expect::<Service>("default", NAME).spec.unwrap();
    assert_eq!(service.cluster_ip.as_deref(), Some("None"));
}

#[test]
fn initial_scale_and_ports() {
    for (case, annotations, container, replicas, port, protocol) in [
        ("default", json!({}), json!({}), 1, 8080, "http1"),
        ("initial", json!({"autoscaling.knative.dev/initial-scale": "3"}), json!({}), 3, 8080, "http1"),
        ("minimum", json!({"autoscaling.knative.dev/min-scale": "2"}), json!({}), 2, 8080, "http1"),
        ("none", json!({"autoscaling.knative.dev/initial-scale": "0"}), json!({}), 0, 8080, "http1"),
        ("port", json!({}), json!({"ports": [{"name": "h2c", "containerPort": 9000}]}), 1, 9000, "h2c"),
    ] {
        let world = run(case, &given(annotations, container)).world;
        let deployment = world.expect::<Deployment>("default", "hello-00001-deployment").spec.unwrap();
        assert_eq!(deployment.replicas, Some(replicas), "{case}");
        let env = deployment.template.spec.unwrap().containers[0].env.clone().unwrap();
        assert_eq!(env[0].value.as_deref(), Some(port.to_string().as_str()), "{case}");
        assert_eq!(world.expect::<PodAutoscaler>("default", NAME).spec.protocol_type, protocol, "{case}");
    }
}

#[test]
fn what_a_kubelet_is_told() {
    let sleep = json!({"sleep": {"seconds": 5}});
    let tcp = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    for (case, container, readiness, pre_stop, grace) in [
        ("nothing of its own", json!({}), tcp.clone(), sleep.clone(), 35),
        (
            "its port",
            json!({"ports": [{"containerPort": 9000}]}),
            json!({"tcpSocket": {"port": 9000}, "periodSeconds": 1}),
            sleep.clone(),
            35,
        ),
        (
            "a probe without a port",
            json!({"readinessProbe": {"httpGet": {"path": "/"}}}),
            json!({"httpGet": {"path": "/", "port": 8080}}),
            sleep.clone(),
            35,
        ),
        (
            "a probe of its own",
            json!({"readinessProbe": {"httpGet": {"path": "/", "port": 81}, "periodSeconds": 7}}),
            json!({"httpGet": {"path": "/", "port": 81}, "periodSeconds": 7}),
            sleep.clone(),
            35,
        ),
        (
            "a command",
            json!({"readinessProbe": {"exec": {"command": ["x"]}}}),
            json!({"exec": {"command": ["x"]}}),
            sleep.clone(),
            35,
        ),
        (
            "only how often",
            json!({"readinessProbe": {"periodSeconds": 3}}),
            json!({"periodSeconds": 3, "tcpSocket": {"port": 8080}}),
            sleep,
            35,
        ),
        (
            "its own end",
            json!({"lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}),
            tcp,
            json!({"exec": {"command": ["bye"]}}),
            30,
        ),
    ] {
        let cluster = Cluster {
            pre_stop_seconds: 5,
            gateway: Cluster::GATEWAY.into(),
            exposure: Exposure::None,
            pull_secrets: vec![],
        };
        let world = run_on(case, &given(json!({}), container), Some(&cluster)).world;
        let deployment = world.expect::<Deployment>("default", "hello-00001-deployment");
        let pod = deployment.spec.unwrap().template.spec.unwrap();
        assert_eq!(json!(pod.containers[0].readiness_probe), readiness, "{case}");
        assert_eq!(json!(pod.containers[0].lifecycle.clone().unwrap().pre_stop), pre_stop, "{case}");
        assert_eq!(pod.termination_grace_period_seconds, Some(grace), "{case}");
    }
    let world = run("one machine", &given(json!({}), json!({}))).world;
    let deployment = world.expect::<Deployment>("default", "hello-00001-deployment");
    let container = deployment.spec.unwrap().template.spec.unwrap().containers[0].clone();
    assert_eq!((container.readiness_probe, container.lifecycle), (None, None));
}

#[test]
fn the_scale_is_written_once() {
    let mut world = run("new", &given(json!({}), json!({}))).world;
    world.edit::<Deployment>("default", "hello-00001-deployment", |d| d.spec.as_mut().unwrap().replicas = Some(7));
    world.edit::<Revision>("default", NAME, |r| {
        r.metadata.labels.get_or_insert_default().insert("serving.knative.dev/routingState".into(), "active".into());
    });
    let world = run("routed", &world).world;
    assert_eq!(world.expect::<Deployment>("default", "hello-00001-deployment").spec.unwrap().replicas, Some(7));
    assert_eq!(world.expect::<PodAutoscaler>("default", NAME).spec.reachability, "Reachable");
}

#[test]
fn why_it_is_not_ready() {
    let exited = json!({"terminated": {"exitCode": 3, "message": "ImportError: x\n", "reason": "Error"}});
    let crash = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    for (case, status, want) in [
        (
            "starting",
            container(json!({"waiting": {"reason": "ContainerCreating"}}), json!({})),
            "Ready=Unknown Deploying: ",
        ),
        (
            "exited",
            container(exited.clone(), json!({})),
            "Ready=False ExitCode3: Container failed with: ImportError: x",
        ),
        (
            "crash loop",
            container(crash, exited.clone()),
            "Ready=False ExitCode3: Container failed with: ImportError: x",
        ),
        (
            "running again",
            container(json!({"running": {}}), exited),
            "Ready=False ExitCode3: Container failed with: ImportError: x",
        ),
        (
            "killed",
            container(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), json!({})),
            "Ready=False ExitCode137: Container failed with: OOMKilled",
        ),
        (
            "no image",
            container(json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such"}}), json!({})),
            "Ready=False ImagePullBackOff: no such",
        ),
        (
            "no provider",
            container(json!({"waiting": {"reason": "NoProvider", "message": "none runs it"}}), json!({})),
            "Ready=False NoProvider: none runs it",
        ),
        (
            "refused",
            json!({"phase": "Failed", "reason": "NoProvider", "message": "none runs it"}),
            "Ready=False NoProvider: none runs it",
        ),
        (
            "unscheduled",
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "full"}]}),
            "Ready=Unknown Unschedulable: full",
        ),
    ] {
        let world = with_pod(run("new", &given(json!({}), json!({}))).world, status);
        let world = run(case, &world).world;
        assert!(conditions(&world).contains(&want.to_owned()), "{case}: {:?}", conditions(&world));
        let mut gone = world;
        gone.remove::<k8s_openapi::api::core::v1::Pod>("default", "p");
        let gone = run("pod gone", &gone).world;
        let kept = if want.contains("False") { want } else { "Ready=Unknown Deploying: " };
        assert!(conditions(&gone).contains(&kept.to_owned()), "{case}, gone: {:?}", conditions(&gone));
    }
}

#[test]
fn proven_once_is_ready_at_zero() {
    let mut world = run("new", &given(json!({}), json!({}))).world;
    let initialized = ready("ScaleTargetInitialized", "True", "", "");
    autoscaler_says(&mut world, json!([ready("Active", "True", "", ""), initialized]), 1, 1);
    let mut world = run("ready", &world).world;
    assert!(conditions(&world).contains(&"Ready=True : ".to_owned()));
    autoscaler_says(&mut world, json!([ready("Active", "False", "NoTraffic", "idle"), initialized]), 0, 0);
    let world = run("zero", &world).world;
    assert_eq!(
        conditions(&world),
        ["Active=False NoTraffic: idle", "ContainerHealthy=True : ", "Ready=True : ", "ResourcesAvailable=True : "]
    );
    let status = world.expect::<Revision>("default", NAME).status.unwrap();
    assert_eq!((status.actual_replicas, status.desired_replicas), (Some(0), Some(0)));
    assert_eq!(status.container_statuses[0].image_digest.as_deref(), Some("localhost:5000/default/hello@sha256:aa"));
}

#[test]
fn given_up() {
    let mut world = run("new", &given(json!({}), json!({}))).world;
    autoscaler_says(&mut world, json!([ready("Active", "False", "TimedOut", "late")]), 0, 0);
    let world = run("late", &world).world;
    let want = "Ready=False ProgressDeadlineExceeded: Initial scale was never achieved";
    assert!(conditions(&world).contains(&want.to_owned()), "{:?}", conditions(&world));
}

#[test]
fn names_of_others() {
    let foreign =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": NAME}, "spec": {}});
    let outcome = run("taken", &given(json!({}), json!({})).with_json(foreign));
    assert_eq!(outcome.writes, ["status Revision default/hello-00001"]);
    let want = "Ready=False NotOwned: There is an existing Service \"hello-00001\" that we do not own.";
    assert!(conditions(&outcome.world).contains(&want.to_owned()));
}

/// A registry whose one tag moves.
struct Moving(std::sync::Mutex<Vec<Result<Option<String>, String>>>);

impl Tags for Moving {
    fn pin(&self, _: String, _: String) -> futures::future::BoxFuture<'static, Result<Option<String>, String>> {
        Box::pin(std::future::ready(self.0.lock().unwrap().pop().expect("it is asked once for each")))
    }
}

#[tokio::test]
async fn tags_are_looked_up_once() {
    let pinned = |digest: &str| format!("localhost:5000/default/hello@sha256:{digest}");
    let mut world = given(json!({}), json!({}));
    world.edit::<Revision>("default", NAME, |revision| {
        revision.spec.pod.containers[0].image = Some("localhost:5000/default/hello:1".into());
    });
    let answers = vec![Ok(Some(pinned("bb"))), Ok(Some(pinned("aa"))), Err("no such tag".to_owned())];
    let tags = std::sync::Arc::new(Moving(answers.into()));
    let run = async |case, world: &World| {
        let revision = std::sync::Arc::new(world.expect::<Revision>("default", NAME));
        let found = digests::find(tags.clone(), revision).await;
        converge(case, world, &Key::new("default", NAME), |w, key, now| gather(w, None, found.clone(), key, now)).world
    };
    let world = run("missing", &world).await;
    let said = "Unable to fetch image \"localhost:5000/default/hello:1\": no such tag";
    assert!(conditions(&world).contains(&format!("Ready=False ContainerMissing: {said}")), "{:?}", conditions(&world));
    assert!(!exists::<Deployment>(&world, "hello-00001-deployment"));
    let mut world = run("found", &world).await;
    for case in ["pinned", "the tag has moved", "again"] {
        let template = world.expect::<Deployment>("default", "hello-00001-deployment").spec.unwrap().template;
        assert_eq!(template.spec.unwrap().containers[0].image, Some(pinned("aa")), "{case}");
        let status = world.expect::<Revision>("default", NAME).status.unwrap();
        assert_eq!(status.container_statuses[0].image_digest, Some(pinned("aa")), "{case}");
        world = run(case, &world).await;
    }
}
