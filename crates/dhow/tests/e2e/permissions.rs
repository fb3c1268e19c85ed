//! What the roles may do on a cluster, against what they did: run after everything else, on its audit log.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::harness::admin;

const ROLES: [&str; 4] = ["controller", "autoscaler", "gateway", "builder"];
/// Rights that only some days need, each with the day.
const RARE: [(&str, &str); 9] = [
    // The oldest of many Builds of one function.
    ("controller", "dhow.dev/builds delete"),
    // Told when the server refuses a write.
    ("controller", "/events create"),
    ("autoscaler", "/events create"),
    // Of the three kinds that expose a Route an installation uses one; what another made before is removed.
    ("controller", "networking.k8s.io/ingresses"),
    ("controller", "gateway.networking.k8s.io/httproutes"),
    ("controller", "networking.istio.io/virtualservices"),
    // A second Revision of everything is collected after twenty.
    ("controller", "serving.knative.dev/revisions delete"),
    // Made anew where somebody has removed it.
    ("builder", "networking.k8s.io/networkpolicies"),
    ("builder", "coordination.k8s.io/leases"),
];

/// What an installation that exposes Routes otherwise has taken away while the controller before still runs.
const TAKEN: [&str; 3] = ["ingresses", "httproutes", "virtualservices"];

type Right = (String, String, String);

/// Group, resource with its subresource, verb.
fn granted(role: &str) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let name = format!("dhow-{role}");
    for kind in ["clusterrole", "role"] {
        let output = admin(&["get", kind, &name, "--namespace", "dhow-system", "--output", "json"]);
        let object: Value = serde_json::from_slice(&output.stdout).expect("a role");
        let texts = |rule: &Value, key: &str| -> Vec<String> {
            rule[key].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        for rule in object["rules"].as_array().into_iter().flatten() {
            for group in texts(rule, "apiGroups") {
                // Nobody uses the right to say that deleting an owner waits: some servers look whether it is there.
                for resource in texts(rule, "resources").into_iter().filter(|name| !name.ends_with("/finalizers")) {
                    rights.extend(texts(rule, "verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
                }
            }
        }
    }
    rights
}

#[test]
#[ignore = "looks back on the whole run: tests/cluster/run.sh asks for it last"]
fn no_right_is_missing_and_none_is_spare() {
    let Some(path) = std::env::var_os("DHOW_TEST_AUDIT_LOG") else {
        eprintln!("skipped: DHOW_TEST_AUDIT_LOG names no audit log");
        return;
    };
    let log = std::fs::read_to_string(path).expect("the audit log");
    let mut used: BTreeMap<&str, BTreeSet<Right>> = BTreeMap::new();
    let mut missing = BTreeSet::new();
    for event in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let Some(name) = user.strip_prefix("system:serviceaccount:dhow-system:dhow-") else { continue };
        let Some(role) = ROLES.into_iter().find(|role| *role == name) else { continue };
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let resource = match text("/objectRef/subresource").as_str() {
            "" => text("/objectRef/resource"),
            sub => format!("{}/{sub}", text("/objectRef/resource")),
        };
        let right = (text("/objectRef/apiGroup"), resource, text("/verb"));
        if text("/annotations/authorization.k8s.io~1decision") == "forbid" {
            if role != "controller" || !TAKEN.contains(&right.1.as_str()) {
                missing.insert((role, right));
            }
            continue;
        }
        // Applying something new asks for the right to create it, and is logged as a patch.
        if right.2 == "patch" && event.pointer("/responseStatus/code") == Some(&201.into()) {
            used.entry(role).or_default().insert((right.0.clone(), right.1.clone(), "create".into()));
        }
        used.entry(role).or_default().insert(right);
    }
    assert!(missing.is_empty(), "asked for and refused: {missing:#?}");
    let is_rare = |role: &str, (group, resource, verb): &Right| {
        let right = format!("{group}/{resource} {verb}");
        RARE.iter().any(|(of, rare)| *of == role && right.starts_with(rare))
    };
    let mut spare = vec![];
    for role in ROLES {
        let used = used.remove(role).unwrap_or_default();
        assert!(!used.is_empty(), "the {role} did nothing: is this its log?");
        spare.extend(
            granted(role).difference(&used).filter(|right| !is_rare(role, right)).map(|right| (role, right.clone())),
        );
    }
    assert!(spare.is_empty(), "granted and never used: {spare:#?}");
}
