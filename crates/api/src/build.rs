//! `Build`: one source turned into one image. Named by content, so the same source is built once.
//!
//! The function controller writes `spec`, once; the build worker is the only writer of `status`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::{Condition, ConditionSet};
use crate::function::{Runtime, Source};

pub const CONDITIONS: ConditionSet = ConditionSet::batch(&[]);
pub const SUCCEEDED: &str = "Succeeded";
/// Below a namespace: the repository that holds uploaded sources.
pub const SOURCES: &str = "sources";
/// How the uids of sandboxes begin in which builds run: they are no pods, and a node leaves them alone.
pub const SANDBOX_PREFIX: &str = "build-";

pub mod reason {
    pub const RUNNING: &str = "Running";
    /// The blob named by the source was never uploaded.
    pub const SOURCE_MISSING: &str = "SourceMissing";
    /// The archive is broken, empty, too large, or leaves its folder.
    pub const SOURCE_INVALID: &str = "SourceInvalid";
    /// Neither named nor to be found out.
    pub const RUNTIME_UNKNOWN: &str = "RuntimeUnknown";
    /// The handler's file or the language's tool is not there.
    pub const HANDLER_MISSING: &str = "HandlerMissing";
    pub const DEPENDENCIES_FAILED: &str = "DependenciesFailed";
    pub const TIMED_OUT: &str = "TimedOut";
    /// Dhow's own fault: registry, disk; tried again.
    pub const INTERNAL: &str = "InternalError";
}

#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dhow.dev",
    version = "v1alpha1",
    kind = "Build",
    namespaced,
    status = "BuildStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Succeeded","type":"string","jsonPath":".status.conditions[?(@.type=='Succeeded')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Succeeded')].reason"}"#,
    printcolumn = r#"{"name":"Image","type":"string","jsonPath":".status.image"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct BuildSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    pub source: Source,
    /// The image's repository below the registry: `<namespace>/<name>`.
    pub repository: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// `<registry>/<namespace>/<name>@sha256:…` once built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// The last lines that the build printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
}
