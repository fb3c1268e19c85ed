//! The scale subresource: any scalable object as an `autoscaling/v1` Scale.

use serde_json::{Map, Value, json};

use crate::status::{ApiError, Result};

/// The Scale of an object.
pub fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let kept = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
    let metadata: Map<_, _> =
        kept.iter().filter_map(|field| Some(((*field).to_owned(), metadata.get(*field)?.clone()))).collect();
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {
            "replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector_text(&object["spec"]["selector"]),
        },
    })
}

/// The object as a written Scale wants it.
pub fn scaled(object: &Value, scale: &Value) -> Result<Value> {
    if scale["kind"] != "Scale" && !scale["kind"].is_null() {
        return Err(ApiError::BadRequest(format!("cannot scale with a {}", scale["kind"])));
    }
    let mut scaled = object.clone();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    scaled["spec"]["replicas"] = replicas.into();
    Ok(scaled)
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
