//! Which pods to make, and which to delete first.

use std::sync::Arc;

use api::names::annotation;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Plan, Propagation, view};

use super::children;
use crate::autoscaler::is_ready;
use crate::ownership::{generation_of, name_of};
use crate::upkeep::{adoption, is_finished};

/// Pods made or deleted in one run; the next run goes on.
const BURST: usize = 500;
/// A node that refuses pods must not make this spin: the wait after n failed pods is 2^n seconds, n at most this.
const MAX_FAILED: u32 = 6;

/// How many pods there are too few.
pub fn missing(spec: &ReplicaSetSpec, pods: &[Arc<Pod>]) -> usize {
    let live = pods.iter().filter(|pod| is_live(pod) && !adoption::has_strayed(pod.as_ref(), &spec.selector)).count();
    wanted(spec).saturating_sub(live)
}

/// Pods whose labels were changed are let go; the `orphans` that are still missing are taken before any is made.
pub fn plan(set: &ReplicaSet, pods: &[Arc<Pod>], orphans: &[Arc<Pod>], node: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    let (strayed, pods): (Vec<_>, Vec<_>) =
        pods.iter().cloned().partition(|pod| adoption::has_strayed(pod.as_ref(), &spec.selector));
    strayed.iter().for_each(|pod| adoption::release(set, pod.as_ref(), &mut plan));
    let orphans: Vec<_> = orphans.iter().filter(|pod| is_live(pod)).take(missing(spec, &pods)).collect();
    if !orphans.is_empty() {
        orphans.into_iter().for_each(|orphan| adoption::adopt(set, orphan.as_ref(), &mut plan));
        return plan;
    }
    let live: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_live(pod)).collect();
    let wanted = wanted(spec);
    if live.len() < wanted {
        match backoff(&pods, now) {
            Some(wait) => plan.requeue_after(wait),
            None => create(set, &pods, (wanted - live.len()).min(BURST), node, now, &mut plan),
        }
    }
    for pod in victims(&live, live.len().saturating_sub(wanted).min(BURST)) {
        plan.delete(pod.as_ref(), Propagation::Background);
    }
    plan.status(set, &status(set, &live), now);
    plan
}

fn wanted(spec: &ReplicaSetSpec) -> usize {
    usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0)
}

fn is_live(pod: &Pod) -> bool {
    !view::is_deleting(pod) && !is_finished(pod)
}

fn create(set: &ReplicaSet, pods: &[Arc<Pod>], missing: usize, node: &str, now: Timestamp, plan: &mut Plan) {
    let Some(template) = set.spec.as_ref().and_then(|s| s.template.as_ref()) else { return };
    let mut made: Vec<String> = vec![];
    for _ in 0..missing {
        let taken = |name: &str| made.iter().any(|m| m == name) || pods.iter().any(|p| name_of(p.as_ref()) == name);
        let name = children::pod_name(set, now, &taken);
        plan.create(&children::pod(set, template, &name, node));
        made.push(name);
    }
}

/// How long to wait because pods ended as soon as they were made.
fn backoff(pods: &[Arc<Pod>], now: Timestamp) -> Option<SignedDuration> {
    let failed = || pods.iter().filter(|p| is_finished(p) && !view::is_deleting(p.as_ref()));
    let count = u32::try_from(failed().count()).unwrap_or(u32::MAX).min(MAX_FAILED);
    let newest = failed().filter_map(|p| p.metadata.creation_timestamp.as_ref()).map(|t| t.0).max()?;
    let wait = newest + SignedDuration::from_secs(1 << count);
    (wait > now).then(|| wait.duration_since(now))
}

/// The cheapest to lose: by deletion cost, then those not ready, then the youngest.
fn victims<'a>(live: &[&'a Arc<Pod>], surplus: usize) -> Vec<&'a Arc<Pod>> {
    let cost = |pod: &Pod| -> i64 {
        view::annotation(pod, annotation::POD_DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0)
    };
    let born = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let mut order = live.to_vec();
    order.sort_by_key(|p| (cost(p), is_ready(p), std::cmp::Reverse(born(p)), name_of(p.as_ref()).to_owned()));
    order.truncate(surplus);
    order
}

fn status(set: &ReplicaSet, live: &[&Arc<Pod>]) -> ReplicaSetStatus {
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let ready = count(live.iter().filter(|p| is_ready(p)).count());
    ReplicaSetStatus {
        replicas: count(live.len()),
        fully_labeled_replicas: Some(count(live.len())).filter(|n| *n > 0),
        ready_replicas: Some(ready).filter(|n| *n > 0),
        available_replicas: Some(ready).filter(|n| *n > 0),
        observed_generation: generation_of(set),
        ..ReplicaSetStatus::default()
    }
}
