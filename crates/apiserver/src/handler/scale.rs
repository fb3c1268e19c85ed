//! The scale subresource: any scalable object as an `autoscaling/v1` Scale.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::status::{ApiError, FieldError, Result};

/// The Scale of an object.
pub fn scale_of(kind: &Kind, object: &Value) -> Value {
    let custom = kind.defined().and_then(|version| version.scale.as_ref());
    let count = |own: &str, paths: Option<&String>| {
        object.pointer(paths.map_or(own, String::as_str)).and_then(Value::as_i64).unwrap_or(0)
    };
    let selector = match custom {
        None => selector_text(&object["spec"]["selector"]),
        Some(paths) => {
            let selector = paths.selector.as_ref().and_then(|path| object.pointer(path)?.as_str());
            selector.unwrap_or_default().to_owned()
        }
    };
    let mut status = json!({"replicas": count("/status/replicas", custom.map(|paths| &paths.status))});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let metadata = &object["metadata"];
    let kept = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
    let metadata: Map<_, _> =
        kept.iter().filter_map(|field| Some(((*field).to_owned(), metadata.get(*field)?.clone()))).collect();
    // None are wanted when none are spoken of.
    let spec = match count("/spec/replicas", custom.map(|paths| &paths.spec)) {
        0 => json!({}),
        replicas => json!({ "replicas": replicas }),
    };
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// The object as a written Scale wants it.
pub fn scaled(kind: &Kind, object: &Value, scale: &Value) -> Result<Value> {
    if scale["kind"] != "Scale" && !scale["kind"].is_null() {
        return Err(ApiError::BadRequest(format!("cannot scale with a {}", scale["kind"])));
    }
    let mut scaled = object.clone();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    set(&mut scaled, replicas_of(kind), replicas.into());
    Ok(scaled)
}

/// Where an object of this kind says how many it wants, as a JSON pointer.
pub fn replicas_of(kind: &Kind) -> &str {
    kind.defined().and_then(|version| version.scale.as_ref()).map_or("/spec/replicas", |paths| &paths.spec)
}

/// Sets what a pointer leads to, and what it lies in.
pub fn set(object: &mut Value, pointer: &str, value: Value) {
    let place = pointer.split('/').skip(1).fold(object, |place, name| {
        if !place.is_object() {
            *place = json!({});
        }
        &mut place[name.replace("~1", "/").replace("~0", "~")]
    });
    *place = value;
}

/// What is wrong with the numbers that a defined kind's Scale shows, and with its selector.
pub fn faults(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let Some(paths) = kind.defined().and_then(|version| version.scale.as_ref()) else { return vec![] };
    let mut errors = vec![];
    for pointer in [&paths.spec, &paths.status] {
        let field = pointer.replace('/', ".");
        match object.pointer(pointer).map(|value| (value, value.as_i64())) {
            None => {}
            Some((_, Some(count))) if count < 0 => {
                errors.push(FieldError::invalid(field, count, "should be a non-negative integer"));
            }
            Some((_, Some(count))) if count > i64::from(i32::MAX) => {
                let detail = format!("should be less than or equal to {}", i32::MAX);
                errors.push(FieldError::invalid(field, count, detail));
            }
            Some((_, Some(_))) => {}
            Some((value, None)) => {
                let detail =
                    format!("{field} accessor error: {value} is of the type {}, expected int64", go_type(value));
                errors.push(FieldError::invalid(field, 0, detail));
            }
        }
    }
    errors
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn selector_text(selector: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> = labels.map(|(key, value)| format!("{key}={}", text(value))).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = text(&expression["key"]);
        let values: Vec<String> = expression["values"].as_array().into_iter().flatten().map(text).collect();
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key,
        });
    }
    parts.sort();
    parts.join(",")
}
