//! What a Revision's pod may and may not say, in Knative's words. What Knative leaves to flags and people keep asking for is
//! allowed: init containers, probes of every container, placement, security contexts.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec, Probe, SecurityContext, Volume};

use super::rules::Complaint;
use crate::rules;

const RESERVED_PORTS: [i32; 6] = [8012, 8013, 8022, 9090, 9091, 8008];
const RESERVED_PATHS: [&str; 3] = ["/", "/dev", "/dev/log"];
const RESERVED_NAME: &str = "queue-proxy";
const PORT_NAMES: [&str; 3] = ["", "http1", "h2c"];
const MOST_USERS: i64 = i32::MAX as i64;
/// What a container may be given beside what it has anyway.
const CAPABILITY: &str = "NET_BIND_SERVICE";

pub fn rules(path: &str, spec: &PodSpec) -> Vec<Complaint> {
    let mut all = forbidden(path, &not_of_pods(spec));
    all.extend(volumes(path, spec));
    let kinds: HashMap<&str, &Volume> = spec.volumes.iter().flatten().map(|v| (v.name.as_str(), v)).collect();
    let mut names = HashSet::new();
    for (i, container) in spec.containers.iter().enumerate() {
        let path = format!("{path}.containers[{i}]");
        let serves = spec.containers.len() == 1 || container.ports.as_ref().is_some_and(|ports| !ports.is_empty());
        all.extend(self::container(&path, container, serves, &kinds));
        all.extend(name(&path, container, &mut names));
    }
    for (i, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("{path}.initContainers[{i}]");
        all.extend(self::container(&path, container, false, &kinds));
        all.extend(name(&path, container, &mut names));
        let probes = probes(container).into_iter().filter(|(_, probe)| probe.is_some());
        all.extend(
            probes
                .map(|(field, _)| Complaint::new(format!("{path}.{field}"), "field not allowed in an init container")),
        );
    }
    let ports = spec.containers.iter().map(|c| c.ports.as_ref().map_or(0, Vec::len)).sum::<usize>();
    match (spec.containers.len(), ports) {
        (0, _) => all.push(Complaint::missing(format!("{path}.containers"))),
        (2.., 0) => all.push(Complaint::missing(format!("{path}.containers[*].ports"))),
        (_, 2..) => {
            let complaint =
                Complaint::new(format!("{path}.containers[*].ports"), "more than one container port is set");
            all.push(complaint.because("Only a single port is allowed across all containers"));
        }
        _ => {}
    }
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty() && !subdomain(name));
    all.extend(account.map(|name| Complaint::invalid(format!("{path}.serviceAccountName"), name).because(SUBDOMAIN)));
    all
}

fn forbidden(path: &str, fields: &[(&str, bool)]) -> Vec<Complaint> {
    let set = fields.iter().filter(|(_, set)| *set);
    set.map(|(field, _)| Complaint::forbidden(format!("{path}.{field}"))).collect()
}

fn not_of_pods(spec: &PodSpec) -> [(&'static str, bool); 12] {
    [
        ("activeDeadlineSeconds", spec.active_deadline_seconds.is_some()),
        ("ephemeralContainers", spec.ephemeral_containers.is_some()),
        ("hostname", spec.hostname.is_some()),
        ("nodeName", spec.node_name.is_some()),
        ("overhead", spec.overhead.is_some()),
        ("preemptionPolicy", spec.preemption_policy.is_some()),
        ("priority", spec.priority.is_some()),
        ("readinessGates", spec.readiness_gates.is_some()),
        ("restartPolicy", spec.restart_policy.is_some()),
        ("setHostnameAsFQDN", spec.set_hostname_as_fqdn.is_some()),
        ("subdomain", spec.subdomain.is_some()),
        ("terminationGracePeriodSeconds", spec.termination_grace_period_seconds.is_some()),
    ]
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
    start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn subdomain(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| {
        let ends = label.bytes().next().zip(label.bytes().next_back());
        ends.is_some_and(|(first, last)| alphanumeric(first) && alphanumeric(last))
            && label.bytes().all(|b| alphanumeric(b) || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn name<'a>(path: &str, container: &'a Container, names: &mut HashSet<&'a str>) -> Option<Complaint> {
    let name = container.name.as_str();
    let text = if name == RESERVED_NAME {
        format!("{name:?} is a reserved container name")
    } else if !name.is_empty() && !names.insert(name) {
        format!("duplicate container name {name:?}")
    } else {
        return None;
    };
    Some(Complaint::new(format!("{path}.name"), text))
}

fn probes(container: &Container) -> [(&'static str, Option<&Probe>); 3] {
    [
        ("livenessProbe", container.liveness_probe.as_ref()),
        ("readinessProbe", container.readiness_probe.as_ref()),
        ("startupProbe", container.startup_probe.as_ref()),
    ]
}

fn container(path: &str, container: &Container, serves: bool, kinds: &HashMap<&str, &Volume>) -> Vec<Complaint> {
    let at = |field: &str| format!("{path}.{field}");
    let mut all = forbidden(
        path,
        &[
            ("lifecycle", container.lifecycle.is_some()),
            ("resizePolicy", container.resize_policy.is_some()),
            ("restartPolicy", container.restart_policy.is_some()),
            ("stdin", container.stdin == Some(true)),
            ("stdinOnce", container.stdin_once == Some(true)),
            ("tty", container.tty == Some(true)),
            ("volumeDevices", container.volume_devices.is_some()),
        ],
    );
    if container.image.as_deref().unwrap_or_default().is_empty() {
        all.push(Complaint::missing(at("image")));
    }
    // Beside the one that serves, a container has no port of the platform's.
    let env = container.env.iter().flatten().filter(|variable| serves || variable.name != "PORT");
    let env: Vec<_> = env.cloned().collect();
    all.extend(rules::env(&at("env"), &env).into_iter().map(|(path, message)| Complaint::new(path, message)));
    let resources = container.resources.iter().flat_map(|resources| rules::resources(&at("resources"), resources));
    all.extend(resources.map(|(path, message)| Complaint::new(path, message)));
    for (i, given) in container.ports.iter().flatten().enumerate() {
        all.extend(port(&at(&format!("ports[{i}]")), given));
    }
    all.extend(probes(container).into_iter().filter_map(|(field, given)| probe(&at(field), given?)));
    all.extend(container.security_context.iter().flat_map(|given| security(&at("securityContext"), given)));
    let policy = container.termination_message_policy.as_deref().unwrap_or_default();
    if !["", "File", "FallbackToLogsOnError"].contains(&policy) {
        all.push(Complaint::invalid(at("terminationMessagePolicy"), policy));
    }
    all.extend(mounts(&at("volumeMounts"), container, kinds));
    all
}

fn port(path: &str, port: &ContainerPort) -> Vec<Complaint> {
    let number = port.container_port;
    let mut all = forbidden(path, &[("hostIP", port.host_ip.is_some()), ("hostPort", port.host_port.is_some())]);
    if RESERVED_PORTS.contains(&number) {
        let complaint = Complaint::invalid(format!("{path}.containerPort"), format!("{number} is a reserved port"));
        all.push(complaint.because(format!("{number} is a reserved port, please use a different value")));
    }
    if !(0..=65535).contains(&number) {
        all.push(Complaint::bounds(format!("{path}.containerPort"), number, (0, 65535)));
    }
    if let Some(protocol) = port.protocol.as_deref().filter(|protocol| !["", "TCP"].contains(protocol)) {
        all.push(Complaint::invalid(format!("{path}.protocol"), protocol));
    }
    let name = port.name.as_deref().unwrap_or_default();
    if !PORT_NAMES.contains(&name) {
        let complaint = Complaint::new(path, format!("Port name {name} is not allowed"));
        all.push(complaint.because("Name must be empty, or one of: 'h2c', 'http1'"));
    }
    all
}

fn probe(path: &str, probe: &Probe) -> Option<Complaint> {
    let kinds = [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.exec.is_some(), probe.grpc.is_some()];
    let fields = ["httpGet", "tcpSocket", "exec", "grpc"].map(|field| format!("{path}.{field}")).join(", ");
    match kinds.into_iter().filter(|set| *set).count() {
        0 => Some(Complaint::new(fields, "expected exactly one, got neither")),
        1 => None,
        _ => Some(Complaint::new(fields, "expected exactly one, got both")),
    }
}

fn security(path: &str, context: &SecurityContext) -> Vec<Complaint> {
    let mut all = forbidden(
        path,
        &[
            ("privileged", context.privileged == Some(true)),
            ("procMount", context.proc_mount.is_some()),
            ("seLinuxOptions", context.se_linux_options.is_some()),
            ("windowsOptions", context.windows_options.is_some()),
            ("capabilities.add", {
                let added = context.capabilities.as_ref().and_then(|c| c.add.as_ref());
                added.is_some_and(|added| added.iter().any(|name| name != CAPABILITY))
            }),
        ],
    );
    for (field, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        let outside = id.filter(|id| !(0..=MOST_USERS).contains(id));
        all.extend(outside.map(|id| Complaint::bounds(format!("{path}.{field}"), id, (0, MOST_USERS))));
    }
    all
}

fn volumes(path: &str, spec: &PodSpec) -> Vec<Complaint> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mounted: HashSet<&str> =
        containers.flat_map(|c| c.volume_mounts.iter().flatten()).map(|mount| mount.name.as_str()).collect();
    let mut seen = HashSet::new();
    let mut all = vec![];
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let at = || format!("{path}.volumes[{i}].name");
        let name = volume.name.as_str();
        if name.is_empty() {
            all.push(Complaint::missing(at()));
        } else if !seen.insert(name) {
            all.push(Complaint::new(at(), format!("duplicate volume name {name:?}")));
        } else if !mounted.contains(name) {
            all.push(Complaint::new(at(), format!("volume with name {name:?} not mounted")));
        }
    }
    all
}

fn mounts(path: &str, container: &Container, kinds: &HashMap<&str, &Volume>) -> Vec<Complaint> {
    let mut seen = HashSet::new();
    let mut all = vec![];
    for (i, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let at = |field: &str| format!("{path}[{i}].{field}");
        if !kinds.contains_key(mount.name.as_str()) {
            all.push(Complaint::new(at("name"), "volumeMount has no matching volume"));
        }
        let inside = mount.mount_path.trim_end_matches('/');
        let inside = if inside.is_empty() && mount.mount_path.starts_with('/') { "/" } else { inside };
        if inside.is_empty() {
            all.push(Complaint::missing(at("mountPath")));
        } else if RESERVED_PATHS.contains(&inside) {
            all.push(Complaint::new(at("mountPath"), format!("mountPath {inside:?} is a reserved path")));
        } else if !inside.starts_with('/') {
            all.push(Complaint::invalid(at("mountPath"), inside));
        } else if !seen.insert(inside) {
            all.push(Complaint::invalid(at("mountPath"), format!("{inside:?} must be unique")));
        }
        let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
        if !["None", "HostToContainer"].contains(&propagation) {
            let text = "mount propagation should be set to None or HostToContainer";
            all.push(Complaint::new(at("mountPropagation"), text));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(change: impl FnOnce(&mut Value)) -> String {
        let mut spec = json!({"containers": [{"name": "c", "image": "r/x"}]});
        change(&mut spec);
        let spec = serde_json::from_value(spec).unwrap();
        rules("spec", &spec).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn pods() {
        let set = |field: &'static str, value: Value| run(|s| s[field] = value);
        assert_eq!(run(|_| ()), "");
        assert_eq!(set("nodeName", json!("n")), "must not set the field(s): spec.nodeName");
        assert_eq!(set("containers", json!([])), "missing field(s): spec.containers");
        assert_eq!(
            set("serviceAccountName", json!("foo@bar.baz")),
            format!("invalid value: foo@bar.baz: spec.serviceAccountName\n{SUBDOMAIN}")
        );
        let allowed = json!({"kubernetes.io/os": "linux"});
        assert_eq!(set("nodeSelector", allowed), "");
        let init = json!([{"name": "c", "image": "r/x", "readinessProbe": {"exec": {"command": ["a"]}}}]);
        assert_eq!(
            set("initContainers", init),
            "duplicate container name \"c\": spec.initContainers[0].name; \
             field not allowed in an init container: spec.initContainers[0].readinessProbe"
        );
    }

    #[test]
    fn containers() {
        for (field, value, want) in [
            ("image", json!(""), "missing field(s): spec.containers[0].image"),
            ("name", json!("queue-proxy"), "\"queue-proxy\" is a reserved container name: spec.containers[0].name"),
            ("tty", json!(true), "must not set the field(s): spec.containers[0].tty"),
            ("lifecycle", json!({}), "must not set the field(s): spec.containers[0].lifecycle"),
            ("env", json!([{"name": "PORT"}]), "\"PORT\" is a reserved environment variable: spec.containers[0].env"),
            (
                "ports",
                json!([{"containerPort": 80, "hostPort": 80}]),
                "must not set the field(s): spec.containers[0].ports[0].hostPort",
            ),
            (
                "ports",
                json!([{"containerPort": 80, "name": "arbitrary"}]),
                "Port name arbitrary is not allowed: spec.containers[0].ports[0]\nName must be empty, or one of: 'h2c', 'http1'",
            ),
            (
                "ports",
                json!([{"containerPort": 80}, {"containerPort": 81}]),
                "more than one container port is set: spec.containers[*].ports\nOnly a single port is allowed across all containers",
            ),
            (
                "securityContext",
                json!({"runAsUser": -10, "privileged": false}),
                "expected 0 <= -10 <= 2147483647: spec.containers[0].securityContext.runAsUser",
            ),
            (
                "securityContext",
                json!({"privileged": true}),
                "must not set the field(s): spec.containers[0].securityContext.privileged",
            ),
            (
                "livenessProbe",
                json!({"httpGet": {"port": 80}, "tcpSocket": {"port": 80}}),
                "expected exactly one, got both: spec.containers[0].livenessProbe.httpGet, \
                 spec.containers[0].livenessProbe.tcpSocket, spec.containers[0].livenessProbe.exec, \
                 spec.containers[0].livenessProbe.grpc",
            ),
        ] {
            assert_eq!(run(|s| s["containers"][0][field] = value.clone()), want, "{field} {value}");
        }
        let reserved = run(|s| s["containers"][0]["ports"] = json!([{"containerPort": 8012}]));
        assert!(
            reserved.starts_with("invalid value: 8012 is a reserved port: spec.containers[0].ports[0].containerPort")
        );
    }

    #[test]
    fn several_containers() {
        let two = |first: Value, second: Value| run(|s| s["containers"] = json!([first, second]));
        let plain = |name: &str| json!({"name": name, "image": "r/x"});
        let serving = json!({"name": "a", "image": "r/x", "ports": [{"containerPort": 80}]});
        assert_eq!(two(serving.clone(), plain("b")), "");
        assert_eq!(two(plain("a"), plain("b")), "missing field(s): spec.containers[*].ports");
        let beside = json!({"name": "b", "image": "r/x", "env": [{"name": "PORT", "value": "9"}]});
        assert_eq!(two(serving, beside), "");
    }

    #[test]
    fn volumes_and_mounts() {
        let with = |volumes: Value, mounts: Value| {
            run(|s| {
                s["volumes"] = volumes;
                s["containers"][0]["volumeMounts"] = mounts;
            })
        };
        let volume = json!([{"name": "v", "emptyDir": {}}]);
        let at = |path: &str| json!([{"name": "v", "mountPath": path}]);
        assert_eq!(with(volume.clone(), at("/v")), "");
        assert_eq!(with(volume.clone(), json!([])), "volume with name \"v\" not mounted: spec.volumes[0].name");
        assert_eq!(
            with(json!([]), at("/v")),
            "volumeMount has no matching volume: spec.containers[0].volumeMounts[0].name"
        );
        for (path, want) in [
            ("/", "mountPath \"/\" is a reserved path"),
            ("/dev/", "mountPath \"/dev\" is a reserved"),
            ("v", "invalid value: v"),
        ] {
            assert!(with(volume.clone(), at(path)).starts_with(want), "{path}");
        }
        let twice = json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v/"}]);
        assert!(with(volume.clone(), twice).starts_with("invalid value: \"/v\" must be unique"));
        let both = json!([{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]);
        assert!(with(volume, both).starts_with("mount propagation should be set to None or HostToContainer"));
    }
}
