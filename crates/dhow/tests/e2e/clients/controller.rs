//! A controller written with kube-rs, with a kind of its own: what it watches, keeps, writes and cleans up, over TLS.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{Controller, WatchStreamExt, watcher};
use kube::{Api, Client, CustomResource, CustomResourceExt, Resource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::harness::{Platform, eventually, kubectl, machine, write_files};

const MANAGER: &str = "greeter";
const CLEANUP: &str = "example.org/farewell";

/// Asks for a ConfigMap that says it. Spec: people. Status: the controller.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "example.org",
    version = "v1",
    kind = "Greeting",
    namespaced,
    status = "GreetingStatus",
    shortname = "gr",
    category = "all",
    printcolumn = r#"{"name":"Says","type":"string","jsonPath":".status.says"}"#
)]
struct GreetingSpec {
    #[schemars(length(min = 1, max = 20))]
    words: String,
    #[serde(default = "once")]
    times: u8,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct GreetingStatus {
    says: String,
    observed_generation: i64,
}

fn once() -> u8 {
    1
}

type Error = kube::runtime::finalizer::Error<kube::Error>;

async fn reconcile(greeting: Arc<Greeting>, client: Arc<Client>) -> Result<Action, Error> {
    let namespace = greeting.namespace().unwrap_or_default();
    let greetings: Api<Greeting> = Api::namespaced(client.as_ref().clone(), &namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client.as_ref().clone(), &namespace);
    finalizer(&greetings, CLEANUP, greeting, |event| async {
        match event {
            Event::Apply(greeting) => say(&greeting, &greetings, &maps).await,
            Event::Cleanup(greeting) => {
                let name = format!("{}-farewell", greeting.name_any());
                let farewell = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
                maps.patch(&name, &PatchParams::apply(MANAGER), &Patch::Apply(farewell)).await?;
                Ok(Action::await_change())
            }
        }
    })
    .await
}

async fn say(greeting: &Greeting, greetings: &Api<Greeting>, maps: &Api<ConfigMap>) -> kube::Result<Action> {
    let (name, spec) = (greeting.name_any(), &greeting.spec);
    let says = vec![spec.words.as_str(); usize::from(spec.times)].join(" ");
    let owner = greeting.controller_owner_ref(&());
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": [owner]}, "data": {"says": says},
    });
    let by = PatchParams::apply(MANAGER).force();
    maps.patch(&name, &by, &Patch::Apply(map)).await?;
    let status = json!({
        "apiVersion": Greeting::api_version(&()), "kind": Greeting::kind(&()),
        "status": GreetingStatus { says, observed_generation: greeting.metadata.generation.unwrap_or_default() },
    });
    greetings.patch_status(&name, &by, &Patch::Apply(status)).await?;
    Ok(Action::await_change())
}

async fn client(platform: &Platform) -> Client {
    let config = Kubeconfig::read_from(platform.kubeconfig()).expect("a kubeconfig");
    let config =
        kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.expect("it is whole");
    Client::try_from(config).expect("a client")
}

/// The kind, once it can be used.
async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let by = PatchParams::apply("developer");
    let name = Greeting::crd_name();
    definitions.patch(name, &by, &Patch::Apply(Greeting::crd())).await.expect("the kind is taken");
    await_condition(definitions, name, conditions::is_crd_established()).await.expect("it is established");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kube_rs_controller_of_a_kind_of_its_own() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let client = client(&platform).await;
    define(&client).await;
    let greetings: Api<Greeting> = Api::namespaced(client.clone(), platform.namespace());
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), platform.namespace());
    let config = || watcher::Config::default().streaming_lists();
    let (seen, writer) = reflector::store();
    let watching = reflector::reflector(writer, watcher(greetings.clone(), config())).applied_objects();
    let watching = tokio::spawn(watching.for_each(|event| async { drop(event.expect("the watch goes on")) }));
    let controller = Controller::new(greetings.clone(), config()).owns(maps.clone(), watcher::Config::default()).run(
        reconcile,
        |_, _, _| Action::requeue(Duration::from_millis(100)),
        Arc::new(client.clone()),
    );
    let controlling = tokio::spawn(controller.for_each(|done| async {
        if let Err(error) = done {
            eprintln!("to be tried again: {error}");
        }
    }));

    let greeting = |words: &str| {
        let metadata = json!({"name": "one"});
        json!({"apiVersion": "example.org/v1", "kind": "Greeting", "metadata": metadata, "spec": {"words": words}})
    };
    let (short, long) = (greeting("hi").to_string(), greeting("far too many words for this").to_string());
    write_files(platform.dir.path(), &[("short.json", &short), ("long.json", &long)]);
    platform.shell(&[
        ("!kubectl apply -f long.json", &["spec.words: Too long: may not be more than 20"]),
        ("kubectl apply -f short.json", &["greeting.example.org/one created"]),
        ("kubectl wait --for=jsonpath='{.status.says}'=hi gr/one --timeout=60s", &["condition met"]),
        ("kubectl patch gr one --type=merge -p '{\"spec\":{\"times\":2}}'", &["patched"]),
        ("kubectl wait --for=jsonpath='{.status.observedGeneration}'=2 gr/one --timeout=60s", &["condition met"]),
        ("kubectl get gr", &["NAME SAYS\none hi hi"]),
        ("kubectl get cm one -o jsonpath='{.data.says} {.metadata.ownerReferences[0].kind}'", &["hi hi Greeting"]),
        // What others take away or change is put right.
        ("kubectl delete cm one", &["deleted"]),
        ("kubectl wait --for=create cm/one --timeout=60s", &["condition met"]),
        ("kubectl patch cm one --type=merge -p '{\"data\":{\"says\":\"no\"}}'", &["patched"]),
        ("kubectl wait --for=jsonpath='{.data.says}'='hi hi' cm/one --timeout=60s", &["condition met"]),
    ]);
    let one = ObjectRef::new("one").within(platform.namespace());
    eventually("the reflector has it", || async {
        let found = seen.get(&one).map(|found| (found.spec.times, found.status.clone().map(|status| status.says)));
        if found == Some((2, Some("hi hi".into()))) { Ok(()) } else { Err(found) }
    })
    .await;
    greetings.delete("one", &DeleteParams::default()).await.expect("it may go");
    platform.shell(&[
        ("kubectl wait --for=delete gr/one cm/one --timeout=60s", &[]),
        ("kubectl get cm one-farewell", &["one-farewell 0"]),
    ]);
    eventually("the reflector has lost it", || async { seen.get(&one).map_or(Ok(()), Err) }).await;
    controlling.abort();
    watching.abort();
}
