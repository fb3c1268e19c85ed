//! Messages that rooms send one another beside the Kubernetes API: JSON over HTTP on a cluster, plain values
//! in one process.

use serde::{Deserialize, Serialize};

/// A revision, as the request path names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RevisionKey {
    pub namespace: String,
    pub revision: String,
}

/// Sent at once when requests wait and no slot is free: scale up now, do not wait for the next report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Poke {
    #[serde(flatten)]
    pub key: RevisionKey,
    /// The gateway that says so; empty where there is only one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Requests that wait for a slot.
    pub queued: u32,
    /// Requests that an instance is working on.
    pub in_flight: u32,
}

/// What one gateway saw of one revision in the last reporting interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConcurrencyStat {
    #[serde(flatten)]
    pub key: RevisionKey,
    /// The gateway that says so; empty where there is only one. What several say adds up.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Time-weighted average of requests in the gateway, waiting ones included.
    pub average_concurrency: f64,
    /// Requests that arrived, per second.
    pub requests_per_second: f64,
    /// Requests inside the gateway at the moment of the report, waiting ones included.
    pub in_flight: u32,
    /// Each instance with its requests in flight, so that scale-down can pick an idle one.
    pub instances: Vec<InstanceLoad>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceLoad {
    pub pod: String,
    pub in_flight: u32,
    /// The gateway has seen that the pod drains, and sends it nothing new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// Where the autoscaler takes messages over HTTP: a POST of a JSON array of [`GatewayMessage`].
pub const MESSAGES_PATH: &str = "/v1/gateway-messages";
/// The most bytes of such a POST.
pub const MESSAGES_BYTES: usize = 1 << 20;

/// What a gateway tells the autoscaler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GatewayMessage {
    Poke(Poke),
    /// Once a second: every revision with traffic now or since the last report.
    Report(Vec<ConcurrencyStat>),
}

/// What a node tells the gateway when an instance becomes ready, so that a cold start's time can be told apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStarted {
    #[serde(flatten)]
    pub key: RevisionKey,
    /// From the node's first sight of the pod until its processes ran.
    pub sandbox_seconds: f64,
    /// From then until it said that it was ready.
    pub runtime_seconds: f64,
}

/// Takes what a node reports, at once and without waiting.
pub type StartReport = std::sync::Arc<dyn Fn(InstanceStarted) + Send + Sync>;

/// What a node asks of whoever sends its instances requests: that none is lost when one of them ends.
pub trait Traffic: Send + Sync {
    /// The instance gets no new requests from this call on. Resolves once its last one is over.
    fn leaves(&self, key: &RevisionKey, pod: &str) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

    /// It has ended, and need not be remembered.
    fn left(&self, key: &RevisionKey, pod: &str);
}

/// `<data-dir>/endpoints.json`: where a running platform listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub api: String,
    pub gateway: String,
    pub console: String,
    pub metrics: String,
    pub registry: String,
    /// Where the gateway speaks TLS, for hosts that have a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_tls: Option<String>,
    /// The gateway's listener on the pods' side; absent where pods have no network of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_internal: Option<String>,
    /// Which of the machine's slots its sandboxes use; absent where it makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u8>,
}

/// The present, as an argument: rooms take one by value, tests pass their own.
pub type Clock = std::sync::Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_gateways_are_understood() {
        let old = r#"[{"poke":{"namespace":"n","revision":"r","queued":1,"inFlight":2}},
            {"report":[{"namespace":"n","revision":"r","averageConcurrency":1.5,"requestsPerSecond":2.0,"inFlight":1,
                        "instances":[{"pod":"p","inFlight":1}]}]}]"#;
        let messages: Vec<GatewayMessage> = serde_json::from_str(old).unwrap();
        let GatewayMessage::Poke(poke) = &messages[0] else { panic!("{messages:?}") };
        assert_eq!((poke.gateway.as_str(), poke.queued, poke.in_flight), ("", 1, 2));
        let GatewayMessage::Report(stats) = &messages[1] else { panic!("{messages:?}") };
        let load = InstanceLoad { pod: "p".into(), in_flight: 1, draining: false };
        assert_eq!((stats[0].gateway.as_str(), stats[0].instances.as_slice()), ("", [load].as_slice()));
        let again: Vec<GatewayMessage> = serde_json::from_str(&serde_json::to_string(&messages).unwrap()).unwrap();
        assert_eq!(again, messages);
    }
}
