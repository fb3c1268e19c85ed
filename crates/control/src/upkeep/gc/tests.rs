use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Held, Target};
use serde_json::{Value, json};

use super::plan::plan;

fn held(name: &str, meta: Value) -> Held {
    let mut meta: ObjectMeta = serde_json::from_value(meta).unwrap();
    (meta.name, meta.uid, meta.resource_version) = (Some(name.into()), Some(name.into()), Some("7".into()));
    Held {
        target: Target { api_version: "v1".into(), kind: "ConfigMap".into(), namespace: "n".into(), name: name.into() },
        meta,
    }
}

fn owned_by(name: &str, owners: &[(&str, bool)]) -> Held {
    let reference = |(uid, blocks): &(&str, bool)| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid, "blockOwnerDeletion": blocks});
    held(name, json!({"ownerReferences": owners.iter().map(reference).collect::<Vec<_>>()}))
}

fn leaving(name: &str, finalizers: &[&str]) -> Held {
    held(name, json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers}))
}

#[test]
fn rows() {
    let gone = |uids: &[&str]| uids.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>();
    let fore = leaving("a", &["foregroundDeletion", "other"]);
    let leaving_child = {
        let mut child = owned_by("b", &[("a", true)]);
        child.meta.deletion_timestamp = leaving("b", &[]).meta.deletion_timestamp;
        child
    };
    for (case, object, absent, dependents, want) in [
        ("no owners", held("a", json!({})), gone(&["x"]), vec![], vec![]),
        ("owner there", owned_by("a", &[("o", true)]), gone(&[]), vec![], vec![]),
        ("owner gone", owned_by("a", &[("o", true)]), gone(&["o"]), vec![], vec!["delete ConfigMap n/a"]),
        (
            "one of two gone",
            owned_by("a", &[("o", true), ("p", true)]),
            gone(&["o"]),
            vec![],
            vec!["patch ConfigMap n/a"],
        ),
        ("leaving by itself", leaving("a", &["other"]), gone(&[]), vec![owned_by("b", &[("a", true)])], vec![]),
        (
            "foreground, blocked",
            fore.clone(),
            gone(&[]),
            vec![owned_by("b", &[("a", true)])],
            vec!["delete ConfigMap n/b"],
        ),
        ("foreground, waiting", fore.clone(), gone(&[]), vec![leaving_child], vec![]),
        (
            "foreground, not blocking",
            fore.clone(),
            gone(&[]),
            vec![owned_by("b", &[("a", false)])],
            vec!["patch ConfigMap n/a"],
        ),
        ("foreground, done", fore, gone(&[]), vec![], vec!["patch ConfigMap n/a"]),
        (
            "orphan",
            leaving("a", &["orphan"]),
            gone(&[]),
            vec![owned_by("b", &[("a", true)])],
            vec!["patch ConfigMap n/b", "patch ConfigMap n/a"],
        ),
    ] {
        let plan = plan(&object, &absent, &dependents, |_| false);
        let writes: Vec<String> = plan.writes.iter().map(ToString::to_string).collect();
        assert_eq!(writes, want, "{case}");
    }
}
