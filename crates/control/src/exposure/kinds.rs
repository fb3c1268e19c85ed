//! Kinds of others that need not exist on a cluster, as far as Dhow writes them: their `spec` is passed on as JSON.

use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "HTTPRoute",
    plural = "httproutes",
    namespaced,
    schema = "disabled"
)]
pub struct HttpRouteSpec {
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "networking.istio.io", version = "v1", kind = "VirtualService", namespaced, schema = "disabled")]
pub struct VirtualServiceSpec {
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}
