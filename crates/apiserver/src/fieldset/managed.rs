//! Owners of fields, and how a write changes who owns what.
//!
//! Apply owns exactly what was applied. Every other write owns what it changed, and takes it from the others.

use serde_json::{Value, json};

use super::walk::{Difference, compare};
use super::{Fields, fields_of};
use crate::schema::Schema;
use crate::status::{ApiError, FieldConflict, Result};

/// Managers that only updated an object are kept up to this many; the oldest are then merged into one.
const MOST_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

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
    /// When its writes last changed the object; empty for one that so far only said what was there already.
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
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.to_json(),
            });
            if !entry.time.is_empty() {
                json["time"] = entry.time.as_str().into();
            }
            if !entry.owner.subresource.is_empty() {
                json["subresource"] = entry.owner.subresource.as_str().into();
            }
            json
        });
        (!self.entries.is_empty()).then(|| entries.collect())
    }

    /// Whether the same owners own the same fields, whenever that was.
    pub fn same_owners(&self, other: &Managed) -> bool {
        let same = |a: &Entry, b: &Entry| a.owner == b.owner && a.fields == b.fields;
        self.entries.len() == other.entries.len()
            && self.entries.iter().all(|entry| other.entries.iter().any(|theirs| same(entry, theirs)))
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

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Gives `fields` to the author, whose time moves when the write changed something.
    fn set(&mut self, author: &Author<'_>, mut fields: Fields, has_changed: bool) {
        for path in SERVERS {
            fields.remove(path);
        }
        if !author.owns_status {
            fields.remove(&["f:status"]);
        }
        let time = has_changed.then(|| author.time.clone());
        match self.entries.iter_mut().find(|entry| entry.owner == author.owner) {
            Some(entry) => {
                entry.fields = fields;
                entry.time = time.unwrap_or_else(|| entry.time.clone());
            }
            None => {
                let time = time.unwrap_or_default();
                self.entries.push(Entry { owner: author.owner.clone(), time, fields });
            }
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

/// Who writes, when, and what they may own.
pub struct Author<'a> {
    pub owner: Owner,
    /// Whether the status is theirs to own; otherwise it is written apart.
    pub owns_status: bool,
    pub schema: &'a Schema,
    pub time: String,
}

/// Who owns what after `author` changed `old` into `new` by anything but apply.
pub fn update_ownership(managed: &Managed, author: &Author<'_>, old: &Value, new: &Value) -> Managed {
    let difference = owned_difference(old, new, author.schema);
    let mut managed = managed.clone();
    managed.take(&author.owner, &difference);
    let mut mine = managed.fields(&author.owner).cloned().unwrap_or_default();
    mine.subtract(&difference.removed);
    mine.add(&difference.changed);
    managed.set(author, mine, !difference.changed.is_empty());
    managed.settle();
    managed
}

/// An object that nobody has owned until now: what it holds before the first apply has an owner of its own then.
pub fn before_first_apply(author: &Author<'_>, empty: &Value, live: &Value) -> Managed {
    let owner = Owner { manager: BEFORE_FIRST_APPLY.into(), operation: Operation::Update, ..author.owner.clone() };
    let time = author.time.clone();
    let before = Author { owner, owns_status: author.owns_status, schema: author.schema, time };
    update_ownership(&Managed::default(), &before, empty, live)
}

/// Who owns what after `author` applied something.
pub fn apply_ownership(managed: &Managed, author: &Author<'_>, objects: Applied<'_>, force: bool) -> Result<Managed> {
    let difference = owned_difference(objects.live, objects.new, author.schema);
    let mut managed = managed.clone();
    if !force {
        let mut disputed = difference.changed.clone();
        if let Some(before) = objects.before {
            disputed.subtract(&fields_of(before, author.schema));
        }
        let conflicts = conflicts(&managed, &author.owner, &disputed);
        if !conflicts.is_empty() {
            return Err(ApiError::ApplyConflict { causes: conflicts });
        }
    }
    managed.take(&author.owner, &difference);
    managed.set(author, fields_of(objects.config, author.schema), !difference.is_empty());
    managed.settle();
    Ok(managed)
}

/// The objects of an apply.
#[derive(Clone, Copy)]
pub struct Applied<'a> {
    pub live: &'a Value,
    pub config: &'a Value,
    pub new: &'a Value,
    /// What the same applier applied in another way before; nobody else has a say in it.
    pub before: Option<&'a Value>,
}

fn conflicts(managed: &Managed, owner: &Owner, changed: &Fields) -> Vec<FieldConflict> {
    let others = managed.entries.iter().filter(|entry| entry.owner != *owner);
    let conflicts = others.flat_map(|entry| {
        let Owner { manager, operation, api_version, subresource } = &entry.owner;
        let part = if subresource.is_empty() { String::new() } else { format!(" with subresource {subresource:?}") };
        let manager = match operation {
            Operation::Apply => format!("{manager:?}{part}"),
            Operation::Update => format!("{manager:?}{part} using {api_version}"),
        };
        let paths = entry.fields.intersection(changed).paths();
        paths.into_iter().map(move |field| FieldConflict { manager: manager.clone(), field })
    });
    let mut conflicts: Vec<FieldConflict> = conflicts.collect();
    conflicts.sort_by(|a, b| a.manager.cmp(&b.manager));
    conflicts
}

/// How an object changed, apart from what nobody owns.
fn owned_difference(old: &Value, new: &Value, schema: &Schema) -> Difference {
    let mut difference = compare(old, new, schema);
    for path in SERVERS {
        difference.changed.remove(path);
        difference.removed.remove(path);
    }
    // Every object has metadata, so nobody owns that it is there.
    for fields in [&mut difference.changed, &mut difference.removed] {
        if let Some(metadata) = fields.below.get_mut("f:metadata") {
            metadata.own = false;
        }
        fields.prune();
    }
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    fn author<'a>(manager: &str, schema: &'a Schema, time: &str) -> Author<'a> {
        let owner = Owner {
            manager: manager.into(),
            operation: Operation::Update,
            api_version: "v1".into(),
            subresource: String::new(),
        };
        Author { owner, owns_status: false, schema, time: time.into() }
    }

    #[test]
    fn updates_take_what_they_change() {
        let schema = crate::schema::builtin("io.k8s.api.core.v1.ConfigMap");
        let map = |data: Value| json!({"metadata": {"name": "m"}, "data": data, "status": {"of": "nobody"}});
        let a = author("a", &schema, "t1");
        let b = |time: &str| author("b", &schema, time);
        let (none, one, two) = (json!({"metadata": {}}), map(json!({"x": "1", "y": "1"})), map(json!({"x": "2"})));
        let first = update_ownership(&Managed::default(), &a, &none, &one);
        let second = update_ownership(&first, &b("t2"), &one, &two);
        let fields = |managed: &Managed, author: &Author<'_>| managed.fields(&author.owner).unwrap().to_json();
        assert_eq!(fields(&first, &a), json!({"f:data": {".": {}, "f:x": {}, "f:y": {}}}));
        assert_eq!(fields(&second, &a), json!({"f:data": {}}));
        assert_eq!(fields(&second, &b("")), json!({"f:data": {"f:x": {}}}));
        let third = update_ownership(&second, &b("t3"), &two, &two);
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
            let by = author(&format!("m{i}"), &schema, &format!("t{i:02}"));
            managed = update_ownership(&managed, &by, &old, &new);
            old = new;
        }
        assert!(managed.entries.len() <= MOST_UPDATERS, "{}", managed.entries.len());
        assert!(managed.entries.iter().any(|entry| entry.owner.manager == ANCIENT));
    }
}
