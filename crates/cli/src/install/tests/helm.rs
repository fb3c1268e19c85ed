//! The chart, as Helm itself renders it, beside what `dhow install` makes of the same settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::{manifests, settings};

/// A Helm that is built with Go takes an old cluster for granted.
const KUBERNETES: [&str; 2] = ["--kube-version", "1.35.0"];

/// The program, or why there is none.
fn helm() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/install.sh");
    let output = Command::new(script).arg("helm").output().map_err(|error| error.to_string())?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if path.is_empty() { Err(text(&output)) } else { Ok(path.into()) }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/dhow")
}

/// One set of settings, as flags and as values.
fn rows() -> Vec<(Vec<&'static str>, Value)> {
    let registry = json!({
        "prefix": "registry.example.com:5000/dhow", "forNodes": "localhost:5000/dhow", "insecure": ["a:1", "b:2"],
        "secret": "credentials", "caConfigMap": "authority",
    });
    let build = json!({
        "basePython": "registry.example.com/python:1", "baseNode": "registry.example.com/node:1",
        "proxyHosts": ["pypi.example.com"], "env": ["A=1", r#"B="q" \\ 5% {x} 'y' #z: ü"#],
        "egress": ["10.0.0.0/8:5000"],
    });
    vec![
        (vec![], json!({})),
        (
            vec!["--registry", "registry.example.com/dhow", "--exposure", "ingress=nginx", "--gateway-replicas", "5"],
            json!({"registry": {"prefix": "registry.example.com/dhow"}, "exposure": "ingress=nginx", "gateway": {"replicas": 5}}),
        ),
        (
            vec![
                "--registry=registry.example.com:5000/dhow",
                "--registry-for-nodes=localhost:5000/dhow",
                "--registry-insecure=a:1,b:2",
                "--registry-secret=credentials",
                "--registry-ca-configmap=authority",
                "--base-python=registry.example.com/python:1",
                "--base-node=registry.example.com/node:1",
                "--build-proxy-host=pypi.example.com",
                "--build-env=A=1",
                r#"--build-env=B="q" \\ 5% {x} 'y' #z: ü"#,
                "--build-egress=10.0.0.0/8:5000",
                "--image=mirror.example.com/dhow:2",
                "--image-pull-secret=pull",
                "--pull-secret=functions",
                "--max-source=1GiB",
            ],
            json!({
                "registry": registry, "build": build, "image": "mirror.example.com/dhow:2", "imagePullSecret": "pull",
                "pullSecret": "functions", "maxSource": 1_073_741_824,
            }),
        ),
        (
            vec![
                "--domain=apps.example.org",
                "--exposure=httproute=net/edge/https",
                "--gateway-port=8443",
                "--gateway-service-type=NodePort",
                "--gateway-address=http://a.example.org:80",
                "--platform-address=http://b.example.org:81",
                "--service-monitor",
            ],
            json!({
                "domain": "apps.example.org", "exposure": "httproute=net/edge/https", "platformAddress": "http://b.example.org:81",
                "gateway": {"port": 8443, "serviceType": "NodePort", "address": "http://a.example.org:80"}, "serviceMonitor": true,
            }),
        ),
        (vec!["--exposure", "istio=a,b/c"], json!({"exposure": "istio=a,b/c"})),
    ]
}

fn by_name(objects: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]).replace('"', "");
    objects.into_iter().map(|object| (name(&object), object)).collect()
}

#[test]
fn the_chart_makes_what_install_makes() {
    let helm = match helm() {
        Ok(helm) => helm,
        Err(why) => return println!("skipped: {why}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let values = folder.path().join("values.json");
    for (flags, given) in rows() {
        std::fs::write(&values, given.to_string()).unwrap();
        let mut command = Command::new(&helm);
        command.arg("template").arg("dhow").arg(chart()).args(["--namespace", "dhow-system", "--values"]).arg(&values);
        let output = command.args(KUBERNETES).output().unwrap();
        assert!(output.status.success(), "{flags:?}: {}", text(&output));
        let rendered: Vec<Value> = serde_yaml::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
        let rendered = by_name(rendered.into_iter().filter(|object| !object.is_null()));
        let wanted = manifests(&settings(&flags)).into_iter().filter(|object| object["kind"] != "Namespace");
        let wanted = by_name(wanted);
        assert_eq!(rendered.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{flags:?}");
        for (name, wanted) in &wanted {
            assert!(rendered[name] == *wanted, "{flags:?} {name}: Helm\n{}\ninstall\n{wanted}", rendered[name]);
        }
        let mut command = Command::new(&helm);
        command.args(["lint", "--strict", "--values"]).arg(&values).arg(chart()).args(KUBERNETES);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{flags:?}: {}", text(&output));
    }
}

#[test]
fn the_chart_refuses_what_install_refuses() {
    let helm = match helm() {
        Ok(helm) => helm,
        Err(why) => return println!("skipped: {why}"),
    };
    for set in [
        "exposure=nginx",
        "gateway.replicas=0",
        "gateway.port=0",
        "gateway.serviceType=None",
        "gateway.address=dhow.example.com",
        "build.env={PIP}",
        "registry.url=a",
        "image=",
    ] {
        let mut command = Command::new(&helm);
        let output = command.arg("template").arg("dhow").arg(chart()).args(["--set", set]).output().unwrap();
        assert!(!output.status.success(), "{set}");
        assert!(text(&output).contains("don't meet the specifications of the schema"), "{set}: {}", text(&output));
    }
}
