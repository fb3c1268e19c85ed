//! What each role may do, and no more. Pure.
//!
//! The tests on a cluster compare these tables with the API server's audit log: a verb that is missing fails, and so does
//! one that nothing uses. The surprise: [`OWNERS`] never shows up there, since a server asks for it only where it is told to.

use serde_json::{Value, json};

use super::settings::Settings;
use super::{labels, namespaced};

/// Groups, resources, verbs.
type Rule = (&'static str, &'static [&'static str], &'static [&'static str]);

const WATCH: &[&str] = &["list", "watch"];
const SERVING: &str = "serving.knative.dev";
const NETWORKING: &str = "networking.internal.knative.dev";
const AUTOSCALING: &str = "autoscaling.internal.knative.dev";
const DHOW: &str = "dhow.dev";
/// Server-side apply of something new is a creation too.
const APPLY: &[&str] = &["list", "watch", "create", "patch"];

const CONTROLLER: &[Rule] = &[
    (DHOW, &["functions"], WATCH),
    (DHOW, &["builds"], &["list", "watch", "create", "patch", "delete"]),
    (DHOW, &["functions/status"], &["patch"]),
    (SERVING, &["services", "configurations", "routes"], APPLY),
    (SERVING, &["revisions"], &["list", "watch", "create", "patch", "delete"]),
    (SERVING, &["domainmappings"], WATCH),
    (
        SERVING,
        &["services/status", "configurations/status", "revisions/status", "routes/status", "domainmappings/status"],
        &["patch"],
    ),
    (AUTOSCALING, &["podautoscalers"], APPLY),
    (NETWORKING, &["ingresses"], &["list", "watch", "create", "patch", "delete"]),
    (NETWORKING, &["ingresses/status"], &["patch"]),
    (NETWORKING, &["clusterdomainclaims"], &["list", "watch", "create", "delete"]),
    ("apps", &["deployments"], APPLY),
    ("", &["services"], &["list", "watch", "create", "patch", "delete"]),
    ("", &["pods"], WATCH),
    ("", &["events"], &["create"]),
];

/// A child's reference says that deleting its owner waits for it. Clusters that check who may say so
/// (OwnerReferencesPermissionEnforcement, which is on in OpenShift) take this right for it.
const OWNERS: &[Rule] = &[
    (DHOW, &["functions/finalizers"], &["update"]),
    (
        SERVING,
        &[
            "services/finalizers",
            "configurations/finalizers",
            "revisions/finalizers",
            "routes/finalizers",
            "domainmappings/finalizers",
        ],
        &["update"],
    ),
];

/// The objects that bring the outside world to the gateway. An installation makes one kind of them, and removes what it
/// made of the others before.
const EXPOSURE: &[Rule] = &[
    ("networking.k8s.io", &["ingresses"], EXPOSE),
    ("gateway.networking.k8s.io", &["httproutes"], EXPOSE),
    ("networking.istio.io", &["virtualservices"], EXPOSE),
];
const EXPOSE: &[&str] = &["watch", "create", "patch"];
const SWEEP: &[&str] = &["list", "delete"];

const AUTOSCALER: &[Rule] = &[
    (AUTOSCALING, &["podautoscalers"], WATCH),
    (AUTOSCALING, &["podautoscalers/status"], &["patch"]),
    ("apps", &["deployments"], &["list", "watch", "patch"]),
    ("", &["pods"], &["list", "watch", "patch"]),
    ("", &["events"], &["create"]),
];

const GATEWAY: &[Rule] = &[
    (NETWORKING, &["ingresses"], WATCH),
    (SERVING, &["revisions"], WATCH),
    ("discovery.k8s.io", &["endpointslices"], WATCH),
    ("", &["pods"], WATCH),
];

const BUILDER: &[Rule] = &[
    (DHOW, &["builds"], WATCH),
    (DHOW, &["builds/status"], &["patch"]),
    ("authentication.k8s.io", &["tokenreviews"], &["create"]),
    ("", &["events"], &["create"]),
];

/// In Dhow's own namespace: what operators set.
const CONTROLLER_HERE: &[Rule] = &[("", &["configmaps"], WATCH)];

/// In Dhow's own namespace.
const BUILDER_HERE: &[Rule] = &[
    ("batch", &["jobs"], &["list", "watch", "create", "delete"]),
    ("", &["pods"], WATCH),
    ("networking.k8s.io", &["networkpolicies"], APPLY),
];
const LEADER: &[&str] = &["get", "update"];

const EDIT: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
const VIEW: &[&str] = &["get", "list", "watch"];

pub fn manifests(settings: &Settings) -> Vec<Value> {
    let mut made = vec![];
    for (role, cluster_wide, here) in [
        ("controller", CONTROLLER, CONTROLLER_HERE),
        ("autoscaler", AUTOSCALER, &[][..]),
        ("gateway", GATEWAY, &[][..]),
        ("builder", BUILDER, BUILDER_HERE),
    ] {
        let name = format!("dhow-{role}");
        let mut wide: Vec<Value> = cluster_wide.iter().map(rule).collect();
        if role == "controller" {
            wide.extend(OWNERS.iter().map(rule));
            wide.extend(EXPOSURE.iter().map(|(group, resources, _)| rule(&(group, resources, SWEEP))));
            wide.extend(EXPOSURE.iter().zip(&settings.exposed).map(|(of, switch)| switch.of(rule(of))));
        }
        let leases = match role {
            "gateway" => vec![lease("dhow-autoscaler", WATCH)],
            _ => vec![
                lease(&name, LEADER),
                json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]}),
            ],
        };
        let near: Vec<Value> = leases.into_iter().chain(here.iter().map(rule)).collect();
        let parts = [
            namespaced("v1", "ServiceAccount", &name, role, settings, json!({"automountServiceAccountToken": false})),
            cluster("ClusterRole", &name, json!({"rules": wide})),
            bound("ClusterRoleBinding", None, &name, settings),
            namespaced("rbac.authorization.k8s.io/v1", "Role", &name, role, settings, json!({"rules": near})),
            bound("RoleBinding", Some(&settings.namespace), &name, settings),
        ];
        let switch = |part| if role == "builder" { settings.registry.switch.of(part) } else { part };
        made.extend(parts.map(switch));
    }
    made.extend(for_people(settings));
    made
}

/// What Kubernetes' own roles for people say about our kinds, and what the command line needs where no address is given.
fn for_people(settings: &Settings) -> Vec<Value> {
    let rules = |verbs: &[&str]| {
        let kinds = json!(["services", "configurations", "revisions", "routes", "domainmappings"]);
        json!([
            {"apiGroups": [DHOW], "resources": ["functions", "builds"], "verbs": verbs},
            {"apiGroups": [SERVING], "resources": kinds, "verbs": verbs},
        ])
    };
    let aggregated = |name: &str, to: &[&str], verbs: &[&str]| {
        let mut role = cluster("ClusterRole", name, json!({"rules": rules(verbs)}));
        for to in to {
            role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{to}")] = json!("true");
        }
        role
    };
    let reach = json!({"rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["dhow-endpoints"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create", "get"]},
    ]});
    vec![
        aggregated("dhow-edit", &["admin", "edit"], EDIT),
        aggregated("dhow-view", &["view"], VIEW),
        namespaced("rbac.authorization.k8s.io/v1", "Role", "dhow-cli", "cli", settings, reach),
    ]
}

fn rule((group, resources, verbs): &Rule) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

fn lease(name: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [name], "verbs": verbs})
}

fn cluster(kind: &str, name: &str, mut rest: Value) -> Value {
    rest["apiVersion"] = json!("rbac.authorization.k8s.io/v1");
    rest["kind"] = json!(kind);
    rest["metadata"] = json!({"name": name, "labels": labels(name.trim_start_matches("dhow-"))});
    rest
}

fn bound(kind: &str, namespace: Option<&str>, name: &str, settings: &Settings) -> Value {
    let to = if kind == "RoleBinding" { "Role" } else { "ClusterRole" };
    let mut binding = cluster(
        kind,
        name,
        json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": to, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": settings.namespace}],
        }),
    );
    if let Some(namespace) = namespace {
        binding["metadata"]["namespace"] = json!(namespace);
    }
    binding
}
