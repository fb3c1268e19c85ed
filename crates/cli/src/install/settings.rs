//! What an installation can be told: by flags, or by the values of the Helm chart. Pure.
//!
//! The surprise: for the chart every text is an expression of Helm's, and a [`Switch`] a condition that Helm decides.

use clap::Args;
use serde_json::{Value, json};

use crate::roles::{BASE_NODE, BASE_PYTHON};
use crate::size;

#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// Dhow's own image
    #[arg(long, env = "DHOW_IMAGE", default_value = concat!("dhow.dev/dhow:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// A Secret in Dhow's namespace by which nodes pull that image and the base images
    #[arg(long, value_name = "NAME")]
    pub image_pull_secret: Option<String>,
    /// The domain of public hosts: {name}.{namespace}.{domain}
    #[arg(long, default_value = "example.com", value_name = "DOMAIN")]
    pub domain: String,
    /// The port at which people reach the gateway
    #[arg(long, default_value_t = 80, value_name = "PORT")]
    pub gateway_port: u16,
    /// How the outside world reaches the gateway: none, ingress, ingress=CLASS, httproute=NAMESPACE/NAME[/LISTENER] or
    /// istio=GATEWAY[,GATEWAY]
    #[arg(long, default_value = "none", value_name = "HOW")]
    pub exposure: String,
    /// The type of the gateway's Service
    #[arg(long, default_value = "LoadBalancer", value_parser = ["LoadBalancer", "NodePort", "ClusterIP"], value_name = "TYPE")]
    pub gateway_service_type: String,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..), value_name = "COUNT")]
    pub gateway_replicas: u16,
    /// Where people reach the gateway, as http://HOST:PORT; through the Kubernetes API when absent
    #[arg(long, value_name = "URL")]
    pub gateway_address: Option<String>,
    /// Where people upload sources, as http://HOST:PORT; through the Kubernetes API when absent
    #[arg(long, value_name = "URL")]
    pub platform_address: Option<String>,
    /// Where sources and images of functions are kept; without one there are containers, and no functions from source
    #[arg(long, env = "DHOW_REGISTRY", value_name = "HOST[:PORT][/PATH]")]
    pub registry: Option<String>,
    /// What nodes call that registry, where it is something else
    #[arg(long, requires = "registry", value_name = "HOST[:PORT][/PATH]")]
    pub registry_for_nodes: Option<String>,
    /// A registry that is spoken to without TLS
    #[arg(long, value_delimiter = ',', value_name = "HOST[:PORT]")]
    pub registry_insecure: Vec<String>,
    /// A Secret of type kubernetes.io/dockerconfigjson in Dhow's namespace with the registry's credentials
    #[arg(long, requires = "registry", value_name = "NAME")]
    pub registry_secret: Option<String>,
    /// A ConfigMap in Dhow's namespace that holds the registry's authority under `ca.crt`
    #[arg(long, requires = "registry", value_name = "NAME")]
    pub registry_ca_configmap: Option<String>,
    /// A Secret in each namespace of functions by which nodes pull the functions' images
    #[arg(long, value_name = "NAME")]
    pub pull_secret: Option<String>,
    /// What Python functions are built on
    #[arg(long, default_value = BASE_PYTHON, value_name = "IMAGE")]
    pub base_python: String,
    /// What Node functions are built on
    #[arg(long, default_value = BASE_NODE, value_name = "IMAGE")]
    pub base_node: String,
    /// A host that builds may reach through Dhow's proxy [default: those of PyPI and npm]
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    pub build_proxy_host: Vec<String>,
    /// A variable of every build, such as PIP_INDEX_URL; authors can read it
    #[arg(long, value_delimiter = ',', value_name = "NAME=VALUE")]
    pub build_env: Vec<String>,
    /// Where the pods of builds may connect to, the registry among them [default: port 443 of public addresses]
    #[arg(long, value_delimiter = ',', value_name = "CIDR[:PORT]")]
    pub build_egress: Vec<String>,
    /// The largest source that may be uploaded
    #[arg(long, default_value = "256MiB", value_parser = size::parse, value_name = "SIZE")]
    pub max_source: u64,
    /// Make a ServiceMonitor, for the Prometheus operator
    #[arg(long)]
    pub service_monitor: bool,
}

/// Whether a part is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    Known(bool),
    /// Helm decides by this expression.
    If(&'static str),
}

/// A text that may be absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub switch: Switch,
    pub text: String,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub namespace: String,
    pub image: String,
    pub image_pull_secret: Text,
    pub domain: String,
    pub gateway_port: String,
    pub exposure: String,
    /// Whether that is by an Ingress, an HTTPRoute, a VirtualService.
    pub exposed: [Switch; 3],
    pub gateway_service_type: String,
    pub gateway_replicas: Value,
    pub gateway_address: Text,
    pub platform_address: Text,
    pub registry: Text,
    pub registry_for_nodes: Text,
    pub registry_insecure: Text,
    pub registry_secret: Text,
    pub registry_ca_configmap: Text,
    pub pull_secret: Text,
    pub base_python: String,
    pub base_node: String,
    pub build_proxy_host: Text,
    pub build_env: Text,
    pub build_egress: Text,
    pub max_source: String,
    pub service_monitor: Switch,
}

const EXPOSURES: [&str; 3] = ["ingress", "httproute", "istio"];

impl Switch {
    pub fn of(&self, value: Value) -> Value {
        match self {
            Switch::Known(true) => value,
            Switch::Known(false) => Value::Null,
            Switch::If(expression) => json!({super::yaml::IF: expression, super::yaml::THEN: value}),
        }
    }
}

impl Text {
    fn given(text: Option<&str>) -> Self {
        let text = text.filter(|text| !text.is_empty());
        Self { switch: Switch::Known(text.is_some()), text: text.unwrap_or_default().to_owned() }
    }

    fn list(items: &[String]) -> Self {
        Self::given(Some(&items.join(",")))
    }

    /// The value made of the text, where there is one.
    pub fn map(&self, value: impl FnOnce(&str) -> Value) -> Value {
        match &self.switch {
            Switch::Known(false) => Value::Null,
            switch => switch.of(value(&self.text)),
        }
    }

    pub fn flag(&self, name: &str) -> Value {
        self.map(|text| json!(format!("--{name}={text}")))
    }
}

impl Settings {
    pub fn from_args(args: &InstallArgs, namespace: &str) -> Self {
        let given = |text: &Option<String>| Text::given(text.as_deref());
        Self {
            namespace: namespace.to_owned(),
            image: args.image.clone(),
            image_pull_secret: given(&args.image_pull_secret),
            domain: args.domain.clone(),
            gateway_port: args.gateway_port.to_string(),
            exposure: args.exposure.clone(),
            exposed: EXPOSURES.map(|how| Switch::Known(args.exposure.starts_with(how))),
            gateway_service_type: args.gateway_service_type.clone(),
            gateway_replicas: json!(args.gateway_replicas),
            gateway_address: given(&args.gateway_address),
            platform_address: given(&args.platform_address),
            registry: given(&args.registry),
            registry_for_nodes: given(&args.registry_for_nodes),
            registry_insecure: Text::list(&args.registry_insecure),
            registry_secret: given(&args.registry_secret),
            registry_ca_configmap: given(&args.registry_ca_configmap),
            pull_secret: given(&args.pull_secret),
            base_python: args.base_python.clone(),
            base_node: args.base_node.clone(),
            build_proxy_host: Text::list(&args.build_proxy_host),
            build_env: Text::list(&args.build_env),
            build_egress: Text::list(&args.build_egress),
            max_source: args.max_source.to_string(),
            service_monitor: Switch::Known(args.service_monitor),
        }
    }

    /// The same of the chart's values.
    pub fn of_chart() -> Self {
        let value = |path: &str| format!("{{{{ .Values.{path} }}}}");
        Self {
            namespace: "{{ .Release.Namespace }}".into(),
            image: value("image"),
            image_pull_secret: optional(".Values.imagePullSecret"),
            domain: value("domain"),
            gateway_port: value("gateway.port"),
            exposure: value("exposure"),
            exposed: [
                Switch::If("hasPrefix \"ingress\" .Values.exposure"),
                Switch::If("hasPrefix \"httproute\" .Values.exposure"),
                Switch::If("hasPrefix \"istio\" .Values.exposure"),
            ],
            gateway_service_type: value("gateway.serviceType"),
            gateway_replicas: super::yaml::number(".Values.gateway.replicas"),
            gateway_address: optional(".Values.gateway.address"),
            platform_address: optional(".Values.platformAddress"),
            registry: optional(".Values.registry.prefix"),
            registry_for_nodes: optional(".Values.registry.forNodes"),
            registry_insecure: joined(".Values.registry.insecure"),
            registry_secret: optional(".Values.registry.secret"),
            registry_ca_configmap: optional(".Values.registry.caConfigMap"),
            pull_secret: optional(".Values.pullSecret"),
            base_python: value("build.basePython"),
            base_node: value("build.baseNode"),
            build_proxy_host: joined(".Values.build.proxyHosts"),
            build_env: joined(".Values.build.env"),
            build_egress: joined(".Values.build.egress"),
            max_source: "{{ .Values.maxSource | int64 }}".into(),
            service_monitor: Switch::If(".Values.serviceMonitor"),
        }
    }

    /// A name in Dhow's namespace that pods can resolve.
    pub fn service(&self, name: &str) -> String {
        format!("{name}.{}.svc", self.namespace)
    }
}

fn optional(path: &'static str) -> Text {
    Text { switch: Switch::If(path), text: format!("{{{{ {path} }}}}") }
}

fn joined(path: &'static str) -> Text {
    Text { switch: Switch::If(path), text: format!("{{{{ join \",\" {path} }}}}") }
}
