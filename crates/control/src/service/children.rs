//! The Configuration and the Route of a Knative Service.

use api::names::label;
use api::serving::{Configuration, ConfigurationSpec, Route, RouteSpec, Service, TrafficTarget};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::{annotations_of, child_meta, labels_of, name_of};

pub fn configuration(service: &Service) -> Configuration {
    let mut configuration = Configuration::new("", ConfigurationSpec { template: service.spec.template.clone() });
    configuration.metadata = meta(service);
    configuration
}

pub fn route(service: &Service) -> Route {
    let latest = TrafficTarget { percent: Some(100), latest_revision: Some(true), ..TrafficTarget::default() };
    let mut traffic = service.spec.traffic.clone();
    if traffic.is_empty() {
        traffic.push(latest);
    }
    for target in traffic.iter_mut().filter(|t| t.revision_name.is_none()) {
        target.configuration_name = Some(name_of(service).to_owned());
        target.latest_revision = Some(true);
    }
    let mut route = Route::new("", RouteSpec { traffic });
    route.metadata = meta(service);
    route
}

fn meta(service: &Service) -> ObjectMeta {
    let mut labels = labels_of(service);
    labels.insert(label::SERVICE.into(), name_of(service).to_owned());
    child_meta(service, name_of(service), labels, annotations_of(service))
}
