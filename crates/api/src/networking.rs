//! Knative's internal `Ingress`, the one kind the gateway's table is compiled from, with Dhow's extensions.
//!
//! Whoever routes (the route controller today) writes `spec`; the gateway never writes it. `status` is written by
//! the route controller's own ingress step, since the gateway serves a table as soon as it has seen it.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::{Condition, ConditionSet};

pub const CONDITIONS: ConditionSet = ConditionSet::living(&["NetworkConfigured", "LoadBalancerReady"]);

#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "Ingress",
    namespaced,
    status = "IngressStatus",
    shortname = "kingress",
    shortname = "king",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct IngressSpec {
    #[serde(default)]
    pub rules: Vec<IngressRule>,
    /// The certificates of hosts that are served over TLS, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<IngressTls>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_option: Option<HttpOption>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressTls {
    pub hosts: Vec<String>,
    pub secret_name: String,
    /// Must be the Ingress's own.
    pub secret_namespace: String,
}

/// What becomes of plain HTTP from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HttpOption {
    #[default]
    Enabled,
    /// Its clients are sent to HTTPS.
    Redirected,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressRule {
    /// Host names without ports.
    pub hosts: Vec<String>,
    #[serde(default)]
    pub visibility: Visibility,
    pub http: HttpRule,
}

/// Which listeners serve a rule: the public one, or only the pods' side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Visibility {
    #[default]
    #[serde(rename = "ExternalIP")]
    External,
    ClusterLocal,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpRule {
    pub paths: Vec<HttpPath>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpPath {
    /// A path prefix; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite_host: Option<String>,
    /// Headers that must have exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, HeaderMatch>,
    pub splits: Vec<Split>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub append_headers: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeaderMatch {
    pub exact: String,
}

/// One back end and its share of the traffic. `service_name` names the revision's core Service, whose
/// EndpointSlices hold its instances; for a revision both have the revision's name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Split {
    pub service_name: String,
    pub service_namespace: String,
    pub service_port: i32,
    /// 0 to 100; the splits of a path sum to 100.
    pub percent: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub append_headers: BTreeMap<String, String>,
    /// Dhow's extension: what the gateway must enforce for this back end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<SplitPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SplitPolicy {
    /// The Knative Service, for metrics and errors.
    pub service: String,
    /// Simultaneous requests per instance; 0 for no limit.
    pub container_concurrency: i64,
    pub timeout_seconds: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_start_timeout_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
