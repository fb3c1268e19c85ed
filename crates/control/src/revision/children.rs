//! The Deployment, the PodAutoscaler and the core Service of a Revision.

use api::autoscaling::{PodAutoscaler, PodAutoscalerSpec, ScaleTarget};
use api::names::{DEFAULT_PORT, annotation, label};
use api::serving::{Revision, RevisionSpec};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, Lifecycle, LifecycleHandler, PodSpec, PodTemplateSpec, Probe, Service,
    ServicePort, ServiceSpec, SleepAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reconcile::view;

use super::digests::Digests;
use crate::Cluster;
use crate::ownership::{Labels, annotations_of, child_meta, child_name, labels_of, name_of};

/// The port of a Revision's core Service, whatever its container listens on.
pub const SERVICE_PORT: i32 = 80;
/// How long a roll-out may take without any progress.
const PROGRESS_DEADLINE_SECONDS: i32 = 600;
/// The annotation group that configures scaling; it travels to the PodAutoscaler.
const SCALING_GROUP: &str = "autoscaling.knative.dev/";

pub fn deployment_name(revision: &str) -> String {
    child_name(revision, "-deployment")
}

/// `h2c` when the container says so, else `http`.
pub fn port_name(spec: &RevisionSpec) -> &'static str {
    let named = serving_port(&spec.pod).and_then(|p| p.name.as_deref());
    if named == Some("h2c") { "h2c" } else { "http" }
}

/// The first port that any container declares.
fn serving_port(pod: &PodSpec) -> Option<&ContainerPort> {
    pod.containers.iter().find_map(|c| c.ports.as_ref()?.first())
}

fn port_number(pod: &PodSpec) -> i32 {
    let own = serving_port(pod).map(|port| port.container_port);
    // Whoever only names a port, such as `h2c`, means the usual one.
    own.filter(|port| *port > 0).unwrap_or(i32::from(DEFAULT_PORT))
}

/// How many instances prove a new Revision.
pub fn initial_scale(revision: &Revision) -> i32 {
    let number = |name| view::annotation(revision, name).and_then(|v| v.parse::<i32>().ok()).filter(|n| *n >= 0);
    number(annotation::INITIAL_SCALE).unwrap_or(1).max(number(annotation::MIN_SCALE).unwrap_or(0))
}

fn revision_labels(revision: &Revision) -> Labels {
    let mut labels = labels_of(revision);
    // Where traffic goes changes over a Revision's life; a pod template must not.
    labels.remove(label::ROUTING_STATE);
    labels.remove(label::CONFIGURATION_GENERATION);
    labels.insert(label::REVISION.into(), name_of(revision).to_owned());
    labels.insert(label::REVISION_UID.into(), view::uid(revision).to_owned());
    labels.entry("app".into()).or_insert_with(|| name_of(revision).to_owned());
    labels
}

/// What Knative writes about traffic stays on the Revision.
fn revision_annotations(revision: &Revision) -> Labels {
    let mut annotations = annotations_of(revision);
    annotations.retain(|key, _| key != crate::route::ROUTES && key != annotation::ROUTING_STATE_MODIFIED);
    annotations
}

fn selector(revision: &Revision) -> Labels {
    Labels::from([(label::REVISION_UID.to_owned(), view::uid(revision).to_owned())])
}

/// The Deployment without its number of replicas.
pub fn deployment(revision: &Revision, cluster: Option<&Cluster>, digests: &Digests) -> Deployment {
    let template_meta = ObjectMeta {
        labels: Some(revision_labels(revision)),
        annotations: Some(revision_annotations(revision)).filter(|a| !a.is_empty()),
        ..ObjectMeta::default()
    };
    let strategy = DeploymentStrategy {
        type_: Some("RollingUpdate".into()),
        rolling_update: Some(RollingUpdateDeployment {
            max_unavailable: Some(IntOrString::Int(0)),
            ..RollingUpdateDeployment::default()
        }),
    };
    let spec = DeploymentSpec {
        selector: LabelSelector { match_labels: Some(selector(revision)), ..LabelSelector::default() },
        template: PodTemplateSpec { metadata: Some(template_meta), spec: Some(pod_spec(revision, cluster, digests)) },
        strategy: Some(strategy),
        progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS),
        ..DeploymentSpec::default()
    };
    let name = deployment_name(name_of(revision));
    let metadata = child_meta(revision, &name, revision_labels(revision), revision_annotations(revision));
    Deployment { metadata, spec: Some(spec), status: None }
}

fn pod_spec(revision: &Revision, cluster: Option<&Cluster>, digests: &Digests) -> PodSpec {
    let mut pod = revision.spec.pod.clone();
    let port = port_number(&pod);
    let declares_port = serving_port(&pod).is_some();
    let serving = pod.containers.iter().position(|c| c.ports.as_ref().is_some_and(|p| !p.is_empty())).unwrap_or(0);
    for (i, container) in pod.containers.iter_mut().enumerate() {
        finish_container(container, revision, (i == serving).then_some(port));
        if let Some(Ok(pinned)) = digests.get(&container.name) {
            container.image = Some(pinned.clone());
        }
        if i != serving {
            continue;
        }
        container.readiness_probe = container.readiness_probe.take().filter(|probe| !is_usual(probe));
        let probes = [&mut container.readiness_probe, &mut container.liveness_probe, &mut container.startup_probe];
        probes.into_iter().flatten().for_each(|probe| name_port(probe, port));
        container.ports.iter_mut().flatten().take(1).for_each(|own| own.container_port = port);
        if !declares_port {
            container.ports = Some(vec![ContainerPort {
                name: Some("user-port".into()),
                container_port: port,
                protocol: Some("TCP".into()),
                ..ContainerPort::default()
            }]);
        }
    }
    for container in pod.init_containers.iter_mut().flatten() {
        if let Some(Ok(pinned)) = digests.get(&container.name) {
            container.image = Some(pinned.clone());
        }
    }
    pod.termination_grace_period_seconds = Some(revision.spec.timeout());
    if let Some(cluster) = cluster {
        for_kubelet(&mut pod, serving, port, cluster);
    }
    pod.automount_service_account_token.get_or_insert(false);
    pod.enable_service_links.get_or_insert(false);
    pod
}

/// A kubelet drains nothing by itself, and calls ready what merely runs.
fn for_kubelet(pod: &mut PodSpec, serving: usize, port: i32, cluster: &Cluster) {
    let Some(container) = pod.containers.get_mut(serving) else { return };
    let probe = container.readiness_probe.get_or_insert_with(|| Probe {
        // As often as a kubelet can; the gateway does not wait for it.
        period_seconds: Some(1),
        ..Probe::default()
    });
    if probe.exec.is_none() && probe.http_get.is_none() && probe.grpc.is_none() && probe.tcp_socket.is_none() {
        probe.tcp_socket = Some(TCPSocketAction { host: None, port: IntOrString::Int(port) });
    }
    let lifecycle = container.lifecycle.get_or_insert_with(Lifecycle::default);
    if lifecycle.pre_stop.is_none() && cluster.pre_stop_seconds > 0 {
        let sleep = Some(SleepAction { seconds: cluster.pre_stop_seconds });
        lifecycle.pre_stop = Some(LifecycleHandler { sleep, ..LifecycleHandler::default() });
        // The sleep is part of the grace period; the application keeps all of its own.
        pod.termination_grace_period_seconds =
            pod.termination_grace_period_seconds.map(|own| own + cluster.pre_stop_seconds);
    }
}

/// Knative's default, written into templates that say nothing: nodes of Dhow's own know better when a program serves.
fn is_usual(probe: &Probe) -> bool {
    let usual = Probe {
        tcp_socket: Some(TCPSocketAction { host: None, port: IntOrString::Int(0) }),
        success_threshold: Some(1),
        ..Probe::default()
    };
    *probe == usual
}

/// Knative is less strict about probes than an API server, and lets one leave its port out.
fn name_port(probe: &mut Probe, port: i32) {
    let absent =
        |p: &IntOrString| matches!(p, IntOrString::Int(0)) || matches!(p, IntOrString::String(s) if s.is_empty());
    if let Some(http) = probe.http_get.as_mut() {
        if absent(&http.port) {
            http.port = IntOrString::Int(port);
        }
        // Knative takes `http`, too.
        http.scheme = http.scheme.take().map(|scheme| scheme.to_ascii_uppercase());
    }
    if let Some(tcp) = probe.tcp_socket.as_mut().filter(|tcp| absent(&tcp.port)) {
        tcp.port = IntOrString::Int(port);
    }
    if let Some(grpc) = probe.grpc.as_mut().filter(|grpc| grpc.port == 0) {
        grpc.port = port;
    }
}

fn finish_container(container: &mut Container, revision: &Revision, port: Option<i32>) {
    let of = |name: &str| view::label(revision, name).unwrap_or_default().to_owned();
    let mut put = |name: &str, value: String| {
        let variable = EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
        container.env.get_or_insert_default().push(variable);
    };
    if let Some(port) = port {
        put("PORT", port.to_string());
    }
    put("K_REVISION", name_of(revision).to_owned());
    put("K_CONFIGURATION", of(label::CONFIGURATION));
    put("K_SERVICE", of(label::SERVICE));
    container.termination_message_policy.get_or_insert_with(|| "FallbackToLogsOnError".into());
}

pub fn autoscaler(revision: &Revision) -> PodAutoscaler {
    let reachability = match view::label(revision, label::ROUTING_STATE) {
        Some("active") => "Reachable",
        Some("reserve") => "Unreachable",
        _ => "",
    };
    let spec = PodAutoscalerSpec {
        container_concurrency: revision.spec.concurrency(),
        scale_target_ref: ScaleTarget {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            name: deployment_name(name_of(revision)),
        },
        reachability: reachability.into(),
        protocol_type: if port_name(&revision.spec) == "h2c" { "h2c".into() } else { "http1".into() },
    };
    let mut annotations = annotations_of(revision);
    annotations.retain(|key, _| key.starts_with(SCALING_GROUP));
    let mut autoscaler = PodAutoscaler::new("", spec);
    autoscaler.metadata = child_meta(revision, name_of(revision), revision_labels(revision), annotations);
    autoscaler
}

/// Headless: only the gateway dials, and it knows each instance.
pub fn service(revision: &Revision) -> Service {
    let port = ServicePort {
        name: Some(port_name(&revision.spec).to_owned()),
        port: SERVICE_PORT,
        target_port: Some(IntOrString::Int(port_number(&revision.spec.pod))),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        cluster_ip: Some("None".into()),
        selector: Some(selector(revision)),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    let metadata = child_meta(revision, name_of(revision), revision_labels(revision), Labels::new());
    Service { metadata, spec: Some(spec), status: None }
}
