//! `/openapi/v2`: the older form of the same documents, for clients that know no other.
//!
//! One document for everything, made of the newer ones when it is asked for. Go's clients read it in protobuf only: as a
//! `Document` of gnostic, whose numbers of fields are written here. What the older form cannot say, such as `oneOf`, is left
//! out, as Kubernetes leaves it out.

use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::ResponseBody;
use crate::handler::{json_bytes, object};
use crate::kinds::Kinds;
use crate::openapi;
use crate::schema::builtin_definitions;

const TITLE: &str = "Dhow";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What a schema of the older form has no words for.
const UNKNOWN: [&str; 4] = ["anyOf", "oneOf", "not", "nullable"];

pub fn answer(kinds: &Kinds, parts: &Parts) -> Response<ResponseBody> {
    let wanted = parts.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let document = document(kinds);
    if !wanted.contains("protobuf") {
        return object(StatusCode::OK, &document);
    }
    let mut response = json_bytes(StatusCode::OK, encode(&document));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    response
}

fn document(kinds: &Kinds) -> Value {
    let known = builtin_definitions();
    let (mut definitions, mut paths) = (Map::new(), Map::new());
    for (group, version) in openapi::every(kinds) {
        let mut document = openapi::make(kinds, &known, group, version);
        if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
            for (name, schema) in std::mem::take(schemas) {
                definitions.entry(name).or_insert_with(|| older_schema(schema));
            }
        }
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            paths.insert(path.clone(), older_path(item));
        }
    }
    let info = json!({"title": TITLE, "version": VERSION});
    json!({"swagger": "2.0", "info": info, "paths": paths, "definitions": definitions})
}

fn older_schema(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(object) => {
            object.retain(|name, _| !UNKNOWN.contains(&name.as_str()));
            if let Some(Value::String(reference)) = object.get_mut("$ref") {
                *reference = reference.replace("#/components/schemas/", "#/definitions/");
            }
            // Kubernetes' documents put a single reference in `allOf` to say something beside it.
            for value in object.values_mut() {
                *value = older_schema(value.take());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = older_schema(item.take())),
        _ => {}
    }
    schema
}

fn older_path(item: &Value) -> Value {
    let mut older = Map::new();
    for (method, operation) in item.as_object().into_iter().flatten() {
        let value = match operation {
            Value::Array(parameters) => parameters.iter().map(older_parameter).collect(),
            operation => older_operation(operation),
        };
        older.insert(method.clone(), value);
    }
    older.into()
}

fn older_operation(operation: &Value) -> Value {
    let mut older = operation.clone();
    let mut parameters: Vec<Value> =
        operation["parameters"].as_array().into_iter().flatten().map(older_parameter).collect();
    let content = |of: &Value| older_schema(of["content"]["application/json"]["schema"].clone());
    if let Some(body) = operation.get("requestBody") {
        let media = body["content"].as_object().into_iter().flatten().map(|(media, _)| media.clone());
        older["consumes"] = media.collect();
        let schema = body["content"].as_object().and_then(|c| c.values().next()).map(|c| c["schema"].clone());
        let schema = older_schema(schema.unwrap_or_default());
        parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
    }
    older["parameters"] = parameters.into();
    older["responses"] = json!({"200": {"description": "OK", "schema": content(&operation["responses"]["200"])}});
    if let Some(older) = older.as_object_mut() {
        older.shift_remove("requestBody");
    }
    older
}

fn older_parameter(parameter: &Value) -> Value {
    let mut older = parameter.clone();
    if let Some(older) = older.as_object_mut() {
        for (name, value) in older.shift_remove("schema").as_ref().and_then(Value::as_object).into_iter().flatten() {
            older.insert(name.clone(), value.clone());
        }
    }
    older
}

/// gnostic's `Document`: the definitions; of the paths only that there are none, since no client reads them in this form.
fn encode(document: &Value) -> Vec<u8> {
    let mut out = vec![];
    bytes(&mut out, 1, b"2.0");
    message(&mut out, 2, |info| {
        bytes(info, 1, TITLE.as_bytes());
        bytes(info, 2, VERSION.as_bytes());
    });
    bytes(&mut out, 8, b"");
    message(&mut out, 9, |definitions| named_schemas(definitions, &document["definitions"]));
    out
}

fn named_schemas(out: &mut Vec<u8>, schemas: &Value) {
    for (name, schema) in schemas.as_object().into_iter().flatten() {
        message(out, 1, |named| {
            bytes(named, 1, name.as_bytes());
            message(named, 2, |out| encode_schema(out, schema));
        });
    }
}

fn encode_schema(out: &mut Vec<u8>, schema: &Value) {
    for (name, value) in schema.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            ("$ref", Value::String(text)) => bytes(out, 1, text.as_bytes()),
            ("format", Value::String(text)) => bytes(out, 2, text.as_bytes()),
            ("title", Value::String(text)) => bytes(out, 3, text.as_bytes()),
            ("description", Value::String(text)) => bytes(out, 4, text.as_bytes()),
            ("default", value) => message(out, 5, |out| any(out, value)),
            ("maximum", value) => double(out, 7, value),
            ("exclusiveMaximum", Value::Bool(value)) => number(out, 8, u64::from(*value)),
            ("minimum", value) => double(out, 9, value),
            ("exclusiveMinimum", Value::Bool(value)) => number(out, 10, u64::from(*value)),
            ("maxLength", value) => number(out, 11, value.as_u64().unwrap_or(0)),
            ("minLength", value) => number(out, 12, value.as_u64().unwrap_or(0)),
            ("pattern", Value::String(text)) => bytes(out, 13, text.as_bytes()),
            ("maxItems", value) => number(out, 14, value.as_u64().unwrap_or(0)),
            ("minItems", value) => number(out, 15, value.as_u64().unwrap_or(0)),
            ("maxProperties", value) => number(out, 17, value.as_u64().unwrap_or(0)),
            ("minProperties", value) => number(out, 18, value.as_u64().unwrap_or(0)),
            ("required", Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).for_each(|name| bytes(out, 19, name.as_bytes()));
            }
            ("enum", Value::Array(values)) => {
                values.iter().for_each(|value| message(out, 20, |out| any(out, value)));
            }
            ("additionalProperties", Value::Bool(value)) => {
                message(out, 21, |out| number(out, 2, u64::from(*value)));
            }
            ("additionalProperties", schema) => {
                message(out, 21, |out| message(out, 1, |out| encode_schema(out, schema)));
            }
            ("type", Value::String(text)) => message(out, 22, |out| bytes(out, 1, text.as_bytes())),
            ("items", schema) => message(out, 23, |out| message(out, 1, |out| encode_schema(out, schema))),
            ("allOf", Value::Array(schemas)) => {
                schemas.iter().for_each(|schema| message(out, 24, |out| encode_schema(out, schema)));
            }
            ("properties", schemas) => message(out, 25, |out| named_schemas(out, schemas)),
            (name, value) if name.starts_with("x-") => message(out, 31, |out| {
                bytes(out, 1, name.as_bytes());
                message(out, 2, |out| any(out, value));
            }),
            _ => {}
        }
    }
}

/// gnostic's `Any`: the value as YAML, which JSON is.
fn any(out: &mut Vec<u8>, value: &Value) {
    bytes(out, 2, value.to_string().as_bytes());
}

fn message(out: &mut Vec<u8>, field: u64, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = vec![];
    fill(&mut inner);
    bytes(out, field, &inner);
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    const LENGTH: u64 = 2;
    varint(out, field << 3 | LENGTH);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn double(out: &mut Vec<u8>, field: u64, value: &Value) {
    const EIGHT_BYTES: u64 = 1;
    varint(out, field << 3 | EIGHT_BYTES);
    out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_le_bytes());
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_newer_form_says() {
        let document = document(&Kinds::new());
        let pod = &document["definitions"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
        let text = document.to_string();
        assert!(!text.contains("#/components/") && !text.contains("\"nullable\""));
        let list = &document["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"];
        let body = list["parameters"].as_array().unwrap().iter().find(|p| p["in"] == "body").unwrap();
        assert_eq!(body["schema"]["$ref"], "#/definitions/io.k8s.api.core.v1.Pod");
    }

    #[test]
    fn encodes() {
        let schema = json!({"type": "string", "maxLength": 300, "minimum": 1.0, "x-a": {"b": 1}, "required": ["r"]});
        let mut out = vec![];
        encode_schema(&mut out, &schema);
        let want: Vec<u8> = [
            &[0xb2, 0x01, 8, 0x0a, 6][..],
            b"string",
            &[88, 0xac, 2, 73, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0xfa, 0x01, 16, 0x0a, 3],
            b"x-a",
            &[0x12, 9, 0x12, 7],
            br#"{"b":1}"#,
            &[0x9a, 0x01, 1],
            b"r",
        ]
        .concat();
        assert_eq!(out, want);
    }
}
