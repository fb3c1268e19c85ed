//! The hosts of a Route and of its tags, and whom they are visible to. Pure.

use std::sync::Arc;

use api::config::{Domains, Host, Network};
use api::serving::{Route, local_host};
use k8s_openapi::api::core::v1::Service;
use reconcile::{Kind, view};

use crate::hosts::Hosts;
use crate::ownership::{name_of, namespace_of};

/// The label that keeps a Route, or one tag of it, off the public listeners.
pub const VISIBILITY: &str = "networking.knative.dev/visibility";

pub struct Naming {
    pub hosts: Hosts,
    pub network: Network,
    pub domains: Domains,
    /// The core Services of the Route's names: on them a single one of its hosts can be made cluster-local.
    pub placeholders: Vec<Arc<Service>>,
}

impl Naming {
    /// `name`, or by default `tag-name`.
    pub fn name(&self, route: &Route, tag: Option<&str>) -> String {
        let Some(tag) = tag else { return name_of(route).to_owned() };
        self.network.tag.fill(Host { tag, ..self.host(route, name_of(route)) })
    }

    pub fn local(&self, route: &Route, tag: Option<&str>) -> String {
        local_host(&self.name(route, tag), namespace_of(route))
    }

    /// The host from outside, unless there is none.
    pub fn public(&self, route: &Route, tag: Option<&str>) -> Option<String> {
        let name = self.name(route, tag);
        (!self.is_local(route, &name)).then(|| self.network.host.fill(self.host(route, &name)))
    }

    pub fn url(&self, route: &Route, tag: Option<&str>) -> String {
        match self.public(route, tag) {
            Some(host) => self.hosts.url(&host, false),
            None => format!("http://{}", self.local(route, tag)),
        }
    }

    pub fn placeholder(&self, name: &str) -> Option<&Arc<Service>> {
        self.placeholders.iter().find(|service| name_of(service.as_ref()) == name)
    }

    fn is_local(&self, route: &Route, name: &str) -> bool {
        is_cluster_local(route)
            || self.placeholder(name).is_some_and(|service| is_cluster_local(service.as_ref()))
            || self.domain(route) == Domains::LOCAL
    }

    fn domain(&self, route: &Route) -> &str {
        self.domains.find(route.metadata.labels.as_ref()).unwrap_or(&self.hosts.domain)
    }

    fn host<'a>(&'a self, route: &'a Route, name: &'a str) -> Host<'a> {
        Host {
            name,
            namespace: namespace_of(route),
            domain: self.domain(route),
            tag: "",
            annotations: route.metadata.annotations.as_ref(),
            labels: route.metadata.labels.as_ref(),
        }
    }
}

fn is_cluster_local(object: &impl Kind) -> bool {
    view::label(object, VISIBILITY) == Some("cluster-local")
}
