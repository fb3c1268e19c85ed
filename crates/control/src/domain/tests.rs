use api::networking::{HttpOption, Ingress};
use api::serving::Route;
use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1 as networking;
use reconcile::{Key, Plan};
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;
use crate::hosts::Hosts;
use crate::settings::Settings;
use crate::{Cluster, Exposure};

const HOST: &str = "www.example.org";

fn alone() -> Hosts {
    Hosts { domain: "localhost".into(), port: 8080, tls_port: 8443, cluster: None }
}

fn cluster() -> Hosts {
    let cluster = Cluster {
        pre_stop_seconds: 5,
        gateway: Cluster::GATEWAY.into(),
        exposure: Exposure::Ingress { class: None },
        pull_secrets: vec![],
    };
    Hosts { domain: "example.com".into(), port: 80, tls_port: 443, cluster: Some(cluster) }
}

fn run_at(case: &str, world: &World, hosts: &Hosts) -> Outcome {
    let settings = Settings { namespace: "dhow-system".into() };
    let planner = |world: &World, key: &Key, now: Timestamp| -> Plan { gather(world, hosts, &settings, key, now) };
    converge(case, world, &Key::new("default", HOST), planner)
}

fn run(case: &str, world: &World) -> World {
    run_at(case, world, &alone()).world
}

fn object(api_version: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec});
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn mapping(namespace: &str, kind: &str, tls: Option<&str>) -> Value {
    let version = if kind == "core" { "v1" } else { "serving.knative.dev/v1" };
    let kind = if kind == "core" { "Service" } else { kind };
    let mut spec = json!({"ref": {"apiVersion": version, "kind": kind, "name": "hello", "namespace": namespace}});
    if let Some(name) = tls {
        spec["tls"] = json!({"secretName": name});
    }
    object("serving.knative.dev/v1beta1", "DomainMapping", namespace, HOST, spec)
}

/// A Service and a Route that are served.
fn given() -> World {
    let split = json!({"serviceName": "hello-00001", "serviceNamespace": "default", "servicePort": 80, "percent": 100,
        "appendHeaders": {"Knative-Serving-Revision": "hello-00001"}});
    let rules = json!([{"hosts": ["hello.default.svc.cluster.local", "hello.default"], "visibility": "ClusterLocal",
        "http": {"paths": [{"splits": [split]}]}}]);
    let spec = json!({"template": {"spec": {"containers": []}}});
    world()
        .with_json(object("serving.knative.dev/v1", "Service", "default", "hello", spec))
        .with_json(object("serving.knative.dev/v1", "Route", "default", "hello", json!({"traffic": []})))
        .with_json(object(
            "networking.internal.knative.dev/v1alpha1",
            "Ingress",
            "default",
            "hello",
            json!({"rules": rules}),
        ))
}

fn claim(namespace: &str) -> Value {
    object("networking.internal.knative.dev/v1alpha1", "ClusterDomainClaim", "", HOST, json!({"namespace": namespace}))
}

fn condition(world: &World, type_: &str) -> String {
    let status = world.expect::<DomainMapping>("default", HOST).status.unwrap();
    tell(&status.conditions, type_)
}

fn claimed_by(world: &World) -> Option<String> {
    reconcile::View::get::<ClusterDomainClaim>(world, "", HOST).map(|claim| claim.spec.namespace.clone())
}

#[test]
fn a_host_leads_where_the_target_does() {
    for kind in ["Service", "Route"] {
        let world = run(kind, &given().with_json(mapping("default", kind, None)));
        assert_eq!(condition(&world, "Ready"), "True", "{kind}");
        assert_eq!(claimed_by(&world).as_deref(), Some("default"), "{kind}");
        let ingress = world.expect::<Ingress>("default", HOST);
        let rule = &ingress.spec.rules[0];
        assert_eq!(rule.hosts, [HOST]);
        let split = &rule.http.paths[0].splits[0];
        assert_eq!(split.service_name, "hello-00001");
        assert_eq!(split.append_headers["K-Original-Host"], HOST);
        assert_eq!(split.append_headers["Knative-Serving-Revision"], "hello-00001");
        let status = world.expect::<DomainMapping>("default", HOST).status.unwrap();
        assert_eq!(status.url.as_deref(), Some("http://www.example.org:8080"));
        assert_eq!(
            condition(&world, "CertificateProvisioned"),
            "True TLSNotEnabled: external-domain-tls is not enabled"
        );
    }
}

#[test]
fn traffic_that_moves_takes_the_mapped_host_along() {
    let mut world = run("first", &given().with_json(mapping("default", "Service", None)));
    world.edit::<Ingress>("default", "hello", |ingress| {
        ingress.spec.rules[0].http.paths[0].splits[0].service_name = "hello-00002".into();
    });
    let world = run("moved", &world);
    let ingress = world.expect::<Ingress>("default", HOST);
    assert_eq!(ingress.spec.rules[0].http.paths[0].splits[0].service_name, "hello-00002");
}

#[test]
fn a_core_service_is_led_to_as_it_is() {
    let core = object("v1", "Service", "default", "hello", json!({"ports": [{"port": 80}]}));
    let world = run("core", &world().with_json(core).with_json(mapping("default", "core", None)));
    assert_eq!(condition(&world, "Ready"), "True");
    let split = world.expect::<Ingress>("default", HOST).spec.rules[0].http.paths[0].splits[0].clone();
    assert_eq!((split.service_name.as_str(), split.percent), ("hello", 100));
}

#[test]
fn what_cannot_be_resolved_says_so_and_serves_nothing() {
    let missing = "False ResolveFailed: services.serving.knative.dev \"hello\" not found";
    for (case, given, want) in [
        ("missing", world(), missing),
        (
            "not ready",
            world().with_json(object("serving.knative.dev/v1", "Service", "default", "hello", json!({"template": {}}))),
            "Unknown ResolveFailed: Route \"hello\" has no address yet",
        ),
    ] {
        let world = run(case, &given.with_json(mapping("default", "Service", None)));
        assert_eq!(condition(&world, "ReferenceResolved"), want, "{case}");
        assert!(!exists::<Ingress>(&world, HOST), "{case}");
    }
    let mut gone = run("served", &given().with_json(mapping("default", "Service", None)));
    gone.remove::<api::serving::Service>("default", "hello");
    gone.remove::<Ingress>("default", "hello");
    let gone = run("gone", &gone);
    assert_eq!((condition(&gone, "ReferenceResolved").as_str(), exists::<Ingress>(&gone, HOST)), (missing, false));
}

#[test]
fn a_host_is_one_namespaces() {
    let taken = "False DomainAlreadyClaimed: The domain name is already in use by another DomainMapping";
    let mut world = run("taken", &given().with_json(claim("other")).with_json(mapping("default", "Service", None)));
    assert_eq!(condition(&world, "DomainClaimed"), taken);
    assert!(!exists::<Ingress>(&world, HOST));
    world.remove::<ClusterDomainClaim>("", HOST);
    let world = run("freed", &world);
    assert_eq!((condition(&world, "Ready").as_str(), claimed_by(&world).as_deref()), ("True", Some("default")));

    let route = json!({"rules": [{"hosts": [HOST], "http": {"paths": []}}]});
    let route = object("networking.internal.knative.dev/v1alpha1", "Ingress", "victim", "www", route);
    let world = run("a Route's", &given().with_json(route).with_json(mapping("default", "Service", None)));
    assert_eq!(
        condition(&world, "DomainClaimed"),
        "False DomainAlreadyClaimed: www.example.org is the host of a Route"
    );
    assert_eq!(claimed_by(&world), None);
}

#[test]
fn a_claim_that_was_made_for_a_mapping_goes_with_it() {
    let mut world = run("mapped", &given().with_json(mapping("default", "Service", None)));
    world.remove::<DomainMapping>("default", HOST);
    assert_eq!(claimed_by(&run("unmapped", &world)), None);
    let world = run("an operator's", &given().with_json(claim("default")));
    assert_eq!(claimed_by(&world).as_deref(), Some("default"));
}

#[test]
fn on_a_cluster_operators_give_hosts_away() {
    let given = given().with_json(mapping("default", "Service", Some("certificate")));
    let world = run_at("unclaimed", &given, &cluster()).world;
    assert!(condition(&world, "DomainClaimed").starts_with("False DomainClaimFailed: no ClusterDomainClaim"));
    let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"autocreate-cluster-domain-claims": "true"},
        "metadata": {"namespace": "dhow-system", "name": "config-network"}});
    let world = run_at("may claim", &given.clone().with_json(settings), &cluster()).world;
    assert_eq!(condition(&world, "Ready"), "True");
    let world = run_at("claimed", &given.with_json(claim("default")), &cluster()).world;
    assert_eq!(condition(&world, "Ready"), "True");
    let outside = world.expect::<networking::Ingress>("default", "www.example.org-outside").spec.unwrap();
    let tls = outside.tls.unwrap();
    assert_eq!(
        (tls[0].hosts.as_deref(), tls[0].secret_name.as_deref()),
        (Some(&[HOST.to_owned()][..]), Some("certificate"))
    );
    let rule = outside.rules.unwrap().remove(0);
    assert_eq!(rule.host.as_deref(), Some(HOST));
    assert_eq!(rule.http.unwrap().paths[0].backend.service.as_ref().unwrap().name, "hello");
}

#[test]
fn a_certificate_of_ones_own() {
    let given = given().with_json(mapping("default", "Service", Some("certificate")));
    let world = run("no Secret", &given);
    assert!(condition(&world, "CertificateProvisioned").starts_with("False SecretMissing: there is no Secret"));
    let mut secret = Secret::default();
    secret.metadata.namespace = Some("default".into());
    secret.metadata.name = Some("certificate".into());
    let mut world = run("Secret", &world.with(secret));
    assert_eq!(condition(&world, "Ready"), "True");
    let ingress = world.expect::<Ingress>("default", HOST).spec;
    assert_eq!((ingress.tls[0].secret_name.as_str(), ingress.http_option), ("certificate", None));
    let status = world.expect::<DomainMapping>("default", HOST).status.unwrap();
    assert_eq!(status.url.as_deref(), Some("https://www.example.org:8443"));
    world.edit::<DomainMapping>("default", HOST, |mapping| {
        let annotations = mapping.metadata.annotations.get_or_insert_default();
        annotations.insert("networking.knative.dev/http-protocol".into(), "Redirected".into());
    });
    let world = run("redirected", &world);
    assert_eq!(world.expect::<Ingress>("default", HOST).spec.http_option, Some(HttpOption::Redirected));
}

#[test]
fn an_ingress_of_that_name_is_not_taken() {
    let foreign = object("networking.internal.knative.dev/v1alpha1", "Ingress", "default", HOST, json!({"rules": []}));
    let world = run("foreign", &given().with_json(foreign).with_json(mapping("default", "Service", None)));
    assert!(condition(&world, "IngressReady").starts_with("False NotOwned"), "{}", condition(&world, "IngressReady"));
    assert!(reconcile::View::get::<Route>(&world, "default", "hello").is_some());
}
