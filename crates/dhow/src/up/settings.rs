//! The configuration: flags, read once, and each room's part of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use runtime::{EgressPolicy, ProcessConfig, ProcessProvider};

/// The one node of a platform without a cluster.
const NODE: &str = "local";

#[derive(Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub api: SocketAddr,
    pub gateway: SocketAddr,
    pub gateway_tls: SocketAddr,
    pub gateway_internal: Option<SocketAddr>,
    pub console: SocketAddr,
    pub metrics: SocketAddr,
    pub registry: SocketAddr,
    pub domain: String,
    pub max_source: u64,
    pod_cidr: Option<String>,
    uid_base: Option<u32>,
    pub clock: api::Clock,
}

impl Settings {
    pub fn from_args(args: &cli::UpArgs) -> Result<Self> {
        let data_dir = match &args.data_dir {
            Some(dir) => std::path::absolute(dir).with_context(|| format!("--data-dir {}", dir.display()))?,
            None => cli::default_data_dir().context("no home folder: say where with --data-dir")?,
        };
        Ok(Self {
            data_dir,
            api: args.api_listen,
            gateway: args.gateway_listen,
            gateway_tls: args.gateway_tls_listen,
            gateway_internal: args.gateway_internal_listen,
            console: args.console_listen,
            metrics: args.metrics_listen,
            registry: args.registry_listen,
            domain: args.domain.clone(),
            max_source: args.max_source,
            pod_cidr: args.pod_cidr.clone(),
            uid_base: args.uid_base,
            clock: daemon::system_clock(),
        })
    }

    pub fn to_json(&self) -> String {
        let json = serde_json::json!({
            "dataDir": self.data_dir, "apiListen": self.api, "gatewayListen": self.gateway,
            "gatewayTlsListen": self.gateway_tls, "gatewayInternalListen": self.gateway_internal, "consoleListen": self.console,
            "metricsListen": self.metrics, "registryListen": self.registry, "domain": self.domain,
            "maxSource": self.max_source, "podCidr": self.pod_cidr, "uidBase": self.uid_base,
        });
        format!("{json:#}")
    }

    pub fn endpoints_file(&self) -> PathBuf {
        self.data_dir.join("endpoints.json")
    }

    /// Where images are unpacked.
    pub fn images_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    pub fn provider(&self) -> Result<ProcessConfig> {
        let pod_cidr = self.pod_cidr.as_deref().map(str::parse).transpose();
        Ok(ProcessConfig {
            executable: PathBuf::from("/proc/self/exe"),
            launcher_args: vec![crate::LAUNCHER.to_owned()],
            data_dir: self.data_dir.clone(),
            python: PathBuf::from("/usr/bin/python3"),
            pod_cidr: pod_cidr.map_err(|e: String| anyhow::anyhow!("--pod-cidr: {e}"))?,
            uid_base: self.uid_base,
            egress: EgressPolicy::default(),
            clock: self.clock.clone(),
        })
    }

    /// The pods' side listens where pods have a network, on the address they see.
    pub fn gateway(&self, host: Option<IpAddr>) -> gateway::Config {
        gateway::Config {
            public: self.gateway,
            secure: Some(self.gateway_tls),
            secure_port: None,
            internal: self.gateway_internal.or_else(|| host.map(|ip| SocketAddr::new(ip, 0))),
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()).min(16),
            limits: gateway::Limits::default(),
            grace: super::GATEWAY_GRACE,
            name: String::new(),
            cluster: None,
        }
    }

    pub fn node(
        &self,
        registry_host: &str,
        registry: registry::Registry,
        provider: Arc<ProcessProvider>,
        started: api::wire::StartReport,
        traffic: Arc<dyn api::wire::Traffic>,
    ) -> node::Config {
        node::Config {
            node_name: NODE.to_owned(),
            host_ip: provider.host_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            providers: vec![provider],
            registry,
            registry_host: registry_host.to_owned(),
            cache_dir: self.images_dir(),
            machine: node::Machine::read(),
            default_limits: node::Config::default_limits(),
            traffic,
            stop_grace: node::Config::STOP_GRACE,
            started,
            clock: self.clock.clone(),
        }
    }

    pub fn control(&self, gateway: gateway::Addresses, tags: Arc<dyn control::Tags>) -> control::Config {
        control::Config {
            domain: self.domain.clone(),
            gateway_port: gateway.public.port(),
            gateway_tls_port: gateway.secure.map_or(self.gateway_tls, |bound| bound).port(),
            namespace: api::names::SYSTEM_NAMESPACE.to_owned(),
            node_name: NODE.to_owned(),
            cluster: None,
            tags: Some(tags),
            clock: self.clock.clone(),
        }
    }

    pub fn build(&self, registry_host: &str, host: Option<IpAddr>) -> build::Config {
        build::Config {
            work_dir: self.data_dir.join("work"),
            registry_host: registry_host.to_owned(),
            proxy_listen: SocketAddr::new(host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0),
            allowed_hosts: build::Config::package_hosts(),
            max_source_bytes: self.max_source,
            timeout: build::Config::TIMEOUT,
            concurrency: build::Config::CONCURRENCY,
            clock: self.clock.clone(),
        }
    }
}

/// The gateway does not know which flag its address came from.
pub fn with_flag(error: gateway::GatewayError, settings: &Settings) -> anyhow::Error {
    match error {
        gateway::GatewayError::Bind { address, .. } => {
            let flag = match address {
                public if public == settings.gateway => "--gateway-listen",
                secure if secure == settings.gateway_tls => "--gateway-tls-listen",
                _ => "--gateway-internal-listen",
            };
            anyhow::anyhow!("{error}; choose another with {flag}")
        }
        other => other.into(),
    }
}
