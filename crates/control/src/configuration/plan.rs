//! Which Revision the newest generation means, which is the latest ready, and which old ones may go.

use std::sync::Arc;

use api::condition;
use api::config::Gc;
use api::names::label;
use api::serving::{CONFIGURATION_CONDITIONS, Configuration, ConfigurationStatus, Revision, reason};
use jiff::Timestamp;
use reconcile::view;
use reconcile::{Plan, Propagation};
use serde_json::json;

use super::{children, collect};
use crate::ownership::{controls, generation_of, name_of};

const READY: &str = "Ready";

pub struct Inputs {
    pub configuration: Arc<Configuration>,
    /// The object that has the wanted Revision's name, whoever owns it.
    pub named: Option<Arc<Revision>>,
    /// Every Revision of this Configuration.
    pub revisions: Vec<Arc<Revision>>,
    pub gc: Gc,
}

pub fn plan(inputs: &Inputs, now: Timestamp) -> Plan {
    let configuration = inputs.configuration.as_ref();
    let mut plan = Plan::default();
    let mut status = configuration.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(configuration);
    let wanted = children::revision(configuration);
    let name = name_of(&wanted).to_owned();
    let created = inputs.named.as_deref().or_else(|| of_generation(inputs));
    match created {
        None => {
            plan.create(&wanted);
            status.latest_created_revision_name = Some(name);
            CONFIGURATION_CONDITIONS.mark_unknown(&mut status.conditions, READY, "", "", now);
        }
        Some(revision) if !controls(configuration, revision) || !same_spec(revision, &wanted) => {
            let message = format!("Revision {name:?} exists and is not of this template");
            CONFIGURATION_CONDITIONS.mark_false(&mut status.conditions, READY, reason::REVISION_FAILED, &message, now);
        }
        Some(revision) => {
            let generation = children::generation_label(configuration);
            // A template that names an earlier Revision goes back to it.
            plan.patch(revision, json!({"metadata": {"labels": {label::CONFIGURATION_GENERATION: generation}}}));
            status.latest_created_revision_name = Some(name_of(revision).to_owned());
            propagate(revision, &mut status, now);
        }
    }
    set_latest_ready(inputs, &mut status);
    plan.tell_refusal(configuration, &status, CONFIGURATION_CONDITIONS, READY, now);
    collect(inputs, &status, &mut plan, now);
    plan.status(configuration, &status, now);
    plan
}

/// The Revision already stamped from this generation, when the template does not name one.
fn of_generation(inputs: &Inputs) -> Option<&Revision> {
    let asked = inputs.configuration.spec.template.metadata.as_ref().and_then(|m| m.name.as_ref());
    let wanted = inputs.configuration.metadata.generation.unwrap_or(1);
    inputs.revisions.iter().map(Arc::as_ref).find(|r| asked.is_none() && generation(r) == wanted)
}

/// Fields that the server filled in do not make another spec.
fn same_spec(revision: &Revision, wanted: &Revision) -> bool {
    reconcile::gate::satisfied(&json!(revision.spec), &json!(wanted.spec))
}

fn propagate(revision: &Revision, status: &mut ConfigurationStatus, now: Timestamp) {
    let conditions = &mut status.conditions;
    let ready = revision.status.as_ref().and_then(|s| condition::find(&s.conditions, READY));
    match ready {
        Some(c) if c.status == condition::TRUE => CONFIGURATION_CONDITIONS.mark_true(conditions, READY, now),
        Some(c) if c.status == condition::FALSE => {
            let message = format!("Revision {:?} failed with message: {}.", name_of(revision), c.message);
            CONFIGURATION_CONDITIONS.mark_false(conditions, READY, reason::REVISION_FAILED, &message, now);
        }
        Some(c) => CONFIGURATION_CONDITIONS.mark_unknown(conditions, READY, &c.reason, &c.message, now),
        None => CONFIGURATION_CONDITIONS.mark_unknown(conditions, READY, "", "", now),
    }
}

/// The newest ready Revision; one that was ready stays the latest ready until a newer one is.
fn set_latest_ready(inputs: &Inputs, status: &mut ConfigurationStatus) {
    let current =
        inputs.revisions.iter().find(|r| Some(name_of(r.as_ref())) == status.latest_ready_revision_name.as_deref());
    let at_least = current.map_or(0, |r| generation(r));
    let newest =
        inputs.revisions.iter().filter(|r| is_ready(r) && generation(r) >= at_least).max_by_key(|r| generation(r));
    if let Some(revision) = newest {
        status.latest_ready_revision_name = Some(name_of(revision.as_ref()).to_owned());
    }
}

fn collect(inputs: &Inputs, status: &ConfigurationStatus, plan: &mut Plan, now: Timestamp) {
    let latest = [&status.latest_created_revision_name, &status.latest_ready_revision_name].map(|name| name.as_deref());
    let collected = collect::collect(&inputs.revisions, &latest, &inputs.gc, now);
    collected.gone.iter().for_each(|revision| plan.delete(revision.as_ref(), Propagation::Background));
    collected.again.into_iter().for_each(|after| plan.requeue_after(after));
}

fn generation(revision: &Revision) -> i64 {
    view::label(revision, label::CONFIGURATION_GENERATION).and_then(|g| g.parse().ok()).unwrap_or(0)
}

fn is_ready(revision: &Revision) -> bool {
    revision.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, READY))
}
