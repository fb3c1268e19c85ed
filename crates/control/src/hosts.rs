//! Hosts and URLs, and what every Ingress of ours has in common, whoever writes it.

use api::networking::{self, Ingress};
use jiff::Timestamp;
use reconcile::Plan;

use crate::Cluster;
use crate::exposure::Exposure;
use crate::ownership::generation_of;

/// What hosts and URLs are made of.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// The domain of public hosts.
    pub domain: String,
    /// The public port of the gateway, written into URLs unless it is 80.
    pub port: u16,
    /// The same for TLS, and 443.
    pub tls_port: u16,
    /// On a cluster: where the gateway is, and how the outside world comes to it.
    pub cluster: Option<Cluster>,
}

impl Hosts {
    pub fn exposure(&self) -> &Exposure {
        self.cluster.as_ref().map_or(&Exposure::None, |cluster| &cluster.exposure)
    }

    /// The public URL of a host.
    pub fn url(&self, host: &str, tls: bool) -> String {
        let (scheme, port, usual) = if tls { ("https", self.tls_port, 443) } else { ("http", self.port, 80) };
        if port == usual { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
    }
}

/// An Ingress is served as soon as a gateway has seen it, so whoever writes one also writes that.
pub fn served(ingress: &Ingress, plan: &mut Plan, now: Timestamp) {
    let mut status = ingress.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(ingress);
    for condition in networking::CONDITIONS.dependents {
        networking::CONDITIONS.mark_true(&mut status.conditions, condition, now);
    }
    plan.child_status(ingress, &status);
}
