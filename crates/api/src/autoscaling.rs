//! `PodAutoscaler`: how many instances a revision should have, and why.
//!
//! The revision controller writes `spec`; the autoscaler is the only writer of `status` and of the scale of
//! the target Deployment. `dhow scale` writes one annotation, [`crate::names::annotation::SCALE_REQUEST`].

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::{Condition, ConditionSet};

/// `ScaleTargetInitialized` is informational and set with [`crate::condition::put`].
pub const CONDITIONS: ConditionSet = ConditionSet::living(&[ACTIVE]);
pub const ACTIVE: &str = "Active";
pub const SCALE_TARGET_INITIALIZED: &str = "ScaleTargetInitialized";

#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autoscaling.internal.knative.dev",
    version = "v1alpha1",
    kind = "PodAutoscaler",
    namespaced,
    status = "PodAutoscalerStatus",
    shortname = "kpa",
    shortname = "pa",
    derive = "PartialEq",
    printcolumn = r#"{"name":"DesiredScale","type":"integer","jsonPath":".status.desiredScale"}"#,
    printcolumn = r#"{"name":"ActualScale","type":"integer","jsonPath":".status.actualScale"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PodAutoscalerSpec {
    #[serde(default)]
    pub container_concurrency: i64,
    pub scale_target_ref: ScaleTarget,
    /// `Reachable` while a Route points here, `Unreachable` when none does, empty while unknown.
    #[serde(default)]
    pub reachability: String,
    #[serde(default)]
    pub protocol_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleTarget {
    pub api_version: String,
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodAutoscalerStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_scale: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual_scale: Option<i32>,
}

/// A parsed [`crate::names::annotation::SCALE_REQUEST`]: `<replicas>@<RFC 3339 time>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleRequest {
    pub replicas: i32,
    pub at: jiff::Timestamp,
}

impl ScaleRequest {
    pub fn parse(text: &str) -> Option<Self> {
        let (replicas, at) = text.split_once('@')?;
        let replicas: i32 = replicas.parse().ok().filter(|n| *n >= 0)?;
        Some(Self { replicas, at: at.parse().ok()? })
    }
}

impl std::fmt::Display for ScaleRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.replicas, self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_request_round_trip() {
        let text = "3@2026-01-02T03:04:05.25Z";
        assert_eq!(ScaleRequest::parse(text).map(|r| r.to_string()).as_deref(), Some(text));
        for bad in ["3", "-1@2026-01-02T03:04:05Z", "x@2026-01-02T03:04:05Z", "3@yesterday"] {
            assert_eq!(ScaleRequest::parse(bad), None, "{bad}");
        }
    }
}
