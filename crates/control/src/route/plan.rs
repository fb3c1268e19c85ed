//! What a Route needs: its Ingress, the marks on Revisions, and its status.

use std::sync::Arc;

use api::networking::{self, Ingress};
use api::serving::{Addressable, ROUTE_CONDITIONS, Revision, Route, RouteStatus, TrafficTarget, reason};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Service;
use reconcile::{Plan, view};
use serde_json::json;

use super::traffic::{Assigned, Unassigned};
use super::{Hosts, children};
use crate::exposure::{self, Found};
use crate::ownership::{controls, generation_of, name_of};

const ALL_TRAFFIC_ASSIGNED: &str = "AllTrafficAssigned";
const INGRESS_READY: &str = "IngressReady";
/// On a Revision: the Routes that send traffic to it, separated by commas.
pub const ROUTES: &str = "serving.knative.dev/routes";
/// A Route may name a Revision of somebody else's Service, whose changes are not mapped back to it.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(5);

pub struct Inputs {
    pub route: Arc<Route>,
    pub resolved: Result<Vec<Assigned>, Unassigned>,
    /// Revisions that may have to learn that traffic left them.
    pub revisions: Vec<Arc<Revision>>,
    pub ingress: Option<Arc<Ingress>>,
    /// The core Service of the Route's name, whoever owns it.
    pub placeholder: Option<Arc<Service>>,
    /// What leads here from outside.
    pub exposed: Found,
    pub hosts: Hosts,
}

pub fn plan(inputs: &Inputs, now: Timestamp) -> Plan {
    let route = inputs.route.as_ref();
    let mut plan = Plan::default();
    let mut status = route.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(route);
    ROUTE_CONDITIONS.init(&mut status.conditions, now);
    status.url = Some(children::url(route, &inputs.hosts, None));
    status.address = Some(Addressable { url: Some(format!("http://{}", children::local_host(route, None))) });
    match &inputs.resolved {
        Err(why) => {
            let conditions = &mut status.conditions;
            if why.failed {
                ROUTE_CONDITIONS.mark_false(conditions, ALL_TRAFFIC_ASSIGNED, why.reason, &why.message, now);
            } else {
                ROUTE_CONDITIONS.mark_unknown(conditions, ALL_TRAFFIC_ASSIGNED, why.reason, &why.message, now);
            }
            plan.requeue_after(LOOK_AGAIN);
        }
        Ok(assigned) => {
            ROUTE_CONDITIONS.mark_true(&mut status.conditions, ALL_TRAFFIC_ASSIGNED, now);
            status.traffic = assigned.iter().map(|a| told(route, &inputs.hosts, a)).collect();
            plan_network(inputs, assigned, &mut plan, &mut status, now);
        }
    }
    plan.tell_refusal(route, &status, ROUTE_CONDITIONS, INGRESS_READY, now);
    plan.status(route, &status, now);
    plan
}

fn plan_network(inputs: &Inputs, assigned: &[Assigned], plan: &mut Plan, status: &mut RouteStatus, now: Timestamp) {
    let route = inputs.route.as_ref();
    let conditions = &mut status.conditions;
    if let Some(taken) = taken(inputs) {
        return ROUTE_CONDITIONS.mark_false(conditions, INGRESS_READY, reason::NOT_OWNED, &taken, now);
    }
    // A Revision learns of traffic before it comes and of its end after it went.
    mark_reached(inputs, assigned, plan);
    let there = inputs.placeholder.as_deref();
    plan.apply(there, &children::placeholder(route, &inputs.hosts, there));
    let before = plan.writes.len();
    let ingress = children::ingress(route, assigned, &inputs.hosts);
    plan.apply(inputs.ingress.as_deref(), &ingress);
    let exposed = expose(inputs, &children::public_hosts(&ingress), plan);
    if let Err(taken) = exposed {
        ROUTE_CONDITIONS.mark_false(conditions, INGRESS_READY, reason::NOT_OWNED, &taken, now);
    } else if plan.writes.len() > before {
        let message = "the gateway's table is being written";
        ROUTE_CONDITIONS.mark_unknown(conditions, INGRESS_READY, reason::INGRESS_NOT_CONFIGURED, message, now);
    } else {
        ROUTE_CONDITIONS.mark_true(conditions, INGRESS_READY, now);
        mark_left(inputs, assigned, plan);
    }
    if let Some(ingress) = inputs.ingress.as_deref() {
        let mut status = ingress.status.clone().unwrap_or_default();
        status.observed_generation = generation_of(ingress);
        for condition in networking::CONDITIONS.dependents {
            networking::CONDITIONS.mark_true(&mut status.conditions, condition, now);
        }
        plan.child_status(ingress, &status);
    }
}

/// From outside only once the gateway's table has it.
fn expose(inputs: &Inputs, hosts: &[String], plan: &mut Plan) -> Result<(), String> {
    let Some(cluster) = &inputs.hosts.cluster else { return Ok(()) };
    exposure::plan(&cluster.exposure, &inputs.exposed, &inputs.route, hosts, &cluster.gateway, plan)
}

fn taken(inputs: &Inputs) -> Option<String> {
    let route = inputs.route.as_ref();
    let foreign_ingress = inputs.ingress.as_deref().is_some_and(|i| !controls(route, i));
    let foreign_service = inputs.placeholder.as_deref().is_some_and(|s| !controls(route, s));
    let kind = match (foreign_ingress, foreign_service) {
        (true, _) => "Ingress",
        (_, true) => "Service",
        _ => return None,
    };
    Some(format!("There is an existing {kind} {:?} that we do not own.", name_of(route)))
}

fn mark_reached(inputs: &Inputs, assigned: &[Assigned], plan: &mut Plan) {
    let mut seen = vec![];
    for Assigned { revision, .. } in assigned {
        if !seen.contains(&name_of(revision.as_ref())) {
            seen.push(name_of(revision.as_ref()));
            let mut routes = routes_of(revision);
            routes.push(name_of(inputs.route.as_ref()));
            mark(revision, routes, plan);
        }
    }
}

fn mark_left(inputs: &Inputs, assigned: &[Assigned], plan: &mut Plan) {
    let route = name_of(inputs.route.as_ref());
    let reached = |r: &Revision| assigned.iter().any(|a| name_of(a.revision.as_ref()) == name_of(r));
    for revision in inputs.revisions.iter().filter(|r| !reached(r)) {
        let mut routes = routes_of(revision);
        if routes.contains(&route) {
            routes.retain(|r| *r != route);
            mark(revision, routes, plan);
        }
    }
}

fn mark(revision: &Revision, mut routes: Vec<&str>, plan: &mut Plan) {
    routes.sort_unstable();
    routes.dedup();
    let state = if routes.is_empty() { "reserve" } else { "active" };
    let annotation = if routes.is_empty() { json!(null) } else { json!(routes.join(",")) };
    plan.patch(
        revision,
        json!({"metadata": {
            "labels": {api::names::label::ROUTING_STATE: state},
            "annotations": {ROUTES: annotation},
        }}),
    );
}

fn routes_of(revision: &Revision) -> Vec<&str> {
    let text = view::annotation(revision, ROUTES).unwrap_or_default();
    text.split(',').filter(|r| !r.is_empty()).collect()
}

fn told(route: &Route, hosts: &Hosts, assigned: &Assigned) -> TrafficTarget {
    let Assigned { target, revision } = assigned;
    TrafficTarget {
        configuration_name: None,
        revision_name: Some(name_of(revision.as_ref()).to_owned()),
        latest_revision: Some(target.revision_name.is_none()),
        percent: target.percent,
        tag: target.tag.clone(),
        url: target.tag.as_ref().map(|tag| children::url(route, hosts, Some(tag))),
    }
}
