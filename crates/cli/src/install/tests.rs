mod cluster;
mod helm;

use clap::Parser;

use super::*;
use crate::args::{Cli, Command};

fn settings(flags: &[&str]) -> Settings {
    let words = ["dhow", "install"].iter().chain(flags);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Install(args) => Settings::from_args(&args.settings, "dhow-system"),
        other => panic!("{other:?}"),
    }
}

const REGISTRY: [&str; 2] = ["--registry", "registry.example.com/dhow"];

fn of_kind(manifests: &[Value], kind: &str) -> Vec<Value> {
    manifests.iter().filter(|m| m["kind"] == kind).cloned().collect()
}

#[test]
fn every_pod_is_restricted() {
    let all = manifests(&settings(&[&REGISTRY[..], &["--registry-secret", "s"]].concat()));
    let deployments = of_kind(&all, "Deployment");
    assert_eq!(deployments.len(), 4);
    for deployment in deployments {
        let name = &deployment["metadata"]["name"];
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["enableServiceLinks"], false, "{name}");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
            for needed in ["readinessProbe", "livenessProbe"] {
                assert!(container[needed].is_object(), "{name} {needed}");
            }
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
        }
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        for (key, value) in deployment["spec"]["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[key], value, "{name}");
        }
    }
}

#[test]
fn no_role_may_more_than_it_needs() {
    let all = manifests(&settings(&[&REGISTRY[..], &["--exposure", "ingress"]].concat()));
    let roles = [of_kind(&all, "ClusterRole"), of_kind(&all, "Role")].concat();
    assert_eq!(roles.len(), 4 + 2 + 4 + 1);
    for role in &roles {
        let name = &role["metadata"]["name"];
        for rule in role["rules"].as_array().unwrap() {
            let text = rule.to_string();
            assert!(!text.contains('*'), "{name}: {text}");
            for never in ["\"secrets\"", "\"escalate\"", "\"bind\"", "\"impersonate\"", "pods/exec", "clusterroles"] {
                assert!(!text.contains(never), "{name}: {text}");
            }
        }
    }
    // Every binding leads to a role that is there, and to an account that is.
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        let bindings = of_kind(&all, kind);
        assert_eq!(bindings.len(), 4, "{kind}");
        for binding in bindings {
            let to = &binding["roleRef"];
            assert!(roles.iter().any(|r| r["kind"] == to["kind"] && r["metadata"]["name"] == to["name"]), "{to}");
            let account = &binding["subjects"][0]["name"];
            assert!(of_kind(&all, "ServiceAccount").iter().any(|a| a["metadata"]["name"] == *account), "{account}");
        }
    }
}

#[test]
fn the_controller_may_say_that_owners_wait() {
    let all = manifests(&settings(&[]));
    let role = of_kind(&all, "ClusterRole").into_iter().find(|r| r["metadata"]["name"] == "dhow-controller").unwrap();
    let may = |resource: &str| {
        role["rules"].as_array().unwrap().iter().any(|rule| {
            rule["resources"].as_array().unwrap().contains(&json!(resource)) && rule["verbs"] == json!(["update"])
        })
    };
    for owner in ["functions", "services", "configurations", "revisions", "routes"] {
        assert!(may(&format!("{owner}/finalizers")), "{owner}");
    }
}

#[test]
fn what_selects_a_pod_finds_one() {
    let all = manifests(&settings(&[&REGISTRY[..], &["--service-monitor"]].concat()));
    let pods: Vec<Value> =
        of_kind(&all, "Deployment").iter().map(|d| d["spec"]["template"]["metadata"]["labels"].clone()).collect();
    let selectors = |kind: &str, pointer: &str| {
        of_kind(&all, kind)
            .into_iter()
            .map(|o| (o["metadata"]["name"].clone(), o.pointer(pointer).unwrap().clone()))
            .collect::<Vec<_>>()
    };
    for (name, selector) in [
        selectors("Service", "/spec/selector"),
        selectors("PodDisruptionBudget", "/spec/selector/matchLabels"),
        selectors("NetworkPolicy", "/spec/podSelector/matchLabels"),
    ]
    .concat()
    {
        let selector = selector.as_object().unwrap();
        assert!(pods.iter().any(|pod| selector.iter().all(|(key, value)| pod[key] == *value)), "{name}: {selector:?}");
    }
    // Nothing reaches a pod unless a policy says so.
    assert_eq!(of_kind(&all, "NetworkPolicy").len(), pods.len());
    for object in all.iter().filter(|object| object["kind"] != "CustomResourceDefinition") {
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/version"], env!("CARGO_PKG_VERSION"), "{object}");
    }
}

#[test]
fn the_roles_understand_their_flags() {
    let flags = [
        &REGISTRY[..],
        &[
            "--registry-secret",
            "s",
            "--registry-ca-configmap",
            "ca",
            "--registry-insecure",
            "a:1,b:2",
            "--pull-secret",
            "p",
        ],
        &[
            "--build-env",
            "A=1",
            "--build-egress",
            "10.0.0.0/8:5000",
            "--image-pull-secret",
            "i",
            "--exposure",
            "ingress=nginx",
        ],
    ];
    for deployment in of_kind(&manifests(&settings(&flags.concat())), "Deployment") {
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let args: Vec<&str> = container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let words = std::iter::once("dhow").chain(args.iter().copied());
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{}: {error}", deployment["metadata"]["name"]);
        }
    }
}

#[test]
fn without_a_registry_nothing_is_built() {
    let names = |flags: &[&str]| {
        let all = manifests(&settings(flags));
        all.iter().map(|m| format!("{}/{}", m["kind"], m["metadata"]["name"]).replace('"', "")).collect::<Vec<_>>()
    };
    assert!(!names(&[]).iter().any(|name| name.contains("builder")));
    let with = names(&REGISTRY);
    for kind in ["Deployment", "Service", "ServiceAccount", "NetworkPolicy", "ClusterRole", "Role"] {
        assert!(with.contains(&format!("{kind}/dhow-builder")), "{kind}");
    }
    let mut once = with.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), with.len(), "every object once");
}

#[test]
fn wrong_settings_are_told_before_anything_is_done() {
    let said = |flags: &[&str]| {
        let words = ["dhow", "install"].iter().chain(flags);
        match Cli::try_parse_from(words) {
            Err(error) => error.to_string(),
            Ok(cli) => match cli.command {
                Command::Install(args) => check(&args.settings).err().map(|f| f.to_string()).unwrap_or_default(),
                other => panic!("{other:?}"),
            },
        }
    };
    for (flags, want) in [
        (&["--exposure", "nginx"][..], "--exposure: \"nginx\" is none of them"),
        (&["--exposure", "httproute=edge"], "say none, ingress"),
        (&["--gateway-address", "dhow.example.com"], "write it as http://HOST:PORT"),
        (&["--build-env", "PIP"], "write it as NAME=VALUE"),
        (&["--registry-secret", "s"], "--registry"),
        (&["--gateway-service-type", "None"], "LoadBalancer"),
        (&["--timeout", "soon"], "write one like 90s or 3m"),
        (&["--timeout", "5ms"], "write one like 90s or 3m"),
        (&["--timeout", "999999999999999999m"], "write one like 90s or 3m"),
        (&["--exposure", "ingress=nginx", "--gateway-address", "http://a:80"], ""),
    ] {
        let text = said(flags);
        assert!(text.contains(want) && text.is_empty() == want.is_empty(), "{flags:?}: {text}");
    }
}

#[test]
fn the_chart_is_what_is_rendered() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/dhow");
    for (name, text) in chart::files() {
        let kept = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert!(kept == text, "charts/dhow/{name} is not what is rendered: run cargo xtask chart");
    }
}
