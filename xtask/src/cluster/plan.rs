//! What the test cluster consists of: its folders, its addresses, and the command line of every component.
//!
//! Owns: every path and number that two of them must agree on. Must not know: how anything is started. The surprise:
//! paths below `/var` and `/run` are those inside the cluster's own mount namespace, and lie elsewhere on the host.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

pub const NODE: &str = "node-1";
/// The container that holds a pod together, and one for tests; both are there from the start.
pub const PAUSE: &str = "dhow.test/pause:1";
pub const HELLO: &str = "dhow.test/hello:1";
/// Every cgroup of the cluster lies below this one, in every hierarchy.
pub const CGROUP: &str = "dhow-cluster";
/// The host's end of the cable that leads to the node, and the packet rules' table.
pub const CABLE: &str = "dhow-cluster";
pub const TABLE: &str = "dhow_cluster";

pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 213, 255, 1);
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 213, 255, 2);
pub const PODS: &str = "10.213.0.0/24";
pub const SERVICES: &str = "10.214.0.0/16";
/// The first address of `SERVICES` is the API server's.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 1);
pub const API_PORT: u16 = 6443;
/// Where the node pulls images from without TLS, for registries that tests start on the host.
pub const REGISTRY_PORT: u16 = 5000;

pub const RUNTIME_SOCKET: &str = "/run/containerd/containerd.sock";
/// Folders of the host that the cluster must not see or change, since its programs have their paths built in.
pub const HIDDEN: [&str; 2] = ["/var", "/run"];

/// One folder holds everything that the cluster leaves on the disk.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// From `DHOW_CLUSTER_DIR`, `XDG_CACHE_HOME` and `HOME`, in this order.
    pub fn choose(chosen: Option<&Path>, cache: Option<&Path>, home: Option<&Path>) -> Result<Self, String> {
        let dir = match (chosen, cache, home) {
            (Some(dir), ..) => dir.to_owned(),
            (_, Some(cache), _) => cache.join("dhow/cluster"),
            (.., Some(home)) => home.join(".cache/dhow/cluster"),
            _ => return Err("none of DHOW_CLUSTER_DIR, XDG_CACHE_HOME and HOME is set".into()),
        };
        if !dir.is_absolute() || HIDDEN.iter().any(|hidden| dir.starts_with(hidden)) {
            return Err(format!(
                "{} cannot hold the cluster: it must be absolute and not in /var or /run",
                dir.display()
            ));
        }
        Ok(Self { dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is built once and kept.
    pub fn built(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    pub fn go_cache(&self) -> PathBuf {
        self.dir.join("go-build")
    }

    /// What one run writes; removed when it ends.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The cluster's `/var`.
    pub fn var(&self) -> PathBuf {
        self.state().join("var")
    }

    pub fn config(&self, name: &str) -> PathBuf {
        self.state().join("config").join(name)
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.config(&format!("{user}.kubeconfig"))
    }

    /// The one that people and tests use.
    pub fn admin(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub fn certificate(&self, name: &str) -> PathBuf {
        self.config("pki").join(format!("{name}.crt"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.config("pki").join(format!("{name}.key"))
    }

    /// The cluster's `/var/log`: a file per component, and the kubelet's folders. It outlives the run.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Names of components that are not to run, as empty files.
    pub fn stopped(&self, component: &str) -> PathBuf {
        self.state().join("stopped").join(component)
    }

    /// A file per running component with its process id inside the cluster.
    pub fn running(&self, component: &str) -> PathBuf {
        self.state().join("running").join(component)
    }

    /// Held by whoever starts or ends the cluster.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Which processes are the cluster.
    pub fn record(&self) -> PathBuf {
        self.dir.join("record.json")
    }
}

/// A process of the cluster, which is started again when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    pub name: &'static str,
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// In the order in which they are started; each waits for what it needs by trying again.
pub fn components(layout: &Layout) -> Vec<Component> {
    vec![
        etcd(),
        containerd(layout),
        api_server(layout),
        kubernetes(
            layout,
            "kube-controller-manager",
            &[
                ("kubeconfig", path(&layout.kubeconfig("controllers"))),
                ("bind-address", "127.0.0.1".into()),
                ("use-service-account-credentials", "true".into()),
                ("service-account-private-key-file", path(&layout.key("accounts"))),
                ("root-ca-file", path(&layout.certificate("ca"))),
                ("cluster-signing-cert-file", path(&layout.certificate("ca"))),
                ("cluster-signing-key-file", path(&layout.key("ca"))),
                ("leader-elect", "false".into()),
            ],
        ),
        kubernetes(
            layout,
            "kube-scheduler",
            &[
                ("kubeconfig", path(&layout.kubeconfig("scheduler"))),
                ("bind-address", "127.0.0.1".into()),
                ("leader-elect", "false".into()),
            ],
        ),
        kubernetes(
            layout,
            "kubelet",
            &[
                ("config", path(&layout.config("kubelet.json"))),
                ("kubeconfig", path(&layout.kubeconfig("kubelet"))),
                ("hostname-override", NODE.into()),
                ("node-ip", NODE_ADDRESS.to_string()),
            ],
        ),
        kubernetes(layout, "kube-proxy", &[("config", path(&layout.config("proxy.json")))]),
        Component {
            name: "coredns",
            program: layout.built("cluster"),
            arguments: vec!["coredns".into(), "-conf".into(), path(&layout.config("Corefile"))],
        },
    ]
}

fn etcd() -> Component {
    let client = "http://127.0.0.1:2379";
    let flags = [
        ("data-dir", "/var/lib/etcd"),
        ("listen-client-urls", client),
        ("advertise-client-urls", client),
        ("listen-peer-urls", "http://127.0.0.1:2380"),
        ("initial-advertise-peer-urls", "http://127.0.0.1:2380"),
        ("initial-cluster", "default=http://127.0.0.1:2380"),
        ("log-level", "warn"),
    ];
    Component {
        name: "etcd",
        program: "etcd".into(),
        arguments: flags.iter().map(|(flag, value)| format!("--{flag}={value}")).collect(),
    }
}

fn containerd(layout: &Layout) -> Component {
    Component {
        name: "containerd",
        program: "containerd".into(),
        arguments: vec!["--config".into(), path(&layout.config("containerd.toml"))],
    }
}

fn api_server(layout: &Layout) -> Component {
    kubernetes(
        layout,
        "kube-apiserver",
        &[
            ("etcd-servers", "http://127.0.0.1:2379".into()),
            ("bind-address", NODE_ADDRESS.to_string()),
            ("advertise-address", NODE_ADDRESS.to_string()),
            ("secure-port", API_PORT.to_string()),
            ("service-cluster-ip-range", SERVICES.into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("allow-privileged", "true".into()),
            // What service accounts ask for, so that a test can compare it with what they may.
            ("audit-policy-file", path(&layout.config("audit.json"))),
            ("audit-log-path", path(&layout.logs().join("audit.log"))),
            ("client-ca-file", path(&layout.certificate("ca"))),
            ("tls-cert-file", path(&layout.certificate("api"))),
            ("tls-private-key-file", path(&layout.key("api"))),
            ("kubelet-certificate-authority", path(&layout.certificate("ca"))),
            ("kubelet-preferred-address-types", "InternalIP".into()),
            ("kubelet-client-certificate", path(&layout.certificate("api-to-kubelet"))),
            ("kubelet-client-key", path(&layout.key("api-to-kubelet"))),
            ("requestheader-client-ca-file", path(&layout.certificate("ca"))),
            ("requestheader-allowed-names", "front-proxy".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
            ("proxy-client-cert-file", path(&layout.certificate("front-proxy"))),
            ("proxy-client-key-file", path(&layout.key("front-proxy"))),
            ("service-account-issuer", "https://kubernetes.default.svc".into()),
            // A certificate, since of a key the server wants the public half.
            ("service-account-key-file", path(&layout.certificate("accounts"))),
            ("service-account-signing-key-file", path(&layout.key("accounts"))),
        ],
    )
}

fn kubernetes(layout: &Layout, name: &'static str, flags: &[(&str, String)]) -> Component {
    let mut arguments = vec![name.to_owned()];
    arguments.extend(flags.iter().map(|(flag, value)| format!("--{flag}={value}")));
    Component { name, program: layout.built("cluster"), arguments }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_chosen() {
        let check = |chosen: Option<&str>, cache: Option<&str>, home: Option<&str>, want: Option<&str>| {
            let [chosen, cache, home] = [chosen, cache, home].map(|path| path.map(Path::new));
            let layout = Layout::choose(chosen, cache, home);
            assert_eq!(layout.as_ref().ok().map(Layout::dir), want.map(Path::new), "{chosen:?} {cache:?} {home:?}");
        };
        check(None, None, Some("/home/a"), Some("/home/a/.cache/dhow/cluster"));
        check(None, Some("/cache"), Some("/home/a"), Some("/cache/dhow/cluster"));
        check(Some("/mine"), Some("/cache"), Some("/home/a"), Some("/mine"));
        check(None, None, None, None);
        check(Some("mine"), None, None, None);
        check(Some("/var/lib/mine"), None, None, None);
        check(Some("/run/mine"), None, None, None);
        check(Some("/runs/mine"), None, None, Some("/runs/mine"));
    }

    /// Every file of the state folder that a command line or another file names is one that is written.
    #[test]
    fn named_files_are_made() {
        let layout = Layout { dir: "/c".into() };
        let files = super::super::config::files(&layout, "nameserver 192.0.2.1\n");
        let pairs = super::super::pki::make().unwrap();
        let mut made: Vec<PathBuf> = files.iter().map(|(name, _)| layout.config(name)).collect();
        made.extend(pairs.iter().flat_map(|pair| [layout.certificate(pair.name), layout.key(pair.name)]));
        made.extend(["cni", "registries"].map(|folder| layout.config(folder)));
        let arguments = components(&layout).into_iter().flat_map(|component| component.arguments);
        let texts: Vec<String> = arguments.chain(files.into_iter().map(|(_, text)| text)).collect();
        let mut named = 0;
        for text in &texts {
            for at in text.match_indices("/c/state").map(|(at, _)| at) {
                let path = text[at..].split(['"', ' ', '\n']).next().unwrap();
                assert!(made.contains(&PathBuf::from(path)), "nobody makes {path}");
                named += 1;
            }
        }
        assert!(named > 40, "{named}");
    }

    #[test]
    fn components_are_told_apart() {
        let layout = Layout { dir: "/c".into() };
        let mut names: Vec<&str> = components(&layout).iter().map(|component| component.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 8);
    }
}
