//! The Node object, its heartbeat and its lease.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::condition::whole_seconds;
use api::names::{NODE_LEASE_NAMESPACE, annotation};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{Config, MANAGER, Machine, NodeError};

/// A quarter of the lease, as kubelets do it.
const RENEW: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// Every how many renewals the whole status is sent.
const HEARTBEAT: u32 = 6;
/// How long the API server may take when the node leaves.
const FAREWELL: Duration = Duration::from_secs(2);
/// Attempts to register, a [`PAUSE`] apart.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);
const ISOLATION_COMPLETE: &str = "IsolationComplete";

pub struct Registration {
    client: Client,
    config: Arc<Config>,
    uid: Mutex<Option<String>>,
    /// When each condition became what it is.
    since: Timestamp,
}

impl Registration {
    pub fn new(client: Client, config: Arc<Config>) -> Self {
        let since = (config.clock)();
        Self { client, config, uid: Mutex::default(), since }
    }

    /// Makes the Node object Ready, and its lease. Tries again while the API server is starting.
    pub async fn register(&self) -> Result<(), NodeError> {
        let mut attempt = 1;
        loop {
            match self.apply(true).await {
                Ok(()) => break,
                Err(error) if attempt == ATTEMPTS => {
                    let node = self.config.node_name.clone();
                    return Err(NodeError::Register { node, source: Box::new(error) });
                }
                Err(error) => tracing::debug!(%error, "the node is not registered yet"),
            }
            attempt += 1;
            tokio::time::sleep(PAUSE).await;
        }
        self.renew().await;
        Ok(())
    }

    /// Keeps both alive until the shutdown.
    pub async fn keep(&self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(RENEW);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut beats = 0;
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            beats += 1;
            if beats % HEARTBEAT == 0
                && let Err(error) = self.apply(true).await
            {
                tracing::warn!(%error, "the node's status was not sent");
            }
            self.renew().await;
        }
    }

    /// Says that the node runs nothing any more, and gives its lease back.
    pub async fn leave(&self) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NODE_LEASE_NAMESPACE);
        let released = Patch::Merge(json!({"spec": {"holderIdentity": null, "leaseDurationSeconds": 1}}));
        let farewell = async {
            self.apply(false).await?;
            leases.patch(&self.config.node_name, &PatchParams::default(), &released).await.map(drop)
        };
        match tokio::time::timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the node left without a word"),
            Err(_) => tracing::debug!("the node left without a word: the API server did not answer"),
        }
    }

    async fn apply(&self, ready: bool) -> kube::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let (name, params) = (&self.config.node_name, PatchParams::apply(MANAGER).force());
        let applied = nodes.patch(name, &params, &Patch::Apply(node(&self.config))).await?;
        *self.uid.lock().unwrap_or_else(PoisonError::into_inner) = applied.metadata.uid;
        let status = status(&self.config, ready, self.since, (self.config.clock)());
        let status = Node {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            status: Some(status),
            ..Node::default()
        };
        nodes.patch_status(name, &params, &Patch::Apply(status)).await.map(drop)
    }

    async fn renew(&self) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NODE_LEASE_NAMESPACE);
        let uid = self.uid.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
        let lease = lease(&self.config.node_name, &uid, (self.config.clock)());
        let params = PatchParams::apply(MANAGER).force();
        if let Err(error) = leases.patch(&self.config.node_name, &params, &Patch::Apply(lease)).await {
            tracing::warn!(%error, "the node's lease was not renewed");
        }
    }
}

fn missing_isolation(config: &Config) -> Vec<String> {
    config.providers.iter().flat_map(|p| p.capabilities().missing_isolation).collect()
}

fn node(config: &Config) -> Node {
    let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let missing = json!(missing_isolation(config)).to_string();
    let labels = text(&[
        ("type", "virtual-kubelet"),
        ("kubernetes.io/role", "agent"),
        ("kubernetes.io/hostname", &config.node_name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", Machine::architecture()),
        ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
    ]);
    let metadata = ObjectMeta {
        name: Some(config.node_name.clone()),
        labels: Some(labels),
        annotations: Some(text(&[(annotation::MISSING_ISOLATION, &missing)])),
        ..ObjectMeta::default()
    };
    Node { metadata, ..Node::default() }
}

fn status(config: &Config, ready: bool, since: Timestamp, now: Timestamp) -> NodeStatus {
    let machine = &config.machine;
    let capacity: BTreeMap<String, Quantity> = [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory_bytes / 1024)),
        ("pods", machine.pods.to_string()),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .into();
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    NodeStatus {
        capacity: Some(capacity.clone()),
        allocatable: Some(capacity),
        addresses: Some(vec![
            address("InternalIP", config.host_ip.to_string()),
            address("Hostname", config.node_name.clone()),
        ]),
        conditions: Some(conditions(config, ready, if ready { since } else { now }, since, now)),
        node_info: Some(NodeSystemInfo {
            architecture: Machine::architecture().into(),
            operating_system: "linux".into(),
            kernel_version: machine.kernel.clone(),
            os_image: machine.os_image.clone(),
            machine_id: machine.machine_id.clone(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("dhow://{}", env!("CARGO_PKG_VERSION")),
            kubelet_version: format!("v1.36.3-dhow-{}", env!("CARGO_PKG_VERSION")),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

fn conditions(
    config: &Config,
    ready: bool,
    ready_since: Timestamp,
    since: Timestamp,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let condition = |type_: &str, status: bool, since: Timestamp, reason: &str, message: String| NodeCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(Time(whole_seconds(now))),
        last_transition_time: Some(Time(whole_seconds(since))),
    };
    let missing = missing_isolation(config);
    let (complete, why, text) = match missing.is_empty() {
        true => (true, "Complete", "every instance has all the walls it should have".to_owned()),
        false => (false, "Incomplete", missing.join(" ")),
    };
    let ready = match ready {
        true => condition("Ready", true, ready_since, "NodeReady", "the node runs pods".into()),
        false => condition("Ready", false, ready_since, "NodeStopped", "the platform has stopped".into()),
    };
    // What a process-level node does not watch is said not to be under pressure, as virtual kubelets do.
    let calm = [("MemoryPressure", "memory"), ("DiskPressure", "disk"), ("PIDPressure", "PID")];
    let calm = calm.map(|(type_, what)| {
        condition(type_, false, since, "NoPressure", format!("the node has sufficient {what} available"))
    });
    let network = condition("NetworkUnavailable", false, since, "NetworkReady", "pods can be reached".into());
    let isolation = condition(ISOLATION_COMPLETE, complete, since, why, text);
    [ready].into_iter().chain(calm).chain([network, isolation]).collect()
}

fn lease(node: &str, uid: &str, now: Timestamp) -> Lease {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    };
    Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NODE_LEASE_NAMESPACE.into()),
            owner_references: (!uid.is_empty()).then(|| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}
