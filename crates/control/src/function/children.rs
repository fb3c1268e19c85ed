//! The Build and the Knative Service of a Function.

use api::build::{Build, BuildSpec};
use api::function::{Function, FunctionSpec, Isolation, Scale};
use api::names::{USER_CONTAINER, annotation, label};
use api::serving::{RevisionSpec, RevisionTemplate, Service, ServiceSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, LocalObjectReference, PodSpec, SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Cluster;
use crate::ownership::{Labels, child_meta, child_name, labels_of, name_of, namespace_of, short_hash};

/// The user that functions run as on a cluster; images for "nobody" have it.
const NOBODY: i64 = 65532;

/// `<function>-<hash>`: the same source, runtime and handler is the same Build.
pub fn build_name(function: &Function) -> String {
    let FunctionSpec { source, runtime, handler, .. } = &function.spec;
    let content = serde_json::json!({"source": source, "runtime": runtime, "handler": handler});
    child_name(name_of(function), &format!("-{}", short_hash(content.to_string().as_bytes())))
}

pub fn build(function: &Function) -> Build {
    let spec = BuildSpec {
        runtime: function.spec.runtime,
        handler: function.spec.handler.clone(),
        source: function.spec.source.clone(),
        repository: format!("{}/{}", namespace_of(function), name_of(function)),
    };
    let mut build = Build::new("", spec);
    build.metadata = child_meta(function, &build_name(function), function_label(function), Labels::new());
    build
}

pub fn service(function: &Function, image: &str, cluster: Option<&Cluster>) -> Service {
    let FunctionSpec { env, resources, timeout_seconds, concurrency, isolation, .. } = &function.spec;
    let isolation = isolation.unwrap_or_default();
    let container = Container {
        name: USER_CONTAINER.into(),
        image: Some(image.to_owned()),
        env: (!env.is_empty()).then(|| env.clone()),
        resources: resources.clone(),
        ..Container::default()
    };
    let mut pod = PodSpec {
        containers: vec![container],
        runtime_class_name: Some(isolation.runtime_class().to_owned()),
        automount_service_account_token: Some(false),
        ..PodSpec::default()
    };
    if let Some(cluster) = cluster {
        for_kubelet(&mut pod, isolation, cluster);
    }
    let spec = RevisionSpec {
        container_concurrency: Some(concurrency.unwrap_or(FunctionSpec::DEFAULT_CONCURRENCY)),
        timeout_seconds: Some(timeout_seconds.unwrap_or(FunctionSpec::DEFAULT_TIMEOUT_SECONDS)),
        pod,
        ..RevisionSpec::default()
    };
    let scaling = scaling(function.spec.scale.as_ref(), concurrency.unwrap_or(FunctionSpec::DEFAULT_CONCURRENCY));
    let metadata = ObjectMeta {
        labels: Some(function_label(function)),
        annotations: (!scaling.is_empty()).then_some(scaling),
        ..ObjectMeta::default()
    };
    let template = RevisionTemplate { metadata: Some(metadata), spec };
    let mut service = Service::new("", ServiceSpec { template, traffic: vec![] });
    let mut labels = labels_of(function);
    labels.extend(function_label(function));
    service.metadata = child_meta(function, name_of(function), labels, Labels::new());
    service
}

/// What Dhow's own node does unasked: nothing in a function's image needs a right, and a bound is better than none.
fn for_kubelet(pod: &mut PodSpec, isolation: Isolation, cluster: &Cluster) {
    // The other classes are Dhow's own node's; what a kubelet runs is a container.
    pod.runtime_class_name = pod.runtime_class_name.take().filter(|_| isolation == Isolation::Wasm);
    let secrets = cluster.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    // As the first process of its namespace an interpreter that still loads would not hear that it is to end.
    pod.share_process_namespace = Some(true);
    pod.image_pull_secrets = Some(secrets.collect()).filter(|secrets: &Vec<_>| !secrets.is_empty());
    for container in &mut pod.containers {
        container.security_context = Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
            run_as_non_root: Some(true),
            run_as_user: Some(NOBODY),
            run_as_group: Some(NOBODY),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
            ..SecurityContext::default()
        });
        let resources = container.resources.get_or_insert_default();
        let given = resources.limits.is_some() || resources.requests.is_some();
        if !given {
            let quantities =
                |pairs: [(&str, &str); 2]| pairs.map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into();
            resources.requests = Some(quantities([("cpu", "25m"), ("memory", "64Mi")]));
            resources.limits = Some(quantities([("memory", "512Mi"), ("ephemeral-storage", "1Gi")]));
        }
    }
}

/// The gateway is always in the path, so nothing needs Knative's grace after the window: an instance that was
/// idle for one window goes.
fn scaling(scale: Option<&Scale>, concurrency: i64) -> Labels {
    let mut annotations = Labels::new();
    if concurrency == 1 {
        // An instance for each event at once, and none to spare: with one to spare a single event would have two.
        annotations.insert(annotation::TARGET_UTILIZATION.to_owned(), "100".to_owned());
    }
    let Some(scale) = scale else { return annotations };
    let mut put = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    if let Some(min) = scale.min {
        put(annotation::MIN_SCALE, min.to_string());
    }
    if let Some(max) = scale.max {
        put(annotation::MAX_SCALE, max.to_string());
    }
    if let Some(idle) = scale.idle_seconds {
        put(annotation::WINDOW, format!("{idle}s"));
        put(annotation::RETENTION, "0s".into());
    }
    annotations
}

fn function_label(function: &Function) -> Labels {
    Labels::from([(label::FUNCTION.to_owned(), name_of(function).to_owned())])
}
