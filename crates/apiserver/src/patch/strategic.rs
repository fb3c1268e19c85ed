//! Strategic merge patch: like a merge patch, but lists merge as their schema says, and directives steer it.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::{Schema, Strategic};
use crate::status::{ApiError, Result};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

pub fn apply(target: &mut Value, patch: &Value, schema: &Schema) -> Result<()> {
    let Some(object) = target.as_object_mut() else {
        *target = stripped(patch);
        return Ok(());
    };
    let Some(patch) = patch.as_object() else { return Err(bad("a patch must be an object")) };
    merge_object(object, patch, schema)
}

fn merge_object(target: &mut Map<String, Value>, patch: &Map<String, Value>, schema: &Schema) -> Result<()> {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            *target = match stripped(&Value::Object(patch.clone())) {
                Value::Object(object) => object,
                _ => Map::new(),
            };
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        None | Some("merge") => {}
        Some(other) => return Err(bad(&format!("unknown directive {DIRECTIVE}: {other}"))),
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = keys.as_array().ok_or_else(|| bad("$retainKeys must be a list"))?;
        let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
        target.retain(|name, _| keys.contains(name.as_str()));
    }
    let ordered = |name: &String| name.strip_prefix(ELEMENT_ORDER).map(str::to_owned);
    let before: Vec<(String, Vec<Value>)> = (patch.keys().filter_map(ordered))
        .map(|list| (list.clone(), target.get(&list).and_then(Value::as_array).cloned().unwrap_or_default()))
        .collect();
    for (name, removed) in patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            delete_from(target, list, removed)?;
        }
    }
    for (name, value) in patch.iter().filter(|(name, _)| !is_directive(name)) {
        merge_member(target, name, value, schema.member(name))?;
    }
    for (list, before) in &before {
        let order = patch[&format!("{ELEMENT_ORDER}{list}")].as_array();
        let order = order.ok_or_else(|| bad("$setElementOrder must be a list"))?;
        if let Some(items) = target.get_mut(list).and_then(Value::as_array_mut) {
            reorder(items, order, before, schema.member(list).map_or(&Strategic::default(), |s| &s.strategic));
        }
    }
    Ok(())
}

fn merge_member(target: &mut Map<String, Value>, name: &str, patch: &Value, schema: Option<&Schema>) -> Result<()> {
    static UNKNOWN: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(Schema::default);
    let schema = schema.unwrap_or(&UNKNOWN);
    match (patch, target.get_mut(name)) {
        (Value::Null, _) => {
            target.shift_remove(name);
        }
        (Value::Object(patch), Some(Value::Object(object))) => {
            let deletes = patch.get(DIRECTIVE).is_some_and(|directive| directive == "delete");
            merge_object(object, patch, schema)?;
            if deletes {
                target.shift_remove(name);
            }
        }
        (Value::Array(patch), Some(Value::Array(items))) if schema.strategic.merge => {
            merge_list(items, patch, schema)?;
        }
        (patch, _) => {
            target.insert(name.to_owned(), stripped(patch));
        }
    }
    Ok(())
}

fn merge_list(items: &mut Vec<Value>, patch: &[Value], schema: &Schema) -> Result<()> {
    static UNKNOWN: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(Schema::default);
    let item_schema = schema.items.as_deref().unwrap_or(&UNKNOWN);
    if patch.iter().any(|item| item[DIRECTIVE] == "replace") {
        *items = patch.iter().filter(|item| item.get(DIRECTIVE).is_none()).map(stripped).collect();
        return Ok(());
    }
    let before = items.clone();
    match schema.strategic.merge_key.as_deref() {
        Some(key) => merge_by_key(items, patch, key, item_schema)?,
        None => {
            let mut known: HashSet<&Value> = before.iter().collect();
            items.extend(patch.iter().filter(|item| !item.is_null() && known.insert(item)).cloned());
        }
    }
    reorder(items, patch, &before, &schema.strategic);
    Ok(())
}

fn merge_by_key(items: &mut Vec<Value>, patch: &[Value], key: &str, schema: &Schema) -> Result<()> {
    // What is deleted leaves its place empty for as long as others are found by theirs.
    let mut places: Vec<Option<Value>> = std::mem::take(items).into_iter().map(Some).collect();
    let mut found: HashMap<Value, Vec<usize>> = HashMap::new();
    for (place, item) in places.iter().enumerate() {
        let id = item.as_ref().and_then(|item| item.get(key));
        id.into_iter().for_each(|id| found.entry(id.clone()).or_default().push(place));
    }
    for item in patch {
        let id =
            item.get(key).ok_or_else(|| bad(&format!("map: {item} does not contain declared merge key: {key}")))?;
        if item[DIRECTIVE] == "delete" {
            found.remove(id).into_iter().flatten().for_each(|place| places[place] = None);
            continue;
        }
        let first = found.get(id).and_then(|all| all.first()).copied();
        match first.and_then(|place| places[place].as_mut()) {
            Some(existing) => apply(existing, item, schema)?,
            None => {
                found.entry(id.clone()).or_default().push(places.len());
                places.push(Some(stripped(item)));
            }
        }
    }
    items.extend(places.into_iter().flatten());
    Ok(())
}

fn delete_from(target: &mut Map<String, Value>, list: &str, removed: &Value) -> Result<()> {
    let removed = removed.as_array().ok_or_else(|| bad("$deleteFromPrimitiveList must be a list"))?;
    if let Some(items) = target.get_mut(list).and_then(Value::as_array_mut) {
        let removed: HashSet<&Value> = removed.iter().collect();
        items.retain(|item| !removed.contains(item));
    }
    Ok(())
}

/// Items that the order names come in that order. One that it does not name comes before the next of those only where
/// both were there `before`, and it was first.
fn reorder(items: &mut Vec<Value>, order: &[Value], before: &[Value], strategic: &Strategic) {
    let id = |item: &Value| match &strategic.merge_key {
        Some(key) => item.get(&**key).cloned().unwrap_or(Value::Null),
        None => item.clone(),
    };
    let ranks = |list: &[Value]| -> HashMap<Value, usize> {
        list.iter().enumerate().rev().map(|(rank, item)| (id(item), rank)).collect()
    };
    let (order, before) = (ranks(order), ranks(before));
    let ranked = items.drain(..).map(|item| (order.get(&id(&item)).copied(), before.get(&id(&item)).copied(), item));
    let (mut named, mut others): (Vec<_>, Vec<_>) = ranked.partition(|(named, _, _)| named.is_some());
    named.sort_by_key(|(rank, _, _)| *rank);
    others.sort_by_key(|(_, was, _)| was.unwrap_or(usize::MAX));
    let mut others = others.into_iter().peekable();
    for (_, at, item) in named {
        let is_before = |other: &Option<usize>| at.is_some() && other.is_some() && *other < at;
        while let Some((_, _, other)) = others.next_if(|(_, other, _)| is_before(other)) {
            items.push(other);
        }
        items.push(item);
    }
    items.extend(others.map(|(_, _, item)| item));
}

fn is_directive(name: &str) -> bool {
    name == DIRECTIVE || name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(ELEMENT_ORDER)
}

/// A patch as the value it stands for where there is nothing to merge it with.
fn stripped(patch: &Value) -> Value {
    match patch {
        Value::Object(object) => {
            let members = object.iter().filter(|(name, value)| !is_directive(name) && !value.is_null());
            Value::Object(members.map(|(name, value)| (name.clone(), stripped(value))).collect())
        }
        Value::Array(items) => {
            let kept = items.iter().filter(|item| item.get(DIRECTIVE).is_none_or(|d| d == "merge"));
            Value::Array(kept.map(stripped).collect())
        }
        other => other.clone(),
    }
}

fn bad(text: &str) -> ApiError {
    ApiError::BadRequest(text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges() {
        let schema = crate::schema::builtin("io.k8s.api.core.v1.Pod");
        let pod = |spec: Value| json!({"spec": spec});
        let one = |name: &str, image: &str| json!({"name": name, "image": image});
        for (target, patch, want) in [
            (
                json!({"containers": [one("a", "1"), one("b", "1")]}),
                json!({"containers": [one("b", "2"), one("c", "3")]}),
                json!({"containers": [one("a", "1"), one("b", "2"), one("c", "3")]}),
            ),
            (
                json!({"containers": [one("a", "1"), one("b", "1")]}),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [one("b", "1")]}),
            ),
            (
                json!({"containers": [one("a", "1"), one("b", "1")]}),
                json!({"containers": [{"$patch": "replace"}, one("z", "1")]}),
                json!({"containers": [one("z", "1")]}),
            ),
            (
                json!({"containers": [one("a", "1"), one("b", "1")]}),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
                json!({"containers": [one("b", "1"), one("a", "1")]}),
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                json!({"volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]}),
                json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            ),
            (
                json!({"containers": [one("a", "1"), one("b", "1")]}),
                json!({"containers": [one("c", "1"), one("b", "2")]}),
                json!({"containers": [one("c", "1"), one("a", "1"), one("b", "2")]}),
            ),
            (
                json!({"containers": [one("a", "1"), one("b", "1")]}),
                json!({
                    "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
                    "containers": [one("c", "1")],
                }),
                json!({"containers": [one("c", "1"), one("b", "1"), one("a", "1")]}),
            ),
            (
                json!({"tolerations": [{"key": "a"}]}),
                json!({"tolerations": [{"key": "b"}]}),
                json!({"tolerations": [{"key": "b"}]}),
            ),
            (json!({"nodeName": "n", "hostname": "h"}), json!({"hostname": null}), json!({"nodeName": "n"})),
            (
                json!({"nodeSelector": {"a": "1"}}),
                json!({"nodeSelector": {"$patch": "replace", "b": "2"}}),
                json!({"nodeSelector": {"b": "2"}}),
            ),
        ] {
            let mut merged = pod(target.clone());
            apply(&mut merged, &pod(patch.clone()), &schema).unwrap();
            assert_eq!(merged, pod(want), "{target} + {patch}");
        }
        let mut merged = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}});
        apply(&mut merged, &patch, &schema).unwrap();
        assert_eq!(merged, json!({"metadata": {"finalizers": ["c", "b"]}}));
    }
}
