//! The table of kinds: everything that tells one kind from another is in its row.
//!
//! Adding a kind is adding a row. The handler reads rows and never asks for a kind by name.

mod apps;
mod authors;
mod core;
mod custom;
pub mod definitions;
mod events;
mod names;
mod pods;
mod reviews;
mod services;
mod version;
mod workload;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;
use store::{Durability, Revision};
use tokio_util::sync::CancellationToken;

use crate::auth::User;
use crate::schema::{self, Schema};
use crate::status::{FieldError, Resource};
use crate::table::Columns;
pub use version::{Conversion, Version};

/// Where Events are kept.
pub const EVENT_PREFIX: &str = "core/events/";

/// One kind. Function members are pure.
#[derive(Clone)]
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
    /// Runs: has `/log`, `/attach`, `/exec` and `/portforward`.
    pub runs: bool,
    /// `metadata.generation` counts changes of anything but metadata and status.
    pub generation: bool,
    pub deletion: Deletion,
    pub shape: Shape,
    pub durability: fn(&Value) -> Durability,
    /// Fills in what the user left out. Runs on every write.
    pub default: fn(&mut Value),
    /// Sets what a new object starts with, such as a status.
    pub create: fn(&mut Value),
    /// Notes who wrote it: the object, what it was on updates, and the user.
    pub sign: fn(&mut Value, Option<&Value>, &str),
    /// What the server hands out: it is nobody's in the record of owners.
    pub allocate: fn(&mut Value),
    /// What the schema cannot say; with the object as it was, on updates.
    pub validate: fn(&Value, Option<&Value>) -> Vec<FieldError>,
    /// What to warn of in an object that was taken; with the object as it was, on updates.
    pub advise: fn(&Value, Option<&Value>) -> Vec<String>,
    /// Field selectors beside `metadata.name` and `metadata.namespace`.
    pub fields: &'static [Selectable],
    pub columns: Columns,
    /// The same objects as another kind shows them, under another group.
    pub view: Option<View>,
}

/// A field that selectors may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Selectable {
    pub name: &'static str,
    /// Where it is in the object: a JSON pointer.
    pub pointer: &'static str,
    /// What selectors see where the object has nothing.
    pub absent: &'static str,
}

impl Selectable {
    pub const fn new(name: &'static str, pointer: &'static str) -> Self {
        Self { name, pointer, absent: "" }
    }

    const fn or(self, absent: &'static str) -> Self {
        Self { absent, ..self }
    }
}

/// What clients may do.
#[derive(Clone, Copy)]
pub enum Verbs {
    All,
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
    /// Also held by a finalizer of its own while objects of the kind that it defines are there.
    Definition,
}

/// Where a kind's schema comes from.
#[derive(Clone)]
pub enum Shape {
    /// A definition of Kubernetes' own documents; its values are checked for type only, as typed decoding would.
    Builtin(&'static str),
    /// A CustomResourceDefinition of our own: a structural schema, enforced and defaulted. Its rules in CEL are for other
    /// servers; here `validate` says the same.
    Custom(fn() -> CustomResourceDefinition),
    /// What a client's CustomResourceDefinition says.
    Defined(Arc<Version>),
}

/// Objects of this row are stored as those of another and translated on the way in and out.
#[derive(Clone, Copy)]
pub struct View {
    pub of: &'static Strategy,
    pub read: fn(&mut Value),
    pub write: fn(&mut Value),
}

/// A row with its schema, which is compiled when it is first needed.
pub struct Kind {
    strategy: Strategy,
    defined: OnceLock<Arc<Version>>,
    schema: OnceLock<Arc<Schema>>,
    rules: OnceLock<Option<schema::Rules>>,
    /// Of the version that objects are stored as, if that is another.
    stored: OnceLock<Option<Arc<Schema>>>,
    /// Objects that were written before this may lack defaults that the schema has by now.
    since: Revision,
    /// Ends the watches of a row that is no more.
    pub replaced: CancellationToken,
}

/// All rows, by path. A snapshot: a definition that comes or goes makes another one.
pub struct Kinds {
    rows: Vec<Arc<Kind>>,
    by_path: HashMap<(&'static str, &'static str, &'static str), Arc<Kind>>,
    /// Which state of its definitions a group shows.
    stamps: HashMap<&'static str, Revision>,
}

static ROWS: &[&Strategy] = &[
    &core::NAMESPACE,
    &pods::POD,
    &services::SERVICE,
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
    &reviews::RULES_REVIEW,
    &reviews::SUBJECT_REVIEW,
    &custom::FUNCTION,
    &custom::BUILD,
    &custom::SERVICE,
    &custom::CONFIGURATION,
    &custom::REVISION,
    &custom::ROUTE,
    &custom::DOMAIN_MAPPING,
    &custom::DOMAIN_CLAIM,
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
        runs: false,
        generation: false,
        deletion: Deletion::Immediate,
        shape: Shape::Builtin(""),
        durability: |_| Durability::Durable,
        default: |_| {},
        create: |_| {},
        sign: |_, _, _| {},
        allocate: |_| {},
        validate: |_, _| vec![],
        advise: |_, _| vec![],
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
        !matches!(self.shape, Shape::Builtin(_))
    }

    /// The subresources that discovery shows, with the kind each of them speaks.
    pub fn subresources(&self) -> Vec<(&'static str, &'static str, &'static [&'static str])> {
        const WRITTEN: &[&str] = &["get", "patch", "update"];
        let mut all = vec![];
        if self.runs {
            const VISITED: &[&str] = &["create", "get"];
            all.push(("attach", "PodAttachOptions", VISITED));
            all.push(("exec", "PodExecOptions", VISITED));
            all.push(("log", self.kind, &["get"]));
            all.push(("portforward", "PodPortForwardOptions", VISITED));
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

    /// What a real server's programmers call the kind, which some messages show.
    pub fn go_type(&self) -> String {
        match self.group.split('.').next().filter(|_| !self.is_custom()) {
            Some("") => format!("*core.{}", self.kind),
            Some(package) => format!("*{package}.{}", self.kind),
            None => "*unstructured.Unstructured".to_owned(),
        }
    }

    pub fn verb_names(&self) -> &'static [&'static str] {
        match self.verbs {
            // In the order in which Kubernetes tells of kinds that are defined.
            Verbs::All if matches!(self.shape, Shape::Defined(_)) => {
                &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
            }
            Verbs::All => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            Verbs::Ask(_) => &["create"],
        }
    }
}

impl Kind {
    fn new(strategy: Strategy, since: Revision) -> Self {
        let (defined, schema, rules, stored) = Default::default();
        Self { strategy, defined, schema, rules, stored, since, replaced: CancellationToken::new() }
    }

    pub fn resource(&self) -> Resource {
        Resource { group: self.group, kind: self.kind, plural: self.plural }
    }

    pub fn schema(&self) -> &Arc<Schema> {
        self.schema.get_or_init(|| match &self.strategy.shape {
            Shape::Builtin(name) => schema::builtin(name),
            _ => schema::custom(self.defined().map_or(&Value::Null, |version| &version.schema)),
        })
    }

    /// The rules in CEL of a client's own kind.
    pub fn rules(&self) -> Option<&schema::Rules> {
        let Shape::Defined(version) = &self.strategy.shape else { return None };
        self.rules.get_or_init(|| schema::Rules::of(&version.schema)).as_ref()
    }

    /// What its definition says; Kubernetes' own kinds have none.
    pub fn defined(&self) -> Option<&Version> {
        match &self.strategy.shape {
            Shape::Builtin(_) => None,
            Shape::Defined(version) => Some(version),
            Shape::Custom(definition) => {
                Some(self.defined.get_or_init(|| Arc::new(Version::of_type(&definition()))).as_ref())
            }
        }
    }

    /// How the stored bytes of an object that was written at that revision become what this row shows; `None`: they
    /// are that already.
    pub fn conversion(&self, written: Revision) -> Option<Conversion<'_>> {
        if let Some(view) = &self.view {
            return Some(Conversion::View(view.read));
        }
        let version = self.defined()?;
        let old = written < self.since && self.schema().has_defaults;
        (old || version.several).then(|| Conversion::Version { api_version: self.api_version(), schema: self.schema() })
    }

    /// An object as clients of this row write it, as it is worked on.
    pub fn to_kept(&self, object: &mut Value) {
        if let Some(view) = &self.view {
            (view.write)(object);
        }
    }

    /// An object as it was worked on, as it is stored: what the stored version does not name is not kept.
    pub fn to_stored(&self, object: &mut Value) {
        let Some(version) = self.defined().filter(|version| version.several) else { return };
        let stored = self.stored.get_or_init(|| version.stored_schema.as_ref().map(schema::custom));
        let Some(stored) = stored else { return };
        if let Some(object) = object.as_object_mut() {
            object.insert("apiVersion".into(), format!("{}/{}", self.group, version.storage).into());
        }
        schema::prune(object, stored);
        schema::apply_defaults(object, stored);
    }

    /// The `apiVersion` that owners of fields are noted with.
    pub fn owners_api_version(&self) -> String {
        self.stored().api_version()
    }
}

impl std::ops::Deref for Kind {
    type Target = Strategy;

    fn deref(&self) -> &Strategy {
        &self.strategy
    }
}

impl Kinds {
    /// What is built in, and nothing else.
    pub fn new() -> Self {
        Self::of(ROWS.iter().map(|row| Arc::new(Kind::new((*row).clone(), 0))).collect(), HashMap::new())
    }

    fn of(rows: Vec<Arc<Kind>>, stamps: HashMap<&'static str, Revision>) -> Self {
        let by_path = rows.iter().map(|row| ((row.group, row.version, row.plural), row.clone())).collect();
        Self { rows, by_path, stamps }
    }

    pub fn find<'a>(&'a self, group: &'a str, version: &'a str, plural: &'a str) -> Option<&'a Arc<Kind>> {
        self.by_path.get(&(group, version, plural))
    }

    /// Every group with its versions, in the table's order.
    pub fn groups(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut groups: Vec<(&'static str, Vec<&'static str>)> = vec![];
        for row in &self.rows {
            match groups.iter_mut().find(|(group, _)| *group == row.group) {
                Some((_, versions)) if versions.contains(&row.version) => {}
                Some((_, versions)) => versions.push(row.version),
                None => groups.push((row.group, vec![row.version])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| version::priority(version));
        }
        groups
    }

    pub fn of_group(&self, group: &str, version: &str) -> impl Iterator<Item = &Arc<Kind>> {
        self.rows.iter().filter(move |row| row.group == group && row.version == version)
    }

    /// Changes whenever what the group shows may have changed.
    pub fn stamp(&self, group: &str) -> Revision {
        self.stamps.get(group).copied().unwrap_or(0)
    }
}

/// The field selectors of the kind that a key belongs to.
pub fn fields_of_key(key: &str) -> &'static [Selectable] {
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
