//! `dhow export`: what was made for a function or a service, as it can be kept and run elsewhere.

use api::function::Function;
use api::names::label;
use api::serving::Service;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Resource};
use serde::Serialize;
use serde_json::{Value, json};

use super::connect;
use crate::args::{ExportArgs, ExportFormat};
use crate::connect::Platform;
use crate::export::{self, Found};
use crate::{Context, Failure, Result};

/// What leads the outside world to the gateway, where a cluster has it.
const EXPOSURES: [(&str, &str, &str); 3] = [
    ("networking.k8s.io", "v1", "Ingress"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute"),
    ("networking.istio.io", "v1", "VirtualService"),
];
/// What only Dhow and Knative understand, below a Service; each has its name in a label.
const INNER: [(&str, &str, &str); 5] = [
    ("serving.knative.dev", "v1", "Configuration"),
    ("serving.knative.dev", "v1", "Revision"),
    ("serving.knative.dev", "v1", "Route"),
    ("autoscaling.internal.knative.dev", "v1alpha1", "PodAutoscaler"),
    ("networking.internal.knative.dev", "v1alpha1", "Ingress"),
];

pub async fn run(context: &Context, args: &ExportArgs) -> Result<()> {
    let name = &args.name;
    let platform = connect(context).await?;
    let service = service(&platform, name).await?;
    let found = gather(context, &platform, &service, name).await?;
    let mut all = export::objects(found);
    if args.all {
        all.push(export::clean(typed(&service)?));
        all.extend(inner(&platform, name).await?);
    }
    match args.format {
        ExportFormat::Json => context.output.json(&json!({"apiVersion": "v1", "kind": "List", "items": all})),
        ExportFormat::Yaml => {
            for object in &all {
                let text = serde_yaml::to_string(object);
                let text = text.map_err(|e| Failure::failed(format!("writing {name} as YAML: {e}")))?;
                context.output.data(&format!("---\n{}", text.trim_end()));
            }
        }
    }
    Ok(())
}

/// A function has a Service of its own name.
async fn service(platform: &Platform, name: &str) -> Result<Service> {
    let failed = |e: kube::Error| Failure::api(&format!("reading service {name}"), &e);
    if let Some(service) = platform.api::<Service>().get_opt(name).await.map_err(failed)? {
        return Ok(service);
    }
    let function = platform.api::<Function>().get_opt(name).await.map_err(failed)?;
    Err(match function {
        Some(_) => Failure::failed(format!("{name} has not been served yet")).next(format!("dhow describe {name}")),
        None => Failure::failed(format!(
            "there is neither a function nor a service {name} in the namespace {}",
            platform.namespace
        ))
        .next("dhow list, or kubectl get services.serving.knative.dev"),
    })
}

async fn gather(context: &Context, platform: &Platform, service: &Service, name: &str) -> Result<Found> {
    let failed = |e: kube::Error| Failure::api(&format!("reading what was made for {name}"), &e);
    let status = service.status.clone().unwrap_or_default();
    let Some(revision) = status.latest_ready_revision_name else {
        return Err(
            Failure::failed(format!("no revision of {name} is ready yet")).next(format!("dhow describe {name}"))
        );
    };
    if status.traffic.iter().filter(|t| t.percent.unwrap_or(0) > 0).count() > 1 {
        context
            .output
            .words(&format!("{name} shares its traffic among revisions; this is {revision}, the latest that is ready"));
    }
    let of_revision = ListParams::default().labels(&format!("{}={revision}", label::REVISION));
    let deployments = platform.api::<Deployment>().list(&of_revision).await.map_err(failed)?.items;
    let Some(deployment) = deployments.into_iter().next() else {
        return Err(
            Failure::failed(format!("revision {revision} has no deployment")).next(format!("dhow describe {name}"))
        );
    };
    let mut exposures = vec![];
    for kind in EXPOSURES {
        exposures.extend(labelled(platform, kind, &format!("{}={name}", label::EXPOSES)).await?);
    }
    context.output.words("what this leaves behind: scaling, also to zero; a limit of requests at once; traffic splits");
    Ok(Found { name: name.to_owned(), deployment: typed(&deployment)?, exposures })
}

/// What comes out of a list does not name its kind.
fn typed<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Result<Value> {
    let kind = K::kind(&());
    let mut value = serde_json::to_value(object).map_err(|e| Failure::failed(format!("reading a {kind}: {e}")))?;
    value["apiVersion"] = json!(K::api_version(&()));
    value["kind"] = json!(kind);
    Ok(value)
}

/// None where the cluster has no such kind.
async fn labelled(
    platform: &Platform,
    (group, version, kind): (&str, &str, &str),
    selector: &str,
) -> Result<Vec<Value>> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::namespaced_with(platform.client.clone(), &platform.namespace, &resource);
    let objects = match api.list(&ListParams::default().labels(selector)).await {
        Ok(list) => list.items,
        Err(kube::Error::Api(status)) if status.code == 404 => vec![],
        Err(error) => return Err(Failure::api(&format!("reading {}", resource.plural), &error)),
    };
    let whole = |object: DynamicObject| {
        let mut value = serde_json::to_value(&object).unwrap_or_default();
        value["apiVersion"] = json!(resource.api_version);
        value["kind"] = json!(kind);
        value
    };
    Ok(objects.into_iter().map(whole).collect())
}

async fn inner(platform: &Platform, name: &str) -> Result<Vec<Value>> {
    let mut all = vec![];
    for kind in INNER {
        let selector = format!("{}={name}", label::SERVICE);
        all.extend(labelled(platform, kind, &selector).await?.into_iter().map(export::clean));
    }
    Ok(all)
}
