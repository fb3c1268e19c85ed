//! Domain mapping: a host name of one's own for a Service or a Route, and the cluster-wide claim that nobody else has it.
//!
//! Users write a DomainMapping's `spec`, and its name is the host; the domain controller writes its `status`. A
//! ClusterDomainClaim is an operator's, or made by the domain controller where that is allowed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Addressable;
use super::rules::Complaint;
use crate::condition::{Condition, ConditionSet};

pub const CONDITIONS: ConditionSet =
    ConditionSet::living(&["DomainClaimed", "ReferenceResolved", "IngressReady", "CertificateProvisioned"]);

#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1beta1",
    kind = "DomainMapping",
    namespaced,
    status = "DomainMappingStatus",
    shortname = "dm",
    category = "all",
    category = "knative",
    category = "serving",
    derive = "PartialEq",
    printcolumn = r#"{"name":"URL","type":"string","jsonPath":".status.url"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#
)]
pub struct DomainMappingSpec {
    #[serde(rename = "ref")]
    pub reference: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SecretTls>,
}

/// What a host leads to: a Knative Service, a Route, or a core Service, of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    pub kind: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl Reference {
    /// The API group, empty for the core one.
    pub fn group(&self) -> &str {
        let of_version = self.api_version.as_deref().and_then(|v| v.split_once('/')).map(|(group, _)| group);
        of_version.or(self.group.as_deref()).unwrap_or_default()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretTls {
    /// A Secret of the same namespace with `tls.crt` and `tls.key`.
    pub secret_name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainMappingStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Addressable>,
}

/// The suffix of every name that a cluster's own DNS answers.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// The right of one namespace to a host name, which is this object's name.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "ClusterDomainClaim",
    shortname = "cdc",
    category = "knative-internal",
    category = "networking",
    derive = "PartialEq"
)]
pub struct ClusterDomainClaimSpec {
    pub namespace: String,
}

/// What the schema cannot say, in Knative's words.
pub fn rules(meta: &ObjectMeta, spec: &DomainMappingSpec) -> Vec<Complaint> {
    let mut all = vec![];
    let name = meta.name.as_deref().unwrap_or_default();
    if meta.generate_name.is_some() {
        all.push(Complaint::forbidden("metadata.generateName"));
    }
    if let Some(why) = not_a_domain(name) {
        all.push(Complaint::new("metadata.name", format!("invalid name {name:?}: {why}")));
    }
    if name.ends_with(&format!(".{CLUSTER_DOMAIN}")) {
        let why = format!("must not be a subdomain of cluster local domain {CLUSTER_DOMAIN:?}");
        all.push(Complaint::new("metadata.name", format!("invalid name {name:?}: {why}")));
    }
    let reference = &spec.reference;
    let missing = [("name", reference.name.is_empty()), ("kind", reference.kind.is_empty())];
    all.extend(missing.into_iter().filter(|(_, is)| *is).map(|(f, _)| Complaint::missing(format!("spec.ref.{f}"))));
    let versioned = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    match (versioned(&reference.api_version), versioned(&reference.group)) {
        (false, false) => all.push(Complaint::missing("spec.ref.apiVersion")),
        (true, true) => {
            let both = "expected exactly one, got both";
            all.push(Complaint::new("spec.ref.apiVersion, spec.ref.group", both).because("set only one of them"));
        }
        _ => {}
    }
    let own = meta.namespace.as_deref();
    if let Some(other) = reference.namespace.as_deref().filter(|n| !n.is_empty() && own.is_some_and(|own| own != *n)) {
        let own = own.unwrap_or_default();
        let why = format!("parent namespace: {own:?} does not match ref: {other:?}");
        all.push(Complaint::new("spec.ref.namespace", "mismatched namespaces").because(why));
    }
    if spec.tls.as_ref().is_some_and(|tls| tls.secret_name.is_empty()) {
        all.push(Complaint::missing("spec.tls.secretName"));
    }
    all
}

/// Beyond what every object's name must be.
fn not_a_domain(name: &str) -> Option<&'static str> {
    if !name.contains('.') {
        return Some("should be a domain with at least two segments separated by dots");
    }
    name.split('.').any(|label| label.len() > 63).then_some("no segment may have more than 63 characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, reference: serde_json::Value, want: &str) {
        let meta = ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() };
        let spec = serde_json::from_value(serde_json::json!({"ref": reference})).unwrap();
        let got: Vec<String> = rules(&meta, &spec).iter().map(ToString::to_string).collect();
        assert_eq!(got.join("; "), want);
    }

    #[test]
    fn a_mapping_is_a_domain_and_what_it_leads_to() {
        let service =
            || serde_json::json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello"});
        check("www.example.org", service(), "");
        check(
            "a.b.svc.cluster.local",
            service(),
            "invalid name \"a.b.svc.cluster.local\": must not be a subdomain of cluster local domain \"cluster.local\": metadata.name",
        );
        check(
            "nodots",
            service(),
            "invalid name \"nodots\": should be a domain with at least two segments separated by dots: metadata.name",
        );
        let mut elsewhere = service();
        elsewhere["namespace"] = "other".into();
        check(
            "www.example.org",
            elsewhere,
            "mismatched namespaces: spec.ref.namespace\nparent namespace: \"default\" does not match ref: \"other\"",
        );
        check(
            "www.example.org",
            serde_json::json!({"kind": "Service", "name": ""}),
            "missing field(s): spec.ref.name; missing field(s): spec.ref.apiVersion",
        );
    }
}
