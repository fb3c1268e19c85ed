//! The Job of a Build, and the policy around all of them. Pure.
//!
//! The surprise: three containers, two of them trusted, share a pod. What keeps the author's code from the registry's
//! credentials is that its container mounts no Secret; what keeps it from the images is that it writes to a folder of
//! its own and has ended before anything reads it.

use api::build::{Build, SOURCES};
use api::function::Runtime;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use reconcile::view::{annotation, label, uid};
use reconcile::{Key, Kind};
use serde_json::{Value, json};

use super::ClusterConfig;
use super::prepare::Work;
use super::report;
use super::step::{Access, FetchOrder, PushOrder};
use crate::plan::{ADAPTER, NPM, PYTHON, RESULT};
use crate::step::{RESULT_BYTES, TMP_BYTES};

pub const BUILD_UID: &str = "dhow.dev/build-uid";
const RUNTIME: &str = "dhow.dev/runtime";
/// Names are longer than labels may be.
const BUILD_NAME: &str = "dhow.dev/build";
const REPOSITORY: &str = "dhow.dev/repository";
const MANIFEST: &str = "dhow.dev/manifest";
const COMPONENT: (&str, &str) = ("app.kubernetes.io/component", "build");
const PART: (&str, &str) = ("app.kubernetes.io/part-of", "dhow");

/// Which Jobs and Pods of the system namespace are builds.
pub fn selector() -> String {
    format!("{}={},{}={}", PART.0, PART.1, COMPONENT.0, COMPONENT.1)
}

pub const POLICY: &str = "dhow-builds";

pub const FETCH: &str = "fetch";
pub const BUILD: &str = "build";
pub const PUSH: &str = "push";

const USER: i64 = 65532;
// Where the pod's volumes are, the same in every container that has them.
const SOURCE: &str = "/source";
const OUT: &str = "/out";
const SCRATCH: &str = "/scratch";
const SECRET: &str = "/etc/dhow/registry";
const AUTHORITY: &str = "/etc/dhow/registry-ca";
/// How long the two steps around the build may take.
const AROUND_SECONDS: u64 = 600;
/// How long a pod may wait for a node and for its images.
const START_SECONDS: u64 = 1800;

pub fn job(build: &Build, work: &Work, config: &ClusterConfig) -> Job {
    let namespace = build.metadata.namespace.as_deref().unwrap_or_default();
    let name = build.metadata.name.as_deref().unwrap_or_default();
    let runtime = work.plan.runtime;
    let labels = json!({
        COMPONENT.0: COMPONENT.1, PART.0: PART.1, "app.kubernetes.io/managed-by": "dhow",
        BUILD_UID: uid(build), RUNTIME: runtime.name(),
    });
    let annotations = json!({
        BUILD_NAME: format!("{namespace}/{name}"), REPOSITORY: build.spec.repository,
        MANIFEST: work.plan.manifest().unwrap_or_default(),
    });
    let mut init = vec![fetch(namespace, work, config)];
    init.extend(installation(work, config));
    let deadline = config.timeout.as_secs() + AROUND_SECONDS;
    let pod = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "activeDeadlineSeconds": deadline,
        "runtimeClassName": config.runtime_class,
        // What is installed is for one architecture, and so is its name in the cache.
        "nodeSelector": {"kubernetes.io/arch": architecture(), "kubernetes.io/os": "linux"},
        "imagePullSecrets": config.pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": init,
        "containers": [push(build, work, config)],
        "volumes": volumes(config),
    });
    parsed(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": config.namespace, "name": job_name(build), "labels": labels, "annotations": annotations,
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": deadline + START_SECONDS,
            "ttlSecondsAfterFinished": config.keep_jobs.as_secs(),
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": without_nulls(pod)},
        },
    }))
}

/// Nothing reaches a build, and a build reaches names and what the configuration says.
pub fn network_policy(config: &ClusterConfig) -> NetworkPolicy {
    let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]});
    let mut egress = vec![dns];
    egress.extend(config.egress.iter().map(|rule| serde_json::to_value(rule).expect("an API object is JSON")));
    parsed(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": config.namespace, "name": POLICY, "labels": {PART.0: PART.1, COMPONENT.0: COMPONENT.1}},
        "spec": {
            "podSelector": {"matchLabels": {PART.0: PART.1, COMPONENT.0: COMPONENT.1}},
            "policyTypes": ["Ingress", "Egress"],
            "egress": egress,
        },
    }))
}

fn fetch(namespace: &str, work: &Work, config: &ClusterConfig) -> Value {
    let order = FetchOrder {
        access: access(config),
        from: config.location(&format!("{namespace}/{SOURCES}")).into(),
        digest: work.source,
        runtime: work.plan.runtime,
        max_bytes: config.max_source_bytes,
        source: SOURCE.into(),
        scratch: SCRATCH.into(),
        report: report::PATH.into(),
    };
    trusted(FETCH, &json!(order), vec![mount("source", SOURCE), mount("scratch", SCRATCH)], config)
}

fn push(build: &Build, work: &Work, config: &ClusterConfig) -> Value {
    let order = PushOrder {
        access: access(config),
        into: config.location(&build.spec.repository).into(),
        base: work.base.clone(),
        runtime: work.plan.runtime,
        handler: work.plan.handler.clone(),
        interpreter: work.interpreter.clone(),
        manifest: work.plan.manifest().map(str::to_owned),
        cache: work.cache.clone(),
        cached: work.cached,
        source: SOURCE.into(),
        result: OUT.into(),
        scratch: SCRATCH.into(),
        report: report::PATH.into(),
    };
    let mounts = vec![mount("source", SOURCE), read_only("result", OUT), mount("scratch", SCRATCH)];
    trusted(PUSH, &json!(order), mounts, config)
}

/// A step of our own image: it has the registry's credentials and runs nothing of the author's.
fn trusted(step: &str, order: &Value, mut mounts: Vec<Value>, config: &ClusterConfig) -> Value {
    if config.secret.is_some() {
        mounts.push(read_only("registry", SECRET));
    }
    if config.authority.is_some() {
        mounts.push(read_only("registry-ca", AUTHORITY));
    }
    json!({
        "name": step,
        "image": config.image,
        "args": ["build-step", step, literal(&order.to_string())],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "512Mi", "ephemeral-storage": "256Mi"},
        },
        "securityContext": locked(),
        "volumeMounts": mounts,
    })
}

/// The container that runs the author's code, on the image that the function will run on; none where all that it would
/// make is known, or nothing is to be made.
fn installation(work: &Work, config: &ClusterConfig) -> Option<Value> {
    let command = work.plan.cluster_command().filter(|_| !work.cached)?;
    let command: Vec<String> = command.iter().map(|word| literal(word)).collect();
    let mut env = vec![
        (RESULT, OUT.to_owned()),
        (ADAPTER, format!("{SOURCE}/adapter")),
        (PYTHON, work.interpreter.clone()),
        (NPM, "npm".into()),
        ("HOME", "/tmp".into()),
        ("LANG", "C.UTF-8".into()),
        ("PIP_RETRIES", "2".into()),
        ("PIP_DEFAULT_TIMEOUT", "30".into()),
        ("npm_config_fetch_retries", "2".into()),
    ];
    if let Some(proxy) = &config.proxy {
        env.extend(["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"].map(|name| (name, proxy.url.clone())));
    }
    env.extend(config.build_env.iter().map(|(name, value)| (name.as_str(), value.clone())));
    let env: Vec<Value> = env.iter().map(|(name, value)| json!({"name": name, "value": literal(value)})).collect();
    Some(json!({
        "name": BUILD,
        "image": config.for_nodes(&work.base),
        "command": command,
        "workingDir": format!("{SOURCE}/tree/app"),
        "env": env,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {
                "cpu": config.cpu, "memory": config.memory_bytes.to_string(),
                "ephemeral-storage": (1_u64 << 30).to_string(),
            },
        },
        "securityContext": locked(),
        "volumeMounts": [read_only("source", SOURCE), mount("result", OUT), mount("tmp", "/tmp")],
    }))
}

fn locked() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    })
}

fn volumes(config: &ClusterConfig) -> Value {
    let empty = |name: &str, bytes: u64| json!({"name": name, "emptyDir": {"sizeLimit": bytes.to_string()}});
    // The archive, its content four times as large, and files take whole blocks.
    let source = config.max_source_bytes.saturating_mul(5).saturating_add(64 << 20);
    let mut volumes = vec![
        empty("source", source),
        empty("result", RESULT_BYTES + (256 << 20)),
        empty("tmp", TMP_BYTES),
        // Layers on their way: what is packed here, or one of the base's.
        empty("scratch", 2 * RESULT_BYTES),
    ];
    if let Some(secret) = &config.secret {
        let items = json!([{"key": ".dockerconfigjson", "path": "config.json"}]);
        volumes.push(json!({"name": "registry", "secret": {"secretName": secret, "items": items}}));
    }
    if let Some((name, key)) = &config.authority {
        let items = json!([{"key": key, "path": "ca.crt"}]);
        volumes.push(json!({"name": "registry-ca", "configMap": {"name": name, "items": items}}));
    }
    Value::Array(volumes)
}

fn access(config: &ClusterConfig) -> Access {
    Access {
        ca_file: config.authority.as_ref().map(|_| format!("{AUTHORITY}/ca.crt").into()),
        insecure: config.remote.insecure.clone(),
        credentials: config.secret.as_ref().map(|_| format!("{SECRET}/config.json").into()),
    }
}

fn mount(name: &str, path: &str) -> Value {
    json!({"name": name, "mountPath": path})
}

fn read_only(name: &str, path: &str) -> Value {
    json!({"name": name, "mountPath": path, "readOnly": true})
}

/// The kubelet expands `$(NAME)` in commands and variables; a handler's name must not be read that way.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// One name per Build, so that making its Job twice is making it once.
pub fn job_name(build: &Build) -> String {
    format!("build-{}", uid(build))
}

/// The Build that a Job or its Pod is for.
pub fn build_of<K: Kind>(object: &K) -> Option<Key> {
    let (namespace, name) = annotation(object, BUILD_NAME)?.split_once('/')?;
    Some(Key::new(namespace, name))
}

pub fn runtime_of(job: &Job) -> Option<Runtime> {
    label(job, RUNTIME).and_then(Runtime::parse)
}

pub fn repository_of(job: &Job) -> String {
    annotation(job, REPOSITORY).unwrap_or_default().to_owned()
}

pub fn manifest_of(job: &Job) -> Option<String> {
    annotation(job, MANIFEST).filter(|name| !name.is_empty()).map(str::to_owned)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

fn parsed<K: Kind>(value: Value) -> K {
    serde_json::from_value(value).expect("what is written here is an object of that kind")
}
