//! On a cluster: which instances go when the scale is lowered, and when they may. Pure.
//!
//! A victim is marked first: with a deletion cost below everyone's, so that the ReplicaSet picks it, and with a label
//! that gateways watch, so that they send it nothing new. The scale is written once every gateway that knows the pod
//! says that it drains and has nothing on it. Everything is on the Pod, so a restart goes on where it was. The
//! surprise: a request that comes meanwhile takes the mark away again, and the instance serves on.

use std::cmp::Reverse;
use std::sync::Arc;

use api::names::{annotation, label};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Plan, view};
use serde_json::json;

use super::plan::{Inputs, is_ready};
use crate::ownership::name_of;

/// A gateway without a request for the Revision does not report; it is given this long to see the mark. Marks have
/// whole seconds, so one second of this may be none.
const SETTLE: SignedDuration = SignedDuration::from_secs(2);
/// How often gateways report.
const REPORTS: SignedDuration = SignedDuration::from_secs(1);
/// Below the cost of every pod that nobody marked, which is 0.
const COST: &str = "-1";
/// A kubelet's, for a pod that does not say how long it may take to end.
const GRACE: SignedDuration = SignedDuration::from_secs(30);

/// Marks as many instances as are too many for `want`. `None` when they may go; else when to look again.
pub fn drain(inputs: &Inputs, want: i32, plan: &mut Plan, now: Timestamp) -> Option<SignedDuration> {
    let (victims, others) = divide(inputs, want);
    spare_all(&others, plan);
    for pod in victims.iter().filter(|pod| since(pod).is_none()) {
        let mark = json!({"labels": {label::DRAINING: now.as_second().to_string()},
            "annotations": {annotation::POD_DELETION_COST: COST}});
        plan.patch(pod.as_ref(), json!({"metadata": mark}));
    }
    victims.iter().filter_map(|pod| still(inputs, pod, now)).max()
}

/// Nothing is lowered: what was marked and is not too many serves on.
pub fn spare(inputs: &Inputs, want: i32, plan: &mut Plan) {
    spare_all(&divide(inputs, want).1, plan);
}

fn spare_all(pods: &[&Arc<Pod>], plan: &mut Plan) {
    for pod in pods.iter().filter(|pod| since(pod).is_some()) {
        let mark = json!({"labels": {label::DRAINING: null}, "annotations": {annotation::POD_DELETION_COST: null}});
        plan.patch(pod.as_ref(), json!({"metadata": mark}));
    }
}

/// Those that are too many, and the others. First those that a ReplicaSet would take first whatever they cost, then
/// those that were chosen before, then the idle ones, then the youngest.
fn divide(inputs: &Inputs, want: i32) -> (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) {
    let mut live: Vec<&Arc<Pod>> = inputs.pods.iter().filter(|p| !view::is_deleting(p.as_ref())).collect();
    let born = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    live.sort_by_key(|pod| {
        let load: u32 = load(inputs, pod).map_or(0, |(in_flight, _)| in_flight);
        (is_ready(pod), since(pod).is_none(), load, Reverse(born(pod)), name_of(pod.as_ref()).to_owned())
    });
    let surplus = live.len().saturating_sub(usize::try_from(want).unwrap_or(0));
    let others = live.split_off(surplus);
    (live, others)
}

/// What gateways have on a pod, and whether all of them say that it drains.
fn load(inputs: &Inputs, pod: &Pod) -> Option<(u32, bool)> {
    let of_pod = inputs.wanted.loads.iter().filter(|load| load.pod == name_of(pod));
    of_pod.map(|load| (load.in_flight, load.draining)).reduce(|a, b| (a.0 + b.0, a.1 && b.1))
}

fn since(pod: &Pod) -> Option<Timestamp> {
    let text = view::label(pod, label::DRAINING)?;
    // A mark that nobody can read was set at an unknown time, long ago.
    Some(text.parse().ok().and_then(|second| Timestamp::from_second(second).ok()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// How long to wait for this victim at least; `None` when it may go.
fn still(inputs: &Inputs, pod: &Pod, now: Timestamp) -> Option<SignedDuration> {
    let age = now.duration_since(since(pod).unwrap_or(now));
    if age < SETTLE {
        return Some(SETTLE - age);
    }
    // No request outlives the grace period, which begins with the Revision's own timeout.
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    if age >= grace.map_or(GRACE, SignedDuration::from_secs) {
        return None;
    }
    match load(inputs, pod) {
        None | Some((0, true)) => None,
        Some(_) => Some(REPORTS),
    }
}
