//! The two halves of server-side apply: merging what was applied, and removing what was given up.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::fieldset::{Fields, item_step};
use crate::schema::{ListType, Schema};

static UNKNOWN: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(Schema::default);

/// `live` with everything that `config` says.
pub fn merge_applied(live: &Value, config: &Value, schema: &Schema) -> Value {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !schema.atomic_map => {
            let mut merged = live.clone();
            for (name, value) in config {
                let member = schema.member(name).unwrap_or(&UNKNOWN);
                let value = match live.get(name) {
                    Some(live) => merge_applied(live, value, member),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(config)) if schema.list != ListType::Atomic => {
            match merge_lists(live, config, schema) {
                Some(merged) => Value::Array(merged),
                None => Value::Array(config.clone()),
            }
        }
        _ => config.clone(),
    }
}

/// The applied order, with the items that only the live list has staying where they are. `None`: items without keys.
fn merge_lists(live: &[Value], config: &[Value], schema: &Schema) -> Option<Vec<Value>> {
    let item_schema = schema.items.as_deref().unwrap_or(&UNKNOWN);
    let steps = |list: &[Value]| -> Option<Vec<Box<str>>> {
        list.iter().map(|item| item_step(item, &schema.list, item_schema)).collect()
    };
    let (live_steps, config_steps) = (steps(live)?, steps(config)?);
    let (in_live, in_config) = (first_places(&live_steps), first_places(&config_steps));
    let applied = |i: usize| match in_live.get(&*config_steps[i]) {
        Some(at) => merge_applied(&live[*at], &config[i], item_schema),
        None => config[i].clone(),
    };
    let mut merged = Vec::with_capacity(live.len() + config.len());
    let mut next = 0;
    for (item, step) in live.iter().zip(&live_steps) {
        let Some(found) = in_config.get(&**step) else {
            merged.push(item.clone());
            continue;
        };
        let until = next.max(found + 1);
        merged.extend((next..until).map(applied));
        next = until;
    }
    merged.extend((next..config.len()).map(applied));
    Some(merged)
}

/// Where each step is first.
fn first_places(steps: &[Box<str>]) -> HashMap<&str, usize> {
    steps.iter().enumerate().rev().map(|(i, step)| (&**step, i)).collect()
}

/// Takes out of `merged` what the applier owned before (`last`) and nobody owns now (`kept`: the applied fields and
/// everybody else's).
pub fn remove_given_up(merged: &mut Value, schema: &Schema, last: &Fields, kept: &Fields) {
    match merged {
        Value::Object(object) if !schema.atomic_map => {
            let names: Vec<String> = object.keys().cloned().collect();
            for name in names {
                let step = format!("f:{name}");
                let Some(last) = last.get(&step) else { continue };
                match (kept.get(&step), object.get_mut(&name)) {
                    (None, _) => {
                        object.shift_remove(&name);
                    }
                    (Some(kept), Some(value)) => {
                        remove_given_up(value, schema.member(&name).unwrap_or(&UNKNOWN), last, kept);
                    }
                    (Some(_), None) => {}
                }
            }
        }
        Value::Array(items) if schema.list != ListType::Atomic => {
            let item_schema = schema.items.as_deref().unwrap_or(&UNKNOWN);
            items.retain_mut(|item| {
                let Some(step) = item_step(item, &schema.list, item_schema) else { return true };
                let Some(last) = last.get(&step) else { return true };
                match kept.get(&step) {
                    // An item goes with its key, whoever owns what else is in it.
                    Some(kept) if !kept.own && last.own => false,
                    None => !last.own,
                    Some(kept) => {
                        remove_given_up(item, item_schema, last, kept);
                        true
                    }
                }
            });
        }
        _ => {}
    }
}

/// The applied object as it is merged: without what no applier may say.
pub fn applied_config(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        for name in ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink"] {
            metadata.shift_remove(name);
        }
    } else if let Some(object) = config.as_object_mut() {
        object.insert("metadata".into(), Value::Object(Map::new()));
    }
    config
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fieldset::fields_of;

    #[test]
    fn applies() {
        let schema = crate::schema::builtin("io.k8s.api.core.v1.Pod");
        let pod = |spec: Value| json!({"spec": spec});
        let one = |name: &str, image: &str| json!({"name": name, "image": image});
        // live, applied before, applied now, owned by others, result
        for (live, before, now, others, want) in [
            (
                json!({"containers": [one("a", "1")], "nodeName": "n"}),
                json!({"containers": [one("a", "1")]}),
                json!({"containers": [one("a", "2")]}),
                json!({"nodeName": "n"}),
                json!({"containers": [one("a", "2")], "nodeName": "n"}),
            ),
            (
                json!({"containers": [one("a", "1"), one("b", "1")], "hostname": "h"}),
                json!({"containers": [one("a", "1"), one("b", "1")], "hostname": "h"}),
                json!({"containers": [one("a", "1")]}),
                json!({}),
                json!({"containers": [one("a", "1")]}),
            ),
            (
                json!({"hostname": "h", "subdomain": "s"}),
                json!({"hostname": "h", "subdomain": "s"}),
                json!({"subdomain": "s"}),
                json!({"hostname": "h"}),
                json!({"hostname": "h", "subdomain": "s"}),
            ),
            (
                json!({"containers": [one("x", "1"), one("a", "1")]}),
                json!({"containers": [one("a", "1")]}),
                json!({"containers": [one("b", "1"), one("a", "1")]}),
                json!({"containers": [one("x", "1")]}),
                json!({"containers": [one("x", "1"), one("b", "1"), one("a", "1")]}),
            ),
            (
                json!({"tolerations": [{"key": "a"}], "nodeSelector": {"a": "1"}}),
                json!({"tolerations": [{"key": "a"}], "nodeSelector": {"a": "1"}}),
                json!({"tolerations": [{"key": "b"}], "nodeSelector": {"b": "1"}}),
                json!({}),
                json!({"tolerations": [{"key": "b"}], "nodeSelector": {"b": "1"}}),
            ),
        ] {
            let mut merged = merge_applied(&pod(live.clone()), &pod(now.clone()), &schema);
            let mut kept = fields_of(&pod(now.clone()), &schema);
            kept.add(&fields_of(&pod(others), &schema));
            remove_given_up(&mut merged, &schema, &fields_of(&pod(before), &schema), &kept);
            assert_eq!(merged, pod(want), "{live} + {now}");
        }
    }
}
