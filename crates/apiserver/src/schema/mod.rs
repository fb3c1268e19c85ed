//! Schemas, compiled for walking: what a field is, how lists merge, what a structural schema demands.
//!
//! They come from two places and look the same here: the definitions of Kubernetes' own kinds (a data file made by
//! `data/extract.py`) and the CustomResourceDefinitions that our types derive.

mod applied;
mod cel;
mod compile;
mod defaults;
mod format;
mod prune;
mod strict;
mod typed;
mod validate;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

pub use applied::apply_faults;
use cel::Counterparts;
pub use cel::{Rules, check as check_rules};
pub use compile::{OBJECT_META, builtin, builtin_definitions, custom, value};
pub use defaults::{apply_defaults, drop_nulls};
pub use format::{is_known as is_format, pattern};
pub use prune::prune;
pub use strict::{duplicate_fields, unknown_fields};
pub use typed::{empty, misfit, settle};
pub use validate::{duplicates, embedded, validate};

/// One node. `Default` is a node that nothing is known about: anything goes, and its own lists are atomic.
#[derive(Debug, Default)]
pub struct Schema {
    pub form: Form,
    pub properties: HashMap<Box<str>, Arc<Schema>>,
    /// The values of a map.
    pub additional: Option<Arc<Schema>>,
    pub items: Option<Arc<Schema>>,
    pub list: ListType,
    /// The map or struct is owned and replaced as one.
    pub atomic_map: bool,
    pub preserve_unknown: bool,
    pub strategic: Strategic,
    pub default: Option<Value>,
    /// Whether there is a default here or below.
    pub has_defaults: bool,
    /// An object of the API inside another.
    pub embedded: bool,
    /// Null is a value here, and kept.
    pub nullable: bool,
    /// Of Kubernetes' own kinds: the type in Go, where it has a name.
    pub go: Option<Box<str>>,
    /// Members that Go shows even when they are empty.
    pub required: Vec<Box<str>>,
    /// Members that Go shows as null when they are absent.
    pub times: &'static [&'static str],
    pub demands: Option<Box<Demands>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    #[default]
    Any,
    Object,
    /// An object of these properties, or something else than an object, of which nothing is known.
    ObjectOrOther,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    /// A quantity: a string, or a number as a convenience.
    Quantity,
}

/// How the items of a list are told apart when it is merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<Box<str>>),
}

/// What strategic merge patches do here.
#[derive(Clone, Debug, Default)]
pub struct Strategic {
    pub merge: bool,
    pub merge_key: Option<Box<str>>,
}

/// The demands of a structural schema. Kubernetes' own kinds have none: typed decoding checks only types.
#[derive(Debug, Default)]
pub struct Demands {
    pub required: Vec<Box<str>>,
    pub enumeration: Vec<Value>,
    pub minimum: Option<Bound>,
    pub maximum: Option<Bound>,
    pub multiple_of: Option<f64>,
    pub min_length: Option<usize>,
    pub max_length: Option<usize>,
    pub min_items: Option<usize>,
    pub max_items: Option<usize>,
    pub min_properties: Option<usize>,
    pub max_properties: Option<usize>,
    /// As it was written, and compiled.
    pub pattern: Option<(Box<str>, regex::Regex)>,
    pub format: Option<Box<str>>,
    pub all_of: Vec<Arc<Schema>>,
    pub any_of: Vec<Arc<Schema>>,
    pub one_of: Vec<Arc<Schema>>,
    pub not: Option<Arc<Schema>>,
}

/// The end of a range of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub number: f64,
    pub exclusive: bool,
}

impl Schema {
    /// The node of a member, `None` when nothing is known about it.
    pub fn member(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or(self.additional.as_ref()).map(Arc::as_ref)
    }

    /// Whether the schema names this member, rather than allowing any.
    pub fn names(&self, name: &str) -> bool {
        self.properties.contains_key(name)
    }

    /// Visits the items of a list with the schema of each, while `path` says where it is.
    fn visit_items(&self, items: &[Value], path: &mut String, mut visit: impl FnMut(&Value, &Schema, &mut String)) {
        let Some(schema) = &self.items else { return };
        let length = path.len();
        for (i, item) in items.iter().enumerate() {
            path.extend(["[", &i.to_string(), "]"]);
            visit(item, schema, path);
            path.truncate(length);
        }
    }
}

/// Whether what a path, as errors write it, leads to is as it was: it or what it is in. Items of a list are found again
/// where they are told apart by keys.
pub fn is_unchanged(new: &Value, old: &Value, schema: &Schema, path: &str) -> bool {
    let any = Schema::default();
    let (mut new, mut old, mut schema) = (new, old, schema);
    for part in parts(path) {
        if is_same(new, old, schema) {
            return true;
        }
        let below = match new {
            Value::Array(items) => {
                let item = part.parse::<usize>().ok().and_then(|i| items.get(i));
                item.and_then(|item| Some((item, Counterparts::of(old, schema).find(item)?, schema.items.as_deref())))
            }
            _ if schema.atomic_map => None,
            new => new.get(part).zip(old.get(part)).map(|(new, old)| (new, old, schema.member(part))),
        };
        let Some((is, was, of)) = below else { return false };
        (new, old, schema) = (is, was, of.unwrap_or(&any));
    }
    is_same(new, old, schema)
}

/// Whether two values are the same, whatever the order of items that are told apart by keys.
fn is_same(new: &Value, old: &Value, schema: &Schema) -> bool {
    let any = Schema::default();
    match (new, old) {
        (Value::Object(is), Value::Object(was)) => {
            let same = |(name, value): (&String, &Value)| {
                was.get(name).is_some_and(|old| is_same(value, old, schema.member(name).unwrap_or(&any)))
            };
            is.len() == was.len() && is.iter().all(same)
        }
        (Value::Array(is), Value::Array(was)) if is.len() == was.len() => {
            let item = schema.items.as_deref().unwrap_or(&any);
            let keyed = matches!(schema.list, ListType::Map(_)).then(|| Counterparts::of(old, schema));
            is.iter().zip(was).all(|(new, at)| {
                let old = if let Some(keyed) = &keyed { keyed.find(new) } else { Some(at) };
                old.is_some_and(|old| is_same(new, old, item))
            })
        }
        _ => new == old,
    }
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split(['.', '[']).filter(|part| !part.is_empty()).map(|part| part.trim_end_matches(']'))
}
