//! Objects as tables, for `kubectl get`.

pub mod builtin;
mod path;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::handler::partial_metadata;
use crate::kinds::Kind;
pub use path::Path;

/// What a kind's columns are.
#[derive(Clone)]
pub enum Columns {
    NameAndAge,
    Printed(&'static Printer),
    /// The printer columns of its CustomResourceDefinition.
    OfDefinition,
}

/// Columns that take more than a path to fill.
pub struct Printer {
    pub columns: &'static [Column],
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
}

pub struct Column {
    pub name: &'static str,
    pub form: &'static str,
    /// Shown with `-o wide` only.
    pub wide: bool,
}

/// What becomes rows. `include`: how much of each object goes along.
pub struct Rows<'a> {
    pub objects: Vec<Value>,
    pub include: Option<&'a str>,
    pub now: Timestamp,
}

/// A column of a definition.
struct Printed {
    name: String,
    form: String,
    format: String,
    description: String,
    priority: i64,
    path: Path,
}

/// A Table. `columns`: whether to say what the columns are.
pub fn table(kind: &Kind, rows: Rows<'_>, metadata: Value, columns: bool) -> Value {
    let printed = printed(kind);
    let include = rows.include.unwrap_or("Metadata").to_owned();
    let now = rows.now;
    let rows: Vec<Value> = rows
        .objects
        .into_iter()
        .map(|mut object| {
            let cells = cells(kind, &printed, &object, now);
            let mut row = json!({"cells": cells});
            match include.as_str() {
                "None" => row["object"] = Value::Null,
                "Object" => row["object"] = object,
                _ => row["object"] = partial_metadata(&mut object),
            }
            row
        })
        .collect();
    let definitions = if columns { definitions(kind, &printed) } else { Value::Null };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

fn printed(kind: &Kind) -> Vec<Printed> {
    let (Columns::OfDefinition, Some(version)) = (&kind.columns, kind.defined()) else { return vec![] };
    let text = |column: &Value, name: &str| column[name].as_str().unwrap_or_default().to_owned();
    let age = [json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})];
    let columns = if version.columns.is_empty() { &age[..] } else { &version.columns };
    let printed = columns.iter().filter_map(|column| {
        Some(Printed {
            name: text(column, "name"),
            form: text(column, "type"),
            format: text(column, "format"),
            description: text(column, "description"),
            priority: column["priority"].as_i64().unwrap_or(0),
            path: Path::parse(column["jsonPath"].as_str()?)?,
        })
    });
    printed.collect()
}

fn definitions(kind: &Kind, printed: &[Printed]) -> Value {
    let column = |name: &str, form: &str, priority: i64| {
        let format = if name == "Name" { "name" } else { "" };
        json!({"name": name, "type": form, "format": format, "description": "", "priority": priority})
    };
    match &kind.columns {
        Columns::NameAndAge => json!([column("Name", "string", 0), column("Age", "string", 0)]),
        Columns::Printed(printer) => printer.columns.iter().map(|c| column(c.name, c.form, c.wide.into())).collect(),
        Columns::OfDefinition => std::iter::once(column("Name", "string", 0))
            .chain(printed.iter().map(|c| {
                json!({"name": c.name, "type": c.form, "format": c.format, "description": c.description,
                       "priority": c.priority})
            }))
            .collect(),
    }
}

fn cells(kind: &Kind, printed: &[Printed], object: &Value, now: Timestamp) -> Vec<Value> {
    let name = || object["metadata"]["name"].clone();
    match &kind.columns {
        Columns::NameAndAge => vec![name(), builtin::age(object, now)],
        Columns::Printed(printer) => (printer.cells)(object, now),
        Columns::OfDefinition => {
            std::iter::once(name()).chain(printed.iter().map(|column| cell(column, object, now))).collect()
        }
    }
}

fn cell(column: &Printed, object: &Value, now: Timestamp) -> Value {
    let Some(value) = column.path.find(object).first().copied() else { return Value::Null };
    match (column.form.as_str(), value) {
        ("date", Value::String(text)) => builtin::since(text, now),
        ("string", Value::String(_)) | ("integer" | "number", Value::Number(_)) | ("boolean", Value::Bool(_)) => {
            value.clone()
        }
        ("string", other) if !other.is_null() => other.to_string().into(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function() {
        let kinds = crate::kinds::Kinds::new();
        let kind = kinds.find("dhow.dev", "v1alpha1", "functions").unwrap();
        let object = json!({
            "metadata": {"name": "f", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"runtime": "python"},
            "status": {"url": "http://f", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let now = "2026-01-01T00:01:30Z".parse().unwrap();
        let rows = Rows { objects: vec![object], include: None, now };
        let table = table(kind, rows, json!({}), true);
        let names: Vec<_> =
            table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Name", "URL", "Runtime", "Ready", "Reason", "Age"]);
        assert_eq!(table["rows"][0]["cells"], json!(["f", "http://f", "python", "True", null, "90s"]));
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
}
