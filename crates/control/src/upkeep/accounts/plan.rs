//! The account a namespace lacks.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Plan, view};

use super::DEFAULT;

pub fn plan(namespace: &Namespace, there: Option<&ServiceAccount>) -> Plan {
    let mut plan = Plan::default();
    if there.is_none() && !view::is_deleting(namespace) {
        let name = Some(DEFAULT.to_owned());
        let metadata = ObjectMeta { namespace: namespace.metadata.name.clone(), name, ..ObjectMeta::default() };
        plan.create(&ServiceAccount { metadata, ..ServiceAccount::default() });
    }
    plan
}
