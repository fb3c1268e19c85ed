//! From what the decider wants to the scale that is written, and how active the Revision is said to be.

use std::sync::Arc;

use api::autoscaling::{ACTIVE, CONDITIONS, PodAutoscaler, PodAutoscalerStatus, SCALE_TARGET_INITIALIZED};
use api::condition::{self, Condition};
use api::names::annotation;
use api::serving::reason;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Plan, view};
use serde_json::json;

use super::drain;
use super::kpa::Wanted;
use super::settings::{ACTIVATION_TIMEOUT, SCALE_TO_ZERO_GRACE, Settings};
use crate::ownership::{generation_of, name_of};

pub struct Inputs {
    pub autoscaler: Arc<PodAutoscaler>,
    pub settings: Settings,
    pub deployment: Option<Arc<Deployment>>,
    pub pods: Vec<Arc<Pod>>,
    pub wanted: Wanted,
    /// Whether instances are drained by gateways before the scale is lowered; else their node does it.
    pub drains: bool,
}

/// What the way to zero allows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    /// The scale that counts as wanted; `None` keeps what was said before.
    want: Option<i32>,
    /// Whether it is written to the Deployment.
    write: bool,
    again: Option<SignedDuration>,
}

pub fn plan(inputs: &Inputs, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let autoscaler = inputs.autoscaler.as_ref();
    let ready = inputs.pods.iter().filter(|p| is_ready(p) && !view::is_deleting(p.as_ref())).count() as i32;
    let Some(deployment) = inputs.deployment.as_deref() else { return plan };
    let current = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let mut status = autoscaler.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(autoscaler);
    status.service_name = Some(name_of(autoscaler).to_owned());
    CONDITIONS.init(&mut status.conditions, now);
    let step = step(inputs, &status.conditions, current, now);
    if let Some(again) = step.again {
        plan.requeue_after(again);
    }
    if let Some(want) = step.want.filter(|_| step.write) {
        let wait = match inputs.drains {
            true if want < current => drain::drain(inputs, want, &mut plan, now),
            true => {
                drain::spare(inputs, want, &mut plan);
                None
            }
            false => {
                if want < current {
                    spare_the_busy(inputs, &mut plan);
                }
                None
            }
        };
        match wait {
            Some(again) => plan.requeue_after(again),
            None => plan.patch(deployment, json!({"spec": {"replicas": want}})),
        }
    }
    mark_active(inputs, step.want, ready, &mut status, now);
    status.desired_scale = step.want.or(status.desired_scale);
    status.actual_scale = Some(ready);
    plan.status(autoscaler, &status, now);
    plan
}

/// The bounds of the scale now: a Revision that nothing reaches needs no minimum, one that never ran its first.
fn bounds(inputs: &Inputs, conditions: &[Condition]) -> (i32, i32) {
    let s = &inputs.settings;
    let mut min = if s.reachable { s.min } else { 0 };
    if s.reachable && !condition::is_true(conditions, SCALE_TARGET_INITIALIZED) {
        min = min.max(s.initial);
    }
    let max = s.ceiling().max(min.min(s.initial));
    (min.min(max), max)
}

fn step(inputs: &Inputs, conditions: &[Condition], current: i32, now: Timestamp) -> Step {
    let (min, max) = bounds(inputs, conditions);
    let Wanted { scale, floor, drain, .. } = &inputs.wanted;
    let want = scale.unwrap_or(current).max(*floor).clamp(min, max);
    if want > 0 {
        return Step { want: Some(want), write: true, again: None };
    }
    if *drain || current == 0 {
        return Step { want: Some(0), write: true, again: None };
    }
    way_to_zero(&inputs.settings, conditions, now)
}

/// Activating: give up only after the timeout. Active: stay at one until it has been so for a window, then say
/// inactive. Inactive: go after the retention. Knative's grace is for a network that must first learn to hold
/// requests; the gateway always does, which is Knative's "in proxy mode for longer than the grace".
fn way_to_zero(s: &Settings, conditions: &[Condition], now: Timestamp) -> Step {
    let active = condition::find(conditions, ACTIVE);
    let since = active.and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
    let been = now.duration_since(since);
    let in_path_for = SignedDuration::MAX;
    let wait = |want, write, limit: SignedDuration| Step { want, write, again: Some(limit.saturating_sub(been)) };
    let gone = Step { want: Some(0), write: true, again: None };
    match active.map(|c| c.status.as_str()) {
        Some(condition::TRUE) if been >= s.stable_window => Step { want: Some(0), write: false, again: None },
        Some(condition::TRUE) => wait(Some(1), true, s.stable_window),
        Some(condition::FALSE) if been >= s.retention.max(SCALE_TO_ZERO_GRACE) => gone,
        Some(condition::FALSE) if in_path_for >= SCALE_TO_ZERO_GRACE && been >= s.retention => gone,
        Some(condition::FALSE) => wait(Some(0), false, s.retention),
        _ if been >= ACTIVATION_TIMEOUT => gone,
        _ => wait(None, false, ACTIVATION_TIMEOUT),
    }
}

/// Knative's table of activity. `want` of `None` keeps the state that was.
fn mark_active(inputs: &Inputs, want: Option<i32>, ready: i32, status: &mut PodAutoscalerStatus, now: Timestamp) {
    let s = &inputs.settings;
    let conditions = &mut status.conditions;
    let initialized = condition::is_true(conditions, SCALE_TARGET_INITIALIZED);
    let min = if s.reachable { s.min } else { 0 };
    let threshold = if initialized { min.max(1) } else { min.max(s.initial) };
    if ready >= threshold && !initialized {
        condition::put(conditions, SCALE_TARGET_INITIALIZED, condition::TRUE, "", "", now);
    }
    let inactive = condition::is_false(conditions, ACTIVE);
    let activating = !inactive && !condition::is_true(conditions, ACTIVE);
    if want == Some(0) || threshold == 0 {
        if activating && threshold > 0 && !inputs.wanted.drain {
            CONDITIONS.mark_false(conditions, ACTIVE, "TimedOut", "The target could not be activated.", now);
        } else if !inactive {
            CONDITIONS.mark_false(conditions, ACTIVE, reason::NO_TRAFFIC, "The target is not receiving traffic.", now);
        }
    } else if want.is_none() && inactive {
        // Nothing is known that would change it.
    } else if ready < threshold {
        let message = "Requests to the target are held while instances start.";
        CONDITIONS.mark_unknown(conditions, ACTIVE, reason::QUEUED, message, now);
    } else {
        CONDITIONS.mark_true(conditions, ACTIVE, now);
    }
}

/// Before the scale is lowered every instance says what its end would cost, so that the idle go first.
fn spare_the_busy(inputs: &Inputs, plan: &mut Plan) {
    for pod in inputs.pods.iter().filter(|p| !view::is_deleting(p.as_ref())) {
        let in_flight: u32 =
            inputs.wanted.loads.iter().filter(|l| l.pod == name_of(pod.as_ref())).map(|l| l.in_flight).sum();
        let cost = in_flight.to_string();
        if view::annotation(pod.as_ref(), annotation::POD_DELETION_COST).unwrap_or("0") != cost {
            plan.patch(pod.as_ref(), json!({"metadata": {"annotations": {annotation::POD_DELETION_COST: cost}}}));
        }
    }
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == condition::TRUE)
}
