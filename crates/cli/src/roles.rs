//! The flags of the roles that the one program has on a cluster; the composition root runs them.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::size;

#[derive(Clone, Debug, Args)]
pub struct RoleArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(subcommand)]
    pub role: Role,
}

#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// Metrics and health
    #[arg(long, env = "DHOW_METRICS_LISTEN", global = true, default_value = "127.0.0.1:9090", value_name = "ADDRESS")]
    pub metrics_listen: SocketAddr,
    /// This copy among the others of its role
    #[arg(long, env = "POD_NAME", global = true, default_value = "local", value_name = "NAME")]
    pub pod_name: String,
    /// Where other roles reach this copy
    #[arg(long, env = "POD_IP", global = true, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub pod_ip: std::net::IpAddr,
    /// The namespace of this copy, which is Dhow's own
    #[arg(long, env = "POD_NAMESPACE", global = true, default_value = "dhow-system", value_name = "NAME")]
    pub pod_namespace: String,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// Everything from a Function to a Deployment and a route to it; one copy works, the others wait
    Controller(ControllerArgs),
    /// How many instances there are; one copy works, the others wait
    Autoscaler(AutoscalerArgs),
    /// The request path; every copy works
    Gateway(GatewayArgs),
    /// From uploaded sources to images in a registry; every copy takes uploads, one builds
    Builder(Box<BuilderArgs>),
}

#[derive(Clone, Debug, Args)]
pub struct ControllerArgs {
    /// The domain of public hosts: {name}.{namespace}.{domain}
    #[arg(long, env = "DHOW_DOMAIN", default_value = "example.com", value_name = "DOMAIN")]
    pub domain: String,
    // Not DHOW_GATEWAY_PORT: Kubernetes sets that to the address of a Service called dhow-gateway.
    /// The port at which people reach the gateway
    #[arg(long, env = "DHOW_PUBLIC_PORT", default_value_t = 80, value_name = "PORT")]
    pub gateway_port: u16,
    /// How the outside world reaches the gateway: none, ingress, ingress=CLASS, httproute=NAMESPACE/NAME[/LISTENER] or
    /// istio=GATEWAY[,GATEWAY]
    #[arg(long, env = "DHOW_EXPOSURE", default_value = "none", value_name = "HOW")]
    pub exposure: String,
    /// A Secret, in each namespace of functions, by which nodes pull their images
    #[arg(long, env = "DHOW_PULL_SECRET", value_delimiter = ',', value_name = "NAME")]
    pub pull_secret: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct AutoscalerArgs {
    /// Where gateways report what they see
    #[arg(long, env = "DHOW_AUTOSCALER_LISTEN", default_value = "127.0.0.1:8092", value_name = "ADDRESS")]
    pub listen: SocketAddr,
}

#[derive(Clone, Debug, Args)]
pub struct GatewayArgs {
    /// Where functions are called
    #[arg(long, env = "DHOW_GATEWAY_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub gateway_listen: SocketAddr,
    /// The same over TLS, for hosts that have a certificate; it takes the right to list and watch Secrets
    #[arg(long, env = "DHOW_GATEWAY_TLS_LISTEN", value_name = "ADDRESS")]
    pub gateway_tls_listen: Option<SocketAddr>,
    /// Where functions call functions
    #[arg(long, env = "DHOW_GATEWAY_INTERNAL_LISTEN", value_name = "ADDRESS")]
    pub gateway_internal_listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, Args)]
pub struct BuilderArgs {
    /// Where sources are uploaded
    #[arg(long, env = "DHOW_BUILDER_LISTEN", default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// A folder of its own for sources that are looked at
    #[arg(long, env = "DHOW_WORK_DIR", default_value = "/work", value_name = "FOLDER")]
    pub work_dir: PathBuf,
    /// Where sources and images are kept
    #[arg(long, env = "DHOW_REGISTRY", value_name = "HOST[:PORT][/PATH]")]
    pub registry: String,
    /// What nodes call that registry, where it is something else
    #[arg(long, env = "DHOW_REGISTRY_FOR_NODES", value_name = "HOST[:PORT][/PATH]")]
    pub registry_for_nodes: Option<String>,
    /// A registry that is spoken to without TLS
    #[arg(long, env = "DHOW_REGISTRY_INSECURE", value_delimiter = ',', value_name = "HOST[:PORT]")]
    pub registry_insecure: Vec<String>,
    /// The registry's credentials, a docker config.json
    #[arg(long, env = "DHOW_REGISTRY_CONFIG", value_name = "FILE")]
    pub registry_config: Option<PathBuf>,
    /// The Secret that holds the same, for the pods of builds
    #[arg(long, env = "DHOW_REGISTRY_SECRET", value_name = "NAME")]
    pub registry_secret: Option<String>,
    /// The registry's authority, in PEM
    #[arg(long, env = "DHOW_REGISTRY_CA", value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
    /// The ConfigMap and its key that hold the same, for the pods of builds
    #[arg(long, env = "DHOW_REGISTRY_CA_CONFIGMAP", value_name = "NAME[/KEY]")]
    pub registry_ca_configmap: Option<String>,
    /// Dhow's own image, for the steps before and after a build
    #[arg(long, env = "DHOW_IMAGE", value_name = "IMAGE")]
    pub image: String,
    /// What Python functions are built on
    #[arg(long, env = "DHOW_BASE_PYTHON", default_value = BASE_PYTHON, value_name = "IMAGE")]
    pub base_python: String,
    /// What Node functions are built on
    #[arg(long, env = "DHOW_BASE_NODE", default_value = BASE_NODE, value_name = "IMAGE")]
    pub base_node: String,
    /// A Secret by which nodes pull those images
    #[arg(long, env = "DHOW_PULL_SECRET", value_delimiter = ',', value_name = "NAME")]
    pub pull_secret: Vec<String>,
    /// The proxy through which builds reach the package indexes; it needs --build-proxy-url
    #[arg(long, env = "DHOW_BUILD_PROXY_LISTEN", requires = "build_proxy_url", value_name = "ADDRESS")]
    pub build_proxy_listen: Option<SocketAddr>,
    /// How the pods of builds reach that proxy
    #[arg(long, env = "DHOW_BUILD_PROXY_URL", requires = "build_proxy_listen", value_name = "URL")]
    pub build_proxy_url: Option<String>,
    /// A host that builds may reach through it [default: those of PyPI and npm]
    #[arg(long, env = "DHOW_BUILD_PROXY_HOST", value_delimiter = ',', value_name = "HOST")]
    pub build_proxy_host: Vec<String>,
    /// A variable of every build; authors can read it
    #[arg(long, env = "DHOW_BUILD_ENV", value_delimiter = ',', value_name = "NAME=VALUE")]
    pub build_env: Vec<String>,
    /// Where the pods of builds may connect to [default: port 443 of public addresses]
    #[arg(long, env = "DHOW_BUILD_EGRESS", value_delimiter = ',', value_name = "CIDR[:PORT]")]
    pub build_egress: Vec<String>,
    /// The largest source that may be uploaded
    #[arg(long, env = "DHOW_MAX_SOURCE", default_value = "256MiB", value_parser = size::parse, value_name = "SIZE")]
    pub max_source: u64,
}

/// Debian's interpreters on nothing else, as their own projects publish them.
pub const BASE_PYTHON: &str = "docker.io/library/python:3.13-slim";
pub const BASE_NODE: &str = "docker.io/library/node:22-slim";

#[derive(Clone, Debug, Args)]
pub struct BuildStepArgs {
    pub step: BuildStep,
    /// JSON
    pub order: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum BuildStep {
    Fetch,
    Push,
}
