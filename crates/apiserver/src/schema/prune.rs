//! What a structural schema does not name is not kept.

use serde_json::{Map, Value};

use super::{Form, Schema};

/// Takes out every member that the schema does not know, and the nulls that mean nothing.
///
/// In metadata, nulls are absent as typed decoding has it. Elsewhere null is a value where the schema is nullable, asks for
/// the default where there is one, and is otherwise left for validation to complain about.
pub fn prune(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(object) => prune_object(object, schema),
        Value::Array(items) => {
            if let Some(item) = &schema.items {
                items.iter_mut().for_each(|value| prune(value, item));
            }
        }
        _ => {}
    }
}

fn prune_object(object: &mut Map<String, Value>, schema: &Schema) {
    object.retain(|name, value| match schema.member(name) {
        Some(member) => !(value.is_null() && !member.nullable && member.default.is_some()),
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
            (json!({"a": null, "n": null, "plain": null}), json!({"n": null, "plain": null})),
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
