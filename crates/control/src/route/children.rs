//! The Ingress and the placeholder Services of a Route.
//!
//! A header that names a tag chooses it, as Knative does where its flag is on; requests are told whether one did.

use std::collections::BTreeMap;

use api::names::label;
use api::networking::{
    HeaderMatch, HttpPath, HttpRule, Ingress, IngressRule, IngressSpec, Split, SplitPolicy, Visibility,
};
use api::serving::{Revision, Route};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use reconcile::gate::APPLIED;
use reconcile::view;

use super::naming::{Naming, VISIBILITY};
use super::traffic::Assigned;
use crate::ownership::{annotations_of, child_meta, labels_of, name_of, namespace_of};

/// A request's wish for a tag, and what an instance learns of it.
const TAG: &str = "Knative-Serving-Tag";
const DEFAULT_ROUTE: &str = "Knative-Serving-Default-Route";
/// The port of every Revision's core Service.
const SERVICE_PORT: i32 = 80;

pub fn ingress(route: &Route, assigned: &[Assigned], naming: &Naming) -> Ingress {
    let mut tags: Vec<&Assigned> = assigned.iter().filter(|a| a.target.tag.is_some()).collect();
    tags.sort_by_key(|a| a.target.tag.clone());
    let mut paths: Vec<HttpPath> = tags.iter().copied().filter_map(by_header).collect();
    paths.push(HttpPath {
        splits: splits(assigned),
        append_headers: pair(DEFAULT_ROUTE, "true"),
        ..HttpPath::default()
    });
    let mut rules = rules(route, naming, None, &paths);
    for tagged in tags {
        let tag = tagged.target.tag.as_deref();
        let append_headers = pair(TAG, tag.unwrap_or_default());
        let path = HttpPath { splits: vec![split(&tagged.revision, 100)], append_headers, ..HttpPath::default() };
        rules.extend(self::rules(route, naming, tag, &[path]));
    }
    let mut ingress = Ingress::new("", IngressSpec { rules, ..IngressSpec::default() });
    let mut labels = labels_of(route);
    labels.insert(label::ROUTE.into(), name_of(route).to_owned());
    ingress.metadata = child_meta(route, name_of(route), labels, annotations_of(route));
    ingress
}

/// A tag can be asked for at the Route's own host, too.
fn by_header(tagged: &Assigned) -> Option<HttpPath> {
    let exact = tagged.target.tag.clone()?;
    let headers = BTreeMap::from([(TAG.to_owned(), HeaderMatch { exact })]);
    Some(HttpPath { headers, splits: vec![split(&tagged.revision, 100)], ..HttpPath::default() })
}

fn pair(name: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(name.to_owned(), value.to_owned())])
}

/// The hosts of an Ingress that are visible from outside.
pub fn public_hosts(ingress: &Ingress) -> Vec<String> {
    let public = ingress.spec.rules.iter().filter(|rule| rule.visibility == Visibility::External);
    public.flat_map(|rule| rule.hosts.iter().cloned()).collect()
}

fn rules(route: &Route, naming: &Naming, tag: Option<&str>, paths: &[HttpPath]) -> Vec<IngressRule> {
    let (name, namespace) = (naming.name(route, tag), namespace_of(route));
    let rule =
        |hosts: Vec<String>, visibility| IngressRule { hosts, visibility, http: HttpRule { paths: paths.to_vec() } };
    let short = vec![naming.local(route, tag), format!("{name}.{namespace}.svc"), format!("{name}.{namespace}")];
    let public = naming.public(route, tag).map(|host| rule(vec![host], Visibility::External));
    std::iter::once(rule(short, Visibility::ClusterLocal)).chain(public).collect()
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

/// The core Service of one of the Route's names: it claims the name and leads to the gateway. On one machine, where no
/// cluster's DNS answers, it names the cluster-local host. As in Knative, whose conformance tests ask for it, a label or
/// annotation that the Route has lost stays on it, but who may see the Route is said there only by its owner.
pub fn placeholder(route: &Route, naming: &Naming, tag: Option<&str>) -> Service {
    let name = naming.name(route, tag);
    let there = naming.placeholder(&name);
    let port = ServicePort { name: Some("http".into()), port: SERVICE_PORT, ..ServicePort::default() };
    let spec = ServiceSpec {
        type_: Some("ExternalName".into()),
        external_name: Some(match &naming.hosts.cluster {
            Some(cluster) => cluster.gateway.clone(),
            None => naming.local(route, tag),
        }),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    let mut labels = there.and_then(|there| there.metadata.labels.clone()).unwrap_or_default();
    labels.extend(labels_of(route).into_iter().filter(|(key, _)| key != VISIBILITY));
    labels.insert(label::ROUTE.into(), name_of(route).to_owned());
    let mut annotations = there.and_then(|there| there.metadata.annotations.clone()).unwrap_or_default();
    // The gate's own mark is about what was applied before.
    annotations.remove(APPLIED);
    annotations.extend(annotations_of(route));
    let metadata = child_meta(route, &name, labels, annotations);
    Service { metadata, spec: Some(spec), status: None }
}
