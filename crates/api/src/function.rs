//! `Function`: source code that is built, served and scaled.
//!
//! The function controller is the only writer of `status`; users write `spec`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::{Condition, ConditionSet};
use crate::rules;

/// The conditions of a Function.
pub const CONDITIONS: ConditionSet = ConditionSet::living(&[SOURCE_READY, BUILT, SERVING]);
pub const SOURCE_READY: &str = "SourceReady";
pub const BUILT: &str = "Built";
/// The child Knative Service's readiness, under a name of its own so that `Ready` stays the sum.
pub const SERVING: &str = "Serving";

/// Reasons.
pub mod reason {
    /// A Knative Service of this name exists and is not this Function's.
    pub const NAME_TAKEN: &str = "NameTaken";
    pub const SOURCE_MISSING: &str = "SourceMissing";
    pub const SOURCE_INVALID: &str = "SourceInvalid";
    pub const BUILDING: &str = "Building";
    pub const BUILD_FAILED: &str = "BuildFailed";
}

#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dhow.dev",
    version = "v1alpha1",
    kind = "Function",
    namespaced,
    status = "FunctionStatus",
    shortname = "fn",
    category = "all",
    derive = "PartialEq",
    printcolumn = r#"{"name":"URL","type":"string","jsonPath":".status.url"}"#,
    printcolumn = r#"{"name":"Runtime","type":"string","jsonPath":".spec.runtime"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct FunctionSpec {
    /// `python` or `node`; found out from the source when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// What to call, such as `main.handle`; each runtime has a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    pub source: Source,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// How long one request may take, 1 to 600; 300 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 600))]
    pub timeout_seconds: Option<i64>,
    /// Simultaneous requests per instance; 1 when absent, 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub concurrency: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    Python,
    Node,
}

impl Runtime {
    pub const ALL: [Runtime; 2] = [Runtime::Python, Runtime::Node];

    pub fn name(self) -> &'static str {
        match self {
            Runtime::Python => "python",
            Runtime::Node => "node",
        }
    }

    pub fn parse(name: &str) -> Option<Runtime> {
        Runtime::ALL.into_iter().find(|r| r.name() == name)
    }

    pub fn default_handler(self) -> &'static str {
        match self {
            Runtime::Python => "main.handle",
            Runtime::Node => "default",
        }
    }

    /// Which runtime a source tree is for, by the rules of the Function contract: a `package.json` makes it
    /// Node, else any `*.py` at its top makes it Python, else an `index.mjs` or `index.js` makes it Node.
    pub fn detect<'a>(mut top_level_files: impl Iterator<Item = &'a str> + Clone) -> Option<Runtime> {
        let has = |name: &str| top_level_files.clone().any(|f| f == name);
        if has("package.json") {
            return Some(Runtime::Node);
        }
        let script = has("index.mjs") || has("index.js");
        if top_level_files.any(|f| f.ends_with(".py")) {
            return Some(Runtime::Python);
        }
        script.then_some(Runtime::Node)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    #[default]
    Process,
    Container,
    Wasm,
}

impl Isolation {
    pub fn runtime_class(self) -> &'static str {
        match self {
            Isolation::Process => crate::names::runtime_class::PROCESS,
            Isolation::Container => crate::names::runtime_class::CONTAINER,
            Isolation::Wasm => crate::names::runtime_class::WASM,
        }
    }
}

/// Where the code comes from: exactly one member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// A gzipped tar uploaded through the platform API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Blob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<Inline>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Blob {
    /// `sha256:<64 hex digits>`.
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Inline {
    /// Relative path to content.
    pub files: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scale {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min: Option<i32>,
    /// 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max: Option<i32>,
    /// How long an instance stays without a request, 6 to 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 6, max = 3600))]
    pub idle_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The Build of the current source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// The newest Revision that is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

impl FunctionSpec {
    pub const DEFAULT_TIMEOUT_SECONDS: i64 = 300;
    pub const DEFAULT_CONCURRENCY: i64 = 1;

    /// What the schema cannot say. Each entry is `(field path, message)`.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut errors = vec![];
        let members = usize::from(self.source.blob.is_some()) + usize::from(self.source.inline.is_some());
        if members != 1 {
            errors.push(("spec.source".into(), "expected exactly one of blob, inline".into()));
        }
        if let Some(inline) = &self.source.inline {
            if inline.files.is_empty() {
                errors.push(("spec.source.inline.files".into(), "must hold at least one file".into()));
            }
            for path in inline.files.keys().filter(|p| !is_relative_path(p)) {
                errors.push((
                    format!("spec.source.inline.files[{path}]"),
                    "must be a relative path inside the source, without '..'".into(),
                ));
            }
        }
        if let Some(Scale { min: Some(min), max: Some(max), .. }) = &self.scale
            && *max > 0
            && min > max
        {
            errors.push(("spec.scale".into(), format!("min {min} is greater than max {max}")));
        }
        errors.extend(rules::env("spec.env", &self.env));
        errors.extend(self.resources.iter().flat_map(|resources| rules::resources("spec.resources", resources)));
        errors
    }
}

/// Whether a path stays inside the folder it is relative to.
pub fn is_relative_path(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with('/')
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detects_by_contract() {
        for (files, want) in [
            (vec!["main.py"], Some(Runtime::Python)),
            (vec!["package.json", "main.py"], Some(Runtime::Node)),
            (vec!["app.py", "index.js"], Some(Runtime::Python)),
            (vec!["index.mjs"], Some(Runtime::Node)),
            (vec!["README.md"], None),
        ] {
            assert_eq!(Runtime::detect(files.iter().copied()), want, "{files:?}");
        }
    }

    #[test]
    fn relative_paths() {
        for (path, want) in [
            ("main.py", true),
            ("a/b.py", true),
            ("../x", false),
            ("/x", false),
            ("a//b", false),
            ("./x", false),
            ("", false),
        ] {
            assert_eq!(is_relative_path(path), want, "{path}");
        }
    }
}
