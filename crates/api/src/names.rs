//! Names that several rooms must agree on: labels, annotations, field managers, well-known objects.
//!
//! A name used by one room only stays in that room.

/// The API group of the kinds that are Dhow's own.
pub const GROUP: &str = "dhow.dev";
/// The namespace Dhow's own objects live in.
pub const SYSTEM_NAMESPACE: &str = "dhow-system";
/// The ConfigMap in [`SYSTEM_NAMESPACE`] that publishes the gateway's and the platform API's URLs.
/// Keys: `gateway` and `platform`, each an absolute `http://host:port`; `domain`, the domain of public hosts;
/// `maxSource`, the most bytes of a packed source that the platform takes; `audience`, for which a ServiceAccount's token
/// allows uploads to its namespace. Where an address is missing, people reach it through the Kubernetes API.
pub const ENDPOINTS_CONFIG_MAP: &str = "dhow-endpoints";
/// What a token is for that allows uploads on a cluster: nobody's credentials for the cluster itself are asked for.
pub const UPLOAD_AUDIENCE: &str = "dhow.dev";
/// The prefix of every field manager: `dhow-<controller>`.
pub const FIELD_MANAGER_PREFIX: &str = "dhow-";
/// The finalizer that holds a CustomResourceDefinition until the objects of its kind are gone.
pub const DEFINITION_CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// The namespace that holds node leases.
pub const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";

/// Labels.
pub mod label {
    /// On everything made for a Function: the Function's name.
    pub const FUNCTION: &str = "dhow.dev/function";
    /// The Knative Service that an object belongs to.
    pub const SERVICE: &str = "serving.knative.dev/service";
    /// The Configuration that a Revision belongs to.
    pub const CONFIGURATION: &str = "serving.knative.dev/configuration";
    /// The Configuration's generation that a Revision was stamped from.
    pub const CONFIGURATION_GENERATION: &str = "serving.knative.dev/configurationGeneration";
    /// The Revision that a Deployment, Pod, Service or EndpointSlice belongs to.
    pub const REVISION: &str = "serving.knative.dev/revision";
    /// The uid of that Revision.
    pub const REVISION_UID: &str = "serving.knative.dev/revisionUID";
    /// The Route that an Ingress belongs to.
    pub const ROUTE: &str = "serving.knative.dev/route";
    /// On an Ingress: the uid of the DomainMapping that it was made for.
    pub const DOMAIN_MAPPING_UID: &str = "serving.knative.dev/domainMappingUID";
    /// `active`, `pending` or `reserve`.
    pub const ROUTING_STATE: &str = "serving.knative.dev/routingState";
    /// The core Service an EndpointSlice belongs to.
    pub const ENDPOINTS_SERVICE: &str = "kubernetes.io/service-name";
    /// Who maintains an EndpointSlice.
    pub const ENDPOINTS_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
    /// On a Pod that the autoscaler is about to remove: since when, in seconds since 1970. Gateways send it nothing new.
    pub const DRAINING: &str = "dhow.dev/draining";
    /// On an object that brings the outside world to a Route: the Route's name.
    pub const EXPOSES: &str = "dhow.dev/exposes";
    /// The hash of a ReplicaSet's pod template.
    pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
}

/// Annotations.
pub mod annotation {
    /// On a PodAutoscaler: `<replicas>@<RFC 3339 time>`, a one-shot scale request of `dhow scale`.
    pub const SCALE_REQUEST: &str = "dhow.dev/scale-request";
    /// On a Pod without a network of its own: the path of the Unix socket that serves it.
    pub const SOCKET: &str = "dhow.dev/socket";
    /// On an EndpointSlice: a JSON object, pod name to Unix socket path, for pods served that way.
    pub const SOCKETS: &str = "dhow.dev/sockets";
    /// On a Revision: when traffic last came to it or left it.
    pub const ROUTING_STATE_MODIFIED: &str = "serving.knative.dev/routingStateModified";
    /// On a Node: a JSON array of the isolation properties this node cannot give, each a sentence.
    pub const MISSING_ISOLATION: &str = "dhow.dev/missing-isolation";
    /// On a Pod: how much it costs to delete it; the replica set controller picks the cheapest.
    pub const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    /// On a Deployment or ReplicaSet: its roll-out number.
    pub const DEPLOYMENT_REVISION: &str = "deployment.kubernetes.io/revision";
    pub const MIN_SCALE: &str = "autoscaling.knative.dev/min-scale";
    pub const MAX_SCALE: &str = "autoscaling.knative.dev/max-scale";
    pub const INITIAL_SCALE: &str = "autoscaling.knative.dev/initial-scale";
    pub const ACTIVATION_SCALE: &str = "autoscaling.knative.dev/activation-scale";
    pub const SCALE_DOWN_DELAY: &str = "autoscaling.knative.dev/scale-down-delay";
    pub const RETENTION: &str = "autoscaling.knative.dev/scale-to-zero-pod-retention-period";
    pub const METRIC: &str = "autoscaling.knative.dev/metric";
    pub const TARGET: &str = "autoscaling.knative.dev/target";
    pub const TARGET_UTILIZATION: &str = "autoscaling.knative.dev/target-utilization-percentage";
    pub const TARGET_BURST_CAPACITY: &str = "autoscaling.knative.dev/target-burst-capacity";
    pub const WINDOW: &str = "autoscaling.knative.dev/window";
    pub const PANIC_WINDOW: &str = "autoscaling.knative.dev/panic-window-percentage";
    pub const PANIC_THRESHOLD: &str = "autoscaling.knative.dev/panic-threshold-percentage";
}

/// Runtime classes: which Provider runs a Pod.
pub mod runtime_class {
    pub const PROCESS: &str = "dhow-process";
    pub const CONTAINER: &str = "dhow-oci";
    pub const WASM: &str = "dhow-wasm";
}

/// The container of a Function's pod, and Knative's default name.
pub const USER_CONTAINER: &str = "user-container";
/// The port a function or container is told to serve on when its manifest names none.
pub const DEFAULT_PORT: u16 = 8080;
