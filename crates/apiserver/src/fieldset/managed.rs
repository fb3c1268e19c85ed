//! Owners of fields, and how a write changes who owns what.
//!
//! Apply owns exactly what was applied. Every other write owns what it changed, and takes it from the others.

use serde_json::{Map, Value, json};

use super::walk::{Difference, compare};
use super::{Fields, fields_of};
use crate::schema::Schema;
use crate::status::{ApiError, FieldConflict, Result};

/// Managers that only updated an object are kept up to this many; the oldest are then merged into one.
const MOST_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// Who owns a set of fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
}

/// The owners of one object's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    owner: Owner,
    time: String,
    fields: Fields,
}

/// What nobody owns: the server writes it, or it is the object's identity.
const SERVERS: [&[&str]; 12] = [
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:deletionTimestamp"],
    &["f:metadata", "f:deletionGracePeriodSeconds"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
];

impl Managed {
    /// From `metadata.managedFields`.
    pub fn parse(value: &Value) -> Self {
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let entries = value.as_array().into_iter().flatten().filter(|entry| entry["fieldsV1"].is_object());
        let entries = entries.map(|entry| Entry {
            owner: Owner {
                manager: text(entry, "manager"),
                operation: if entry["operation"] == "Apply" { Operation::Apply } else { Operation::Update },
                api_version: text(entry, "apiVersion"),
                subresource: text(entry, "subresource"),
            },
            time: text(entry, "time"),
            fields: Fields::from_json(&entry["fieldsV1"]),
        });
        Self { entries: entries.collect() }
    }

    /// As `metadata.managedFields`; `None` when there is nothing to say.
    pub fn to_json(&self) -> Option<Value> {
        let entries = self.entries.iter().map(|entry| {
            let operation = match entry.owner.operation {
                Operation::Apply => "Apply",
                Operation::Update => "Update",
            };
            let mut json = json!({
                "manager": entry.owner.manager,
                "operation": operation,
                "apiVersion": entry.owner.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.to_json(),
            });
            if !entry.owner.subresource.is_empty() {
                json["subresource"] = entry.owner.subresource.as_str().into();
            }
            json
        });
        (!self.entries.is_empty()).then(|| entries.collect())
    }

    /// Whether the same owners own the same fields, whenever that was.
    pub fn same_owners(&self, other: &Managed) -> bool {
        let of = |managed: &Managed| -> Vec<(Owner, Fields)> {
            managed.entries.iter().map(|e| (e.owner.clone(), e.fields.clone())).collect()
        };
        let theirs = of(other);
        self.entries.len() == other.entries.len() && of(self).iter().all(|entry| theirs.contains(entry))
    }

    pub fn fields(&self, owner: &Owner) -> Option<&Fields> {
        self.entries.iter().find(|entry| entry.owner == *owner).map(|entry| &entry.fields)
    }

    /// What anybody but `owner` owns.
    pub fn of_others(&self, owner: &Owner) -> Fields {
        let mut all = Fields::default();
        for entry in self.entries.iter().filter(|entry| entry.owner != *owner) {
            all.add(&entry.fields);
        }
        all
    }

    /// Gives `fields` to `owner`; the time moves only when that changes something.
    fn set(&mut self, owner: &Owner, mut fields: Fields, now: &str) {
        for path in SERVERS {
            fields.remove(path);
        }
        match self.entries.iter_mut().find(|entry| entry.owner == *owner) {
            Some(entry) if entry.fields == fields => {}
            Some(entry) => {
                entry.fields = fields;
                entry.time = now.to_owned();
            }
            None => self.entries.push(Entry { owner: owner.clone(), time: now.to_owned(), fields }),
        }
    }

    /// Takes what changed or went away from everybody else.
    fn take(&mut self, owner: &Owner, difference: &Difference) {
        for entry in self.entries.iter_mut().filter(|entry| entry.owner != *owner) {
            entry.fields.subtract(&difference.changed);
            entry.fields.subtract(&difference.removed);
        }
    }

    fn settle(&mut self) {
        self.entries.retain(|entry| !entry.fields.is_empty());
        self.entries.sort_by(|a, b| {
            let key = |e: &Entry| (e.owner.operation, e.time.clone(), e.owner.manager.clone());
            key(a).cmp(&key(b))
        });
        let is_update =
            |entry: &Entry| entry.owner.operation == Operation::Update && entry.owner.subresource.is_empty();
        let updaters = self.entries.iter().filter(|entry| is_update(entry)).count();
        let Some(excess) = (updaters + 1).checked_sub(MOST_UPDATERS).filter(|n| *n > 1) else { return };
        let mut merged: Option<Entry> = None;
        let mut left = excess;
        self.entries.retain(|entry| {
            if left == 0 || !is_update(entry) {
                return true;
            }
            left -= 1;
            match &mut merged {
                Some(merged) => merged.fields.add(&entry.fields),
                None => merged = Some(entry.clone()),
            }
            false
        });
        if let Some(mut merged) = merged {
            merged.owner.manager = ANCIENT.into();
            self.entries.push(merged);
        }
    }
}

/// Who owns what after `owner` changed `old` into `new` by anything but apply.
pub fn update_ownership(
    managed: &Managed,
    owner: &Owner,
    old: &Value,
    new: &Value,
    schema: &Schema,
    now: &str,
) -> Managed {
    let difference = compare(&without_servers(old), &without_servers(new), schema);
    let mut managed = managed.clone();
    managed.take(owner, &difference);
    let mut mine = managed.fields(owner).cloned().unwrap_or_default();
    mine.subtract(&difference.removed);
    mine.add(&difference.changed);
    managed.set(owner, mine, now);
    managed.settle();
    managed
}

/// Who owns what after `owner` applied `config` and so changed `live` into `new`.
pub fn apply_ownership(
    managed: &Managed,
    owner: &Owner,
    objects: Applied<'_>,
    schema: &Schema,
    force: bool,
    now: &str,
) -> Result<Managed> {
    let difference = compare(&without_servers(objects.live), &without_servers(objects.new), schema);
    let mut managed = managed.clone();
    if !force {
        let conflicts = conflicts(&managed, owner, &difference.changed);
        if !conflicts.is_empty() {
            return Err(ApiError::ApplyConflict { causes: conflicts });
        }
    }
    managed.take(owner, &difference);
    managed.set(owner, fields_of(objects.config, schema), now);
    managed.settle();
    Ok(managed)
}

/// The three objects of an apply.
#[derive(Clone, Copy)]
pub struct Applied<'a> {
    pub live: &'a Value,
    pub config: &'a Value,
    pub new: &'a Value,
}

fn conflicts(managed: &Managed, owner: &Owner, changed: &Fields) -> Vec<FieldConflict> {
    let others = managed.entries.iter().filter(|entry| entry.owner != *owner);
    let conflicts = others.flat_map(|entry| {
        let api_version = &entry.owner.api_version;
        let manager = match entry.owner.subresource.as_str() {
            "" => format!("{:?} using {api_version}", entry.owner.manager),
            sub => format!("{:?} with subresource {sub:?} using {api_version}", entry.owner.manager),
        };
        let paths = entry.fields.intersection(changed).paths();
        paths.into_iter().map(move |field| FieldConflict { manager: manager.clone(), field })
    });
    conflicts.collect()
}

/// The object without what nobody owns.
fn without_servers(object: &Value) -> Value {
    let Some(object) = object.as_object() else { return Value::Object(Map::new()) };
    let mut kept = Map::with_capacity(object.len());
    for (name, value) in object {
        match (name.as_str(), value.as_object()) {
            ("apiVersion" | "kind", _) => {}
            ("metadata", Some(metadata)) => {
                let is_servers =
                    |name: &str| SERVERS.iter().any(|path| path.len() == 2 && path[1].strip_prefix("f:") == Some(name));
                let metadata: Map<_, _> =
                    metadata.iter().filter(|(n, _)| !is_servers(n)).map(|(n, v)| (n.clone(), v.clone())).collect();
                // Kept even when empty: every object has metadata, so nobody owns that it is there.
                kept.insert(name.clone(), Value::Object(metadata));
            }
            _ => {
                kept.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(manager: &str, operation: Operation) -> Owner {
        Owner { manager: manager.into(), operation, api_version: "v1".into(), subresource: String::new() }
    }

    #[test]
    fn updates_take_what_they_change() {
        let schema = crate::schema::builtin("io.k8s.api.core.v1.ConfigMap");
        let map = |data: Value| json!({"metadata": {"name": "m"}, "data": data});
        let (a, b) = (owner("a", Operation::Update), owner("b", Operation::Update));
        let (none, one, two) = (json!({"metadata": {}}), map(json!({"x": "1", "y": "1"})), map(json!({"x": "2"})));
        let first = update_ownership(&Managed::default(), &a, &none, &one, &schema, "t1");
        let second = update_ownership(&first, &b, &one, &two, &schema, "t2");
        assert_eq!(first.fields(&a).unwrap().to_json(), json!({"f:data": {".": {}, "f:x": {}, "f:y": {}}}));
        assert_eq!(second.fields(&a).unwrap().to_json(), json!({"f:data": {}}));
        assert_eq!(second.fields(&b).unwrap().to_json(), json!({"f:data": {"f:x": {}}}));
        let third = update_ownership(&second, &b, &two, &two, &schema, "t3");
        assert_eq!(third, second, "a write that changes nothing moves no time");
        assert_eq!(Managed::parse(&second.to_json().unwrap()), second);
    }

    #[test]
    fn many_updaters_are_merged() {
        let schema = crate::schema::builtin("io.k8s.api.core.v1.ConfigMap");
        let mut managed = Managed::default();
        let mut old = json!({"metadata": {}, "data": {}});
        for i in 0..15 {
            let mut new = old.clone();
            new["data"][format!("k{i}")] = "x".into();
            let by = owner(&format!("m{i}"), Operation::Update);
            managed = update_ownership(&managed, &by, &old, &new, &schema, &format!("t{i:02}"));
            old = new;
        }
        assert!(managed.entries.len() <= MOST_UPDATERS, "{}", managed.entries.len());
        assert!(managed.entries.iter().any(|entry| entry.owner.manager == ANCIENT));
    }
}
