//! Exposure: how the outside world comes to a Route or a DomainMapping on a cluster, as its operator configured.
//!
//! A part of those two controllers, which own the status and have the hosts. Must not know: traffic, Revisions;
//! what it makes only leads to the gateway. The surprise: only the configured kind is watched, since the others may not
//! exist on this cluster; what an earlier configuration left is removed once, at the start.

mod children;
mod kinds;
mod plan;
mod sweep;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::api::networking::v1::Ingress;
use reconcile::caches::CachesBuilder;
use reconcile::{Caches, Controller, Kind, View, runner};

use kinds::{HTTPRoute, VirtualService};
pub use plan::plan;
pub use sweep::{missing, sweep};

/// What leads from outside to the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Exposure {
    /// Nothing of Dhow's: a load balancer in front of the gateway, or nobody comes from outside.
    #[default]
    None,
    /// `networking.k8s.io/v1` Ingresses, of this class or of the cluster's default one.
    Ingress { class: Option<String> },
    /// `gateway.networking.k8s.io/v1` HTTPRoutes at this Gateway.
    HttpRoute { gateway: GatewayRef },
    /// `networking.istio.io/v1` VirtualServices at these gateways, each `name` or `namespace/name`.
    Istio { gateways: Vec<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRef {
    pub namespace: String,
    pub name: String,
    /// One listener of it; all when absent.
    pub section: Option<String>,
}

/// Whose hosts are exposed.
pub struct Exposed<'a, K> {
    pub owner: &'a K,
    /// A Service of its namespace that leads to the gateway.
    pub service: &'a str,
    pub hosts: &'a [String],
    /// A Secret of its namespace with the hosts' certificate.
    pub secret: Option<&'a str>,
}

/// What there is for one of them, of the configured kind.
pub enum Found {
    Nothing,
    Ingresses(Vec<Arc<Ingress>>),
    HttpRoutes(Vec<Arc<HTTPRoute>>),
    VirtualServices(Vec<Arc<VirtualService>>),
}

impl Exposure {
    /// Adds the configured kind to what is watched.
    pub fn cached(&self, builder: CachesBuilder) -> CachesBuilder {
        match self {
            Exposure::None => builder,
            Exposure::Ingress { .. } => builder.kind::<Ingress>(&[]),
            Exposure::HttpRoute { .. } => builder.kind::<HTTPRoute>(&[]),
            Exposure::Istio { .. } => builder.kind::<VirtualService>(&[]),
        }
    }

    /// Wakes an owner when what exposes it changes.
    pub fn watched<P: Kind>(&self, controller: Controller, caches: &Caches) -> Controller {
        match self {
            Exposure::None => controller,
            Exposure::Ingress { .. } => controller.watch(&caches.of::<Ingress>(), runner::owner::<P, _>),
            Exposure::HttpRoute { .. } => controller.watch(&caches.of::<HTTPRoute>(), runner::owner::<P, _>),
            Exposure::Istio { .. } => controller.watch(&caches.of::<VirtualService>(), runner::owner::<P, _>),
        }
    }

    pub fn find<P: Kind>(&self, view: &impl View, owner: &P) -> Found {
        match self {
            Exposure::None => Found::Nothing,
            Exposure::Ingress { .. } => Found::Ingresses(around(view, owner)),
            Exposure::HttpRoute { .. } => Found::HttpRoutes(around(view, owner)),
            Exposure::Istio { .. } => Found::VirtualServices(around(view, owner)),
        }
    }
}

/// The objects of a kind that the owner controls, and whatever has the name of the first it wants.
fn around<K: Kind>(view: &impl View, owner: &impl Kind) -> Vec<Arc<K>> {
    let mut found = view.controlled_by::<K>(reconcile::view::uid(owner));
    let name = children::name(owner, 0);
    if !found.iter().any(|o| crate::ownership::name_of(o.as_ref()) == name) {
        found.extend(view.get::<K>(crate::ownership::namespace_of(owner), &name));
    }
    found
}
