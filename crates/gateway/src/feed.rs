//! What the request path reads: two immutable tables, and the back ends behind them.
//!
//! Owns: turning object changes into new tables and new instances, at once and without a request ever waiting for it.
//! Must not know: where objects come from (`watch` brings them from an API server, tests by hand). The surprise: an
//! EndpointSlice may be seen before the Ingress that names its back end, so slices are kept whether used or not.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use api::condition::{Condition, is_false};
use api::names::label;
use api::networking::{Ingress, SplitPolicy};
use api::serving::Revision;
use api::wire::{InstanceStarted, RevisionKey, Traffic};
use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::backend::Backend;
use crate::certificates::{self, Certificates};
use crate::endpoints::{self, Address, Listed, Ready};
use crate::hub::Hub;
use crate::peers::Own;
use crate::probe::check_of;
use crate::slots::Failure;
use crate::table::{self, Compiled, Side, Table};
use ::probe::Check;

pub(crate) type Name = (String, String);

/// The tables of both listeners.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub public: Table<Arc<Backend>>,
    pub internal: Table<Arc<Backend>>,
    pub certificates: Certificates,
    /// The gateways of this cluster, whose word about a request counts.
    pub gateways: Vec<SocketAddr>,
    /// Whether a missing host is missing, or only not seen yet.
    pub complete: bool,
}

/// Takes objects in and publishes what the request path reads.
#[derive(Clone, Debug)]
pub struct Feed {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hub: Arc<Hub>,
    tables: ArcSwap<Tables>,
    sources: Mutex<Sources>,
    synced: watch::Sender<bool>,
    /// The check of everyone who asks for none.
    usual_check: Arc<Check>,
    own: Option<Own>,
}

/// An Ingress, compiled, and the back ends it names.
#[derive(Debug)]
struct Source {
    compiled: Compiled<Arc<Backend>>,
    names: HashSet<RevisionKey>,
    /// Hosts, each with the Secret of its certificate.
    secrets: Vec<(Box<str>, Name)>,
    /// Of a DomainMapping: a Route that has the same host goes before it.
    is_mapping: bool,
}

#[derive(Debug, Default)]
struct Sources {
    ingresses: BTreeMap<Name, Source>,
    certificates: HashMap<Name, Arc<CertifiedKey>>,
    slices: HashMap<RevisionKey, BTreeMap<String, Listed>>,
    failures: HashMap<RevisionKey, Arc<Failure>>,
    /// How each known revision's instances are probed, where they are. Most say nothing and share one check.
    checks: HashMap<RevisionKey, Option<Arc<Check>>>,
    gateways: Vec<SocketAddr>,
    /// Pods that are about to be removed.
    draining: HashMap<RevisionKey, BTreeSet<String>>,
    backends: HashMap<RevisionKey, Arc<Backend>>,
    /// Back ends that no Ingress names any more but some request still uses. They hear of their instances like the others,
    /// since such a request may need another one. One that is named again goes on with its slots, so that its limit holds
    /// across the gap.
    retired: HashMap<RevisionKey, Weak<Backend>>,
}

impl Feed {
    pub(crate) fn new(hub: Arc<Hub>, own: Option<Own>) -> Self {
        let (synced, _) = watch::channel(false);
        let (tables, sources) = (ArcSwap::default(), Mutex::default());
        let usual_check = Arc::new(Check::usual());
        Self { inner: Arc::new(Inner { hub, tables, sources, synced, usual_check, own }) }
    }

    pub(crate) fn tables(&self) -> arc_swap::Guard<Arc<Tables>> {
        self.inner.tables.load()
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.inner.hub
    }

    /// Becomes true once everything there was at the start has been published.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.inner.synced.subscribe()
    }

    /// An Ingress as it is now. Visible to requests after [`Feed::publish`].
    pub fn ingress(&self, ingress: &Ingress) {
        if !api::class::is_our_ingress(&ingress.metadata) {
            return self.remove_ingress(ingress);
        }
        let mut sources = self.sources();
        let mut names = HashSet::new();
        let compiled = table::compile(ingress, &mut |key, policy| {
            names.insert(key.clone());
            sources.resolve(&self.inner, key, policy)
        });
        let (secrets, is_mapping) = (secrets(ingress), ingress.labels().contains_key(label::DOMAIN_MAPPING_UID));
        sources.ingresses.insert(name(ingress), Source { compiled, names, secrets, is_mapping });
    }

    pub fn remove_ingress(&self, ingress: &Ingress) {
        self.sources().ingresses.remove(&name(ingress));
    }

    /// After a new list: what was not in it is gone.
    pub(crate) fn retain_ingresses(&self, seen: &HashSet<Name>) {
        self.sources().ingresses.retain(|name, _| seen.contains(name));
    }

    /// Replaces the tables by what the Ingresses say now, and forgets back ends that none names.
    pub fn publish(&self) {
        let mut sources = self.sources();
        let named: HashSet<RevisionKey> =
            sources.ingresses.values().flat_map(|source| source.names.iter().cloned()).collect();
        sources.retire(&named);
        let of = |mappings: bool| sources.ingresses.values().filter(move |source| source.is_mapping == mappings);
        let all = || of(false).chain(of(true)).map(|source| &source.compiled);
        let secrets = of(true).chain(of(false)).flat_map(|source| &source.secrets);
        let certificate =
            |(host, secret): &(Box<str>, Name)| Some((host.clone(), sources.certificates.get(secret)?.clone()));
        self.inner.tables.store(Arc::new(Tables {
            public: Table::assemble(Side::Public, all()),
            internal: Table::assemble(Side::Internal, all()),
            certificates: secrets.filter_map(certificate).collect(),
            gateways: sources.gateways.clone(),
            complete: *self.inner.synced.borrow(),
        }));
    }

    /// A Secret with a certificate as it is now. Visible to clients after [`Feed::publish`].
    pub fn secret(&self, secret: &Secret) {
        let name = (secret.namespace().unwrap_or_default(), secret.name_any());
        match certificates::read(secret) {
            Ok(certificate) => drop(self.sources().certificates.insert(name, certificate)),
            Err(why) => {
                tracing::warn!(namespace = name.0, secret = name.1, why, "the certificate cannot be used");
                self.sources().certificates.remove(&name);
            }
        }
    }

    pub fn remove_secret(&self, secret: &Secret) {
        let name = (secret.namespace().unwrap_or_default(), secret.name_any());
        self.sources().certificates.remove(&name);
    }

    /// After a new list of them.
    pub(crate) fn retain_secrets(&self, seen: &HashSet<Name>) {
        self.sources().certificates.retain(|name, _| seen.contains(name));
    }

    /// Everything there was at the start has been seen: from now on an unknown host does not exist.
    pub fn complete(&self) {
        self.inner.synced.send_replace(true);
        self.publish();
    }

    /// An EndpointSlice as it is now; its instances take requests at once.
    pub fn slice(&self, slice: &EndpointSlice) {
        if let Some(key) = endpoints::key(slice) {
            let mut listed = endpoints::listed(slice);
            if !self.inner.hub.probes {
                listed.starting.clear();
            }
            self.update_slice(key, slice.name_any(), Some(listed));
        }
    }

    /// Other gateways came or went: who counts for what is decided anew.
    fn update_gateways(&self, key: &RevisionKey) {
        let Some(own) = self.inner.own.as_ref().filter(|own| own.is_ours(key)) else { return };
        let mut sources = self.sources();
        let tcp = |ready: Ready| match ready.address {
            Address::Tcp(address) => Some(address),
            Address::Unix(_) => None,
        };
        sources.gateways = merged(sources.slices.get(key)).ready.into_iter().filter_map(tcp).collect();
        for (key, backend) in &sources.backends {
            backend.set_away(own.away(&sources.gateways, key, backend.limit()));
        }
        drop(sources);
        self.publish();
    }

    /// An instance is ready on its node, a moment before its EndpointSlice says so.
    pub fn started(&self, started: &InstanceStarted) {
        let backend = self.sources().backend(&started.key);
        if let Some(backend) = backend {
            backend.started(started.sandbox_seconds, started.runtime_seconds);
        }
    }

    pub fn remove_slice(&self, slice: &EndpointSlice) {
        if let Some(key) = endpoints::key(slice) {
            self.update_slice(key, slice.name_any(), None);
        }
    }

    fn update_slice(&self, key: RevisionKey, name: String, listed: Option<Listed>) {
        let mut sources = self.sources();
        let slices = sources.slices.entry(key.clone()).or_default();
        match listed {
            Some(listed) => slices.insert(name, listed),
            None => slices.remove(&name),
        };
        let listed = merged(Some(slices));
        if slices.is_empty() {
            sources.slices.remove(&key);
        }
        if let Some(backend) = sources.backend(&key) {
            backend.set_instances(listed);
        }
        drop(sources);
        self.update_gateways(&key);
    }

    /// After a new list of slices; `seen` holds namespace and name.
    pub(crate) fn retain_slices(&self, seen: &HashSet<Name>) {
        let known = |sources: &Sources| -> Vec<(RevisionKey, String)> {
            let all = sources.slices.iter();
            all.flat_map(|(key, slices)| slices.keys().map(|name| (key.clone(), name.clone()))).collect()
        };
        let known = known(&self.sources());
        for (key, name) in known {
            if !seen.contains(&(key.namespace.clone(), name.clone())) {
                self.update_slice(key, name, None);
            }
        }
    }

    /// A Revision as it is now: whether it can start at all, and why not; and how its instances are probed.
    pub fn revision(&self, revision: &Revision) {
        let failure = revision.status.as_ref().and_then(|status| failure(&status.conditions));
        let key = revision_key(revision);
        if self.inner.hub.probes {
            self.set_check(key.clone(), Some(check_of(&revision.spec.pod)));
        }
        self.set_failure(key, failure.map(Arc::new));
    }

    pub fn remove_revision(&self, revision: &Revision) {
        self.set_check(revision_key(revision), None);
        self.set_failure(revision_key(revision), None);
    }

    /// `None` for a revision that is gone.
    fn set_check(&self, key: RevisionKey, check: Option<Option<Check>>) {
        let mut sources = self.sources();
        let usual = &self.inner.usual_check;
        let check = check.map(|check| check.map(|c| if c == **usual { usual.clone() } else { Arc::new(c) }));
        if let Some(backend) = sources.backend(&key) {
            backend.set_check(check.clone().flatten());
        }
        match check {
            Some(check) => sources.checks.insert(key, check),
            None => sources.checks.remove(&key),
        };
    }

    /// A Pod of a revision as it is now: whether it is about to be removed.
    pub fn pod(&self, pod: &Pod) {
        self.set_draining(pod, pod.labels().contains_key(label::DRAINING));
    }

    pub fn remove_pod(&self, pod: &Pod) {
        self.set_draining(pod, false);
    }

    fn set_draining(&self, pod: &Pod, draining: bool) {
        let (Some(namespace), Some(revision)) = (pod.namespace(), pod.labels().get(label::REVISION)) else { return };
        self.mark(&RevisionKey { namespace, revision: revision.clone() }, &pod.name_any(), draining);
    }

    fn mark(&self, key: &RevisionKey, pod: &str, draining: bool) {
        let mut sources = self.sources();
        let pods = sources.draining.entry(key.clone()).or_default();
        let changed = if draining { pods.insert(pod.to_owned()) } else { pods.remove(pod) };
        let pods = pods.clone();
        if pods.is_empty() {
            sources.draining.remove(key);
        }
        // Under the lock, so that of two changes the later is the last.
        if let Some(backend) = sources.backend(key).filter(|_| changed) {
            backend.drain(pods);
        }
    }

    /// After a new list of draining Pods.
    pub(crate) fn retain_pods(&self, seen: &HashSet<Name>) {
        let mut sources = self.sources();
        let mut fewer = vec![];
        sources.draining.retain(|key, pods| {
            let before = pods.len();
            pods.retain(|pod| seen.contains(&(key.namespace.clone(), pod.clone())));
            if pods.len() < before {
                fewer.push((key.clone(), pods.clone()));
            }
            !pods.is_empty()
        });
        for (key, pods) in fewer {
            if let Some(backend) = sources.backend(&key) {
                backend.drain(pods);
            }
        }
    }

    fn set_failure(&self, key: RevisionKey, failure: Option<Arc<Failure>>) {
        let mut sources = self.sources();
        if let Some(backend) = sources.backend(&key) {
            backend.set_failure(failure.clone());
        }
        match failure {
            Some(failure) => sources.failures.insert(key, failure),
            None => sources.failures.remove(&key),
        };
    }

    /// After a new list of Revisions.
    pub(crate) fn retain_revisions(&self, seen: &HashSet<Name>) {
        let known = |sources: &Sources| -> HashSet<RevisionKey> {
            sources.failures.keys().chain(sources.checks.keys()).cloned().collect()
        };
        let known = known(&self.sources());
        for key in known {
            if !seen.contains(&(key.namespace.clone(), key.revision.clone())) {
                self.set_check(key.clone(), None);
                self.set_failure(key, None);
            }
        }
    }

    /// No code panics while it holds the lock, so a poisoned one still guards sound state.
    fn sources(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.inner.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the node itself drains its instances.
impl Traffic for Feed {
    fn leaves(&self, key: &RevisionKey, pod: &str) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.mark(key, pod, true);
        let (backend, pod) = (self.sources().backend(key), pod.to_owned());
        Box::pin(async move {
            if let Some(backend) = backend {
                backend.empty(&pod).await;
            }
        })
    }

    fn left(&self, key: &RevisionKey, pod: &str) {
        self.mark(key, pod, false);
    }
}

impl Sources {
    /// A revision's back end, whether an Ingress names it or only its last requests use it.
    fn backend(&self, key: &RevisionKey) -> Option<Arc<Backend>> {
        let retired = || self.retired.get(key).and_then(Weak::upgrade);
        self.backends.get(key).cloned().or_else(retired)
    }

    fn resolve(&mut self, inner: &Inner, key: RevisionKey, policy: &SplitPolicy) -> Arc<Backend> {
        let hub = &inner.hub;
        let limit = u32::try_from(policy.container_concurrency).unwrap_or(0);
        let away = inner.own.as_ref().and_then(|own| own.away(&self.gateways, &key, limit));
        if let Some(known) = self.backends.get(&key) {
            known.set_limit(limit);
            known.set_away(away);
            return known.clone();
        }
        let backend = match self.retired.remove(&key).and_then(|retired| retired.upgrade()) {
            Some(retired) => retired,
            None => {
                let metrics = hub.metrics.backend(&key, &policy.service);
                Backend::new(key.clone(), policy.service.clone(), limit, metrics, hub.clone())
            }
        };
        backend.set_limit(limit);
        backend.set_away(away);
        backend.drain(self.draining.get(&key).cloned().unwrap_or_default());
        backend.set_check(self.checks.get(&key).cloned().flatten());
        backend.set_instances(merged(self.slices.get(&key)));
        backend.set_failure(self.failures.get(&key).cloned());
        self.backends.insert(key, backend.clone());
        backend
    }

    fn retire(&mut self, named: &HashSet<RevisionKey>) {
        let unnamed: Vec<RevisionKey> = self.backends.keys().filter(|key| !named.contains(*key)).cloned().collect();
        for key in unnamed {
            if let Some(backend) = self.backends.remove(&key) {
                self.retired.insert(key, Arc::downgrade(&backend));
            }
        }
        self.retired.retain(|_, backend| backend.strong_count() > 0);
    }
}

fn name(ingress: &Ingress) -> Name {
    (ingress.namespace().unwrap_or_default(), ingress.name_any())
}

/// The hosts of an Ingress that have a certificate. A Secret of another namespace is not its to use.
fn secrets(ingress: &Ingress) -> Vec<(Box<str>, Name)> {
    let own = ingress.namespace().unwrap_or_default();
    let near = ingress.spec.tls.iter().filter(|tls| tls.secret_namespace.is_empty() || tls.secret_namespace == own);
    near.flat_map(|tls| {
        let secret = (own.clone(), tls.secret_name.clone());
        tls.hosts.iter().map(move |host| (host.to_ascii_lowercase().into_boxed_str(), secret.clone()))
    })
    .collect()
}

fn revision_key(revision: &Revision) -> RevisionKey {
    RevisionKey { namespace: revision.namespace().unwrap_or_default(), revision: revision.name_any() }
}

/// A service's slices as one, without duplicates: an endpoint may be in two slices for a moment.
fn merged(slices: Option<&BTreeMap<String, Listed>>) -> Listed {
    let mut all = Listed::default();
    for slice in slices.into_iter().flat_map(BTreeMap::values) {
        all.ready.extend(slice.ready.iter().cloned());
        all.starting.extend(slice.starting.iter().cloned());
    }
    for list in [&mut all.ready, &mut all.starting] {
        list.sort();
        list.dedup();
    }
    let Listed { ready, starting } = &mut all;
    starting.retain(|one| ready.binary_search(one).is_err());
    all
}

/// Why a revision cannot start. A revision without traffic is not ready either, but its container is not to blame.
fn failure(conditions: &[Condition]) -> Option<Failure> {
    let broken = ["ContainerHealthy", "ResourcesAvailable"].into_iter().find(|type_| is_false(conditions, type_))?;
    let condition = api::condition::find(conditions, broken)?;
    Some(Failure { reason: condition.reason.clone(), message: condition.message.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_fails_for_its_container_or_its_resources() {
        let condition = |type_: &str, status: &str| Condition {
            type_: type_.into(),
            status: status.into(),
            severity: String::new(),
            last_transition_time: None,
            reason: format!("{type_}Reason"),
            message: String::new(),
        };
        let rows = [
            (vec![], None),
            (vec![condition("ContainerHealthy", "True")], None),
            (vec![condition("Active", "False"), condition("ContainerHealthy", "Unknown")], None),
            (vec![condition("ContainerHealthy", "False")], Some("ContainerHealthyReason")),
            (vec![condition("ResourcesAvailable", "False")], Some("ResourcesAvailableReason")),
        ];
        for (conditions, want) in rows {
            assert_eq!(failure(&conditions).map(|f| f.reason).as_deref(), want, "{conditions:?}");
        }
    }
}
