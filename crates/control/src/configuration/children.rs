//! The Revision of one generation of a Configuration.

use api::names::{USER_CONTAINER, label};
use api::serving::{Configuration, Revision, RevisionSpec};
use reconcile::view;

use crate::ownership::{child_meta, child_name, name_of};

/// Labels that only this controller stamps.
pub const CONFIGURATION_UID: &str = "serving.knative.dev/configurationUID";
pub const SERVICE_UID: &str = "serving.knative.dev/serviceUID";

/// The name the template asks for, else `<configuration>-<generation, five digits>`.
pub fn revision_name(configuration: &Configuration) -> String {
    let asked = configuration.spec.template.metadata.as_ref().and_then(|m| m.name.clone());
    asked.unwrap_or_else(|| {
        let generation = configuration.metadata.generation.unwrap_or(1);
        child_name(name_of(configuration), &format!("-{generation:05}"))
    })
}

pub fn generation_label(configuration: &Configuration) -> String {
    configuration.metadata.generation.unwrap_or(1).to_string()
}

pub fn revision(configuration: &Configuration) -> Revision {
    let template = &configuration.spec.template;
    let metadata = template.metadata.clone().unwrap_or_default();
    let mut labels = metadata.labels.unwrap_or_default();
    let mut put = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
    put(label::CONFIGURATION, name_of(configuration));
    put(label::CONFIGURATION_GENERATION, &generation_label(configuration));
    put(CONFIGURATION_UID, view::uid(configuration));
    if let Some(service) = view::label(configuration, label::SERVICE) {
        put(label::SERVICE, service);
    }
    if let Some(owner) = view::controller_of(configuration) {
        put(SERVICE_UID, &owner.uid);
    }
    let mut revision = Revision::new("", defaulted(template.spec.clone()));
    let annotations = metadata.annotations.unwrap_or_default();
    revision.metadata = child_meta(configuration, &revision_name(configuration), labels, annotations);
    revision
}

/// Fills in what the serving contract promises when the manifest is silent.
pub fn defaulted(mut spec: RevisionSpec) -> RevisionSpec {
    spec.timeout_seconds = Some(spec.timeout());
    spec.container_concurrency = Some(spec.concurrency());
    let several = spec.pod.containers.len() > 1;
    for (i, container) in spec.pod.containers.iter_mut().enumerate().filter(|(_, c)| c.name.is_empty()) {
        container.name = if several { format!("{USER_CONTAINER}-{i}") } else { USER_CONTAINER.to_owned() };
    }
    spec
}
