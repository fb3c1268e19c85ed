//! `dhow list`: the functions of a namespace, or of all.

use std::collections::BTreeMap;

use api::build::Build;
use api::function::{Function, Runtime};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Resource};
use serde_json::json;

use super::{condition, connect};
use crate::args::{Format, ListArgs};
use crate::connect::Platform;
use crate::output::{age, printable, table};
use crate::{Context, Failure, Result, instances};

pub async fn run(context: &Context, args: &ListArgs) -> Result<()> {
    let platform = connect(context).await?;
    let functions: Vec<Function> = list(&platform, args.all_namespaces, "functions").await?;
    if args.format.format == Format::Json {
        context.output.json(&json!({"apiVersion": "v1", "kind": "List", "items": functions}));
        return Ok(());
    }
    if functions.is_empty() {
        let place = if args.all_namespaces { "".into() } else { format!(" in the namespace {}", platform.namespace) };
        context.output.words(&format!("There are no functions{place}.\nnext: dhow new python hello"));
        return Ok(());
    }
    let pods = match args.all_namespaces {
        true => Api::<Pod>::all(platform.client.clone()),
        false => platform.api(),
    };
    let ready = instances::ready_by_function(&instances::pods(&platform, &pods, None).await?);
    let runtimes = runtimes(list::<Build>(&platform, args.all_namespaces, "builds").await?);
    let now = (context.clock)();
    let row = |function: &Function| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (namespace, name) = (text(&function.metadata.namespace), text(&function.metadata.name));
        let built = function.status.as_ref().and_then(|s| s.build.clone()).unwrap_or_default();
        let runtime = function.spec.runtime.or(runtimes.get(&(namespace.clone(), built)).copied());
        let (is_ready, reason, _) = condition(function, "Ready");
        let count = ready.get(&(namespace.clone(), name.clone())).copied().unwrap_or(0);
        let mut cells = vec![
            name,
            runtime.map_or("-", Runtime::name).to_owned(),
            if is_ready.is_empty() { "Unknown".to_owned() } else { is_ready.to_owned() },
            count.to_string(),
            function.status.as_ref().and_then(|s| s.url.clone()).unwrap_or_else(|| "-".into()),
            age(function.metadata.creation_timestamp.as_ref().map(|t| t.0), now),
            printable(reason),
        ];
        if args.all_namespaces {
            cells.insert(0, namespace);
        }
        cells
    };
    let mut header = vec!["NAME", "RUNTIME", "READY", "INSTANCES", "URL", "AGE", "REASON"];
    if args.all_namespaces {
        header.insert(0, "NAMESPACE");
    }
    let rows: Vec<Vec<String>> = functions.iter().map(row).collect();
    context.output.data(&table(&header, &rows));
    Ok(())
}

async fn list<K>(platform: &Platform, all: bool, what: &str) -> Result<Vec<K>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api = if all { Api::all(platform.client.clone()) } else { platform.api::<K>() };
    let list = api.list(&ListParams::default()).await;
    Ok(list.map_err(|e| Failure::api(&format!("listing {what}"), &e))?.items)
}

/// What each build found out, by namespace and name.
fn runtimes(builds: Vec<Build>) -> BTreeMap<(String, String), Runtime> {
    let of = |build: Build| {
        let runtime = build.status.and_then(|s| s.runtime)?;
        Some(((build.metadata.namespace?, build.metadata.name?), runtime))
    };
    builds.into_iter().filter_map(of).collect()
}
