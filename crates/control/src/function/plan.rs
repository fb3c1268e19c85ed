//! What a Function needs next, and what its status says.

use std::cmp::Reverse;
use std::sync::Arc;

use api::build::{self, Build};
use api::condition::{self, Condition};
use api::function::{BUILT, CONDITIONS, Function, FunctionStatus, SERVING, SOURCE_READY, reason};
use api::serving::{self, Service};
use jiff::Timestamp;
use reconcile::{Plan, Propagation};

use super::children;
use crate::Cluster;
use crate::ownership::{controls, generation_of, name_of};

/// Builds kept beside the current one.
const KEPT_BUILDS: usize = 3;
/// The lines of a failed build that climb into the condition.
const LOG_LINES: usize = 10;

pub struct Inputs {
    pub function: Arc<Function>,
    /// The object that has the wanted Build's name, whoever owns it.
    pub build: Option<Arc<Build>>,
    /// Every Build of this Function.
    pub builds: Vec<Arc<Build>>,
    /// The object that has the wanted Service's name, whoever owns it.
    pub service: Option<Arc<Service>>,
    pub cluster: Option<Arc<Cluster>>,
}

pub fn plan(inputs: &Inputs, now: Timestamp) -> Plan {
    let function = inputs.function.as_ref();
    let mut plan = Plan::default();
    let mut status = function.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(function);
    CONDITIONS.init(&mut status.conditions, now);
    let problems = function.spec.validate();
    if problems.is_empty() {
        CONDITIONS.mark_true(&mut status.conditions, SOURCE_READY, now);
        let image = plan_build(inputs, &mut plan, &mut status, now);
        plan_service(inputs, image.as_deref(), &mut plan, &mut status, now);
        let refused = if image.is_some() { SERVING } else { BUILT };
        plan.tell_refusal(function, &status, CONDITIONS, refused, now);
        prune(inputs, &mut plan);
    } else {
        let message: Vec<String> = problems.into_iter().map(|(path, problem)| format!("{path}: {problem}")).collect();
        CONDITIONS.mark_false(&mut status.conditions, SOURCE_READY, reason::SOURCE_INVALID, &message.join("; "), now);
    }
    plan.status(function, &status, now);
    plan
}

/// The image of the current source, once there is one.
fn plan_build(inputs: &Inputs, plan: &mut Plan, status: &mut FunctionStatus, now: Timestamp) -> Option<String> {
    let function = inputs.function.as_ref();
    let wanted = children::build(function);
    status.build = wanted.metadata.name.clone();
    let conditions = &mut status.conditions;
    let Some(build) = &inputs.build else {
        plan.apply(None, &wanted);
        CONDITIONS.mark_unknown(conditions, BUILT, reason::BUILDING, "the build has not started", now);
        return None;
    };
    if !controls(function, build.as_ref()) {
        let message = format!("Build {} of an earlier owner is still there", name_of(build.as_ref()));
        CONDITIONS.mark_unknown(conditions, BUILT, reason::BUILDING, &message, now);
        return None;
    }
    plan.apply(Some(build.as_ref()), &wanted);
    let built = build.status.clone().unwrap_or_default();
    match condition::find(&built.conditions, build::SUCCEEDED) {
        Some(c) if c.status == condition::TRUE && built.image.is_some() => {
            CONDITIONS.mark_true(conditions, BUILT, now);
            built.image
        }
        Some(c) if c.status == condition::FALSE => {
            mark_failed(conditions, c, &built.log_tail, now);
            None
        }
        other => {
            let (why, message) = other.map_or((reason::BUILDING, ""), |c| (c.reason.as_str(), c.message.as_str()));
            let why = if why.is_empty() { reason::BUILDING } else { why };
            CONDITIONS.mark_unknown(conditions, BUILT, why, message, now);
            None
        }
    }
}

fn mark_failed(conditions: &mut Vec<Condition>, failed: &Condition, log: &[String], now: Timestamp) {
    let source_at_fault =
        [build::reason::SOURCE_MISSING, build::reason::SOURCE_INVALID].contains(&failed.reason.as_str());
    if source_at_fault {
        CONDITIONS.mark_false(conditions, SOURCE_READY, &failed.reason, &failed.message, now);
    }
    let mut message = failed.message.clone();
    for line in &log[log.len().saturating_sub(LOG_LINES)..] {
        message.push('\n');
        message.push_str(line);
    }
    let why = if failed.reason.is_empty() { reason::BUILD_FAILED } else { &failed.reason };
    CONDITIONS.mark_false(conditions, BUILT, why, &message, now);
}

fn plan_service(inputs: &Inputs, image: Option<&str>, plan: &mut Plan, status: &mut FunctionStatus, now: Timestamp) {
    let function = inputs.function.as_ref();
    let service = inputs.service.as_deref();
    let conditions = &mut status.conditions;
    if let Some(foreign) = service.filter(|s| !controls(function, *s)) {
        let message = format!("a Knative Service {} exists and belongs to something else", name_of(foreign));
        CONDITIONS.mark_false(conditions, SERVING, reason::NAME_TAKEN, &message, now);
        status.url = None;
        status.revision = None;
        return;
    }
    let before = plan.writes.len();
    if let Some(image) = image {
        plan.apply(service, &children::service(function, image, inputs.cluster.as_deref()));
    }
    let changing = plan.writes.len() > before;
    let served = service.and_then(|s| s.status.clone()).unwrap_or_default();
    status.url = served.url;
    status.revision = served.latest_ready_revision_name;
    let current = service.is_some_and(|s| served.observed_generation == s.metadata.generation);
    if changing || (service.is_some() && !current) {
        CONDITIONS.mark_unknown(conditions, SERVING, serving::reason::OUT_OF_DATE, "the Service is changing", now);
    } else {
        CONDITIONS.propagate(conditions, SERVING, condition::find(&served.conditions, "Ready"), now);
    }
}

/// Old Builds go; their images stay as long as something refers to them.
fn prune(inputs: &Inputs, plan: &mut Plan) {
    let current = children::build_name(&inputs.function);
    let mut old: Vec<&Arc<Build>> = inputs.builds.iter().filter(|b| name_of(b.as_ref()) != current).collect();
    old.sort_by_key(|b| Reverse((b.metadata.creation_timestamp.clone().map(|t| t.0), name_of(b.as_ref()).to_owned())));
    for build in old.into_iter().skip(KEPT_BUILDS).filter(|b| b.metadata.deletion_timestamp.is_none()) {
        plan.delete(build.as_ref(), Propagation::Background);
    }
}
