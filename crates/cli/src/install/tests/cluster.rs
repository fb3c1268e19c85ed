//! A real API server looks at every manifest, and keeps none of them.

use clap::Parser;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::super::putting::api_of;
use super::{REGISTRY, Settings, manifests};
use crate::args::{Cli, Command};
use crate::connect;

/// A kubeconfig of a cluster that tests may use.
const CLUSTER: &str = "DHOW_TEST_CLUSTER";

async fn cluster() -> Option<Client> {
    let Some(kubeconfig) = std::env::var(CLUSTER).ok().filter(|path| !path.is_empty()) else {
        println!("skipped: {CLUSTER} names no kubeconfig");
        return None;
    };
    let cli = Cli::try_parse_from(["dhow", "--kubeconfig", &kubeconfig, "status"]).unwrap();
    Some(connect::platform(&cli.global).await.unwrap().client)
}

#[tokio::test]
async fn a_server_takes_every_manifest() {
    let Some(client) = cluster().await else { return };
    let name = format!("dhow-dry-run-{}", std::process::id());
    let flags = [
        &["dhow", "install"][..],
        &REGISTRY,
        &["--registry-secret=s", "--registry-ca-configmap=ca", "--image-pull-secret=i", "--exposure=ingress"],
    ];
    let Command::Install(args) = Cli::try_parse_from(flags.concat()).unwrap().command else { unreachable!() };
    let all = manifests(&Settings::from_args(&args.settings, &name));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = all.iter().find(|manifest| manifest["kind"] == "Namespace").unwrap();
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace.clone()).unwrap()).await.unwrap();

    let mut complaints = vec![];
    let dry = PatchParams { dry_run: true, ..PatchParams::apply("dhow-install").force() };
    for manifest in &all {
        let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str);
        let (version, kind, name) =
            (text("/apiVersion").unwrap(), text("/kind").unwrap(), text("/metadata/name").unwrap());
        let api = api_of(&client, version, kind, text("/metadata/namespace"));
        if let Err(error) = api.patch(name, &dry, &Patch::Apply(manifest)).await {
            complaints.push(format!("{kind} {name}: {error}"));
        }
    }
    complaints.extend(pods(&client, &name, &all).await);
    namespaces.delete(&name, &DeleteParams::background()).await.unwrap();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// A namespace that allows only "restricted" pods looks at pods, not at what makes them.
async fn pods(client: &Client, namespace: &str, all: &[Value]) -> Vec<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let mut complaints = vec![];
    for manifest in all.iter().filter(|manifest| manifest["kind"] == "Deployment") {
        let account =
            all.iter().find(|a| a["kind"] == "ServiceAccount" && a["metadata"]["name"] == manifest["metadata"]["name"]);
        let account: ServiceAccount = serde_json::from_value(account.unwrap().clone()).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
        let mut pod = manifest["spec"]["template"].clone();
        pod["metadata"]["name"] = manifest["metadata"]["name"].clone();
        if let Err(error) = pods.create(&dry, &serde_json::from_value(pod.clone()).unwrap()).await {
            complaints.push(format!("pod of {}: {error}", manifest["metadata"]["name"]));
        }
        // The same, but privileged: else the namespace would look at nothing.
        pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
        if pods.create(&dry, &serde_json::from_value(pod).unwrap()).await.is_ok() {
            complaints.push(format!("pod of {}: a privileged one is taken", manifest["metadata"]["name"]));
        }
    }
    complaints
}
