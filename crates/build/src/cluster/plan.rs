//! What becomes of a Build on a cluster: a Job, a wait, a result, another try. Pure.
//!
//! The surprise: there is no counter of attempts. How long a Job that failed for our own reasons is left alone follows
//! from how old its Build was when it was made, so the waits double all by themselves and survive a restart.

use std::sync::Arc;

use api::build::Build;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use reconcile::view::{is_deleting, label, uid};
use reconcile::{Key, Kind, Plan, Propagation, View};

use super::children::{self, BUILD_UID};
use super::prepare::Prepared;
use super::result::{self, Verdict};
use super::{ClusterConfig, status};
use crate::plan::check_repository;
use crate::worker::Outcome;

/// How soon a Build that waits for its turn looks again.
const TURN: SignedDuration = SignedDuration::from_secs(2);
/// A Job makes its pod within moments.
const NO_POD_YET: SignedDuration = SignedDuration::from_secs(10);
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(30);
const LAST_RETRY: SignedDuration = SignedDuration::from_mins(5);

pub struct Inputs {
    pub build: Option<Arc<Build>>,
    /// Of every Build that had this name.
    pub jobs: Vec<Arc<Job>>,
    pub pods: Vec<Arc<Pod>>,
    pub active: Active,
    pub prepared: Option<Prepared>,
}

/// Jobs of other Builds that have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Active {
    pub all: usize,
    pub in_namespace: usize,
}

/// What to write, and whether to look at the source first and decide again.
#[derive(Default)]
pub struct Decision {
    pub plan: Plan,
    pub prepare: bool,
}

pub fn gather(view: &impl View, key: &Key, config: &ClusterConfig) -> Inputs {
    let all = view.list::<Job>(&config.namespace);
    let (jobs, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|job| children::build_of(job.as_ref()).as_ref() == Some(key));
    let active: Vec<_> = others.iter().filter(|job| !result::has_ended(job)).collect();
    let same =
        |job: &&&Arc<Job>| children::build_of(job.as_ref()).is_some_and(|other| other.namespace == key.namespace);
    let pods = jobs.iter().flat_map(|job| view.controlled_by::<Pod>(uid(job.as_ref()))).collect();
    Inputs {
        build: view.get::<Build>(&key.namespace, &key.name),
        active: Active { all: active.len(), in_namespace: active.iter().filter(same).count() },
        jobs,
        pods,
        prepared: None,
    }
}

pub fn decide(inputs: &Inputs, config: &ClusterConfig, now: Timestamp) -> Decision {
    let mut plan = Plan::default();
    let living = inputs.build.as_deref().filter(|build| !is_deleting(*build));
    for job in inputs.jobs.iter().filter(|job| !is_deleting(job.as_ref())) {
        if label(job.as_ref(), BUILD_UID) != living.map(uid) {
            plan.delete(job.as_ref(), Propagation::Background);
        }
    }
    let Some(build) = living.filter(|build| crate::status::is_pending(build)) else {
        return Decision { plan, prepare: false };
    };
    let job = inputs.jobs.iter().find(|job| label(job.as_ref(), BUILD_UID) == Some(uid(build)));
    match job {
        None => start(build, inputs, config, plan, now),
        Some(job) => {
            follow(build, job, inputs, config, &mut plan, now);
            Decision { plan, prepare: false }
        }
    }
}

fn start(build: &Build, inputs: &Inputs, config: &ClusterConfig, mut plan: Plan, now: Timestamp) -> Decision {
    let namespace = build.metadata.namespace.as_deref().unwrap_or_default();
    let refused = |refusal| Outcome { result: Err(refusal), runtime: build.spec.runtime, log_tail: vec![] };
    if let Err(refusal) = check_repository(namespace, &build.spec.repository) {
        plan.status(build, &crate::status::ended(build, &refused(refusal), now), now);
        return Decision { plan, prepare: false };
    }
    let full = inputs.active.all >= config.concurrency || inputs.active.in_namespace >= config.per_namespace;
    match &inputs.prepared {
        None if full => {
            plan.status(build, &status::waiting(build, "other builds have to end first", now), now);
            plan.requeue_after(TURN);
        }
        None => {
            plan.status(build, &status::running(build, now), now);
            return Decision { plan, prepare: true };
        }
        Some(Prepared::Refused(refusal)) => {
            plan.status(build, &crate::status::ended(build, &refused(refusal.clone()), now), now);
        }
        Some(Prepared::Failed(error)) => {
            plan.status(build, &crate::status::failed_here(build, error, now), now);
        }
        Some(Prepared::Ready(work)) => {
            plan.create(&children::job(build, work, config));
            plan.status(build, &status::running(build, now), now);
        }
    }
    Decision { plan, prepare: false }
}

fn follow(build: &Build, job: &Job, inputs: &Inputs, config: &ClusterConfig, plan: &mut Plan, now: Timestamp) {
    let pod =
        inputs.pods.iter().find(|pod| reconcile::view::controller_of(pod.as_ref()).is_some_and(|c| c.uid == uid(job)));
    match result::verdict(job, pod.map(Arc::as_ref), config) {
        _ if is_deleting(job) => plan.status(build, &status::running(build, now), now),
        // A pod that nobody makes, for a quota or an admission rule, changes nothing that is watched.
        Verdict::Running if pod.is_none() => match born(job).saturating_add(NO_POD_YET).unwrap_or(now) {
            due if due <= now => {
                let (namespace, name) = (&config.namespace, job.metadata.name.as_deref().unwrap_or_default());
                let why = format!("its Job has no pod; see: kubectl -n {namespace} describe job {name}");
                plan.status(build, &status::waiting(build, &why, now), now);
            }
            due => {
                plan.status(build, &status::running(build, now), now);
                plan.requeue_after(due.duration_since(now));
            }
        },
        Verdict::Running => plan.status(build, &status::running(build, now), now),
        Verdict::Waiting(why) => plan.status(build, &status::waiting(build, &why, now), now),
        Verdict::Ended(outcome) => {
            let outcome = Outcome { runtime: children::runtime_of(job), ..outcome };
            plan.status(build, &crate::status::ended(build, &outcome, now), now);
        }
        Verdict::Failed(error) => {
            plan.status(build, &crate::status::failed_here(build, &error, now), now);
            match retry_at(build, job) {
                // First it is said, or nobody would know after a crash between the two.
                due if due <= now && plan.status.is_none() => plan.delete(job, Propagation::Background),
                due if due <= now => {}
                due => plan.requeue_after(due.duration_since(now)),
            }
        }
    }
}

/// When a Job that failed for our own reasons makes way for the next.
fn retry_at(build: &Build, job: &Job) -> Timestamp {
    let age = born(job).duration_since(born(build));
    born(job).saturating_add(age.clamp(FIRST_RETRY, LAST_RETRY)).unwrap_or(born(job))
}

fn born<K: Kind>(object: &K) -> Timestamp {
    object.meta().creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}
