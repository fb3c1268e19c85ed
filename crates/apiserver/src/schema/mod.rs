//! Schemas, compiled for walking: what a field is, how lists merge, what a structural schema demands.
//!
//! They come from two places and look the same here: the definitions of Kubernetes' own kinds (a data file made by
//! `data/extract.py`) and the CustomResourceDefinitions that our types derive.

mod compile;
mod defaults;
mod strict;
mod validate;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

pub use compile::{builtin, builtin_definitions, custom};
pub use defaults::{apply_defaults, drop_nulls};
pub use strict::{duplicate_fields, unknown_fields};
pub use validate::validate;

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
    pub rules: Option<Box<Rules>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    #[default]
    Any,
    Object,
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
pub struct Rules {
    pub required: Vec<Box<str>>,
    pub enumeration: Vec<Value>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub min_length: Option<usize>,
    pub max_length: Option<usize>,
    pub min_items: Option<usize>,
    pub max_items: Option<usize>,
    pub pattern: Option<regex::Regex>,
    pub format: Option<Box<str>>,
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
}
