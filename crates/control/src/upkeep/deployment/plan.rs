//! How replicas are shared between the new template and the old ones.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use api::names::annotation;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::{Plan, Propagation};
use serde_json::json;

use super::{children, revisions};
use crate::ownership::{generation_of, name_of};
use crate::upkeep::adoption;

const HISTORY: usize = 10;
const PROGRESS_DEADLINE_SECONDS: i32 = 600;

/// Whether the template in use has its set.
pub fn has_current(spec: &DeploymentSpec, sets: &[Arc<ReplicaSet>]) -> bool {
    let hash = children::template_hash(spec);
    sets.iter().any(|set| children::has_hash(set, &hash))
}

/// `orphans` are taken first; the next run sees them among the sets.
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], orphans: &[Arc<ReplicaSet>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &deployment.spec else { return plan };
    if !orphans.is_empty() {
        orphans.iter().for_each(|orphan| adoption::adopt(deployment, orphan.as_ref(), &mut plan));
        return plan;
    }
    let wanted = spec.replicas.unwrap_or(1);
    let hash = children::template_hash(spec);
    let current = sets.iter().find(|s| children::has_hash(s, &hash));
    let old: Vec<&Arc<ReplicaSet>> = sets.iter().filter(|s| !children::has_hash(s, &hash)).collect();
    if spec.paused != Some(true) {
        roll(deployment, spec, current, &old, now, &mut plan);
        forget(spec, &old, &mut plan);
    }
    let status = status(deployment, current.map(Arc::as_ref), sets, wanted, now);
    if let Some(left) = deadline(spec, &status, now) {
        plan.requeue_after(left);
    }
    plan.status(deployment, &status, now);
    plan
}

fn roll(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    current: Option<&Arc<ReplicaSet>>,
    old: &[&Arc<ReplicaSet>],
    now: Timestamp,
    plan: &mut Plan,
) {
    let wanted = spec.replicas.unwrap_or(1);
    let revision = revisions::of_template(current.map(Arc::as_ref), old);
    let recreate = spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate");
    let old_live = old.iter().any(|s| count(s, |t| t.replicas) > 0 || replicas(s) > 0);
    let target = if recreate && old_live { 0 } else { wanted };
    match current {
        None => {
            let set = children::replica_set(deployment, spec, target, revision);
            plan.create(&set);
            tell(deployment, name_of(&set), 0, target, now, plan);
        }
        Some(set) => {
            let annotations = children::annotations(deployment, revision);
            plan.patch(set.as_ref(), json!({"metadata": {"annotations": annotations}, "spec": {"replicas": target}}));
            tell(deployment, name_of(set.as_ref()), replicas(set), target, now, plan);
        }
    }
    plan.patch(
        deployment,
        json!({"metadata": {"annotations": {annotation::DEPLOYMENT_REVISION: revision.to_string()}}}),
    );
    let available = current.map_or(0, |s| count(s, |t| t.available_replicas.unwrap_or(0)));
    if recreate || available >= wanted {
        for set in old {
            plan.patch(set.as_ref(), json!({"spec": {"replicas": 0}}));
            tell(deployment, name_of(set.as_ref()), replicas(set), 0, now, plan);
        }
    }
}

/// In the words of Kubernetes, that people and their tools look for.
fn tell(deployment: &Deployment, set: &str, from: i32, to: i32, now: Timestamp, plan: &mut Plan) {
    let way = match to.cmp(&from) {
        Ordering::Equal => return,
        Ordering::Greater => "up",
        Ordering::Less => "down",
    };
    let message = format!("Scaled {way} replica set {set} from {from} to {to}");
    plan.event(deployment, "ScalingReplicaSet", &message, false, now);
}

/// Old templates that nothing runs any more, beyond the history that is kept.
fn forget(spec: &DeploymentSpec, old: &[&Arc<ReplicaSet>], plan: &mut Plan) {
    let kept = spec.revision_history_limit.map_or(HISTORY, |n| usize::try_from(n).unwrap_or(0));
    let mut idle: Vec<_> = old.iter().filter(|s| replicas(s) == 0 && count(s, |t| t.replicas) == 0).collect();
    idle.sort_by_key(|s| Reverse((s.metadata.creation_timestamp.clone().map(|t| t.0), name_of(s.as_ref()).to_owned())));
    for set in idle.into_iter().skip(kept).filter(|s| s.metadata.deletion_timestamp.is_none()) {
        plan.delete(set.as_ref(), Propagation::Background);
    }
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn count(set: &ReplicaSet, of: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32) -> i32 {
    set.status.as_ref().map_or(0, of)
}

fn status(
    deployment: &Deployment,
    current: Option<&ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
    wanted: i32,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |of: &dyn Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        sets.iter().map(|s| count(s, of)).sum()
    };
    let available = sum(&|t| t.available_replicas.unwrap_or(0));
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: generation_of(deployment),
        replicas: nonzero(sum(&|t| t.replicas)),
        updated_replicas: nonzero(current.map_or(0, |s| count(s, |t| t.replicas))),
        ready_replicas: nonzero(sum(&|t| t.ready_replicas.unwrap_or(0))),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((wanted - available).max(0)),
        conditions: before.conditions.clone(),
        ..DeploymentStatus::default()
    };
    let mut conditions = status.conditions.take().unwrap_or_default();
    let enough = available >= wanted;
    let (reason, message) = if enough {
        ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    put(&mut conditions, "Available", enough, reason, message, false, now);
    let updated = current.map_or(0, |s| count(s, |t| t.available_replicas.unwrap_or(0)));
    let total = status.replicas.unwrap_or(0);
    let complete = updated >= wanted && total == wanted;
    let moved = (before.updated_replicas, before.available_replicas, before.replicas, before.observed_generation)
        != (status.updated_replicas, status.available_replicas, status.replicas, status.observed_generation);
    progress(deployment, &mut conditions, complete, moved, now);
    status.conditions = Some(conditions);
    status
}

fn progress(
    deployment: &Deployment,
    conditions: &mut Vec<DeploymentCondition>,
    complete: bool,
    moved: bool,
    now: Timestamp,
) {
    let name = name_of(deployment);
    if complete {
        let message = format!("Deployment {name:?} has successfully progressed.");
        return put(conditions, "Progressing", true, "NewReplicaSetAvailable", &message, false, now);
    }
    let said = conditions.iter().find(|c| c.type_ == "Progressing");
    let given_up = said.is_some_and(|c| c.status == "False");
    let last = said.and_then(|c| c.last_update_time.as_ref()).map(|t| t.0);
    let late = given_up || last.is_some_and(|t| now.duration_since(t) >= deadline_of(deployment.spec.as_ref()));
    if late && !moved {
        let message = format!("Deployment {name:?} has timed out progressing.");
        return put(conditions, "Progressing", false, "ProgressDeadlineExceeded", &message, false, now);
    }
    let message = format!("Deployment {name:?} is progressing.");
    put(conditions, "Progressing", true, "ReplicaSetUpdated", &message, moved, now);
}

fn deadline_of(spec: Option<&DeploymentSpec>) -> SignedDuration {
    let seconds = spec.and_then(|s| s.progress_deadline_seconds).unwrap_or(PROGRESS_DEADLINE_SECONDS);
    SignedDuration::from_secs(i64::from(seconds))
}

/// How long until an unfinished roll-out counts as stuck.
fn deadline(spec: &DeploymentSpec, status: &DeploymentStatus, now: Timestamp) -> Option<SignedDuration> {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Progressing")?;
    if condition.reason.as_deref() != Some("ReplicaSetUpdated") {
        return None;
    }
    let since = condition.last_update_time.as_ref()?.0;
    Some((deadline_of(Some(spec)) - now.duration_since(since)).max(SignedDuration::from_secs(1)))
}

fn nonzero(n: i32) -> Option<i32> {
    (n > 0).then_some(n)
}

fn put(
    conditions: &mut Vec<DeploymentCondition>,
    type_: &str,
    status: bool,
    reason: &str,
    message: &str,
    touch: bool,
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let time = Some(Time(api::condition::whole_seconds(now)));
    let old = conditions.iter().find(|c| c.type_ == type_);
    let same = old.is_some_and(|c| c.status == status);
    let said = same && old.is_some_and(|c| c.reason.as_deref() == Some(reason));
    let new = DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: if same { old.and_then(|c| c.last_transition_time.clone()) } else { time.clone() },
        last_update_time: if said && !touch { old.and_then(|c| c.last_update_time.clone()) } else { time },
    };
    conditions.retain(|c| c.type_ != type_);
    conditions.push(new);
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
}
