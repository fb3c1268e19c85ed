//! `dhow install`: applies the manifests, removes what an older installation had beside them, and waits.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use super::InstallCommand;
use crate::connect;
use crate::{Context, Failure, Result};

const MANAGER: &str = "dhow-install";
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// What only an installation makes.
pub const OURS: &str = "app.kubernetes.io/name=dhow,app.kubernetes.io/managed-by=dhow";
/// Kinds of which an installation has objects, in the order in which they are removed.
pub const KINDS: [(&str, &str); 11] = [
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("v1", "ServiceAccount"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
];

pub async fn run(context: &Context, args: &InstallCommand, namespace: &str, manifests: &[Value]) -> Result<()> {
    let platform = connect::platform(&context.global).await?;
    let client = &platform.client;
    beside_others(context, client, args.adopt).await?;
    let own = own_namespace(context, client, namespace).await?;
    for manifest in manifests.iter().filter(|manifest| own || manifest["kind"] != "Namespace") {
        apply(client, manifest).await?;
        if manifest["kind"] == "CustomResourceDefinition" {
            let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
            let served = tokio::time::timeout(args.timeout, established(client, name)).await;
            served.map_err(|_| {
                Failure::failed(format!("the cluster does not serve {name}"))
                    .next(format!("kubectl describe customresourcedefinition {name}"))
            })??;
        }
    }
    context.output.words(&format!("{} objects are in place", manifests.len()));
    let removed = remove_leftovers(client, namespace, manifests).await?;
    if !removed.is_empty() {
        context.output.words(&format!("removed what an older installation had: {}", removed.join(", ")));
    }
    if args.no_wait {
        context.output.words("next: dhow status");
        return Ok(());
    }
    let waiting = rolled_out(context, client, namespace);
    match tokio::time::timeout(args.timeout, waiting).await {
        Ok(done) => done?,
        Err(_) => return Err(late(client, namespace).await),
    }
    context.output.words(match args.settings.registry {
        Some(_) => "Dhow is installed.\nnext: dhow new python hello, then dhow deploy hello",
        None => "Dhow is installed, for containers. With --registry it builds functions from source, too.\nnext: kubectl apply a Knative Service",
    });
    Ok(())
}

/// Definitions that are somebody else's are not touched unasked.
async fn beside_others(context: &Context, client: &Client, adopt: bool) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut foreign = vec![];
    for ours in api::definitions() {
        let name = ours.name_any();
        let found = definitions.get_opt(&name).await;
        let found = found.map_err(|e| Failure::api("looking for other installations", &e))?;
        foreign.extend(found.map(|found| (Maker::of(&found), found)).filter(|(maker, _)| *maker != Maker::Install));
    }
    if foreign.is_empty() {
        return Ok(());
    }
    if !adopt {
        return Err(refused(&foreign));
    }
    for (_, definition) in &foreign {
        let webhook = definition.spec.conversion.as_ref().is_some_and(|c| c.strategy == "Webhook");
        if webhook {
            // All of Knative's kinds are stored as the version that is served, so nothing needs converting.
            let name = definition.name_any();
            let patch = json!({"spec": {"conversion": {"strategy": "None", "webhook": null}}});
            let patched = definitions.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map_err(|e| Failure::api(&format!("taking over {name}"), &e))?;
        }
    }
    let names: Vec<String> = foreign.iter().map(|(_, definition)| definition.name_any()).collect();
    context.output.words(&format!("takes over: {}", names.join(", ")));
    if knative_runs(client).await? {
        context.output.words(
            "warning: Knative's controllers still run in knative-serving and write the same objects; scale them to 0",
        );
    }
    Ok(())
}

/// Who has put a definition there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maker {
    Install,
    /// Our chart, as this release in that namespace.
    Chart {
        release: String,
        namespace: String,
    },
    /// Another system, of this version as far as it says.
    Other(String),
}

impl Maker {
    pub fn of(definition: &CustomResourceDefinition) -> Self {
        let label = |name: &str| definition.labels().get(&format!("app.kubernetes.io/{name}")).map(String::as_str);
        let helm = |name: &str| {
            definition.annotations().get(&format!("meta.helm.sh/release-{name}")).cloned().unwrap_or_default()
        };
        match (label("name"), label("managed-by")) {
            (Some("dhow"), Some("dhow")) => Maker::Install,
            // Helm writes its own name over the chart's.
            (Some("dhow"), Some("Helm")) => Maker::Chart { release: helm("name"), namespace: helm("namespace") },
            _ => Maker::Other(label("version").unwrap_or_default().to_owned()),
        }
    }
}

fn refused(foreign: &[(Maker, CustomResourceDefinition)]) -> Failure {
    let charts = foreign.iter().find_map(|(maker, _)| match maker {
        Maker::Chart { release, namespace } => Some((release, namespace)),
        _ => None,
    });
    if let Some((release, namespace)) = charts {
        return Failure::failed(format!("Helm has installed Dhow, as release {release} in {namespace}"))
            .next("upgrade it with helm, or take it over with: dhow install --adopt");
    }
    let line = |(maker, definition): &(Maker, CustomResourceDefinition)| match maker {
        Maker::Other(version) => format!("{} {version}", definition.name_any()).trim_end().to_owned(),
        _ => definition.name_any(),
    };
    Failure::failed("the definitions of other serverless systems are there, and their objects with them")
        .lines(foreign.iter().map(line).collect())
        .next("stop that system's controllers, and take its objects over with: dhow install --adopt")
}

/// Whether the namespace is, or will be, an installation's own; one that was there before keeps its labels, since other
/// pods may run in it, and stays when Dhow goes.
async fn own_namespace(context: &Context, client: &Client, name: &str) -> Result<bool> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces.get_opt(name).await.map_err(|e| Failure::api("looking for Dhow's namespace", &e))?;
    let own = found.is_none_or(|found| is_ours(&found));
    if !own {
        context.output.words(&format!(
            "the namespace {name} was there before: it is left as it is, and stays when Dhow is removed\nnext: kubectl \
             label namespace {name} pod-security.kubernetes.io/enforce=restricted, if all else in it allows that"
        ));
    }
    Ok(own)
}

pub fn is_ours(namespace: &Namespace) -> bool {
    namespace.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "dhow")
}

async fn knative_runs(client: &Client) -> Result<bool> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "knative-serving");
    let found = deployments.get_opt("controller").await.map_err(|e| Failure::api("looking for Knative", &e))?;
    Ok(found.is_some_and(|found| found.spec.and_then(|spec| spec.replicas).unwrap_or(1) > 0))
}

pub fn api_of(client: &Client, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

async fn apply(client: &Client, manifest: &Value) -> Result<()> {
    let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str);
    let (version, kind) = (text("/apiVersion").unwrap_or_default(), text("/kind").unwrap_or_default());
    let name = text("/metadata/name").unwrap_or_default();
    let api = api_of(client, version, kind, text("/metadata/namespace"));
    let applied = api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(manifest)).await;
    applied.map(drop).map_err(|error| {
        let failure = Failure::api(&format!("applying {} {name}", kind.to_lowercase()), &error);
        match &error {
            kube::Error::Api(status) if status.code == 404 => failure
                .next(format!("the cluster does not know the kind {kind}: install it first, or leave its flag out")),
            kube::Error::Api(status) if status.code == 403 => {
                failure.next("installing takes a cluster's administrator")
            }
            _ => failure,
        }
    })
}

async fn established(client: &Client, name: &str) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    loop {
        let found = definitions.get(name).await.map_err(|e| Failure::api(&format!("waiting for {name}"), &e))?;
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
            return Ok(());
        }
        if let Some(refused) = conditions.iter().find(|c| c.type_ == "NamesAccepted" && c.status == "False") {
            let why = refused.message.clone().unwrap_or_default();
            return Err(Failure::failed(format!("the cluster refuses the names of {name}: {why}")));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Objects with an installation's labels that this one does not have.
async fn remove_leftovers(client: &Client, namespace: &str, manifests: &[Value]) -> Result<Vec<String>> {
    let mut removed = vec![];
    for (version, kind) in KINDS {
        let near = (!kind.starts_with("Cluster")).then_some(namespace);
        let api = api_of(client, version, kind, near);
        for object in list(&api, kind).await? {
            let name = object.name_any();
            let kept = manifests.iter().any(|m| m["kind"] == kind && m["metadata"]["name"] == name.as_str());
            if !kept {
                delete(&api, kind, &name).await?;
                removed.push(format!("{}/{name}", kind.to_lowercase()));
            }
        }
    }
    Ok(removed)
}

/// None of a kind that the cluster does not know.
pub async fn list(api: &Api<DynamicObject>, kind: &str) -> Result<Vec<DynamicObject>> {
    match api.list(&ListParams::default().labels(OURS)).await {
        Ok(found) => Ok(found.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(vec![]),
        Err(error) => Err(Failure::api(&format!("looking for an installation's {kind} objects"), &error)),
    }
}

pub async fn delete(api: &Api<DynamicObject>, kind: &str, name: &str) -> Result<()> {
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Failure::api(&format!("removing {} {name}", kind.to_lowercase()), &error)),
    }
}

async fn rolled_out(context: &Context, client: &Client, namespace: &str) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let mut told = vec![];
    loop {
        let found = deployments.list(&ListParams::default().labels(OURS)).await;
        let found = found.map_err(|e| Failure::api("waiting for the roll-out", &e))?.items;
        for ready in found.iter().filter(|deployment| is_rolled_out(deployment)).map(|d| d.name_any()) {
            if !told.contains(&ready) {
                context.output.words(&format!("{ready} runs"));
                told.push(ready);
            }
        }
        if told.len() == found.len() {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn is_rolled_out(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return false };
    let current = status.observed_generation >= deployment.metadata.generation;
    // Old pods that are left over would still answer as the old version.
    current
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
}

/// Why pods are not ready, as far as they say.
async fn late(client: &Client, namespace: &str) -> Failure {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut lines = vec![];
    for pod in pods.list(&ListParams::default().labels("app.kubernetes.io/name=dhow")).await.into_iter().flatten() {
        let name = pod.name_any();
        let Some(status) = pod.status else { continue };
        let waiting = status.container_statuses.iter().flatten().filter_map(|c| c.state.as_ref()?.waiting.as_ref());
        lines.extend(waiting.map(|waiting| {
            let (reason, message) = (waiting.reason.as_deref(), waiting.message.as_deref());
            format!("{name}: {} {}", reason.unwrap_or_default(), message.unwrap_or_default())
        }));
        let unscheduled =
            status.conditions.iter().flatten().filter(|c| c.type_ == "PodScheduled" && c.status == "False");
        lines.extend(unscheduled.map(|c| format!("{name}: {}", c.message.as_deref().unwrap_or_default())));
    }
    Failure::failed("not everything runs yet")
        .lines(lines)
        .next(format!("kubectl get pods --namespace {namespace}, then install again"))
}
