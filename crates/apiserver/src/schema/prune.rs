//! What a structural schema does not name is not kept.

use serde_json::{Map, Value};

use super::{Form, Schema};

/// Takes out every member that the schema does not know, and the nulls that mean nothing: in metadata all of them, as typed
/// decoding has it, and elsewhere those of members that may not be null. Whole numbers are written as such.
pub fn prune(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(object) => prune_object(object, schema),
        Value::Array(items) => {
            if let Some(item) = &schema.items {
                items.iter_mut().for_each(|value| prune(value, item));
            }
        }
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0) {
                const EXACT: f64 = (1u64 << 53) as f64;
                *value = if whole.abs() < EXACT { (whole as i64).into() } else { value.take() };
            }
        }
        _ => {}
    }
}

fn prune_object(object: &mut Map<String, Value>, schema: &Schema) {
    object.retain(|name, value| match schema.member(name) {
        Some(member) => !value.is_null() || member.nullable || member.form == Form::Any,
        None => schema.preserve_unknown || schema.form == Form::Any,
    });
    for (name, value) in object.iter_mut() {
        if let Some(member) = schema.member(name) {
            prune(value, member);
        }
    }
    let is_object = schema.properties.get("metadata").is_some_and(|metadata| metadata.demands.is_none());
    if is_object && let Some(metadata) = object.get_mut("metadata") {
        super::drop_nulls(metadata);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prunes() {
        let schema = crate::schema::custom(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string", "default": "d"},
                "n": {"type": "string", "nullable": true, "default": "d"},
                "plain": {"type": "string"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                         "properties": {"in": {"type": "object", "properties": {"x": {"type": "string"}}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "other": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {}},
            }},
        }}));
        for (given, want) in [
            (json!({"b": 1, "a": "x"}), json!({"a": "x"})),
            (json!({"a": null, "n": null, "plain": null}), json!({"n": null})),
            (json!({"free": {"y": 1, "in": {"x": "1", "y": 1}}}), json!({"free": {"y": 1, "in": {"x": "1"}}})),
            (json!({"map": {"k": {"x": "1", "y": 1}}}), json!({"map": {"k": {"x": "1"}}})),
            (json!({"list": [{"x": "1", "y": 1}]}), json!({"list": [{"x": "1"}]})),
            (
                json!({"other": {"kind": "K", "apiVersion": "v1", "metadata": {"name": "n", "labels": null}, "spec": {}}}),
                json!({"other": {"kind": "K", "apiVersion": "v1", "metadata": {"name": "n"}}}),
            ),
        ] {
            let mut object = json!({"metadata": {"name": "n", "creationTimestamp": null}, "spec": given, "junk": 1});
            prune(&mut object, &schema);
            assert_eq!(object, json!({"metadata": {"name": "n"}, "spec": want}));
        }
    }
}
