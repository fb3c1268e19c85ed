//! What a Route needs so that the outside world reaches its public hosts.

use std::sync::Arc;

use api::serving::Route;
use reconcile::{Kind, Plan, Propagation};

use super::{Exposure, Found, children};
use crate::ownership::{controls, name_of};

/// Plans what exposes `hosts`, none for a Route of the cluster's own, through the gateway's Service `gateway`. An error
/// names what is in the way.
pub fn plan(
    exposure: &Exposure,
    found: &Found,
    route: &Route,
    hosts: &[String],
    gateway: &str,
    plan: &mut Plan,
) -> Result<(), String> {
    let has_hosts = !hosts.is_empty();
    match (exposure, found) {
        (Exposure::Ingress { class }, Found::Ingresses(found)) => {
            let wanted = has_hosts.then(|| children::ingress(route, hosts, class.as_deref()));
            settle(route, found, wanted.as_slice(), plan)
        }
        (Exposure::HttpRoute { gateway }, Found::HttpRoutes(found)) => {
            settle(route, found, &children::http_routes(route, hosts, gateway), plan)
        }
        (Exposure::Istio { gateways }, Found::VirtualServices(found)) => {
            let wanted = has_hosts.then(|| children::virtual_service(route, hosts, gateways, gateway));
            settle(route, found, wanted.as_slice(), plan)
        }
        _ => Ok(()),
    }
}

fn settle<K: Kind>(route: &Route, found: &[Arc<K>], wanted: &[K], plan: &mut Plan) -> Result<(), String> {
    let named = |name: &str| found.iter().find(|o| name_of(o.as_ref()) == name).map(Arc::as_ref);
    let foreign = |one: &&K| named(name_of(*one)).is_some_and(|there| !controls(route, there));
    if let Some(one) = wanted.iter().find(foreign) {
        return Err(format!("There is an existing {} {:?} that we do not own.", K::kind(&()), name_of(one)));
    }
    for one in wanted {
        plan.apply(named(name_of(one)), one);
    }
    for old in found.iter().filter(|o| controls(route, o.as_ref())) {
        let is_leaving = reconcile::view::is_deleting(old.as_ref());
        if !is_leaving && !wanted.iter().any(|one| name_of(one) == name_of(old.as_ref())) {
            plan.delete(old.as_ref(), Propagation::Background);
        }
    }
    Ok(())
}
