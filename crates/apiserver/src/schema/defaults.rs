//! Defaults of structural schemas, and the meaning of null.

use serde_json::Value;

use super::Schema;

/// Fills in the defaults of everything that is there.
pub fn apply_defaults(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(object) => {
            for (name, member) in &schema.properties {
                if let Some(default) = &member.default
                    && !object.contains_key(&**name)
                {
                    object.insert(name.to_string(), default.clone());
                }
            }
            for (name, value) in object.iter_mut() {
                if let Some(member) = schema.member(name) {
                    apply_defaults(value, member);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = &schema.items {
                items.iter_mut().for_each(|value| apply_defaults(value, item));
            }
        }
        _ => {}
    }
}

/// A null member says the same as an absent one, to typed decoders; only absence is stored.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.values().any(Value::is_null) {
                object.retain(|_, value| !value.is_null());
            }
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
