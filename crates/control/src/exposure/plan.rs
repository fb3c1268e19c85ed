//! What it takes so that the outside world reaches public hosts.

use std::sync::Arc;

use reconcile::{Kind, Plan, Propagation};

use super::{Exposed, Exposure, Found, children};
use crate::ownership::{controls, name_of};

/// Plans what exposes the hosts, none for a Route of the cluster's own, through the gateway's Service `gateway`. An error
/// names what is in the way.
pub fn plan<P: Kind>(
    exposure: &Exposure,
    found: &Found,
    exposed: &Exposed<'_, P>,
    gateway: &str,
    plan: &mut Plan,
) -> Result<(), String> {
    let has_hosts = !exposed.hosts.is_empty();
    let owner = exposed.owner;
    match (exposure, found) {
        (Exposure::Ingress { class }, Found::Ingresses(found)) => {
            let wanted = has_hosts.then(|| children::ingress(exposed, class.as_deref()));
            settle(owner, found, wanted.as_slice(), plan)
        }
        (Exposure::HttpRoute { gateway }, Found::HttpRoutes(found)) => {
            settle(owner, found, &children::http_routes(exposed, gateway), plan)
        }
        (Exposure::Istio { gateways }, Found::VirtualServices(found)) => {
            let wanted = has_hosts.then(|| children::virtual_service(exposed, gateways, gateway));
            settle(owner, found, wanted.as_slice(), plan)
        }
        _ => Ok(()),
    }
}

fn settle<K: Kind>(owner: &impl Kind, found: &[Arc<K>], wanted: &[K], plan: &mut Plan) -> Result<(), String> {
    let named = |name: &str| found.iter().find(|o| name_of(o.as_ref()) == name).map(Arc::as_ref);
    let foreign = |one: &&K| named(name_of(*one)).is_some_and(|there| !controls(owner, there));
    if let Some(one) = wanted.iter().find(foreign) {
        return Err(format!("There is an existing {} {:?} that we do not own.", K::kind(&()), name_of(one)));
    }
    for one in wanted {
        plan.apply(named(name_of(one)), one);
    }
    for old in found.iter().filter(|o| controls(owner, o.as_ref())) {
        let is_leaving = reconcile::view::is_deleting(old.as_ref());
        if !is_leaving && !wanted.iter().any(|one| name_of(one) == name_of(old.as_ref())) {
            plan.delete(old.as_ref(), Propagation::Background);
        }
    }
    Ok(())
}
