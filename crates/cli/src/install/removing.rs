//! `dhow uninstall`: removes an installation, the objects of its kinds first, and waits until nothing is left.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt as _};

use super::UninstallCommand;
use super::putting::{KINDS, OURS, api_of, delete, list};
use crate::connect;
use crate::{Context, Failure, Result};

const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// What people write, in the order in which it is removed: what is made from another goes with it.
const PEOPLES: [(&str, &str); 4] = [
    ("dhow.dev/v1alpha1", "Function"),
    ("serving.knative.dev/v1", "Service"),
    ("serving.knative.dev/v1", "Route"),
    ("serving.knative.dev/v1", "Configuration"),
];

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
    let left = peoples(client).await?;
    if !left.is_empty() && !args.all {
        let lines: Vec<String> =
            left.iter().map(|(kind, names)| format!("{} {kind}: {}", names.len(), shown(names))).collect();
        return Err(Failure::failed("there are functions and services, which would be removed with Dhow")
            .lines(lines)
            .next("remove them yourself, or remove all with: dhow uninstall --all"));
    }
    remove_peoples(client).await?;
    let mut count = 0;
    let namespace = &context.global.system_namespace;
    for (version, kind) in KINDS {
        let near = (!kind.starts_with("Cluster")).then_some(namespace.as_str());
        let api = api_of(client, version, kind, near);
        for object in list(&api, kind).await? {
            delete(&api, kind, &object.name_any()).await?;
            count += 1;
        }
    }
    count += remove_definitions(client).await?;
    count += usize::from(remove_namespace(client, namespace).await?);
    context.output.words(&format!("removed {count} objects; nothing of Dhow is left"));
    Ok(())
}

async fn peoples(client: &Client) -> Result<Vec<(&'static str, Vec<String>)>> {
    let mut found = vec![];
    for (version, kind) in PEOPLES {
        let names: Vec<String> = all(&api_of(client, version, kind, None), kind)
            .await?
            .iter()
            .filter(|object| object.owner_references().is_empty())
            .map(|object| format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()))
            .collect();
        if !names.is_empty() {
            found.push((kind, names));
        }
    }
    Ok(found)
}

/// None of a kind that the cluster does not know.
async fn all(api: &Api<DynamicObject>, kind: &str) -> Result<Vec<DynamicObject>> {
    match api.list(&ListParams::default()).await {
        Ok(found) => Ok(found.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(vec![]),
        Err(error) => Err(Failure::api(&format!("looking for {kind} objects"), &error)),
    }
}

/// Foreground, so that what was made from them is gone before the definitions go.
async fn remove_peoples(client: &Client) -> Result<()> {
    for (version, kind) in PEOPLES {
        let everywhere = api_of(client, version, kind, None);
        for object in all(&everywhere, kind).await? {
            let api = api_of(client, version, kind, object.namespace().as_deref());
            match api.delete(&object.name_any(), &DeleteParams::foreground()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(Failure::api(&format!("removing {kind} {}", object.name_any()), &error)),
            }
        }
        while !all(&everywhere, kind).await?.is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
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
    if found.labels().get("app.kubernetes.io/managed-by").is_none_or(|by| by != "dhow") {
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
