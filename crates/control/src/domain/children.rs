//! The claim and the Ingress of a DomainMapping.

use std::collections::BTreeMap;

use api::names::label;
use api::networking::{HttpOption, HttpPath, HttpRule, Ingress, IngressRule, IngressSpec, IngressTls, Visibility};
use api::serving::domain::{ClusterDomainClaim, ClusterDomainClaimSpec, DomainMapping};

use crate::ownership::{annotations_of, child_meta, labels_of, name_of, namespace_of};

/// On a claim that was made for a mapping, and goes with it.
pub const MADE_FOR: &str = "dhow.dev/made-for";
const MAPPING_NAMESPACE: &str = "serving.knative.dev/domainMappingNamespace";
/// An entry of Go's header map for a request by another host, as in Knative.
const ORIGINAL_HOST: &str = "K-Original-Host";

pub fn claim(mapping: &DomainMapping) -> ClusterDomainClaim {
    let mut claim = ClusterDomainClaim::new(
        name_of(mapping),
        ClusterDomainClaimSpec { namespace: namespace_of(mapping).to_owned() },
    );
    claim.metadata.labels = Some(BTreeMap::from([(MADE_FOR.to_owned(), "domain-mapping".to_owned())]));
    claim
}

pub fn ingress(mapping: &DomainMapping, paths: &[HttpPath], http: HttpOption) -> Ingress {
    let host = name_of(mapping);
    let mut paths = paths.to_vec();
    for split in paths.iter_mut().flat_map(|path| &mut path.splits) {
        split.append_headers.insert(ORIGINAL_HOST.to_owned(), host.to_owned());
    }
    let rule = IngressRule { hosts: vec![host.to_owned()], visibility: Visibility::External, http: HttpRule { paths } };
    let tls = mapping.spec.tls.as_ref().map(|tls| IngressTls {
        hosts: vec![host.to_owned()],
        secret_name: tls.secret_name.clone(),
        secret_namespace: namespace_of(mapping).to_owned(),
    });
    let http_option = (tls.is_some() && http == HttpOption::Redirected).then_some(http);
    let spec = IngressSpec { rules: vec![rule], tls: tls.into_iter().collect(), http_option };
    let mut ingress = Ingress::new("", spec);
    let mut labels = labels_of(mapping);
    labels.insert(label::DOMAIN_MAPPING_UID.into(), reconcile::view::uid(mapping).to_owned());
    labels.insert(MAPPING_NAMESPACE.into(), namespace_of(mapping).to_owned());
    ingress.metadata = child_meta(mapping, host, labels, annotations_of(mapping));
    ingress
}
