//! The flags of the roles that the one program has on a cluster; the composition root runs them.

use std::net::SocketAddr;

use clap::{Args, Subcommand};

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
    /// The namespace of Dhow itself
    #[arg(long, env = "POD_NAMESPACE", global = true, default_value = "dhow-system", value_name = "NAME")]
    pub system_namespace: String,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// Everything from a Function to a Deployment and a route to it; one copy works, the others wait
    Controller(ControllerArgs),
    /// How many instances there are; one copy works, the others wait
    Autoscaler(AutoscalerArgs),
    /// The request path; every copy works
    Gateway(GatewayArgs),
}

#[derive(Clone, Debug, Args)]
pub struct ControllerArgs {
    /// The domain of public hosts: {name}.{namespace}.{domain}
    #[arg(long, env = "DHOW_DOMAIN", default_value = "example.com", value_name = "DOMAIN")]
    pub domain: String,
    /// The port at which people reach the gateway
    #[arg(long, env = "DHOW_GATEWAY_PORT", default_value_t = 80, value_name = "PORT")]
    pub gateway_port: u16,
    /// How the outside world reaches the gateway: none, ingress, ingress=CLASS, httproute=NAMESPACE/NAME[/LISTENER] or
    /// istio=GATEWAY[,GATEWAY]
    #[arg(long, env = "DHOW_EXPOSURE", default_value = "none", value_name = "HOW")]
    pub exposure: String,
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
    /// Where functions call functions
    #[arg(long, env = "DHOW_GATEWAY_INTERNAL_LISTEN", value_name = "ADDRESS")]
    pub gateway_internal_listen: Option<SocketAddr>,
}
