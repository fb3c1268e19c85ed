//! The table of kinds: everything that tells one kind from another is in its row.
//!
//! Adding a kind is adding a row. The handler reads rows and never asks for a kind by name.

mod apps;
mod core;
mod custom;
mod definitions;
mod events;
mod pods;
mod reviews;
mod workload;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use store::Durability;

use crate::auth::User;
use crate::schema::{self, Schema};
use crate::status::{FieldError, Resource};
use crate::table::Columns;

/// Where Events are kept.
pub const EVENT_PREFIX: &str = "core/events/";

/// One kind. Function members are pure.
pub struct Strategy {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: Verbs,
    pub status: Option<Status>,
    /// Has `/scale`: replicas in `spec.replicas` and `status.replicas`, selector in `spec.selector`.
    pub scale: bool,
    /// Has `/log`.
    pub log: bool,
    /// `metadata.generation` counts changes of anything but metadata and status.
    pub generation: bool,
    pub deletion: Deletion,
    pub shape: Shape,
    pub durability: fn(&Value) -> Durability,
    /// Fills in what the user left out. Runs on every write.
    pub default: fn(&mut Value),
    /// Sets what a new object starts with, such as a status.
    pub create: fn(&mut Value),
    /// What the schema cannot say; with the object as it was, on updates.
    pub validate: fn(&Value, Option<&Value>) -> Vec<FieldError>,
    /// Field selectors beside `metadata.name` and `metadata.namespace`: name and JSON pointer.
    pub fields: &'static [(&'static str, &'static str)],
    pub columns: Columns,
    /// The same objects as another kind shows them, under another group.
    pub view: Option<View>,
}

/// What clients may do.
pub enum Verbs {
    All,
    /// Objects that the program makes up; nothing is stored.
    Fixed(fn() -> Vec<Value>),
    /// A question: POST answers, nothing is stored.
    Ask(fn(&mut Value, &User)),
}

/// How `/status` is separated from the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Only `/status` writes it; a new object has none.
    Separate,
    /// As above, but labels and annotations go through `/status` too, and a new object may bring one.
    WithMetadata,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Gone at once, unless finalizers hold it.
    Immediate,
    /// A pod on a node first gets time to stop.
    Graceful,
    /// Also held by `spec.finalizers`, which only `/finalize` writes.
    Namespace,
}

/// Where a kind's schema comes from.
#[derive(Clone, Copy)]
pub enum Shape {
    /// A definition of Kubernetes' own documents; its values are checked for type only, as typed decoding would.
    Builtin(&'static str),
    /// A CustomResourceDefinition: a structural schema, enforced and defaulted.
    Custom(fn() -> CustomResourceDefinition),
}

/// Objects of this row are stored as those of another and translated on the way in and out.
pub struct View {
    pub of: &'static Strategy,
    pub read: fn(&mut Value),
    pub write: fn(&mut Value),
}

/// A row with its schema, which is compiled when it is first needed.
pub struct Kind {
    pub strategy: &'static Strategy,
    schema: OnceLock<Arc<Schema>>,
}

/// All rows, by path.
pub struct Kinds {
    rows: Vec<Kind>,
    by_path: HashMap<(&'static str, &'static str, &'static str), usize>,
}

static ROWS: &[&Strategy] = &[
    &core::NAMESPACE,
    &pods::POD,
    &core::SERVICE,
    &core::CONFIG_MAP,
    &core::SECRET,
    &core::SERVICE_ACCOUNT,
    &events::EVENT,
    &core::NODE,
    &apps::DEPLOYMENT,
    &apps::REPLICA_SET,
    &core::ENDPOINT_SLICE,
    &core::LEASE,
    &events::EVENT_VIEW,
    &definitions::DEFINITION,
    &reviews::ACCESS_REVIEW,
    &reviews::SUBJECT_REVIEW,
    &custom::FUNCTION,
    &custom::BUILD,
    &custom::SERVICE,
    &custom::CONFIGURATION,
    &custom::REVISION,
    &custom::ROUTE,
    &custom::POD_AUTOSCALER,
    &custom::INGRESS,
];

impl Strategy {
    /// What most rows are: namespaced, durable, without subresources, defaults or rules.
    const BASE: Strategy = Strategy {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: Verbs::All,
        status: None,
        scale: false,
        log: false,
        generation: false,
        deletion: Deletion::Immediate,
        shape: Shape::Builtin(""),
        durability: |_| Durability::Durable,
        default: |_| {},
        create: |_| {},
        validate: |_, _| vec![],
        fields: &[],
        columns: Columns::NameAndAge,
        view: None,
    };

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The row whose objects these are.
    pub fn stored(&self) -> &Strategy {
        self.view.as_ref().map_or(self, |view| view.of)
    }

    /// Where this kind's objects are kept, in one namespace or in all.
    pub fn prefix(&self, namespace: Option<&str>) -> String {
        let row = self.stored();
        let group = if row.group.is_empty() { "core" } else { row.group };
        match namespace {
            Some(namespace) => format!("{group}/{}/{namespace}/", row.plural),
            None => format!("{group}/{}/", row.plural),
        }
    }

    pub fn key(&self, namespace: Option<&str>, name: &str) -> String {
        self.prefix(namespace) + name
    }

    pub fn is_custom(&self) -> bool {
        matches!(self.shape, Shape::Custom(_))
    }

    /// The subresources that discovery shows, with the kind each of them speaks.
    pub fn subresources(&self) -> Vec<(&'static str, &'static str, &'static [&'static str])> {
        const WRITTEN: &[&str] = &["get", "patch", "update"];
        let mut all = vec![];
        if self.log {
            all.push(("log", self.kind, &["get"] as &[_]));
        }
        if self.scale {
            all.push(("scale", "Scale", WRITTEN));
        }
        if self.status.is_some() {
            all.push(("status", self.kind, WRITTEN));
        }
        if self.deletion == Deletion::Namespace {
            all.push(("finalize", self.kind, &["update"]));
        }
        all
    }

    pub fn verb_names(&self) -> &'static [&'static str] {
        match self.verbs {
            Verbs::All => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            Verbs::Fixed(_) => &["get", "list", "watch"],
            Verbs::Ask(_) => &["create"],
        }
    }
}

impl Kind {
    pub fn resource(&self) -> Resource {
        Resource(self.strategy)
    }

    pub fn schema(&self) -> &Arc<Schema> {
        self.schema.get_or_init(|| match self.strategy.shape {
            Shape::Builtin(name) => schema::builtin(name),
            Shape::Custom(definition) => schema::custom(&definition()),
        })
    }
}

impl std::ops::Deref for Kind {
    type Target = Strategy;

    fn deref(&self) -> &Strategy {
        self.strategy
    }
}

impl Kinds {
    pub fn new() -> Self {
        let rows = ROWS.iter().map(|strategy| Kind { strategy, schema: OnceLock::new() }).collect();
        let by_path = ROWS.iter().enumerate().map(|(i, s)| ((s.group, s.version, s.plural), i)).collect();
        Self { rows, by_path }
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Kind> {
        self.by_path.get(&(group, version, plural)).map(|i| &self.rows[*i])
    }

    /// Every group with its version, in the table's order.
    pub fn groups(&self) -> Vec<(&'static str, &'static str)> {
        let mut groups = vec![];
        for row in &self.rows {
            if !groups.contains(&(row.group, row.version)) {
                groups.push((row.group, row.version));
            }
        }
        groups
    }

    pub fn of_group(&self, group: &str, version: &str) -> impl Iterator<Item = &Kind> {
        self.rows.iter().filter(move |row| row.group == group && row.version == version)
    }
}

/// The field selectors of the kind that a key belongs to.
pub fn fields_of_key(key: &str) -> &'static [(&'static str, &'static str)] {
    let mut parts = key.split('/');
    let (Some(group), Some(plural)) = (parts.next(), parts.next()) else { return &[] };
    let group = if group == "core" { "" } else { group };
    let row = ROWS.iter().find(|row| row.group == group && row.plural == plural);
    row.map_or(&[], |row| row.fields)
}

/// `object[key]` as an object, made when it is missing; `None` when it is something else.
fn object_at<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut serde_json::Map<String, Value>> {
    let map = object.as_object_mut()?;
    map.entry(key).or_insert_with(|| Value::Object(Default::default())).as_object_mut()
}

/// Sets `key` when it is absent.
fn set_default(object: &mut serde_json::Map<String, Value>, key: &str, value: impl Into<Value>) {
    if !object.contains_key(key) {
        object.insert(key.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_rows_say_what_their_definitions_say() {
        for row in ROWS {
            let Shape::Custom(definition) = row.shape else { continue };
            let definition = definition();
            let names = &definition.spec.names;
            let version = &definition.spec.versions[0];
            let list = |names: &Option<Vec<String>>| names.clone().unwrap_or_default();
            assert_eq!((row.group, row.version), (definition.spec.group.as_str(), version.name.as_str()));
            assert_eq!((row.kind, row.plural), (names.kind.as_str(), names.plural.as_str()));
            assert_eq!(Some(row.singular), names.singular.as_deref());
            assert_eq!(row.short_names, list(&names.short_names), "{}", row.kind);
            assert_eq!(row.categories, list(&names.categories), "{}", row.kind);
            assert_eq!(row.namespaced, definition.spec.scope == "Namespaced");
            let subresources = version.subresources.as_ref();
            assert_eq!(row.status.is_some(), subresources.is_some_and(|s| s.status.is_some()));
        }
    }

    #[test]
    fn rows_are_consistent() {
        let kinds = Kinds::new();
        assert_eq!(kinds.by_path.len(), ROWS.len());
        for kind in &kinds.rows {
            assert!(kind.schema().form == schema::Form::Object, "{}", kind.kind);
            assert_eq!(kind.key(Some("ns"), "x"), format!("{}x", kind.prefix(Some("ns"))));
        }
    }
}
