//! One version of a custom kind, as its definition describes it.

use std::cmp::Reverse;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use crate::schema::{self, Schema};

pub struct Version {
    /// `openAPIV3Schema`.
    pub schema: Value,
    /// `additionalPrinterColumns`.
    pub columns: Vec<Value>,
    pub scale: Option<ScalePaths>,
    /// What to tell whoever uses this version.
    pub deprecation: Option<String>,
    /// The version that objects are stored as.
    pub storage: &'static str,
    /// Whether the kind has other versions, so that a stored object may bear another's name.
    pub several: bool,
    /// Of the version that objects are stored as, if that is another.
    pub stored_schema: Option<Value>,
}

/// Where an object keeps what its Scale shows, as JSON pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec: String,
    pub status: String,
    /// Where the selector is, as text.
    pub selector: Option<String>,
}

/// From a stored object to the one that a row shows.
pub enum Conversion<'a> {
    View(fn(&mut Value)),
    Version { api_version: String, schema: &'a Schema },
}

impl Version {
    /// Of one of our own types.
    pub fn of_type(definition: &CustomResourceDefinition) -> Self {
        let definition = serde_json::to_value(&definition.spec).unwrap_or_default();
        Self::of(&definition, &definition["versions"][0], "")
    }

    /// Of the `spec` of a definition and one of its versions.
    pub fn of(spec: &Value, version: &Value, storage: &'static str) -> Self {
        let pointer = |path: &Value| path.as_str().map(pointer);
        let scale = &version["subresources"]["scale"];
        let scale = pointer(&scale["specReplicasPath"])
            .zip(pointer(&scale["statusReplicasPath"]))
            .map(|(spec, status)| ScalePaths { spec, status, selector: pointer(&scale["labelSelectorPath"]) });
        let versions = || spec["versions"].as_array().into_iter().flatten();
        let of_storage = |other: &&Value| other["name"] == storage && other["name"] != version["name"];
        Self {
            schema: version["schema"]["openAPIV3Schema"].clone(),
            columns: version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default(),
            scale,
            deprecation: (version["deprecated"] == true).then(|| deprecation(spec, version)),
            storage,
            stored_schema: versions().find(of_storage).map(|other| other["schema"]["openAPIV3Schema"].clone()),
            several: spec["versions"].as_array().is_some_and(|versions| versions.len() > 1),
        }
    }
}

/// What its author says of a deprecated version, or else that there is a newer one.
fn deprecation(spec: &Value, version: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(said) = version["deprecationWarning"].as_str() {
        return said.to_owned();
    }
    let (group, kind) = (text(&spec["group"]), text(&spec["names"]["kind"]));
    let named = |version: &Value| format!("{group}/{} {kind}", text(&version["name"]));
    let is_better = |other: &&Value| {
        other["served"] == true
            && other["deprecated"] != true
            && priority(&text(&other["name"])) < priority(&text(&version["name"]))
    };
    match spec["versions"].as_array().into_iter().flatten().find(is_better) {
        Some(other) => format!("{} is deprecated; use {}", named(version), named(other)),
        None => format!("{} is deprecated", named(version)),
    }
}

impl Conversion<'_> {
    pub fn apply(&self, object: &mut Value) {
        match self {
            Self::View(read) => read(object),
            Self::Version { api_version, schema } => {
                if let Some(object) = object.as_object_mut() {
                    object.insert("apiVersion".into(), api_version.as_str().into());
                }
                schema::prune(object, schema);
                schema::apply_defaults(object, schema);
            }
        }
    }
}

/// A JSON path of members, such as `.spec.replicas`, as a JSON pointer.
pub fn pointer(path: &str) -> String {
    path.split('.')
        .skip(1)
        .fold(String::new(), |pointer, member| pointer + "/" + &member.replace('~', "~0").replace('/', "~1"))
}

/// Sorts versions as Kubernetes prefers them: stable before beta before alpha, newer before older, others last.
pub fn priority(version: &str) -> impl Ord + use<> {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (major, rest) = rest.split_at(digits(rest));
        let (level, minor) = match rest {
            "" => (2, 0),
            rest => match rest.strip_prefix("beta") {
                Some(minor) => (1, minor.parse().ok()?),
                None => (0, rest.strip_prefix("alpha")?.parse().ok()?),
            },
        };
        Some((level, major.parse::<u64>().ok()?, minor))
    };
    let parsed: Option<(u8, u64, u64)> = parse();
    (Reverse(parsed), if parsed.is_none() { version.to_owned() } else { String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferred_first() {
        let mut versions = ["foo1", "v1", "v2beta1", "v1alpha1", "v10", "v2", "v1beta2", "bar", "v1beta1"];
        versions.sort_by_key(|version| priority(version));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1", "bar", "foo1"]);
    }

    #[test]
    fn pointers() {
        for (path, want) in [(".spec.replicas", "/spec/replicas"), (".spec", "/spec"), ("", "")] {
            assert_eq!(pointer(path), want);
        }
    }
}
