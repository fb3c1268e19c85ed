//! Discovery: which groups, versions and kinds there are, in the old form and in the aggregated one.

use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::handler::{not_allowed, object};
use crate::kinds::{Kind, Kinds};
use crate::status::{ApiError, Result};
use crate::{Inner, ResponseBody, swagger};

impl Inner {
    /// Answers paths that name no resource.
    pub(crate) fn document(&self, parts: &Parts) -> Result<Response<ResponseBody>> {
        if parts.method != Method::GET {
            return Err(not_allowed());
        }
        let path: Vec<&str> = parts.uri.path().split('/').filter(|part| !part.is_empty()).collect();
        match path.as_slice() {
            [] => Ok(object(StatusCode::OK, &json!({"paths": paths(&self.kinds.load())}))),
            ["api"] => Ok(self.groups(parts, true)),
            ["apis"] => Ok(self.groups(parts, false)),
            ["api", version] => self.resources("", version),
            ["apis", group] => self.group(group),
            ["apis", group, version] => self.resources(group, version),
            ["openapi", "v2"] => Ok(swagger::answer(&self.kinds.load(), parts)),
            ["openapi", "v3", rest @ ..] => self.documents.answer(&self.kinds.load_full(), rest, parts),
            _ => Err(ApiError::NoSuchPath),
        }
    }

    fn groups(&self, parts: &Parts, core: bool) -> Response<ResponseBody> {
        if let Some(version) = aggregated(parts) {
            let mut response = object(StatusCode::OK, &aggregate(&self.kinds.load(), core, version));
            let media = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
            if let Ok(media) = HeaderValue::from_str(&media) {
                response.headers_mut().insert(CONTENT_TYPE, media);
            }
            return response;
        }
        let body = if core {
            json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
        } else {
            let groups = self.kinds.load().groups().into_iter().filter(|(group, _)| !group.is_empty());
            let groups: Vec<Value> = groups.map(|(group, versions)| group_of(group, &versions)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        };
        object(StatusCode::OK, &body)
    }

    fn group(&self, name: &str) -> Result<Response<ResponseBody>> {
        let groups = self.kinds.load().groups();
        let (group, versions) = groups.iter().find(|(group, _)| *group == name).ok_or(ApiError::NoSuchPath)?;
        let mut body = group_of(group, versions);
        body["kind"] = "APIGroup".into();
        body["apiVersion"] = "v1".into();
        Ok(object(StatusCode::OK, &body))
    }

    fn resources(&self, group: &str, version: &str) -> Result<Response<ResponseBody>> {
        let mut resources = vec![];
        let kinds = self.kinds.load();
        for kind in kinds.of_group(group, version) {
            resources.push(resource(kind));
            for (name, subkind, verbs) in kind.subresources() {
                let mut resource = json!({
                    "name": format!("{}/{name}", kind.plural),
                    "singularName": "",
                    "namespaced": kind.namespaced,
                    "kind": subkind,
                    "verbs": verbs,
                });
                if subkind == "Scale" {
                    resource["group"] = "autoscaling".into();
                    resource["version"] = "v1".into();
                }
                resources.push(resource);
            }
        }
        if resources.is_empty() {
            return Err(ApiError::NoSuchPath);
        }
        let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let body = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources});
        Ok(object(StatusCode::OK, &body))
    }
}

/// The aggregated form's version, when the client wants that form.
fn aggregated(parts: &Parts) -> Option<&'static str> {
    let accept = parts.headers.get(ACCEPT)?.to_str().ok()?;
    accept.split(',').filter(|media| media.contains("as=APIGroupDiscoveryList")).find_map(|media| {
        media.split(';').find_map(|part| match part.trim() {
            "v=v2" => Some("v2"),
            "v=v2beta1" => Some("v2beta1"),
            _ => None,
        })
    })
}

/// What a look around may go on with.
fn paths(kinds: &Kinds) -> Vec<String> {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).into();
    for (group, versions) in kinds.groups().into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    paths
}

fn group_of(group: &str, versions: &[&str]) -> Value {
    let versions = versions.iter().map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v}));
    let versions: Vec<Value> = versions.collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn resource(kind: &Kind) -> Value {
    let mut resource = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verb_names(),
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    resource
}

fn aggregate(kinds: &Kinds, core: bool, version: &str) -> Value {
    let groups = kinds.groups().into_iter().filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions = versions.into_iter().map(|version| {
                let resources: Vec<Value> =
                    kinds.of_group(group, version).map(|kind| aggregate_resource(kind)).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            });
            let versions: Vec<Value> = versions.collect();
            let mut item = json!({"metadata": {"creationTimestamp": null}, "versions": versions});
            if !group.is_empty() {
                item["metadata"]["name"] = group.into();
            }
            item
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregate_resource(kind: &Kind) -> Value {
    let response = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = kind
        .subresources()
        .into_iter()
        .map(|(name, subkind, verbs)| {
            let response = match subkind {
                "Scale" => response("autoscaling", "v1", subkind),
                _ => response(kind.group, kind.version, subkind),
            };
            json!({"subresource": name, "responseKind": response, "verbs": verbs})
        })
        .collect();
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": response(kind.group, kind.version, kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verb_names(),
    });
    for (field, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
        if !names.is_empty() {
            resource[field] = json!(names);
        }
    }
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}
