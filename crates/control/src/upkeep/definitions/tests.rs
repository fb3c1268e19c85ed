use api::names::DEFINITION_CLEANUP;
use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use reconcile::{Held, Key, Plan, Target, View};
use serde_json::{Value, json};

use super::plan::{kind, plan};
use crate::fixtures::*;

fn definition(leaving: bool, established: bool) -> Value {
    let at = leaving.then(start);
    let status = if established { "True" } else { "False" };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.a.example", "deletionTimestamp": at, "finalizers": [DEFINITION_CLEANUP, "other"]},
        "spec": {"group": "a.example", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
                 "versions": [{"name": "v1", "served": true, "storage": false},
                              {"name": "v1beta1", "served": true, "storage": true},
                              {"name": "v1alpha1", "served": false, "storage": false}]},
        "status": {"acceptedNames": {"plural": "widgets", "kind": "Widget"}, "storedVersions": [],
                   "conditions": [{"type": "Established", "status": status}]},
    })
}

fn typed(value: Value) -> CustomResourceDefinition {
    serde_json::from_value(value).unwrap()
}

fn held(name: &str, leaving: bool) -> Held {
    let target =
        Target { api_version: "a.example/v1".into(), kind: "Widget".into(), namespace: "n".into(), name: name.into() };
    let meta = json!({"name": name, "uid": name, "deletionTimestamp": leaving.then(start)});
    Held { target, meta: serde_json::from_value(meta).unwrap() }
}

#[test]
fn kinds() {
    let served = kind(&typed(definition(false, true))).unwrap();
    assert_eq!(served.resource.api_version, "a.example/v1beta1", "the stored version");
    assert_eq!(served.api_versions, ["a.example/v1", "a.example/v1beta1"]);
    assert!(served.namespaced);
    assert_eq!(kind(&typed(definition(false, false))), None);
}

#[test]
fn objects_first() {
    for (leaving, objects, want) in [
        (false, vec![held("a", false)], vec![]),
        (true, vec![held("a", false), held("b", true)], vec!["delete Widget n/a"]),
        (true, vec![held("b", true)], vec![]),
        (true, vec![], vec!["patch CustomResourceDefinition widgets.a.example"]),
    ] {
        let plan = plan(&typed(definition(leaving, true)), objects);
        let writes: Vec<String> = plan.writes.iter().map(|w| format!("{} {}", w.action(), w.target())).collect();
        assert_eq!(writes, want);
    }
}

#[test]
fn the_last_step_is_taken_once() {
    let gather = |world: &World, key: &Key, _: Timestamp| {
        world.get::<CustomResourceDefinition>("", &key.name).map_or_else(Plan::default, |d| plan(&d, vec![]))
    };
    let given = world().with_json(definition(true, true));
    let outcome = converge("leaving", &given, &Key::new("", "widgets.a.example"), gather);
    assert_eq!(outcome.writes, ["patch CustomResourceDefinition widgets.a.example"]);
}
