use api::networking::{Ingress, Visibility};
use api::serving::{Configuration, Revision, Route};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use reconcile::{Key, Plan, View};
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;
use crate::hosts::Hosts;
use crate::settings::Settings;
use crate::{Cluster, Exposure};

fn plan(world: &World, key: &Key, now: Timestamp) -> Plan {
    let hosts = Hosts { domain: "localhost".into(), port: 8080, tls_port: 8443, cluster: None };
    gather(world, &hosts, &settings(), key, now)
}

fn settings() -> Settings {
    Settings { namespace: "dhow-system".into() }
}

fn run(case: &str, world: &World) -> Outcome {
    settle(case, world, plan)
}

fn serving(kind: &str, name: &str, labels: Value, spec: Value, status: Value) -> Value {
    json!({"apiVersion": "serving.knative.dev/v1", "kind": kind,
        "metadata": {"namespace": "default", "name": name, "labels": labels}, "spec": spec, "status": status})
}

fn revision(name: &str, is_ready: &str) -> Value {
    let labels = json!({"serving.knative.dev/service": "hello", "serving.knative.dev/configuration": "hello"});
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "containerConcurrency": 1, "timeoutSeconds": 30});
    serving("Revision", name, labels, spec, json!({"conditions": [ready("Ready", is_ready, "", "why")]}))
}

fn latest() -> Value {
    json!([{"configurationName": "hello", "latestRevision": true, "percent": 100}])
}

fn given(traffic: Value, latest_ready: Value) -> World {
    let configuration = json!({"latestReadyRevisionName": latest_ready, "latestCreatedRevisionName": "hello-00001"});
    world()
        .with_json(serving(
            "Route",
            "hello",
            json!({"serving.knative.dev/service": "hello"}),
            json!({"traffic": traffic}),
            Value::Null,
        ))
        .with_json(serving(
            "Configuration",
            "hello",
            json!({}),
            json!({"template": {"spec": {"containers": []}}}),
            configuration,
        ))
        .with_json(revision("hello-00001", "True"))
        .with_json(revision("hello-00002", "True"))
}

fn status(world: &World) -> api::serving::RouteStatus {
    world.expect::<Route>("default", "hello").status.unwrap()
}

fn hosts(world: &World) -> Vec<String> {
    let rules = world.expect::<Ingress>("default", "hello").spec.rules;
    let line = |r: &api::networking::IngressRule| {
        let splits: Vec<_> =
            r.http.paths.last().unwrap().splits.iter().map(|s| format!("{}={}", s.service_name, s.percent)).collect();
        format!("{} -> {}", r.hosts.join(" "), splits.join(" "))
    };
    rules.iter().map(line).collect()
}

#[test]
fn traffic_to_the_latest() {
    let outcome = run("new", &given(latest(), json!("hello-00001")));
    let world = outcome.world;
    assert_eq!(
        hosts(&world),
        [
            "hello.default.svc.cluster.local hello.default.svc hello.default -> hello-00001=100",
            "hello.default.localhost -> hello-00001=100",
        ]
    );
    let split = world.expect::<Ingress>("default", "hello").spec.rules[0].http.paths[0].splits[0].clone();
    assert_eq!(split.append_headers["Knative-Serving-Revision"], "hello-00001");
    let policy = split.policy.unwrap();
    assert_eq!((policy.service.as_str(), policy.container_concurrency, policy.timeout_seconds), ("hello", 1, 30));
    let status = status(&world);
    assert_eq!(told(&status.conditions), ["AllTrafficAssigned=True : ", "IngressReady=True : ", "Ready=True : "]);
    assert_eq!(status.url.as_deref(), Some("http://hello.default.localhost:8080"));
    assert_eq!(status.address.unwrap().url.as_deref(), Some("http://hello.default.svc.cluster.local"));
    assert_eq!(json!(status.traffic), json!([{"revisionName": "hello-00001", "latestRevision": true, "percent": 100}]));
    assert_eq!(
        world.expect::<Service>("default", "hello").spec.unwrap().external_name.as_deref(),
        Some("hello.default.svc.cluster.local")
    );
    let labels = world.expect::<Revision>("default", "hello-00001").metadata.labels.unwrap();
    assert_eq!(labels["serving.knative.dev/routingState"], "active");
    let ingress = world.expect::<Ingress>("default", "hello").status.unwrap();
    assert!(told(&ingress.conditions).contains(&"Ready=True : ".to_owned()));
}

#[test]
fn a_new_revision_takes_over() {
    let mut world = run("first", &given(latest(), json!("hello-00001"))).world;
    world.edit::<Configuration>("default", "hello", |c| {
        c.status.as_mut().unwrap().latest_ready_revision_name = Some("hello-00002".into());
    });
    let outcome = run("second", &world);
    let order: Vec<&str> = outcome.writes.iter().map(String::as_str).filter(|w| !w.starts_with("status")).collect();
    assert_eq!(
        order,
        ["patch Revision default/hello-00002", "apply Ingress default/hello", "patch Revision default/hello-00001"]
    );
    let state = |name| {
        outcome.world.expect::<Revision>("default", name).metadata.labels.unwrap()["serving.knative.dev/routingState"]
            .clone()
    };
    assert_eq!((state("hello-00001").as_str(), state("hello-00002").as_str()), ("reserve", "active"));
}

#[test]
fn a_route_that_is_gone_leaves_its_revisions() {
    let mut world = run("first", &given(latest(), json!("hello-00001"))).world;
    world.remove::<Route>("default", "hello");
    let left = run("gone", &world);
    assert_eq!(left.writes, ["patch Revision default/hello-00001"]);
    let meta = left.world.expect::<Revision>("default", "hello-00001").metadata;
    assert_eq!(meta.labels.unwrap()["serving.knative.dev/routingState"], "reserve");
    assert!(!meta.annotations.unwrap().contains_key("serving.knative.dev/routes"));
}

#[test]
fn splits_and_tags() {
    let traffic = json!([
        {"revisionName": "hello-00001", "percent": 90},
        {"configurationName": "hello", "latestRevision": true, "percent": 10},
        {"revisionName": "hello-00001", "percent": 0, "tag": "blue"},
    ]);
    let world = run("split", &given(traffic, json!("hello-00002"))).world;
    assert_eq!(
        hosts(&world),
        [
            "hello.default.svc.cluster.local hello.default.svc hello.default -> hello-00001=90 hello-00002=10",
            "hello.default.localhost -> hello-00001=90 hello-00002=10",
            "blue-hello.default.svc.cluster.local blue-hello.default.svc blue-hello.default -> hello-00001=100",
            "blue-hello.default.localhost -> hello-00001=100",
        ]
    );
    assert_eq!(status(&world).traffic[2].url.as_deref(), Some("http://blue-hello.default.localhost:8080"));
}

#[test]
fn a_tag_has_a_host_a_service_and_a_header() {
    let traffic = json!([
        {"configurationName": "hello", "latestRevision": true, "percent": 100},
        {"revisionName": "hello-00001", "percent": 0, "tag": "blue"},
    ]);
    let world = run("tagged", &given(traffic, json!("hello-00002"))).world;
    let rules = world.expect::<Ingress>("default", "hello").spec.rules;
    let [by_header, all] = rules[1].http.paths.as_slice() else { panic!("{:?}", rules[1]) };
    assert_eq!(by_header.headers["Knative-Serving-Tag"].exact, "blue");
    assert_eq!(by_header.splits[0].service_name, "hello-00001");
    assert_eq!(all.append_headers["Knative-Serving-Default-Route"], "true");
    assert_eq!(rules[3].http.paths[0].append_headers["Knative-Serving-Tag"], "blue");
    let placeholder = world.expect::<Service>("default", "blue-hello");
    assert_eq!(placeholder.spec.unwrap().external_name.as_deref(), Some("blue-hello.default.svc.cluster.local"));

    let mut local = world.clone();
    local.edit::<Service>("default", "blue-hello", |service| {
        let label = "networking.knative.dev/visibility";
        service.metadata.labels.get_or_insert_default().insert(label.into(), "cluster-local".into());
    });
    let local = run("one host is the cluster's own", &local).world;
    let url = status(&local).traffic[1].url.clone();
    assert_eq!(url.as_deref(), Some("http://blue-hello.default.svc.cluster.local"));
    assert_eq!(status(&local).url.as_deref(), Some("http://hello.default.localhost:8080"));

    let mut untagged = local;
    untagged.edit::<Route>("default", "hello", |route| drop(route.spec.traffic.pop()));
    let untagged = run("untagged", &untagged).world;
    assert!(!exists::<Service>(&untagged, "blue-hello") && exists::<Service>(&untagged, "hello"));
}

#[test]
fn operators_name_domains_and_hosts() {
    let map = |name: &str, data: Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": {"namespace": "dhow-system", "name": name}})
    };
    let mut world = given(latest(), json!("hello-00001"))
        .with_json(map("config-domain", json!({"example.org": "", "example.net": "selector:\n  team: blue"})))
        .with_json(map("config-network", json!({"domain-template": "{{.Name}}-{{.Namespace}}.{{.Domain}}"})));
    let url = |world: &World| status(world).url.unwrap_or_default();
    world = run("default", &world).world;
    assert_eq!(url(&world), "http://hello-default.example.org:8080");
    world.edit::<Route>("default", "hello", |route| {
        route.metadata.labels.get_or_insert_default().insert("team".into(), "blue".into());
    });
    assert_eq!(url(&run("labelled", &world).world), "http://hello-default.example.net:8080");
}

#[test]
fn traffic_that_cannot_be_assigned() {
    let pinned = |name: &str| json!([{"revisionName": name, "percent": 100}]);
    let other = json!([{"configurationName": "other", "latestRevision": true, "percent": 100}]);
    for (case, traffic, want) in [
        (
            "waiting",
            latest(),
            "Unknown RevisionMissing: Configuration \"hello\" is waiting for a Revision to become ready.",
        ),
        (
            "no such revision",
            pinned("nope"),
            "False RevisionMissing: Revision \"nope\" referenced in traffic not found.",
        ),
        ("not ready", pinned("hello-00003"), "Unknown RevisionMissing: Revision \"hello-00003\" is not yet ready."),
        (
            "failed",
            pinned("hello-00004"),
            "False RevisionMissing: Revision \"hello-00004\" failed to become ready: why",
        ),
        (
            "no such configuration",
            other,
            "False ConfigurationMissing: Configuration \"other\" referenced in traffic not found.",
        ),
    ] {
        let world = given(traffic, Value::Null)
            .with_json(revision("hello-00003", "Unknown"))
            .with_json(revision("hello-00004", "False"));
        let outcome = run(case, &world);
        assert_eq!(tell(&status(&outcome.world).conditions, "AllTrafficAssigned"), want, "{case}");
        assert!(!exists::<Ingress>(&outcome.world, "hello"), "{case}");
        assert!(outcome.requeue_after.is_some(), "{case}");
    }
}

#[test]
fn old_traffic_stays_while_new_cannot_be_assigned() {
    let mut world = run("first", &given(latest(), json!("hello-00001"))).world;
    world.edit::<Route>("default", "hello", |r| r.spec.traffic[0].revision_name = Some("nope".into()));
    let world = run("bad", &world).world;
    assert_eq!(hosts(&world)[1], "hello.default.localhost -> hello-00001=100");
}

#[test]
fn cluster_local() {
    let mut world = given(latest(), json!("hello-00001"));
    world.edit::<Route>("default", "hello", |r| {
        r.metadata
            .labels
            .get_or_insert_default()
            .insert("networking.knative.dev/visibility".into(), "cluster-local".into());
    });
    let world = run("local", &world).world;
    assert!(
        world.expect::<Ingress>("default", "hello").spec.rules.iter().all(|r| r.visibility == Visibility::ClusterLocal)
    );
    assert_eq!(status(&world).url.as_deref(), Some("http://hello.default.svc.cluster.local"));
}

#[test]
fn what_a_route_has_lost_stays_on_its_placeholder() {
    let mut labelled = given(latest(), json!("hello-00001"));
    labelled.edit::<Route>("default", "hello", |r| {
        r.metadata.labels.get_or_insert_default().insert("juicy".into(), "jamba".into());
    });
    let mut world = run("labelled", &labelled).world;
    world.edit::<Route>("default", "hello", |r| drop(r.metadata.labels.as_mut().unwrap().remove("juicy")));
    let world = run("not any more", &world).world;
    let kept = world.expect::<Service>("default", "hello").metadata.labels.clone().unwrap();
    assert_eq!(kept.get("juicy").map(String::as_str), Some("jamba"));
    assert!(!world.expect::<Ingress>("default", "hello").metadata.labels.as_ref().unwrap().contains_key("juicy"));
}

#[test]
fn on_a_cluster() {
    let cluster = Cluster {
        pre_stop_seconds: 5,
        gateway: "gateway.system.svc.cluster.local".into(),
        exposure: Exposure::Ingress { class: None },
        pull_secrets: vec![],
    };
    let hosts = Hosts { domain: "example.com".into(), port: 80, tls_port: 443, cluster: Some(cluster) };
    let run = |case: &str, world: &World| settle(case, world, |w, key, now| gather(w, &hosts, &settings(), key, now));
    let world = run("new", &given(latest(), json!("hello-00001"))).world;
    assert_eq!(tell(&status(&world).conditions, "Ready"), "True");
    let placeholder = world.expect::<Service>("default", "hello").spec.unwrap();
    assert_eq!(placeholder.external_name.as_deref(), Some("gateway.system.svc.cluster.local"));
    let outside = |world: &World| -> Option<Vec<String>> {
        let ingress = world.get::<k8s_openapi::api::networking::v1::Ingress>("default", "hello-outside")?;
        Some(ingress.spec.clone()?.rules?.into_iter().filter_map(|rule| rule.host).collect())
    };
    assert_eq!(outside(&world).unwrap(), ["hello.default.example.com"]);

    let mut tagged = world.clone();
    tagged.edit::<Route>("default", "hello", |r| r.spec.traffic[0].tag = Some("blue".into()));
    let tagged = run("tagged", &tagged).world;
    assert_eq!(outside(&tagged).unwrap(), ["hello.default.example.com", "blue-hello.default.example.com"]);

    let mut local = tagged;
    local.edit::<Route>("default", "hello", |r| {
        let label = "networking.knative.dev/visibility";
        r.metadata.labels.get_or_insert_default().insert(label.into(), "cluster-local".into());
    });
    let local = run("local", &local).world;
    assert_eq!((outside(&local), tell(&status(&local).conditions, "Ready").as_str()), (None, "True"));

    let foreign = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"namespace": "default", "name": "hello-outside"}, "spec": {}});
    let world = run("taken", &given(latest(), json!("hello-00001")).with_json(foreign)).world;
    assert_eq!(
        tell(&status(&world).conditions, "Ready"),
        "False NotOwned: There is an existing Ingress \"hello-outside\" that we do not own."
    );
}

#[test]
fn a_service_of_that_name_is_not_taken() {
    let foreign = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "hello"}, "spec": {}});
    let world = run("taken", &given(latest(), json!("hello-00001")).with_json(foreign)).world;
    assert_eq!(
        tell(&status(&world).conditions, "Ready"),
        "False NotOwned: There is an existing Service \"hello\" that we do not own."
    );
}
