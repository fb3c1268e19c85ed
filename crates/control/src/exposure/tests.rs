use api::serving::Route;
use k8s_openapi::api::networking::v1::Ingress;
use reconcile::{Key, Kind, Plan, View};
use serde_json::{Value, json};

use super::kinds::{HTTPRoute, VirtualService};
use super::{Exposed, Exposure, GatewayRef};
use crate::Cluster;
use crate::fixtures::*;

fn given() -> World {
    world().with_json(json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route",
        "metadata": {"namespace": "default", "name": "hello", "labels": {"team": "a"},
            "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "600"}},
        "spec": {"traffic": []}}))
}

fn ingress(class: Option<&str>) -> Exposure {
    Exposure::Ingress { class: class.map(str::to_owned) }
}

fn http_route(section: Option<&str>) -> Exposure {
    let gateway = GatewayRef { namespace: "infra".into(), name: "outer".into(), section: section.map(str::to_owned) };
    Exposure::HttpRoute { gateway }
}

fn istio() -> Exposure {
    Exposure::Istio { gateways: vec!["infra/outer".into()] }
}

fn run(case: &str, world: &World, exposure: &Exposure, hosts: &[&str]) -> Outcome {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    converge(case, world, &key(), |world: &World, key: &Key, _| {
        let mut plan = Plan::default();
        let Some(route) = world.get::<Route>(&key.namespace, &key.name) else { return plan };
        let found = exposure.find(world, route.as_ref());
        let exposed = Exposed { owner: route.as_ref(), service: "hello", hosts: &hosts, secret: None };
        super::plan(exposure, &found, &exposed, Cluster::GATEWAY, &mut plan).unwrap();
        plan
    })
}

fn spec<K: Kind>(world: &World, name: &str) -> Value {
    json!(world.expect::<K>("default", name))["spec"].clone()
}

#[test]
fn one_object_of_the_configured_kind() {
    let hosts = ["hello.default.example.com", "blue-hello.default.example.com"];
    let outcome = run("nothing", &given(), &Exposure::None, &hosts);
    assert!(outcome.writes.is_empty());

    let outcome = run("ingress", &given(), &ingress(Some("nginx")), &hosts);
    assert_eq!(outcome.writes, ["apply Ingress default/hello-outside"]);
    let rule = |host: &str| {
        json!({"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix",
        "backend": {"service": {"name": "hello", "port": {"number": 80}}}}]}})
    };
    let want = json!({"ingressClassName": "nginx", "rules": [rule(hosts[0]), rule(hosts[1])]});
    assert_eq!(spec::<Ingress>(&outcome.world, "hello-outside"), want);
    let meta = outcome.world.expect::<Ingress>("default", "hello-outside").metadata;
    let owner = &meta.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.controller), ("Route", "hello", Some(true)));
    let labels = meta.labels.unwrap();
    assert_eq!((labels["team"].as_str(), labels["dhow.dev/exposes"].as_str()), ("a", "hello"));
    assert_eq!(meta.annotations.unwrap()["nginx.ingress.kubernetes.io/proxy-read-timeout"], "600");
    let outcome = run("the default class", &given(), &ingress(None), &hosts);
    assert_eq!(spec::<Ingress>(&outcome.world, "hello-outside")["ingressClassName"], Value::Null);

    let outcome = run("route", &given(), &http_route(Some("https")), &hosts);
    assert_eq!(outcome.writes, ["apply HTTPRoute default/hello-outside"]);
    let parent = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "infra", "name": "outer",
        "sectionName": "https"});
    let rule = json!({"matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [{"group": "", "kind": "Service", "name": "hello", "port": 80, "weight": 1}]});
    let want = json!({"parentRefs": [parent], "hostnames": hosts, "rules": [rule]});
    assert_eq!(spec::<HTTPRoute>(&outcome.world, "hello-outside"), want);

    let outcome = run("virtual service", &given(), &istio(), &hosts);
    assert_eq!(outcome.writes, ["apply VirtualService default/hello-outside"]);
    let destination = json!({"host": "dhow-gateway.dhow-system.svc.cluster.local", "port": {"number": 80}});
    let want =
        json!({"hosts": hosts, "gateways": ["infra/outer"], "http": [{"route": [{"destination": destination}]}]});
    assert_eq!(spec::<VirtualService>(&outcome.world, "hello-outside"), want);
}

#[test]
fn it_follows_the_hosts() {
    for exposure in [ingress(None), http_route(None), istio()] {
        let case = format!("{exposure:?}");
        let kind = match exposure {
            Exposure::Ingress { .. } => "Ingress",
            Exposure::HttpRoute { .. } => "HTTPRoute",
            _ => "VirtualService",
        };
        let one = run(&case, &given(), &exposure, &["a.test"]).world;
        let two = run(&case, &one, &exposure, &["a.test", "b.test"]);
        assert_eq!(two.writes, [format!("apply {kind} default/hello-outside")]);
        let local = run(&case, &two.world, &exposure, &[]);
        assert_eq!(local.writes, [format!("delete {kind} default/hello-outside")], "no host, nothing to expose");
        assert!(run(&case, &local.world, &exposure, &[]).writes.is_empty());
    }
}

#[test]
fn an_http_route_has_sixteen_hosts_at_most() {
    let hosts: Vec<String> = (0..33).map(|i| format!("{i}.test")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let many = run("many", &given(), &http_route(None), &hosts);
    let want = ["hello-outside", "hello-outside-1", "hello-outside-2"].map(|n| format!("apply HTTPRoute default/{n}"));
    assert_eq!(many.writes, want);
    assert_eq!(spec::<HTTPRoute>(&many.world, "hello-outside-2")["hostnames"], json!(["32.test"]));
    let few = run("few", &many.world, &http_route(None), &hosts[..17]);
    assert_eq!(few.writes, ["apply HTTPRoute default/hello-outside-1", "delete HTTPRoute default/hello-outside-2"]);
}

#[test]
fn what_others_made_is_left_alone() {
    let foreign = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"namespace": "default", "name": "hello-outside"}, "spec": {}});
    let world = given().with_json(foreign);
    let route = world.expect::<Route>("default", "hello");
    let exposure = ingress(None);
    let found = exposure.find(&world, &route);
    let mut plan = Plan::default();
    let hosts = ["a.test".to_owned()];
    let exposed = Exposed { owner: &route, service: "hello", hosts: &hosts, secret: None };
    let refused = super::plan(&exposure, &found, &exposed, Cluster::GATEWAY, &mut plan);
    assert_eq!(refused.unwrap_err(), "There is an existing Ingress \"hello-outside\" that we do not own.");
    assert!(plan.is_empty());
    assert!(run("nothing to expose", &world, &exposure, &[]).writes.is_empty());
}
