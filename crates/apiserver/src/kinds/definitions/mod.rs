//! CustomResourceDefinitions: the kinds that clients bring, and those of our own types.
//!
//! Owns the row, what a definition must be, its status, and the rows of the table that it becomes. All is pure; the
//! handler stores what is settled here and swaps the table. The surprise: a definition is settled before its write is
//! answered, so its kind is served at once. Our own types' definitions are objects too, but nobody may change them.

mod names;
mod properties;
mod settle;
mod structural;
mod validate;

use serde_json::{Value, json};

use super::{Deletion, ROWS, Shape, Status, Strategy, object_at, set_default};
use crate::rules::advice;
use crate::table::{Columns, builtin};
pub use settle::{Known, set as set_condition, settle};

const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";

pub static DEFINITION: Strategy = Strategy {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    status: Some(Status::Separate),
    generation: true,
    deletion: Deletion::Definition,
    shape: Shape::Builtin(SCHEMA),
    default,
    create: |definition| {
        let stored: Vec<String> = storage(&definition["spec"]).map(str::to_owned).into_iter().collect();
        definition["status"] = json!({
            "acceptedNames": {"kind": "", "plural": ""}, "conditions": null, "storedVersions": stored,
        });
    },
    validate: validate::validate,
    advise: advice::of_formats,
    columns: Columns::Printed(builtin::DEFINITION),
    ..Strategy::BASE
};

/// The definitions of our own types, as they are to be stored.
pub fn own() -> impl Iterator<Item = Value> {
    ROWS.iter().filter_map(|row| own_of(row))
}

fn own_of(row: &Strategy) -> Option<Value> {
    let Shape::Custom(definition) = &row.shape else { return None };
    let mut definition = serde_json::to_value(definition()).ok()?;
    crate::schema::drop_nulls(&mut definition["spec"]);
    default(&mut definition);
    // As it comes back from being stored.
    crate::schema::settle(&mut definition, &crate::schema::builtin(SCHEMA));
    Some(definition)
}

/// Whether the definition of that name is one of our own types'.
pub fn is_own(name: &str) -> bool {
    own_row(name).is_some()
}

fn own_row(name: &str) -> Option<&'static Strategy> {
    let (plural, group) = name.split_once('.')?;
    ROWS.iter().copied().find(|row| row.is_custom() && row.plural == plural && row.group == group)
}

fn default(definition: &mut Value) {
    let stored = storage(&definition["spec"]).map(Value::from);
    if let (Some(stored), Some(status)) = (stored, definition.get_mut("status").and_then(Value::as_object_mut)) {
        let all = status.entry("storedVersions").or_insert_with(|| json!([]));
        if let Some(all) = all.as_array_mut().filter(|all| !all.contains(&stored)) {
            all.push(stored);
        }
    }
    let Some(spec) = object_at(definition, "spec") else { return };
    set_default(spec, "conversion", json!({"strategy": "None"}));
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !kind.is_empty() {
            set_default(names, "listKind", format!("{kind}List"));
            set_default(names, "singular", kind.to_lowercase());
        }
    }
}

/// The version that objects are stored as.
fn storage(spec: &Value) -> Option<&str> {
    let mut versions = spec["versions"].as_array().into_iter().flatten();
    versions.find(|version| version["storage"] == true)?["name"].as_str()
}
