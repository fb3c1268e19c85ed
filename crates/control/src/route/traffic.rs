//! Which Revision each traffic target means now. Pure.

use std::sync::Arc;

use api::condition;
use api::serving::{Configuration, Revision, Route, TrafficTarget, reason};

/// A target with the Revision that serves it.
#[derive(Clone)]
pub struct Assigned {
    pub target: TrafficTarget,
    pub revision: Arc<Revision>,
}

/// Why traffic cannot be assigned.
#[derive(Clone, Debug, PartialEq)]
pub struct Unassigned {
    pub reason: &'static str,
    pub message: String,
    /// It will not get better by waiting.
    pub failed: bool,
}

/// Every target resolved, or the first reason why not: traffic moves as a whole.
pub fn resolve(
    route: &Route,
    configuration: impl Fn(&str) -> Option<Arc<Configuration>>,
    revision: impl Fn(&str) -> Option<Arc<Revision>>,
) -> Result<Vec<Assigned>, Unassigned> {
    route
        .spec
        .traffic
        .iter()
        .map(|target| {
            let revision = match &target.revision_name {
                Some(name) => pinned(name, revision(name))?,
                None => {
                    let name = target.configuration_name.as_deref().unwrap_or_default();
                    latest(name, configuration(name), &revision)?
                }
            };
            Ok(Assigned { target: target.clone(), revision })
        })
        .collect()
}

fn pinned(name: &str, revision: Option<Arc<Revision>>) -> Result<Arc<Revision>, Unassigned> {
    let missing = |message: String, failed| Unassigned { reason: reason::REVISION_MISSING, message, failed };
    let Some(revision) = revision else {
        return Err(missing(format!("Revision {name:?} referenced in traffic not found."), true));
    };
    let conditions = revision.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    match condition::find(conditions, "Ready") {
        Some(c) if c.status == condition::TRUE => Ok(revision),
        Some(c) if c.status == condition::FALSE => {
            Err(missing(format!("Revision {name:?} failed to become ready: {}", c.message), true))
        }
        _ => Err(missing(format!("Revision {name:?} is not yet ready."), false)),
    }
}

fn latest(
    name: &str,
    configuration: Option<Arc<Configuration>>,
    revision: impl Fn(&str) -> Option<Arc<Revision>>,
) -> Result<Arc<Revision>, Unassigned> {
    let Some(configuration) = configuration else {
        let message = format!("Configuration {name:?} referenced in traffic not found.");
        return Err(Unassigned { reason: reason::CONFIGURATION_MISSING, message, failed: true });
    };
    let status = configuration.status.clone().unwrap_or_default();
    if let Some(revision) = status.latest_ready_revision_name.as_deref().and_then(revision) {
        return Ok(revision);
    }
    let failed = condition::is_false(&status.conditions, "Ready");
    let message = if failed {
        format!("Configuration {name:?} does not have any ready Revision.")
    } else {
        format!("Configuration {name:?} is waiting for a Revision to become ready.")
    };
    Err(Unassigned { reason: reason::REVISION_MISSING, message, failed })
}
