//! `/openapi/v3`: one document per group and version, made from the table of kinds and the schemas it points to.
//!
//! It says what kubectl reads: the schemas with their kinds, the paths with their verbs, and that a write takes
//! `fieldValidation`. A document is made when it is first asked for and kept.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH};
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::handler::{json_bytes, object};
use crate::kinds::{Kind, Kinds, Shape, Verbs};
use crate::schema::builtin_definitions;
use crate::status::{ApiError, Result};
use crate::{ResponseBody, whole};

const REFERENCE: &str = "#/components/schemas/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The documents that were asked for so far.
#[derive(Default)]
pub struct Documents {
    made: Mutex<HashMap<Group, Document>>,
}

/// The definitions of Kubernetes' own kinds, unpacked when they are needed.
type Definitions = LazyCell<Map<String, Value>>;
/// A group's version.
type Group = (&'static str, &'static str);

#[derive(Clone)]
struct Document {
    text: Bytes,
    hash: Arc<str>,
    /// What its group showed when it was made.
    stamp: store::Revision,
}

impl Documents {
    /// `path`: what comes after `/openapi/v3`.
    pub fn answer(&self, kinds: &Kinds, path: &[&str], parts: &Parts) -> Result<Response<ResponseBody>> {
        // Only for documents that are not made yet, and once for all of them.
        let definitions: Definitions = LazyCell::new(builtin_definitions);
        let (group, version) = match path {
            [] => return Ok(object(StatusCode::OK, &self.index(kinds, &definitions))),
            ["api", version] => ("", *version),
            ["apis", group, version] => (*group, *version),
            _ => return Err(ApiError::NoSuchPath),
        };
        let known = every(kinds).find(|known| *known == (group, version)).ok_or(ApiError::NoSuchPath)?;
        let document = self.document(kinds, &definitions, known);
        let tag = format!("\"{}\"", document.hash);
        let unchanged = parts.headers.get(IF_NONE_MATCH).is_some_and(|given| given.as_bytes() == tag.as_bytes());
        let mut response = json_bytes(StatusCode::OK, document.text);
        if unchanged {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.body_mut() = whole(Bytes::new());
        }
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        // The address carries the hash, so that what is behind it never changes.
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
        Ok(response)
    }

    fn index(&self, kinds: &Kinds, definitions: &Definitions) -> Value {
        let mut paths = Map::new();
        for (group, version) in every(kinds) {
            let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let hash = self.document(kinds, definitions, (group, version)).hash;
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
        json!({"paths": paths})
    }

    fn document(&self, kinds: &Kinds, definitions: &Definitions, group: Group) -> Document {
        let stamp = kinds.stamp(group.0);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(document) = made.get(&group).filter(|document| document.stamp == stamp) {
            return document.clone();
        }
        // Documents of groups that are no more would otherwise stay for ever.
        made.retain(|group, _| every(kinds).any(|known| known == *group));
        let text = make(kinds, definitions, group.0, group.1).to_string();
        let hash = hex::encode(Sha256::digest(text.as_bytes())).to_uppercase();
        let document = Document { text: text.into(), hash: hash.into(), stamp };
        made.insert(group, document.clone());
        document
    }
}

/// Every version of every group.
pub fn every(kinds: &Kinds) -> impl Iterator<Item = Group> {
    kinds.groups().into_iter().flat_map(|(group, versions)| versions.into_iter().map(move |version| (group, version)))
}

/// The document of one version of a group.
pub fn make(kinds: &Kinds, known: &Map<String, Value>, group: &str, version: &str) -> Value {
    let mut schemas = Map::new();
    let mut paths = Map::new();
    let mut wanted: Vec<String> = ["DeleteOptions", "Status", "ListMeta", "ObjectMeta", "Patch"]
        .iter()
        .map(|name| format!("{META}{name}"))
        .collect();
    for kind in kinds.of_group(group, version) {
        let name = definition_name(kind);
        let mut schema = match kind.defined() {
            None => known.get(&name).cloned().unwrap_or_default(),
            Some(version) => custom_schema(&version.schema),
        };
        schema["x-kubernetes-group-version-kind"] = json!([identity(kind)]);
        wanted.extend(references(&schema));
        schemas.insert(name.clone(), schema);
        if !matches!(kind.verbs, Verbs::Ask(_)) {
            schemas.insert(format!("{name}List"), list_schema(kind, &name));
        }
        if kind.scale {
            wanted.push("io.k8s.api.autoscaling.v1.Scale".into());
        }
        add_paths(&mut paths, kind, &name);
    }
    while let Some(name) = wanted.pop() {
        if schemas.contains_key(&name) {
            continue;
        }
        let Some(definition) = known.get(&name) else { continue };
        wanted.extend(references(definition));
        schemas.insert(name, definition.clone());
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Dhow", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// The schema's name: Kubernetes' own, or the group reversed.
fn definition_name(kind: &Kind) -> String {
    match kind.shape {
        Shape::Builtin(name) => name.to_owned(),
        Shape::Custom(_) | Shape::Defined(_) => {
            let reversed: Vec<&str> = kind.group.split('.').rev().collect();
            format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind)
        }
    }
}

fn identity(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("{REFERENCE}{name}")})
}

fn custom_schema(schema: &Value) -> Value {
    let mut schema = schema.clone();
    for field in ["apiVersion", "kind"] {
        schema["properties"][field] = json!({"type": "string"});
    }
    schema["properties"]["metadata"] = reference(&format!("{META}ObjectMeta"));
    schema
}

fn list_schema(kind: &Kind, name: &str) -> Value {
    let mut identity = identity(kind);
    identity["kind"] = format!("{}List", kind.kind).into();
    json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": reference(&format!("{META}ListMeta")),
            "items": {"type": "array", "items": reference(name)},
        },
        "x-kubernetes-group-version-kind": [identity],
    })
}

fn references(schema: &Value) -> Vec<String> {
    let mut found = vec![];
    let mut todo = vec![schema];
    while let Some(value) = todo.pop() {
        match value {
            Value::Object(object) => {
                if let Some(name) = object.get("$ref").and_then(Value::as_str) {
                    found.push(name.trim_start_matches(REFERENCE).to_owned());
                }
                todo.extend(object.values());
            }
            Value::Array(items) => todo.extend(items),
            _ => {}
        }
    }
    found
}

fn add_paths(paths: &mut Map<String, Value>, kind: &Kind, name: &str) {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let base = match kind.namespaced {
        true => format!("{root}/namespaces/{{namespace}}/{}", kind.plural),
        false => format!("{root}/{}", kind.plural),
    };
    let verbs = kind.verb_names();
    let mut collection = Map::new();
    for (verb, method, action) in [("list", "get", "list"), ("create", "post", "post")] {
        if verbs.contains(&verb) {
            let body = if verb == "list" { format!("{name}List") } else { name.to_owned() };
            collection.insert(method.into(), operation(kind, action, &body));
        }
    }
    collection.insert("parameters".into(), path_parameters(kind, false));
    paths.insert(base.clone(), Value::Object(collection));
    if verbs.contains(&"get") {
        paths.insert(format!("{base}/{{name}}"), item(kind, verbs, name));
    }
    for (subresource, subkind, verbs) in kind.subresources() {
        let name = if subkind == "Scale" { "io.k8s.api.autoscaling.v1.Scale" } else { name };
        paths.insert(format!("{base}/{{name}}/{subresource}"), item(kind, verbs, name));
    }
}

fn item(kind: &Kind, verbs: &[&str], name: &str) -> Value {
    let mut item = Map::new();
    for (verb, method, action) in
        [("get", "get", "get"), ("update", "put", "put"), ("patch", "patch", "patch"), ("delete", "delete", "delete")]
    {
        if verbs.contains(&verb) {
            item.insert(method.into(), operation(kind, action, name));
        }
    }
    item.insert("parameters".into(), path_parameters(kind, true));
    Value::Object(item)
}

fn path_parameters(kind: &Kind, named: bool) -> Value {
    let parameter = |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}});
    let mut parameters = vec![];
    if named {
        parameters.push(parameter("name"));
    }
    if kind.namespaced {
        parameters.push(parameter("namespace"));
    }
    parameters.into()
}

fn operation(kind: &Kind, action: &str, schema: &str) -> Value {
    let content = |name: &str| json!({"application/json": {"schema": reference(name)}});
    let mut names = vec![];
    if matches!(action, "post" | "put" | "patch") {
        names.extend(["dryRun", "fieldManager", "fieldValidation"]);
    }
    match action {
        "patch" => names.push("force"),
        "delete" => names.extend(["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
        "list" => names.extend(["continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "watch"]),
        _ => {}
    }
    let parameters: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let form = match name {
                "force" | "watch" => "boolean",
                "limit" | "gracePeriodSeconds" => "integer",
                _ => "string",
            };
            json!({"name": name, "in": "query", "schema": {"type": form, "uniqueItems": true}})
        })
        .collect();
    let mut operation = json!({
        "responses": {"200": {"description": "OK", "content": content(schema)}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": identity(kind),
    });
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    match action {
        "post" | "put" => operation["requestBody"] = json!({"content": content(schema), "required": true}),
        "patch" => {
            let patch = json!({"schema": reference(&format!("{META}Patch"))});
            let mut content = json!({
                "application/apply-patch+yaml": patch,
                "application/json-patch+json": patch,
                "application/merge-patch+json": patch,
            });
            if !kind.is_custom() {
                content["application/strategic-merge-patch+json"] = patch;
            }
            operation["requestBody"] = json!({"content": content, "required": true});
        }
        _ => {}
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let kinds = Kinds::new();
        for (group, version) in every(&kinds) {
            let document = make(&kinds, &builtin_definitions(), group, version);
            let schemas = &document["components"]["schemas"];
            for name in references(&document) {
                assert!(schemas.get(&name).is_some(), "{group}/{version}: {name}");
            }
        }
    }
}
