//! From values to sets of fields: what an object holds, and how two objects differ.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Fields;
use crate::schema::{ListType, Schema};

/// What nothing is known about: its maps are granular, its lists atomic.
static UNKNOWN: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(Schema::default);

/// How one object became another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Fields that are new or have another value.
    pub changed: Fields,
    pub removed: Fields,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// The step of a list's item; `None` when its keys are missing, so that the list can only be owned as one.
pub fn item_step(item: &Value, list: &ListType, schema: &Schema) -> Option<Box<str>> {
    match list {
        ListType::Atomic => None,
        ListType::Set => (!item.is_object() && !item.is_array()).then(|| format!("v:{item}").into()),
        ListType::Map(keys) => {
            let mut names: Vec<&str> = keys.iter().map(|key| &**key).collect();
            names.sort_unstable();
            let mut key = Map::new();
            for name in names {
                let default = || schema.properties.get(name)?.default.as_ref();
                let value = item.get(name).filter(|value| !value.is_null()).or_else(default)?;
                key.insert(name.to_owned(), value.clone());
            }
            Some(format!("k:{}", Value::Object(key)).into())
        }
    }
}

/// The items of a list by their steps; `None` when it can only be owned as one.
fn items<'a>(list: &'a [Value], schema: &Schema) -> Option<Vec<(Box<str>, &'a Value)>> {
    let item_schema = schema.items.as_deref().unwrap_or(&UNKNOWN);
    let mut seen = std::collections::HashSet::new();
    let mut items = Vec::with_capacity(list.len());
    for item in list {
        let step = item_step(item, &schema.list, item_schema)?;
        if !seen.insert(step.clone()) {
            return None;
        }
        items.push((step, item));
    }
    Some(items)
}

/// Every field that a value holds.
pub fn fields_of(value: &Value, schema: &Schema) -> Fields {
    let mut fields = Fields::default();
    insert(value, schema, &mut fields);
    fields
}

fn insert(value: &Value, schema: &Schema, into: &mut Fields) {
    match value {
        Value::Object(object) if !schema.atomic_map => {
            for (name, value) in object {
                let child = into.child(format!("f:{name}"));
                insert(value, schema.member(name).unwrap_or(&UNKNOWN), child);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if empty || !schema.names(name) {
                    child.own = true;
                }
                if child.is_empty() {
                    into.below.remove(&*format!("f:{name}"));
                }
            }
        }
        Value::Array(list) if schema.list != ListType::Atomic => match items(list, schema) {
            Some(items) => {
                let item_schema = schema.items.as_deref().unwrap_or(&UNKNOWN);
                for (step, item) in items {
                    let child = into.child(step);
                    insert(item, item_schema, child);
                    child.own = true;
                }
            }
            None => into.own = true,
        },
        _ => into.own = true,
    }
}

/// How `old` became `new`.
pub fn compare(old: &Value, new: &Value, schema: &Schema) -> Difference {
    let mut difference = Difference::default();
    differ(Some(old), Some(new), schema, &mut difference.changed, &mut difference.removed);
    difference
}

fn differ(old: Option<&Value>, new: Option<&Value>, schema: &Schema, changed: &mut Fields, removed: &mut Fields) {
    if old == new {
        return;
    }
    let filled = |value: Option<&Value>| match value {
        Some(Value::Object(object)) => !object.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        _ => false,
    };
    let descend = filled(old) || filled(new);
    match (old, new) {
        (Some(Value::Object(_)) | None, Some(Value::Object(_)) | None) if descend && !schema.atomic_map => {
            differ_members(old, new, schema, changed, removed);
        }
        (Some(Value::Array(_)) | None, Some(Value::Array(_)) | None)
            if descend && schema.list != ListType::Atomic && differ_items(old, new, schema, changed, removed) => {}
        (Some(_), Some(_)) => changed.own = true,
        _ => {}
    }
    match (old, new) {
        (None, Some(_)) => changed.own = true,
        (Some(_), None) => removed.own = true,
        _ => {}
    }
}

fn differ_members(
    old: Option<&Value>,
    new: Option<&Value>,
    schema: &Schema,
    changed: &mut Fields,
    removed: &mut Fields,
) {
    fn members(value: Option<&Value>) -> impl Iterator<Item = &String> {
        value.and_then(Value::as_object).into_iter().flat_map(Map::keys)
    }
    let added = members(new).filter(|name| old.and_then(|old| old.get(name.as_str())).is_none());
    for name in members(old).chain(added) {
        let (old, new) = (old.and_then(|v| v.get(name)), new.and_then(|v| v.get(name)));
        if old == new {
            continue;
        }
        let schema = schema.member(name).unwrap_or(&UNKNOWN);
        at(&format!("f:{name}"), changed, removed, |changed, removed| differ(old, new, schema, changed, removed));
    }
}

/// `false`: the items cannot be told apart.
fn differ_items(
    old: Option<&Value>,
    new: Option<&Value>,
    schema: &Schema,
    changed: &mut Fields,
    removed: &mut Fields,
) -> bool {
    let list =
        |value: Option<&'_ Value>| value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().to_vec();
    let (old, new) = (list(old), list(new));
    let (Some(old), Some(new)) = (items(&old, schema), items(&new, schema)) else { return false };
    let item_schema = schema.items.as_deref().unwrap_or(&UNKNOWN);
    let by_step: HashMap<&str, &Value> = new.iter().map(|(step, item)| (&**step, *item)).collect();
    let known: HashMap<&str, &Value> = old.iter().map(|(step, item)| (&**step, *item)).collect();
    let added = new.iter().filter(|(step, _)| !known.contains_key(&**step));
    for (step, _) in old.iter().chain(added) {
        let (old, new) = (known.get(&**step).copied(), by_step.get(&**step).copied());
        at(step, changed, removed, |changed, removed| differ(old, new, item_schema, changed, removed));
    }
    true
}

/// Runs `fill` on the children at `step`, and keeps those that hold something.
fn at(step: &str, changed: &mut Fields, removed: &mut Fields, fill: impl FnOnce(&mut Fields, &mut Fields)) {
    let (mut changed_below, mut removed_below) = (Fields::default(), Fields::default());
    fill(&mut changed_below, &mut removed_below);
    for (child, parent) in [(changed_below, changed), (removed_below, removed)] {
        if !child.is_empty() {
            parent.below.insert(step.into(), child);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> std::sync::Arc<Schema> {
        crate::schema::builtin("io.k8s.api.core.v1.Pod")
    }

    #[test]
    fn of_values() {
        for (value, want) in [
            (
                json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n", "nodeSelector": {"x": "y"}}}),
                json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:nodeName": {}, "f:nodeSelector": {}}}),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "args": ["x"], "ports": [{"containerPort": 1}]}]}}),
                json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
                    ".": {}, "f:name": {}, "f:args": {},
                    "f:ports": {"k:{\"containerPort\":1,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                }}}}),
            ),
            (json!({"metadata": {"finalizers": ["a"]}}), json!({"f:metadata": {"f:finalizers": {"v:\"a\"": {}}}})),
            (
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
                json!({"f:spec": {"f:volumes": {
                "k:{\"name\":\"v\"}": {".": {}, "f:name": {}, "f:emptyDir": {}}}}}),
            ),
        ] {
            assert_eq!(fields_of(&value, &pod()), Fields::from_json(&want), "{value}");
        }
    }

    #[test]
    fn of_differences() {
        let one = |name: &str, image: &str| json!({"name": name, "image": image});
        for (old, new, changed, removed) in [
            (
                json!({"spec": {"containers": [one("a", "1"), one("b", "1")]}}),
                json!({"spec": {"containers": [one("b", "2"), one("c", "1")]}}),
                json!({"f:spec": {"f:containers": {
                    "k:{\"name\":\"b\"}": {"f:image": {}},
                    "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}},
                }}}),
                json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {}}}}}),
            ),
            (
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({"metadata": {"labels": {"b": "1"}}}),
                json!({"f:metadata": {"f:labels": {"f:b": {}}}}),
                json!({"f:metadata": {"f:labels": {"f:a": {}}}}),
            ),
            (
                json!({}),
                json!({"metadata": {"labels": {"b": "1"}}}),
                json!({"f:metadata": {".": {}, "f:labels": {".": {}, "f:b": {}}}}),
                json!({}),
            ),
            (
                json!({"spec": {"tolerations": [{"key": "a"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
                json!({"f:spec": {"f:tolerations": {}}}),
                json!({}),
            ),
        ] {
            let set = |value: &Value| match value.as_object().is_some_and(Map::is_empty) {
                true => Fields::default(),
                false => Fields::from_json(value),
            };
            let want = Difference { changed: set(&changed), removed: set(&removed) };
            assert_eq!(compare(&old, &new, &pod()), want, "{old} -> {new}");
        }
    }
}
