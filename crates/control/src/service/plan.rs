//! What a Knative Service needs, and how its children's status climbs.
//!
//! A child's word counts only when it is about the child's newest generation.

use api::condition;
use api::serving::rules;
use api::serving::{Configuration, Route, SERVICE_CONDITIONS, Service, ServiceStatus, reason};
use jiff::Timestamp;
use reconcile::Plan;

use super::children;
use crate::ownership::{controls, generation_of, name_of};

const CONFIGURATIONS_READY: &str = "ConfigurationsReady";
const ROUTES_READY: &str = "RoutesReady";

pub fn plan(service: &Service, configuration: Option<&Configuration>, route: Option<&Route>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut status = service.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(service);
    SERVICE_CONDITIONS.init(&mut status.conditions, now);
    // On one machine it is refused before it is kept; a cluster's API server knows the schema only.
    let problems = rules::service(&service.metadata, &service.spec, None);
    if !problems.is_empty() {
        let message: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let (conditions, message) = (&mut status.conditions, message.join("; "));
        SERVICE_CONDITIONS.mark_false(conditions, CONFIGURATIONS_READY, reason::INVALID_SPEC, &message, now);
        plan.status(service, &status, now);
        return plan;
    }
    plan_configuration(service, configuration, &mut plan, &mut status, now);
    plan_route(service, route, &mut plan, &mut status, now);
    plan.tell_refusal(service, &status, SERVICE_CONDITIONS, CONFIGURATIONS_READY, now);
    plan.status(service, &status, now);
    plan
}

fn plan_configuration(
    service: &Service,
    configuration: Option<&Configuration>,
    plan: &mut Plan,
    status: &mut ServiceStatus,
    now: Timestamp,
) {
    let conditions = &mut status.conditions;
    if configuration.is_some_and(|c| !controls(service, c)) {
        let message = not_owned("Configuration", service);
        return SERVICE_CONDITIONS.mark_false(conditions, CONFIGURATIONS_READY, reason::NOT_OWNED, &message, now);
    }
    let before = plan.writes.len();
    plan.apply(configuration, &children::configuration(service));
    let child = configuration.and_then(|c| c.status.clone()).unwrap_or_default();
    let current = configuration.is_some_and(|c| child.observed_generation == c.metadata.generation);
    if plan.writes.len() > before || !current {
        let message = "the Configuration has not caught up with the Service";
        SERVICE_CONDITIONS.mark_unknown(conditions, CONFIGURATIONS_READY, reason::OUT_OF_DATE, message, now);
        return;
    }
    status.latest_created_revision_name = child.latest_created_revision_name;
    status.latest_ready_revision_name = child.latest_ready_revision_name;
    let ready = condition::find(&child.conditions, "Ready");
    SERVICE_CONDITIONS.propagate(conditions, CONFIGURATIONS_READY, ready, now);
}

fn plan_route(service: &Service, route: Option<&Route>, plan: &mut Plan, status: &mut ServiceStatus, now: Timestamp) {
    let conditions = &mut status.conditions;
    if route.is_some_and(|r| !controls(service, r)) {
        let message = not_owned("Route", service);
        return SERVICE_CONDITIONS.mark_false(conditions, ROUTES_READY, reason::NOT_OWNED, &message, now);
    }
    let before = plan.writes.len();
    plan.apply(route, &children::route(service));
    let child = route.and_then(|r| r.status.clone()).unwrap_or_default();
    let current = route.is_some_and(|r| child.observed_generation == r.metadata.generation);
    if plan.writes.len() > before || !current {
        let message = "the Route has not caught up with the Service";
        return SERVICE_CONDITIONS.mark_unknown(conditions, ROUTES_READY, reason::OUT_OF_DATE, message, now);
    }
    let ready = condition::find(&child.conditions, "Ready");
    SERVICE_CONDITIONS.propagate(conditions, ROUTES_READY, ready, now);
    status.url = child.url;
    status.address = child.address;
    status.traffic = child.traffic;
    let behind = status
        .traffic
        .iter()
        .any(|t| t.latest_revision == Some(true) && t.revision_name != status.latest_ready_revision_name);
    if behind && condition::is_true(conditions, ROUTES_READY) {
        let message = "traffic has not yet moved to the latest revision";
        SERVICE_CONDITIONS.mark_unknown(conditions, ROUTES_READY, reason::TRAFFIC_NOT_MIGRATED, message, now);
    }
}

fn not_owned(kind: &str, service: &Service) -> String {
    format!("There is an existing {kind} {:?} that we do not own.", name_of(service))
}
