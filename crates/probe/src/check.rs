//! What a probe asks. The surprise: a port of 0, or none, is Knative's way to say the one that serves requests.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::{ContainerPort, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What a kubelet allows a probe that says nothing about it.
const TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub how: How,
    /// For the whole probe.
    pub timeout: Duration,
    /// Successes in a row.
    pub successes: u32,
}

/// A port of `None` is the one that serves requests.
#[derive(Clone, Debug, PartialEq)]
pub enum How {
    Tcp(Option<u16>),
    Http {
        port: Option<u16>,
        path: String,
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    Grpc {
        port: Option<u16>,
        service: String,
    },
    /// A command inside.
    Exec(Vec<String>),
}

impl Check {
    /// The check of whoever asks for none, as Knative defines it.
    pub fn usual() -> Self {
        Self { how: How::Tcp(None), timeout: TIMEOUT, successes: 1 }
    }

    /// What this probe asks of a container with these ports; `None` for what is not known how to ask.
    pub fn of(probe: &Probe, ports: &[ContainerPort]) -> Option<Self> {
        Some(Self {
            how: how(probe, ports)?,
            timeout: positive(probe.timeout_seconds).map_or(TIMEOUT, |s| Duration::from_secs(s.into())),
            successes: positive(probe.success_threshold).unwrap_or(1),
        })
    }
}

fn positive(number: Option<i32>) -> Option<u32> {
    number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
}

fn how(probe: &Probe, ports: &[ContainerPort]) -> Option<How> {
    if let Some(exec) = &probe.exec {
        return Some(How::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(http) = &probe.http_get {
        return http_get(http, ports);
    }
    if let Some(grpc) = &probe.grpc {
        let port = number(&IntOrString::Int(grpc.port), ports)?;
        return Some(How::Grpc { port, service: grpc.service.clone().unwrap_or_default() });
    }
    match &probe.tcp_socket {
        Some(tcp) if tcp.host.is_some() => None,
        Some(tcp) => Some(How::Tcp(number(&tcp.port, ports)?)),
        None => Some(How::Tcp(None)),
    }
}

fn http_get(http: &HTTPGetAction, ports: &[ContainerPort]) -> Option<How> {
    let tls = http.scheme.as_deref().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http"));
    if tls || http.host.as_deref().is_some_and(|host| !host.is_empty()) {
        return None;
    }
    let header = |name: &str, value: &str| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?))
    };
    let headers = http.http_headers.iter().flatten().map(|h| header(&h.name, &h.value));
    let path = http.path.as_deref().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some(How::Http { port: number(&http.port, ports)?, path, headers: headers.collect::<Option<_>>()? })
}

/// The port of a probe; 0 is Knative's way to say that it is the serving one. `None` for one that cannot be.
fn number(port: &IntOrString, ports: &[ContainerPort]) -> Option<Option<u16>> {
    match port {
        IntOrString::Int(0) => Some(None),
        IntOrString::Int(number) => u16::try_from(*number).ok().map(Some),
        IntOrString::String(name) if name.is_empty() => Some(None),
        IntOrString::String(name) => {
            let named = ports.iter().find(|p| p.name.as_ref() == Some(name))?;
            u16::try_from(named.container_port).ok().map(Some)
        }
    }
}
