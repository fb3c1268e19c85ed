//! `dhow uninstall`: removes an installation, the objects of its kinds first, and waits until nothing is left.
//!
//! The surprise: only kinds that an installation has put there are looked at, so that whoever has Knative beside it, or
//! instead of it, keeps every object.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta};
use kube::{Api, Client, ResourceExt as _};

use super::UninstallCommand;
use super::putting::{KINDS, Maker, OURS, api_of, delete, is_ours, list};
use crate::connect;
use crate::{Context, Failure, Result};

const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// Deletions at the same time.
const AT_ONCE: usize = 8;
/// The kinds of the definitions, in the order in which their objects are removed: what is made from another goes with it.
const ORDER: [&str; 10] = [
    "Function",
    "DomainMapping",
    "Service",
    "Route",
    "Configuration",
    "Revision",
    "Build",
    "PodAutoscaler",
    "Ingress",
    "ClusterDomainClaim",
];
/// What the roles make in Dhow's own namespace.
const BUILDS: &str = "app.kubernetes.io/part-of=dhow,app.kubernetes.io/component=build";
const LEASES: [&str; 3] = ["dhow-controller", "dhow-autoscaler", "dhow-builder"];

/// One of our kinds that the cluster has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    /// Group and version.
    version: String,
    kind: String,
}

pub async fn run(context: &Context, args: &UninstallCommand) -> Result<()> {
    let platform = connect::platform(&context.global).await?;
    let removing = remove(context, &platform.client, args);
    let late = || {
        Failure::failed("it takes too long; something may hold an object, such as a finalizer of another program")
            .next("look with kubectl get, then run it again")
    };
    tokio::time::timeout(args.timeout, removing).await.map_err(|_| late())?
}

async fn remove(context: &Context, client: &Client, args: &UninstallCommand) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = definitions.list(&ListParams::default().labels("app.kubernetes.io/name=dhow")).await;
    let kinds = kinds(&found.map_err(|e| Failure::api("looking for an installation", &e))?.items)?;
    let left = peoples(client, &kinds).await?;
    if !left.is_empty() && !args.all {
        let lines: Vec<String> =
            left.iter().map(|(kind, names)| format!("{} {kind}: {}", names.len(), shown(names))).collect();
        return Err(Failure::failed("there are functions and services, which would be removed with Dhow")
            .lines(lines)
            .next("remove them yourself, or remove all with: dhow uninstall --all"));
    }
    remove_objects(context, client, &kinds).await?;
    let namespace = &context.global.system_namespace;
    let mut count = 0;
    for (version, kind) in KINDS {
        let near = (!kind.starts_with("Cluster")).then_some(namespace.as_str());
        let api = api_of(client, version, kind, near);
        for object in list(&api, kind).await? {
            delete(&api, kind, &object.name_any()).await?;
            count += 1;
        }
        if kind == "Deployment" {
            context.output.words("the roles stop");
            stopped(client, namespace).await?;
        }
    }
    count += remove_made(client, namespace).await?;
    count += remove_definitions(client).await?;
    count += usize::from(remove_namespace(client, namespace).await?);
    context.output.words(&format!("removed {count} objects; nothing of Dhow is left"));
    Ok(())
}

/// The kinds that an installation has put there, in the order in which their objects are removed.
fn kinds(definitions: &[CustomResourceDefinition]) -> Result<Vec<Kind>> {
    let mut kinds = vec![];
    for definition in definitions {
        match Maker::of(definition) {
            Maker::Chart { release, namespace } => {
                return Err(Failure::failed(format!("Helm has installed Dhow, as release {release} in {namespace}"))
                    .next(format!("helm uninstall {release} --namespace {namespace}")));
            }
            Maker::Other(_) => continue,
            Maker::Install => {}
        }
        let spec = &definition.spec;
        let version = spec.versions.iter().find(|version| version.storage).map(|version| version.name.as_str());
        let version = format!("{}/{}", spec.group, version.unwrap_or_default());
        kinds.push(Kind { version, kind: spec.names.kind.clone() });
    }
    kinds.sort_by_key(|kind| ORDER.iter().position(|name| *name == kind.kind));
    Ok(kinds)
}

/// What people, or programs that are not Dhow, have made of our kinds.
async fn peoples(client: &Client, kinds: &[Kind]) -> Result<Vec<(String, Vec<String>)>> {
    let mut found = vec![];
    for kind in kinds {
        let names: Vec<String> = all(client, kind)
            .await?
            .iter()
            .filter(|object| !is_made_by_dhow(object.owner_references(), kinds))
            .map(|object| format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()))
            .collect();
        if !names.is_empty() {
            found.push((kind.kind.clone(), names));
        }
    }
    Ok(found)
}

/// Another program's object may own one of ours, and that is as good as a person's.
fn is_made_by_dhow(owners: &[OwnerReference], kinds: &[Kind]) -> bool {
    let is_ours =
        |owner: &OwnerReference| kinds.iter().any(|kind| kind.version == owner.api_version && kind.kind == owner.kind);
    owners.iter().any(|owner| owner.controller == Some(true) && is_ours(owner))
}

/// None of a kind that the cluster does not know.
async fn all(client: &Client, kind: &Kind) -> Result<Vec<PartialObjectMeta<DynamicObject>>> {
    match api_of(client, &kind.version, &kind.kind, None).list_metadata(&ListParams::default()).await {
        Ok(found) => Ok(found.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(vec![]),
        Err(error) => Err(Failure::api(&format!("looking for {} objects", kind.kind), &error)),
    }
}

/// Foreground, so that what was made from them is gone before the definitions go.
async fn remove_objects(context: &Context, client: &Client, kinds: &[Kind]) -> Result<()> {
    for kind in kinds {
        let found = all(client, kind).await?;
        if found.is_empty() {
            continue;
        }
        context.output.words(&format!("removing {} objects of the kind {}", found.len(), kind.kind));
        let deletions = found.iter().map(|object| async move {
            let api = api_of(client, &kind.version, &kind.kind, object.namespace().as_deref());
            match api.delete(&object.name_any(), &DeleteParams::foreground()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                deleted => deleted
                    .map(drop)
                    .map_err(|e| Failure::api(&format!("removing {} {}", kind.kind, object.name_any()), &e)),
            }
        });
        stream::iter(deletions).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        while !all(client, kind).await?.is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

/// A role that still runs would make again what is removed.
async fn stopped(client: &Client, namespace: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let roles = ListParams::default().labels(OURS);
    while !pods.list_metadata(&roles).await.map_err(|e| Failure::api("waiting for the roles", &e))?.items.is_empty() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// What the roles have made in Dhow's own namespace, which may be there without Dhow, too.
async fn remove_made(client: &Client, namespace: &str) -> Result<usize> {
    let mut count = 0;
    for (version, kind) in [("batch/v1", "Job"), ("networking.k8s.io/v1", "NetworkPolicy")] {
        let api = api_of(client, version, kind, Some(namespace));
        let found = api.list_metadata(&ListParams::default().labels(BUILDS)).await;
        for object in found.map_err(|e| Failure::api("looking for builds", &e))?.items {
            delete(&api, kind, &object.name_any()).await?;
            count += 1;
        }
    }
    let leases = api_of(client, "coordination.k8s.io/v1", "Lease", Some(namespace));
    for name in LEASES {
        delete(&leases, "Lease", name).await?;
    }
    Ok(count)
}

async fn remove_definitions(client: &Client) -> Result<usize> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let ours = ListParams::default().labels(OURS);
    let failed = |e: kube::Error| Failure::api("removing definitions", &e);
    let found = definitions.list(&ours).await.map_err(failed)?.items;
    for definition in &found {
        let deleted = definitions.delete(&definition.name_any(), &DeleteParams::background()).await;
        if let Err(error) = deleted
            && !matches!(&error, kube::Error::Api(status) if status.code == 404)
        {
            return Err(failed(error));
        }
    }
    while !definitions.list(&ours).await.map_err(failed)?.items.is_empty() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(found.len())
}

/// Only the one that an installation made.
async fn remove_namespace(client: &Client, name: &str) -> Result<bool> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let failed = |e: kube::Error| Failure::api(&format!("removing the namespace {name}"), &e);
    let Some(found) = namespaces.get_opt(name).await.map_err(failed)? else { return Ok(false) };
    if !is_ours(&found) {
        return Ok(false);
    }
    namespaces.delete(name, &DeleteParams::background()).await.map_err(failed)?;
    while namespaces.get_opt(name).await.map_err(failed)?.is_some() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(true)
}

fn shown(names: &[String]) -> String {
    const MOST: usize = 5;
    let more = names.len().saturating_sub(MOST);
    let first = names.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition(name: &str, by: &str) -> CustomResourceDefinition {
        let mut found = api::definitions().into_iter().find(|d| d.spec.names.kind == "Function").unwrap();
        let labels = [("app.kubernetes.io/name", name), ("app.kubernetes.io/managed-by", by)];
        found.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        let release = [("name", "ours"), ("namespace", "here")];
        let release = release.map(|(key, value)| (format!("meta.helm.sh/release-{key}"), value.to_owned()));
        found.metadata.annotations = Some(release.into());
        found
    }

    #[test]
    fn makers() {
        let chart = Maker::Chart { release: "ours".into(), namespace: "here".into() };
        for (name, by, want) in [
            ("dhow", "dhow", Maker::Install),
            ("dhow", "Helm", chart),
            ("knative-serving", "Helm", Maker::Other(String::new())),
            ("knative-serving", "dhow", Maker::Other(String::new())),
            ("knative-serving", "", Maker::Other(String::new())),
        ] {
            assert_eq!(Maker::of(&definition(name, by)), want, "{name} {by}");
        }
    }

    #[test]
    fn only_our_own_kinds_are_removed() {
        let kinds_of = |name: &str, by: &str| {
            let mut all = api::definitions();
            all.iter_mut().for_each(|one| one.metadata.labels = definition(name, by).metadata.labels);
            kinds(&all).map(|kinds| kinds.into_iter().map(|kind| kind.kind).collect::<Vec<_>>())
        };
        assert_eq!(kinds_of("dhow", "dhow").unwrap(), ORDER);
        assert_eq!(kinds_of("knative-serving", "").unwrap(), Vec::<String>::new());
        assert!(kinds_of("dhow", "Helm").is_err_and(|failure| failure.to_string().contains("helm uninstall")));
    }

    #[test]
    fn whose_an_object_is() {
        let kinds = kinds(&[definition("dhow", "dhow")]).unwrap();
        for (owners, want) in [
            (json!([]), false),
            (json!([{"apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "controller": true}]), true),
            (json!([{"apiVersion": "dhow.dev/v1alpha1", "kind": "Function"}]), false),
            (
                json!([{"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "controller": true}]),
                false,
            ),
        ] {
            let mut given: Vec<serde_json::Value> = owners.as_array().unwrap().clone();
            given.iter_mut().for_each(|owner| (owner["name"], owner["uid"]) = (json!("a"), json!("b")));
            let given: Vec<OwnerReference> = serde_json::from_value(json!(given)).unwrap();
            assert_eq!(is_made_by_dhow(&given, &kinds), want, "{owners}");
        }
    }
}
