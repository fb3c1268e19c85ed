//! Sending a plan: every write in order, as one field manager, the answers fed back into the caches.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind, Request};
use serde_json::Value;

use crate::caches::{Caches, Held};
use crate::error::{Class, Error};
use crate::plan::{Plan, Propagation, Target, Write};

/// Sends writes as the field manager `dhow-<controller>`.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    manager: Arc<str>,
    caches: Caches,
}

impl Applier {
    pub fn new(client: Client, controller: &str, caches: Caches) -> Self {
        let manager = format!("{}{controller}", api::names::FIELD_MANAGER_PREFIX).into();
        Self { client, manager, caches }
    }

    /// Writes, then the status, then the events; the first failure ends it. Cancelling between two writes is
    /// safe: the next plan starts from what is there.
    pub async fn apply(&self, plan: &Plan) -> Result<(), Error> {
        for write in &plan.writes {
            if let Err(error) = self.send(write).await {
                if let Some(told) = plan.refusal.as_ref().and_then(|refusal| refusal.plan(&error)) {
                    self.conclude(&told).await?;
                }
                return Err(error);
            }
        }
        self.conclude(plan).await
    }

    async fn conclude(&self, plan: &Plan) -> Result<(), Error> {
        if let Some(status) = &plan.status {
            self.send(status).await?;
        }
        for event in &plan.events {
            match self.send(event).await {
                Ok(_) => {}
                Err(error) if error.class() == Class::Conflict => {}
                Err(error) => tracing::debug!(%error, "event not recorded"),
            }
        }
        Ok(())
    }

    /// Sends one write and returns the server's answer.
    pub async fn send(&self, write: &Write) -> Result<Value, Error> {
        let target = write.target();
        let action = write.action();
        tracing::debug!(manager = %self.manager, %write);
        let request = self.request(write, &target).map_err(|reason| Error::Invalid {
            action,
            target: Box::new(target.clone()),
            reason,
        })?;
        let epoch = self.caches.epoch(&target);
        let answer = match self.client.request::<Value>(request).await {
            Ok(answer) => answer,
            Err(source) => {
                let error = Error::Api { action, target: Box::new(target.clone()), source: Box::new(source) };
                return match write {
                    Write::Delete { uid, .. } if error.class() == Class::NotFound => {
                        self.caches.forget(&target, uid);
                        Ok(Value::Null)
                    }
                    _ => Err(error),
                };
            }
        };
        self.learn(write, &target, &answer, epoch);
        Ok(answer)
    }

    fn learn(&self, write: &Write, target: &Target, answer: &Value, epoch: u64) {
        let leaving = |v: &Value| v["metadata"]["deletionTimestamp"].is_string();
        match write {
            Write::Event { .. } => {}
            Write::Delete { uid, .. } if answer["kind"] == "Status" || !leaving(answer) => {
                self.caches.forget(target, uid)
            }
            Write::Replace { subresource: Some(_), .. } => {}
            _ => self.caches.observe(target, answer.clone(), epoch),
        }
    }

    fn request(&self, write: &Write, target: &Target) -> Result<http::Request<Vec<u8>>, String> {
        let request = Request::new(url_path(&self.caches, target));
        let manager = Some(self.manager.to_string());
        let post = PostParams { dry_run: false, field_manager: manager.clone() };
        let apply = PatchParams { force: true, field_manager: manager, ..PatchParams::default() };
        let merge = PatchParams { force: false, ..apply.clone() };
        let name = target.name.as_str();
        let body = |object: &Value| object.to_string().into_bytes();
        match write {
            Write::Create { object } | Write::Event { object } => request.create(&post, body(object)),
            Write::Apply { object } => request.patch(name, &apply, &Patch::Apply(object)),
            Write::ApplyStatus { object } => request.patch_subresource("status", name, &apply, &Patch::Apply(object)),
            Write::Patch { patch, .. } => request.patch(name, &merge, &Patch::Merge(patch)),
            Write::Replace { object, subresource: None } => request.replace(name, &post, body(object)),
            Write::Replace { object, subresource: Some(sub) } => {
                request.replace_subresource(sub, name, &post, body(object))
            }
            Write::Delete { uid, propagation, at_once, .. } => {
                let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
                let policy = match propagation {
                    Propagation::Background => PropagationPolicy::Background,
                    Propagation::Foreground => PropagationPolicy::Foreground,
                    Propagation::Orphan => PropagationPolicy::Orphan,
                };
                let params = DeleteParams {
                    preconditions: Some(preconditions),
                    propagation_policy: Some(policy),
                    grace_period_seconds: at_once.then_some(0),
                    ..DeleteParams::default()
                };
                request.delete(name, &params)
            }
        }
        .map_err(|e| e.to_string())
    }
}

/// Reads one object past all caches; `None` when there is none.
pub async fn get_live(client: &Client, caches: &Caches, target: &Target) -> Result<Option<Value>, Error> {
    let fail =
        |source: kube::Error| Error::Api { action: "get", target: Box::new(target.clone()), source: Box::new(source) };
    let request = Request::new(url_path(caches, target))
        .get(&target.name, &Default::default())
        .map_err(|e| fail(kube::Error::BuildRequest(e)))?;
    match client.request::<Value>(request).await.map_err(fail) {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.class() == Class::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lists the objects of one kind past all caches, in one namespace or, when it is empty, in all.
pub async fn list_live(
    client: &Client,
    caches: &Caches,
    api_version: &str,
    kind: &str,
    namespace: &str,
) -> Result<Vec<Held>, Error> {
    let target = Target {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: String::new(),
    };
    let fail =
        |source: kube::Error| Error::Api { action: "list", target: Box::new(target.clone()), source: Box::new(source) };
    let request = Request::new(url_path(caches, &target))
        .list(&Default::default())
        .map_err(|e| fail(kube::Error::BuildRequest(e)))?;
    let list = match client.request::<Value>(request).await.map_err(fail) {
        // The kind itself is gone, and all its objects are.
        Err(error) if error.class() == Class::NotFound => return Ok(vec![]),
        list => list?,
    };
    let held = |item: &Value| {
        let meta: ObjectMeta = serde_json::from_value(item["metadata"].clone()).ok()?;
        let namespace = meta.namespace.clone().unwrap_or_default();
        Some(Held { target: Target { namespace, name: meta.name.clone()?, ..target.clone() }, meta })
    };
    Ok(list["items"].as_array().into_iter().flatten().filter_map(held).collect())
}

fn url_path(caches: &Caches, target: &Target) -> String {
    let (group, version) = target.api_version.split_once('/').unwrap_or(("", &target.api_version));
    let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &target.kind));
    // Whoever defines a kind also chooses its plural.
    if let Some(foreign) = caches.foreign(&target.api_version, &target.kind) {
        resource.plural = foreign.kind().resource.plural.clone();
    }
    let namespace = (!target.namespace.is_empty()).then_some(target.namespace.as_str());
    <DynamicObject as kube::Resource>::url_path(&resource, namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (api_version, kind, namespace, want) in [
            ("v1", "Pod", "a", "/api/v1/namespaces/a/pods"),
            ("v1", "Node", "", "/api/v1/nodes"),
            ("apps/v1", "ReplicaSet", "a", "/apis/apps/v1/namespaces/a/replicasets"),
            (
                "networking.internal.knative.dev/v1alpha1",
                "Ingress",
                "a",
                "/apis/networking.internal.knative.dev/v1alpha1/namespaces/a/ingresses",
            ),
            ("discovery.k8s.io/v1", "EndpointSlice", "a", "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices"),
        ] {
            let target = Target {
                api_version: api_version.into(),
                kind: kind.into(),
                namespace: namespace.into(),
                name: "x".into(),
            };
            assert_eq!(url_path(&Caches::default(), &target), want);
        }
    }
}
