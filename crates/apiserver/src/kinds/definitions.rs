//! CustomResourceDefinitions as discovery data: those of the kinds that this program serves, made from their types.
//!
//! Nothing is stored, so none can be created; a POST is told so.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{ROWS, Shape, Strategy, Verbs};
use crate::table::{Columns, builtin};

pub static DEFINITION: Strategy = Strategy {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    namespaced: false,
    verbs: Verbs::Fixed(definitions),
    shape: Shape::Builtin("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"),
    columns: Columns::Printed(builtin::DEFINITION),
    ..Strategy::BASE
};

/// No definition is older than the program, and none changes while it runs: any fixed time will do.
const SINCE: &str = "2026-01-01T00:00:00Z";

fn definitions() -> Vec<Value> {
    let custom = ROWS.iter().filter_map(|row| match row.shape {
        Shape::Custom(definition) => Some(definition()),
        Shape::Builtin(_) => None,
    });
    let mut all: Vec<Value> = custom
        .filter_map(|definition| serde_json::to_value(definition).ok())
        .map(|mut definition| {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            definition["metadata"] = json!({
                "name": name,
                "uid": uid(&name),
                "resourceVersion": "1",
                "generation": 1,
                "creationTimestamp": SINCE,
            });
            definition["status"] = json!({
                "acceptedNames": definition["spec"]["names"],
                "storedVersions": [definition["spec"]["versions"][0]["name"]],
                "conditions": [
                    condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                    condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
                ],
            });
            definition
        })
        .collect();
    all.sort_by(|a, b| a["metadata"]["name"].as_str().cmp(&b["metadata"]["name"].as_str()));
    all
}

fn condition(kind: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": SINCE})
}

/// The same for the same name, in the form of a UUID.
fn uid(name: &str) -> String {
    let digest = hex::encode(Sha256::digest(name.as_bytes()));
    format!("{}-{}-5{}-8{}-{}", &digest[..8], &digest[8..12], &digest[13..16], &digest[17..20], &digest[20..32])
}
