//! What an applied object may not say: what no schema declares, what is of another type, and items that are one.
//!
//! Who applies owns what they say, so all of it must have a place. The words are those of Kubernetes' merging library.

use std::collections::HashSet;

use serde_json::Value;

use super::{Form, ListType, Schema};

pub fn apply_faults(config: &Value, schema: &Schema) -> Vec<String> {
    let mut found = vec![];
    walk(config, schema, &mut String::new(), &mut found);
    found
}

fn walk(value: &Value, schema: &Schema, path: &mut String, found: &mut Vec<String>) {
    let wanted = match (schema.form, value) {
        (_, Value::Null) | (Form::Any | Form::ObjectOrOther | Form::IntOrString | Form::Quantity, _) => None,
        (Form::Object, value) if !value.is_object() => Some("expected map"),
        (Form::Array, value) if !value.is_array() => Some("expected list"),
        (Form::String, value) if !value.is_string() => Some("expected string"),
        (Form::Boolean, value) if !value.is_boolean() => Some("expected boolean"),
        (Form::Integer | Form::Number, value) if !value.is_number() => Some("expected numeric (int or float)"),
        _ => None,
    };
    if let Some(wanted) = wanted {
        found.push(format!("{path}: {wanted}, got {}", shown(value, schema.form)));
        return;
    }
    let length = path.len();
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                path.extend([".", name]);
                match schema.member(name) {
                    Some(member) => walk(value, member, path, found),
                    None if schema.preserve_unknown || schema.form == Form::Any => {}
                    None => found.push(format!("{path}: field not declared in schema")),
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            keys(items, schema, path, found);
            schema.visit_items(items, path, |value, schema, path| walk(value, schema, path, found));
        }
        _ => {}
    }
}

/// Items that a merge could not tell apart.
fn keys(items: &[Value], schema: &Schema, path: &str, found: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let key = match &schema.list {
            ListType::Atomic => return,
            ListType::Set => format!("[={item}]"),
            ListType::Map(names) => {
                let member = |name: &str| schema.items.as_ref().and_then(|item| item.properties.get(name));
                let of = |name: &str| item.get(name).or_else(|| member(name)?.default.as_ref()).cloned();
                let keys: Vec<String> = names.iter().filter_map(|name| Some(format!("{name}={}", of(name)?))).collect();
                if keys.is_empty() {
                    found.push(format!(
                        "{path}: element {i}: associative list with keys has an element that omits all key fields \
                         {names:?} (and doesn't have default values for any key fields)"
                    ));
                    continue;
                }
                format!("[{}]", keys.join(","))
            }
        };
        if seen.contains(&key) {
            found.push(format!("{path}: duplicate entries for key {key}"));
        } else {
            seen.insert(key);
        }
    }
}

fn shown(value: &Value, wanted: Form) -> String {
    let form = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    // Of numbers the type is told, of everything else the value.
    if matches!(wanted, Form::Integer | Form::Number) { form.to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults() {
        let schema = crate::schema::custom(&json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "properties": {
                "n": {"type": "integer"}, "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                        "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        }}}));
        for (spec, want) in [
            (json!({"n": 1, "set": ["a", "b"], "map": [{"name": "x"}], "free": {"y": 1}}), vec![]),
            (json!({"m": 1}), vec![".spec.m: field not declared in schema"]),
            (json!({"n": "x"}), vec![".spec.n: expected numeric (int or float), got string"]),
            (json!({"set": ["a", "a"]}), vec![".spec.set: duplicate entries for key [=\"a\"]"]),
            (
                json!({"map": [{}, {"name": "x"}, {"name": "x"}]}),
                vec![
                    ".spec.map: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
                    ".spec.map: duplicate entries for key [name=\"x\"]",
                ],
            ),
        ] {
            assert_eq!(apply_faults(&json!({"metadata": {"name": "a"}, "spec": spec}), &schema), want, "{spec}");
        }
    }
}
