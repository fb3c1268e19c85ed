//! The processes of an installation, and the Services before them. Pure.

use serde_json::{Value, json};

use super::settings::Settings;
use super::yaml::without_nulls;
use super::{NOBODY, labels, namespaced, selector};

const METRICS: u16 = 9090;
pub const GATEWAY: u16 = 8080;
pub const GATEWAY_INTERNAL: u16 = 8082;
pub const REPORTS: u16 = 8092;
pub const UPLOADS: u16 = 8081;
pub const PROXY: u16 = 3128;

/// One of the roles as a Deployment.
struct Workload {
    role: &'static str,
    replicas: Value,
    args: Vec<Value>,
    ports: Vec<(&'static str, u16)>,
    memory: (&'static str, &'static str),
    grace_seconds: u32,
    /// Endpoints are told before the process is, so that nobody is sent to one that has stopped.
    pre_stop_seconds: Option<u32>,
    mounts: Vec<Value>,
    volumes: Vec<Value>,
}

impl Workload {
    fn new(role: &'static str, args: Vec<Value>) -> Self {
        Self {
            role,
            replicas: json!(2),
            args,
            ports: vec![],
            memory: ("64Mi", "256Mi"),
            grace_seconds: 30,
            pre_stop_seconds: None,
            mounts: vec![],
            volumes: vec![],
        }
    }
}

pub fn manifests(settings: &Settings) -> Vec<Value> {
    let mut made = vec![
        deployment(controller(settings), settings),
        deployment(autoscaler(), settings),
        deployment(gateway(settings), settings),
        settings.registry.switch.of(deployment(builder(settings), settings)),
    ];
    let web = json!([{"name": "http", "port": 80, "targetPort": GATEWAY}]);
    let inner = json!([{"name": "http", "port": 80, "targetPort": GATEWAY_INTERNAL}]);
    let uploads = json!([
        {"name": "http", "port": 80, "targetPort": UPLOADS}, {"name": "proxy", "port": PROXY, "targetPort": PROXY},
    ]);
    made.extend([
        service("dhow-gateway", "gateway", &settings.gateway_service_type, web, settings),
        service("dhow-gateway-internal", "gateway", "ClusterIP", inner, settings),
        settings.registry.switch.of(service("dhow-builder", "builder", "ClusterIP", uploads, settings)),
    ]);
    made.extend(monitoring(settings));
    for role in ["controller", "autoscaler", "gateway"] {
        let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": selector(role)}});
        let name = format!("dhow-{role}");
        made.push(namespaced("policy/v1", "PodDisruptionBudget", &name, role, settings, json!({"spec": spec})));
    }
    made
}

fn controller(settings: &Settings) -> Workload {
    let args = vec![
        json!(format!("--domain={}", settings.domain)),
        json!(format!("--gateway-port={}", settings.gateway_port)),
        json!(format!("--exposure={}", settings.exposure)),
        settings.pull_secret.flag("pull-secret"),
    ];
    Workload::new("controller", args)
}

fn autoscaler() -> Workload {
    let args = vec![json!(format!("--listen=0.0.0.0:{REPORTS}"))];
    Workload { ports: vec![("reports", REPORTS)], ..Workload::new("autoscaler", args) }
}

fn gateway(settings: &Settings) -> Workload {
    let args = vec![
        json!(format!("--gateway-listen=0.0.0.0:{GATEWAY}")),
        json!(format!("--gateway-internal-listen=0.0.0.0:{GATEWAY_INTERNAL}")),
    ];
    Workload {
        replicas: settings.gateway_replicas.clone(),
        ports: vec![("http", GATEWAY), ("internal", GATEWAY_INTERNAL)],
        memory: ("96Mi", "512Mi"),
        grace_seconds: 45,
        pre_stop_seconds: Some(5),
        ..Workload::new("gateway", args)
    }
}

fn builder(settings: &Settings) -> Workload {
    let secret = &settings.registry_secret;
    let authority = &settings.registry_ca_configmap;
    let proxy = format!("--build-proxy-url=http://{}:{PROXY}", settings.service("dhow-builder"));
    let args = vec![
        json!(format!("--listen=0.0.0.0:{UPLOADS}")),
        json!("--work-dir=/work"),
        json!(format!("--image={}", settings.image)),
        json!(format!("--registry={}", settings.registry.text)),
        settings.registry_for_nodes.flag("registry-for-nodes"),
        settings.registry_insecure.flag("registry-insecure"),
        secret.map(|_| json!("--registry-config=/etc/dhow/registry/config.json")),
        secret.flag("registry-secret"),
        authority.map(|_| json!("--registry-ca=/etc/dhow/registry-ca/ca.crt")),
        authority.flag("registry-ca-configmap"),
        json!(format!("--base-python={}", settings.base_python)),
        json!(format!("--base-node={}", settings.base_node)),
        settings.image_pull_secret.flag("pull-secret"),
        json!(format!("--build-proxy-listen=0.0.0.0:{PROXY}")),
        json!(proxy),
        settings.build_proxy_host.flag("build-proxy-host"),
        settings.build_env.flag("build-env"),
        settings.build_egress.flag("build-egress"),
        json!(format!("--max-source={}", settings.max_source)),
    ];
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path, "readOnly": true});
    let keys = json!([{"key": ".dockerconfigjson", "path": "config.json"}]);
    Workload {
        replicas: json!(1),
        ports: vec![("uploads", UPLOADS), ("proxy", PROXY)],
        mounts: vec![
            json!({"name": "work", "mountPath": "/work"}),
            secret.map(|_| mount("registry", "/etc/dhow/registry")),
            authority.map(|_| mount("registry-ca", "/etc/dhow/registry-ca")),
        ],
        volumes: vec![
            json!({"name": "work", "emptyDir": {"sizeLimit": "2Gi"}}),
            secret.map(|name| json!({"name": "registry", "secret": {"secretName": name, "items": keys}})),
            authority.map(|name| json!({"name": "registry-ca", "configMap": {"name": name}})),
        ],
        ..Workload::new("builder", args)
    }
}

fn deployment(workload: Workload, settings: &Settings) -> Value {
    let role = workload.role;
    let mut args = vec![json!("role"), json!(role), json!(format!("--metrics-listen=0.0.0.0:{METRICS}"))];
    args.extend(workload.args);
    let field = |(name, path): (&str, &str)| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let env =
        [("POD_NAME", "metadata.name"), ("POD_IP", "status.podIP"), ("POD_NAMESPACE", "metadata.namespace")].map(field);
    let metrics = [("metrics", METRICS)];
    let ports = workload.ports.iter().chain(&metrics);
    let ports: Vec<Value> = ports.map(|(name, port)| json!({"name": name, "containerPort": port})).collect();
    let probe =
        |path: &str, period: u32| json!({"httpGet": {"path": path, "port": "metrics"}, "periodSeconds": period});
    let container = json!({
        "name": role, "image": settings.image, "imagePullPolicy": "IfNotPresent", "args": args, "env": env,
        "ports": ports, "readinessProbe": probe("/readyz", 2), "livenessProbe": probe("/healthz", 10),
        "lifecycle": workload.pre_stop_seconds.map(|seconds| json!({"preStop": {"sleep": {"seconds": seconds}}})),
        "resources": {
            "requests": {"cpu": "50m", "memory": workload.memory.0}, "limits": {"memory": workload.memory.1},
        },
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
        },
        "volumeMounts": workload.mounts,
    });
    let pod = json!({
        "serviceAccountName": format!("dhow-{role}"),
        "automountServiceAccountToken": true,
        // Kubernetes would set variables of its own that are called like ours.
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": workload.grace_seconds,
        "imagePullSecrets": settings.image_pull_secret.map(|name| json!([{"name": name}])),
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": NOBODY, "runAsGroup": NOBODY, "fsGroup": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(role)},
        }],
        "containers": [container],
        "volumes": workload.volumes,
    });
    let spec = json!({
        "replicas": workload.replicas,
        "selector": {"matchLabels": selector(role)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": labels(role)}, "spec": pod},
    });
    without_nulls(namespaced("apps/v1", "Deployment", &format!("dhow-{role}"), role, settings, json!({"spec": spec})))
}

fn service(name: &str, role: &str, kind: &str, ports: Value, settings: &Settings) -> Value {
    let spec = json!({"type": kind, "selector": selector(role), "ports": ports});
    namespaced("v1", "Service", name, role, settings, json!({"spec": spec}))
}

/// For the Prometheus operator, which finds pods by a Service.
fn monitoring(settings: &Settings) -> [Value; 2] {
    let ports = json!([{"name": "metrics", "port": METRICS, "targetPort": METRICS}]);
    let all = json!({"app.kubernetes.io/name": "dhow", "app.kubernetes.io/part-of": "dhow"});
    let spec = json!({"clusterIP": "None", "selector": all, "ports": ports});
    let service = namespaced("v1", "Service", "dhow-metrics", "metrics", settings, json!({"spec": spec}));
    let monitor = json!({"spec": {
        "selector": {"matchLabels": selector("metrics")},
        "endpoints": [{"port": "metrics", "interval": "15s"}],
    }});
    let monitor = namespaced("monitoring.coreos.com/v1", "ServiceMonitor", "dhow", "metrics", settings, monitor);
    [service, monitor].map(|part| settings.service_monitor.of(part))
}
