//! What a Route needs: its Ingress, the marks on Revisions, and its status.

use std::sync::Arc;

use api::condition;
use api::names::annotation::ROUTING_STATE_MODIFIED;
use api::names::label;
use api::networking::Ingress;
use api::serving::{Addressable, ROUTE_CONDITIONS, Revision, Route, RouteStatus, TrafficTarget, reason};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Service;
use reconcile::{Plan, Propagation, view};
use serde_json::json;

use super::children;
use super::naming::Naming;
use super::traffic::{Assigned, Unassigned};
use crate::exposure::{self, Exposed, Found};
use crate::hosts;
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
    /// What leads here from outside.
    pub exposed: Found,
    pub naming: Naming,
}

pub fn plan(inputs: &Inputs, now: Timestamp) -> Plan {
    let route = inputs.route.as_ref();
    let mut plan = Plan::default();
    let mut status = route.status.clone().unwrap_or_default();
    status.observed_generation = generation_of(route);
    ROUTE_CONDITIONS.init(&mut status.conditions, now);
    status.url = Some(inputs.naming.url(route, None));
    status.address = Some(Addressable { url: Some(format!("http://{}", inputs.naming.local(route, None))) });
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
            status.traffic = assigned.iter().map(|a| told(route, &inputs.naming, a)).collect();
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
    if let Some(taken) = taken(inputs, assigned) {
        return ROUTE_CONDITIONS.mark_false(conditions, INGRESS_READY, reason::NOT_OWNED, &taken, now);
    }
    // A Revision learns of traffic before it comes and of its end after it went.
    mark_reached(inputs, assigned, plan, now);
    plan_placeholders(inputs, assigned, plan);
    let before = plan.writes.len();
    let ingress = children::ingress(route, assigned, &inputs.naming);
    plan.apply(inputs.ingress.as_deref(), &ingress);
    let exposed = expose(inputs, &children::public_hosts(&ingress), plan);
    if let Err(taken) = exposed {
        ROUTE_CONDITIONS.mark_false(conditions, INGRESS_READY, reason::NOT_OWNED, &taken, now);
    } else if plan.writes.len() > before {
        let message = "the gateway's table is being written";
        ROUTE_CONDITIONS.mark_unknown(conditions, INGRESS_READY, reason::INGRESS_NOT_CONFIGURED, message, now);
    } else {
        ROUTE_CONDITIONS.mark_true(conditions, INGRESS_READY, now);
        mark_left(inputs, assigned, plan, now);
    }
    if let Some(ingress) = inputs.ingress.as_deref() {
        hosts::served(ingress, plan, now);
    }
}

/// From outside only once the gateway's table has it.
fn expose(inputs: &Inputs, hosts: &[String], plan: &mut Plan) -> Result<(), String> {
    let Some(cluster) = &inputs.naming.hosts.cluster else { return Ok(()) };
    let route = inputs.route.as_ref();
    let exposed = Exposed { owner: route, service: name_of(route), hosts, secret: None };
    exposure::plan(&cluster.exposure, &inputs.exposed, &exposed, &cluster.gateway, plan)
}

/// One core Service for the Route's own name and one for each tag; those of tags that are gone go, too.
fn plan_placeholders(inputs: &Inputs, assigned: &[Assigned], plan: &mut Plan) {
    let (route, naming) = (inputs.route.as_ref(), &inputs.naming);
    let mut names = vec![];
    for tag in names_of(assigned) {
        let wanted = children::placeholder(route, naming, tag);
        plan.apply(naming.placeholder(name_of(&wanted)).map(Arc::as_ref), &wanted);
        names.push(name_of(&wanted).to_owned());
    }
    let stale = |service: &&Arc<Service>| {
        let service = service.as_ref();
        controls(route, service) && !names.iter().any(|n| n == name_of(service)) && !view::is_deleting(service)
    };
    naming.placeholders.iter().filter(stale).for_each(|old| plan.delete(old.as_ref(), Propagation::Background));
}

/// The Route's own name, and its tags.
fn names_of(assigned: &[Assigned]) -> impl Iterator<Item = Option<&str>> {
    let tags = assigned.iter().filter_map(|a| a.target.tag.as_deref());
    std::iter::once(None).chain(tags.map(Some))
}

fn taken(inputs: &Inputs, assigned: &[Assigned]) -> Option<String> {
    let (route, naming) = (inputs.route.as_ref(), &inputs.naming);
    let why = |kind: &str, name: &str| format!("There is an existing {kind} {name:?} that we do not own.");
    if inputs.ingress.as_deref().is_some_and(|ingress| !controls(route, ingress)) {
        return Some(why("Ingress", name_of(route)));
    }
    let mut names = names_of(assigned).map(|tag| naming.name(route, tag));
    let name = names.find(|name| naming.placeholder(name).is_some_and(|there| !controls(route, there.as_ref())))?;
    Some(why("Service", &name))
}

fn mark_reached(inputs: &Inputs, assigned: &[Assigned], plan: &mut Plan, now: Timestamp) {
    let mut seen = vec![];
    for Assigned { revision, .. } in assigned {
        if !seen.contains(&name_of(revision.as_ref())) {
            seen.push(name_of(revision.as_ref()));
            let mut routes = routes_of(revision);
            routes.push(name_of(inputs.route.as_ref()));
            mark(revision, routes, plan, now);
        }
    }
}

/// A Route that is gone sends nothing to anybody, or its Revisions would keep their least number of instances for ever.
pub fn abandon(revisions: &[Arc<Revision>], route: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    for revision in revisions.iter().filter(|r| !view::is_deleting(r.as_ref())) {
        leave(revision, route, &mut plan, now);
    }
    plan
}

fn leave(revision: &Revision, route: &str, plan: &mut Plan, now: Timestamp) {
    let mut routes = routes_of(revision);
    if routes.contains(&route) {
        routes.retain(|r| *r != route);
        mark(revision, routes, plan, now);
    }
}

fn mark_left(inputs: &Inputs, assigned: &[Assigned], plan: &mut Plan, now: Timestamp) {
    let route = name_of(inputs.route.as_ref());
    let reached = |r: &Revision| assigned.iter().any(|a| name_of(a.revision.as_ref()) == name_of(r));
    for revision in inputs.revisions.iter().filter(|r| !reached(r)) {
        leave(revision, route, plan, now);
    }
}

fn mark(revision: &Revision, mut routes: Vec<&str>, plan: &mut Plan, now: Timestamp) {
    routes.sort_unstable();
    routes.dedup();
    let state = if routes.is_empty() { "reserve" } else { "active" };
    let annotation = if routes.is_empty() { json!(null) } else { json!(routes.join(",")) };
    let mut annotations = json!({ROUTES: annotation});
    if view::label(revision, label::ROUTING_STATE) != Some(state) {
        // Old Revisions go by when this was.
        annotations[ROUTING_STATE_MODIFIED] = json!(condition::whole_seconds(now));
    }
    plan.patch(revision, json!({"metadata": {"labels": {label::ROUTING_STATE: state}, "annotations": annotations}}));
}

fn routes_of(revision: &Revision) -> Vec<&str> {
    let text = view::annotation(revision, ROUTES).unwrap_or_default();
    text.split(',').filter(|r| !r.is_empty()).collect()
}

fn told(route: &Route, naming: &Naming, assigned: &Assigned) -> TrafficTarget {
    let Assigned { target, revision } = assigned;
    TrafficTarget {
        configuration_name: None,
        revision_name: Some(name_of(revision.as_ref()).to_owned()),
        latest_revision: Some(target.revision_name.is_none()),
        percent: target.percent,
        tag: target.tag.clone(),
        url: target.tag.as_ref().map(|tag| naming.url(route, Some(tag))),
    }
}
