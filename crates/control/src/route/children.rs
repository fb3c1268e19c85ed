//! The Ingress and the placeholder Services of a Route.

use std::collections::BTreeMap;

use api::names::label;
use api::networking::{HttpPath, HttpRule, Ingress, IngressRule, IngressSpec, Split, SplitPolicy, Visibility};
use api::serving::{Revision, Route};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use reconcile::gate::APPLIED;
use reconcile::view;

use super::Hosts;
use super::traffic::Assigned;
use crate::ownership::{annotations_of, child_meta, labels_of, name_of, namespace_of};

/// The label that keeps a Route off the public listeners.
const VISIBILITY: &str = "networking.knative.dev/visibility";
/// The port of every Revision's core Service.
const SERVICE_PORT: i32 = 80;

pub fn is_cluster_local(route: &Route) -> bool {
    view::label(route, VISIBILITY) == Some("cluster-local")
}

/// `name`, or `tag-name`.
fn host_name(route: &Route, tag: Option<&str>) -> String {
    tag.map_or_else(|| name_of(route).to_owned(), |tag| format!("{tag}-{}", name_of(route)))
}

pub fn local_host(route: &Route, tag: Option<&str>) -> String {
    format!("{}.{}.svc.cluster.local", host_name(route, tag), namespace_of(route))
}

pub fn url(route: &Route, hosts: &Hosts, tag: Option<&str>) -> String {
    if is_cluster_local(route) {
        return format!("http://{}", local_host(route, tag));
    }
    let host = format!("{}.{}.{}", host_name(route, tag), namespace_of(route), hosts.domain);
    if hosts.port == 80 { format!("http://{host}") } else { format!("http://{host}:{}", hosts.port) }
}

pub fn ingress(route: &Route, assigned: &[Assigned], hosts: &Hosts) -> Ingress {
    let mut rules = rules(route, hosts, None, splits(assigned));
    let mut tags: Vec<&Assigned> = assigned.iter().filter(|a| a.target.tag.is_some()).collect();
    tags.sort_by_key(|a| a.target.tag.clone());
    for tagged in tags {
        let whole = vec![split(&tagged.revision, 100)];
        rules.extend(self::rules(route, hosts, tagged.target.tag.as_deref(), whole));
    }
    let mut ingress = Ingress::new("", IngressSpec { rules, http_option: None });
    let mut labels = labels_of(route);
    labels.insert(label::ROUTE.into(), name_of(route).to_owned());
    ingress.metadata = child_meta(route, name_of(route), labels, annotations_of(route));
    ingress
}

/// The hosts of an Ingress that are visible from outside.
pub fn public_hosts(ingress: &Ingress) -> Vec<String> {
    let public = ingress.spec.rules.iter().filter(|rule| rule.visibility == Visibility::External);
    public.flat_map(|rule| rule.hosts.iter().cloned()).collect()
}

fn rules(route: &Route, hosts: &Hosts, tag: Option<&str>, splits: Vec<Split>) -> Vec<IngressRule> {
    let (name, namespace) = (host_name(route, tag), namespace_of(route));
    let path = HttpPath { splits, ..HttpPath::default() };
    let rule = |hosts: Vec<String>, visibility| IngressRule {
        hosts,
        visibility,
        http: HttpRule { paths: vec![path.clone()] },
    };
    let short = vec![local_host(route, tag), format!("{name}.{namespace}.svc"), format!("{name}.{namespace}")];
    let mut rules = vec![rule(short, Visibility::ClusterLocal)];
    if !is_cluster_local(route) {
        rules.push(rule(vec![format!("{name}.{namespace}.{}", hosts.domain)], Visibility::External));
    }
    rules
}

/// One split per Revision, in the order of the targets; shares of the same Revision add up.
fn splits(assigned: &[Assigned]) -> Vec<Split> {
    let mut splits: Vec<Split> = vec![];
    for Assigned { target, revision } in assigned {
        let percent = target.percent.unwrap_or(0);
        match splits.iter_mut().find(|s| s.service_name == name_of(revision.as_ref())) {
            Some(split) => split.percent += percent,
            None if percent > 0 => splits.push(split(revision, percent)),
            None => {}
        }
    }
    splits
}

fn split(revision: &Revision, percent: i64) -> Split {
    let spec = &revision.spec;
    let service = view::label(revision, label::SERVICE).or_else(|| view::label(revision, label::CONFIGURATION));
    Split {
        service_name: name_of(revision).to_owned(),
        service_namespace: namespace_of(revision).to_owned(),
        service_port: SERVICE_PORT,
        percent,
        append_headers: BTreeMap::from([
            ("Knative-Serving-Namespace".to_owned(), namespace_of(revision).to_owned()),
            ("Knative-Serving-Revision".to_owned(), name_of(revision).to_owned()),
        ]),
        policy: Some(SplitPolicy {
            service: service.unwrap_or_default().to_owned(),
            container_concurrency: spec.concurrency(),
            timeout_seconds: spec.timeout(),
            response_start_timeout_seconds: spec.response_start_timeout_seconds,
            idle_timeout_seconds: spec.idle_timeout_seconds,
        }),
    }
}

/// The core Service of the Route's name: it claims the name and leads to the gateway. On one machine, where no cluster's
/// DNS answers, it names the cluster-local host. As in Knative, whose conformance tests ask for it, a label or annotation that
/// the Route has lost stays on it: `there` is how it is now.
pub fn placeholder(route: &Route, hosts: &Hosts, there: Option<&Service>) -> Service {
    let port = ServicePort { name: Some("http".into()), port: SERVICE_PORT, ..ServicePort::default() };
    let spec = ServiceSpec {
        type_: Some("ExternalName".into()),
        external_name: Some(match &hosts.cluster {
            Some(cluster) => cluster.gateway.clone(),
            None => local_host(route, None),
        }),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    let mut labels = there.and_then(|there| there.metadata.labels.clone()).unwrap_or_default();
    labels.extend(labels_of(route));
    labels.insert(label::ROUTE.into(), name_of(route).to_owned());
    let mut annotations = there.and_then(|there| there.metadata.annotations.clone()).unwrap_or_default();
    // The gate's own mark is about what was applied before.
    annotations.remove(APPLIED);
    annotations.extend(annotations_of(route));
    let metadata = child_meta(route, name_of(route), labels, annotations);
    Service { metadata, spec: Some(spec), status: None }
}
