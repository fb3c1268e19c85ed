//! What a DomainMapping needs: its claim, its Ingress, what exposes its host, and its status.

use std::sync::Arc;

use api::config::{Network, network::http_option};
use api::networking::{HttpOption, HttpPath, Ingress};
use api::serving::domain::{CONDITIONS, ClusterDomainClaim, DomainMapping, DomainMappingStatus, rules};
use api::serving::{Addressable, reason};
use jiff::Timestamp;
use reconcile::{Plan, Propagation, view};

use super::children;
use super::target::Target;
use crate::exposure::{self, Exposed, Found};
use crate::hosts::{self, Hosts};
use crate::ownership::{controls, generation_of, name_of, namespace_of};

const DOMAIN_CLAIMED: &str = "DomainClaimed";
const REFERENCE_RESOLVED: &str = "ReferenceResolved";
const INGRESS_READY: &str = "IngressReady";
const CERTIFICATE_PROVISIONED: &str = "CertificateProvisioned";

pub struct Inputs {
    pub mapping: Arc<DomainMapping>,
    pub claim: Option<Arc<ClusterDomainClaim>>,
    /// Nobody claimed the host, and a Route has it.
    pub is_taken: bool,
    pub target: Target,
    pub is_secret_missing: bool,
    pub ingress: Option<Arc<Ingress>>,
    pub exposed: Found,
    pub network: Network,
    pub hosts: Hosts,
}

/// Gives up the claim that was made for a mapping that is gone.
pub fn release(claim: Option<&ClusterDomainClaim>, namespace: &str) -> Plan {
    let mut plan = Plan::default();
    if let Some(claim) = claim {
        let was_made = view::label(claim, children::MADE_FOR).is_some();
        if was_made && claim.spec.namespace == namespace && !view::is_deleting(claim) {
            plan.delete(claim, Propagation::Background);
        }
    }
    plan
}

pub fn plan(inputs: &Inputs, now: Timestamp) -> Plan {
    let mapping = inputs.mapping.as_ref();
    let mut plan = Plan::default();
    let mut status = mapping.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(mapping);
    CONDITIONS.init(&mut status.conditions, now);
    let url = inputs.hosts.url(name_of(mapping), mapping.spec.tls.is_some());
    status.url = Some(url.clone());
    status.address = Some(Addressable { url: Some(url) });
    plan_certificate(inputs, &mut status, now);
    let claimed = claim(inputs, &mut plan);
    match &claimed {
        Ok(()) => CONDITIONS.mark_true(&mut status.conditions, DOMAIN_CLAIMED, now),
        Err((reason, why)) => CONDITIONS.mark_false(&mut status.conditions, DOMAIN_CLAIMED, reason, why, now),
    }
    let conditions = &mut status.conditions;
    match &inputs.target {
        Target::Paths(_) => CONDITIONS.mark_true(conditions, REFERENCE_RESOLVED, now),
        Target::Waiting(why) => CONDITIONS.mark_unknown(conditions, REFERENCE_RESOLVED, "ResolveFailed", why, now),
        Target::Missing(why) => CONDITIONS.mark_false(conditions, REFERENCE_RESOLVED, "ResolveFailed", why, now),
    }
    match (&claimed, &inputs.target) {
        (Ok(()), Target::Paths(paths)) => plan_network(inputs, paths, &mut plan, &mut status, now),
        // What was there goes on while its target is on its way back.
        (Ok(()), Target::Waiting(_)) => not_configured(&mut status, now),
        _ => {
            let own = inputs.ingress.as_deref().filter(|i| controls(mapping, *i) && !view::is_deleting(*i));
            own.into_iter().for_each(|ingress| plan.delete(ingress, Propagation::Background));
            not_configured(&mut status, now);
        }
    }
    plan.tell_refusal(mapping, &status, CONDITIONS, INGRESS_READY, now);
    plan.status(mapping, &status, now);
    plan
}

/// Why the host is not this namespace's: a reason and a text. What is planned after a claim comes to nothing when somebody
/// else is faster.
fn claim(inputs: &Inputs, plan: &mut Plan) -> Result<(), (&'static str, String)> {
    let mapping = inputs.mapping.as_ref();
    let (host, namespace) = (name_of(mapping), namespace_of(mapping));
    // On one machine it is refused before it is kept; a cluster's API server knows the schema only.
    let problems = rules(&mapping.metadata, &mapping.spec);
    if !problems.is_empty() {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err((reason::INVALID_SPEC, problems.join("; ")));
    }
    match &inputs.claim {
        Some(claim) if claim.spec.namespace == namespace => Ok(()),
        Some(_) => {
            Err(("DomainAlreadyClaimed", "The domain name is already in use by another DomainMapping".to_owned()))
        }
        None if inputs.is_taken => Err(("DomainAlreadyClaimed", format!("{host} is the host of a Route"))),
        None if inputs.network.claims.unwrap_or(inputs.hosts.cluster.is_none()) => {
            plan.create(&children::claim(mapping));
            Ok(())
        }
        None => {
            let why = format!(
                "no ClusterDomainClaim {host:?} gives this host to namespace {namespace:?}: create one, or set \
                 autocreate-cluster-domain-claims in {}",
                Network::NAME
            );
            Err(("DomainClaimFailed", why))
        }
    }
}

fn plan_certificate(inputs: &Inputs, status: &mut DomainMappingStatus, now: Timestamp) {
    let mapping = inputs.mapping.as_ref();
    let conditions = &mut status.conditions;
    let mut is_true = |reason: &str, why: &str| {
        CONDITIONS.mark_true_because(conditions, CERTIFICATE_PROVISIONED, reason, why, now);
    };
    match &mapping.spec.tls {
        None => is_true("TLSNotEnabled", "external-domain-tls is not enabled"),
        Some(_) if !inputs.is_secret_missing => {
            is_true("CertificateExternallyProvided", "TLS certificate was provided externally");
        }
        Some(tls) => {
            let (name, namespace) = (&tls.secret_name, namespace_of(mapping));
            let why =
                format!("there is no Secret {name:?} in namespace {namespace:?}: kubectl create secret tls {name}");
            CONDITIONS.mark_false(conditions, CERTIFICATE_PROVISIONED, "SecretMissing", &why, now);
        }
    }
}

fn plan_network(
    inputs: &Inputs,
    paths: &[HttpPath],
    plan: &mut Plan,
    status: &mut DomainMappingStatus,
    now: Timestamp,
) {
    let mapping = inputs.mapping.as_ref();
    let conditions = &mut status.conditions;
    if inputs.ingress.as_deref().is_some_and(|ingress| !controls(mapping, ingress)) {
        let why = format!("There is an existing Ingress {:?} that we do not own.", name_of(mapping));
        return CONDITIONS.mark_false(conditions, INGRESS_READY, reason::NOT_OWNED, &why, now);
    }
    let before = plan.writes.len();
    plan.apply(inputs.ingress.as_deref(), &children::ingress(mapping, paths, http(inputs)));
    if let Err(taken) = expose(inputs, plan) {
        CONDITIONS.mark_false(conditions, INGRESS_READY, reason::NOT_OWNED, &taken, now);
    } else if plan.writes.len() > before {
        not_configured(status, now);
    } else {
        CONDITIONS.mark_true(conditions, INGRESS_READY, now);
    }
    if let Some(ingress) = inputs.ingress.as_deref() {
        hosts::served(ingress, plan, now);
    }
}

fn not_configured(status: &mut DomainMappingStatus, now: Timestamp) {
    let message = "Ingress has not yet been reconciled.";
    CONDITIONS.mark_unknown(&mut status.conditions, INGRESS_READY, reason::INGRESS_NOT_CONFIGURED, message, now);
}

/// What becomes of plain HTTP: the mapping's own word, or the operator's.
fn http(inputs: &Inputs) -> HttpOption {
    let said = Network::HTTP_PROTOCOL.iter().find_map(|name| view::annotation(inputs.mapping.as_ref(), name));
    said.and_then(|text| http_option(text).ok()).unwrap_or(inputs.network.http)
}

fn expose(inputs: &Inputs, plan: &mut Plan) -> Result<(), String> {
    let Some(cluster) = &inputs.hosts.cluster else { return Ok(()) };
    let mapping = inputs.mapping.as_ref();
    let exposed = Exposed {
        owner: mapping,
        service: &mapping.spec.reference.name,
        hosts: &[name_of(mapping).to_owned()],
        secret: mapping.spec.tls.as_ref().map(|tls| tls.secret_name.as_str()),
    };
    exposure::plan(&cluster.exposure, &inputs.exposed, &exposed, &cluster.gateway, plan)
}
