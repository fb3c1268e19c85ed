//! The texts of the configuration files, each a function of the layout.

use serde_json::{Value, json};

use super::plan::{
    API_PORT, CGROUP, HOST_ADDRESS, Layout, NODE, NODE_ADDRESS, PAUSE, PODS, REGISTRY_PORT, RUNTIME_SOCKET, TABLE,
};

/// Every file, by its name in the configuration folder.
pub fn files(layout: &Layout, resolvers: &str) -> Vec<(String, String)> {
    let registry = format!("{HOST_ADDRESS}:{REGISTRY_PORT}");
    let mut files = vec![
        ("containerd.toml".into(), containerd(layout)),
        (format!("registries/{registry}/hosts.toml"), plain_registry(&registry)),
        ("cni/10-pods.conflist".into(), pod_network().to_string()),
        ("kubelet.json".into(), kubelet(layout).to_string()),
        ("proxy.json".into(), proxy(layout).to_string()),
        ("audit.json".into(), audit().to_string()),
        ("Corefile".into(), corefile(layout, !resolvers.is_empty())),
        ("resolv.conf".into(), resolvers.to_owned()),
        ("objects.json".into(), objects().to_string()),
    ];
    for user in super::pki::CLIENTS.iter().filter(|client| client.kubeconfig) {
        files.push((format!("{}.kubeconfig", user.name), kubeconfig(layout, user.name).to_string()));
    }
    files
}

/// Scores below one's own are refused to a container's children on some machines, so none are asked for.
fn containerd(layout: &Layout) -> String {
    let (networks, registries) = (layout.config("cni"), layout.config("registries"));
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{RUNTIME_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{registries}"
"#,
        networks = networks.display(),
        registries = registries.display(),
    )
}

/// A registry that speaks HTTP; to all others containerd speaks HTTPS.
fn plain_registry(registry: &str) -> String {
    format!("server = \"http://{registry}\"\n[host.\"http://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
}

fn audit() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
    })
}

/// Pods hang on a bridge whose packets pass the service rules; the host hides them from the world.
fn pod_network() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [
            {"type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// The disk is the machine's own business: a full one must not taint the only node.
fn kubelet(layout: &Layout) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{CGROUP}"),
        "containerRuntimeEndpoint": format!("unix://{RUNTIME_SOCKET}"),
        "address": NODE_ADDRESS, "healthzBindAddress": "127.0.0.1", "readOnlyPort": 0,
        "tlsCertFile": layout.certificate("kubelet"), "tlsPrivateKeyFile": layout.key("kubelet"),
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout.certificate("ca")}},
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [NODE_ADDRESS], "resolvConf": layout.config("resolv.conf"), "clusterDomain": "cluster.local",
        "oomScoreAdj": 0, "failSwapOn": false, "makeIPTablesUtilChains": false,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
        // Else a loaded image could no longer be used once a registry has served the same one under another name.
        "imagePullCredentialsVerificationPolicy": "NeverVerify",
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": false, "registryPullQPS": 0,
        "kubeAPIQPS": 200, "kubeAPIBurst": 400, "eventRecordQPS": 0, "maxPods": 220,
    })
}

/// Connection tracking's limits belong to the host and cannot be set from a namespace.
fn proxy(layout: &Layout) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables", "clusterCIDR": PODS, "hostnameOverride": NODE, "oomScoreAdj": 0,
        "clientConnection": {"kubeconfig": layout.kubeconfig("proxy")},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

/// The server is a process of the node, so it needs neither an image nor a Service to be found.
fn corefile(layout: &Layout, forward: bool) -> String {
    let kubeconfig = layout.kubeconfig("dns");
    let outside =
        if forward { format!("    forward . {}\n", layout.config("resolv.conf").display()) } else { String::new() };
    format!(
        ".:53 {{
    bind {NODE_ADDRESS}
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}
    cache 5
{outside}}}
",
        kubeconfig = kubeconfig.display(),
    )
}

/// The lines of the host's `resolv.conf` that hold on the node too: a name server of the host itself does not.
pub fn resolvers(resolv_conf: &str) -> String {
    let servers = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = servers.filter_map(|server| server.trim().parse::<std::net::Ipv4Addr>().ok());
    addresses.filter(|address| !address.is_loopback()).map(|address| format!("nameserver {address}\n")).collect()
}

/// What two of the clients may do beside what the API server grants by itself.
fn objects() -> Value {
    let group = "rbac.authorization.k8s.io";
    let version = format!("{group}/v1");
    let bind = |name: &str, role: &str, user: &str| {
        json!({
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        })
    };
    let read = ["list", "watch"];
    let dns = json!({
        "apiVersion": version, "kind": "ClusterRole", "metadata": {"name": "test-cluster:dns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": read},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
        ],
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [
        dns,
        bind("test-cluster:dns", "test-cluster:dns", "dns"),
        bind("test-cluster:api-to-kubelet", "system:kubelet-api-admin", "api-to-kubelet"),
    ]})
}

pub fn kubeconfig(layout: &Layout, user: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "dhow-cluster",
        "clusters": [{"name": "dhow-cluster", "cluster": {
            "server": format!("https://{NODE_ADDRESS}:{API_PORT}"),
            "certificate-authority": layout.certificate("ca")}}],
        "users": [{"name": user, "user": {
            "client-certificate": layout.certificate(user), "client-key": layout.key(user)}}],
        "contexts": [{"name": "dhow-cluster", "context": {"cluster": "dhow-cluster", "user": user}}],
    })
}

/// Pods reach what the host reaches, as if they were the host.
pub fn packet_rules() -> String {
    format!(
        "table ip {TABLE} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        ip saddr {{ {PODS}, {NODE_ADDRESS} }} oifname != \"{cable}\" masquerade
    }}
}}
",
        cable = super::plan::CABLE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_the_host_are_left_out() {
        let check = |given: &str, want: &str| assert_eq!(resolvers(given), want, "{given}");
        check("nameserver 192.0.2.53\n", "nameserver 192.0.2.53\n");
        check("search a\n nameserver\t192.0.2.53 \nnameserver 127.0.0.53\n", "nameserver 192.0.2.53\n");
        check("# nameserver 192.0.2.53\nnameserver ::1\n", "");
        check("", "");
    }

    #[test]
    fn names_outside_are_asked_for_only_where_they_can_be() {
        let layout = Layout::choose(Some(std::path::Path::new("/c")), None, None).unwrap();
        let check = |resolvers: &str, want: bool| {
            let files = files(&layout, resolvers);
            let (_, text) = files.iter().find(|(name, _)| name == "Corefile").unwrap();
            assert_eq!(text.contains("forward"), want, "{resolvers}");
        };
        check("nameserver 192.0.2.53\n", true);
        check("", false);
    }
}
