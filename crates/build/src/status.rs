//! What a Build's status says at each point of its life. Pure.

use api::build::{Build, BuildStatus, CONDITIONS, SUCCEEDED, reason};
use api::condition::{find, is_false, is_true};
use jiff::Timestamp;

use crate::worker::Outcome;

/// Whether there is something left to do for it.
pub fn is_pending(build: &Build) -> bool {
    let ended =
        |status: &BuildStatus| is_true(&status.conditions, SUCCEEDED) || is_false(&status.conditions, SUCCEEDED);
    build.metadata.deletion_timestamp.is_none() && !build.status.as_ref().is_some_and(ended)
}

pub fn running(build: &Build, now: Timestamp) -> BuildStatus {
    let mut status = observed(build);
    // A build that is tried again keeps saying why until it is over.
    if find(&status.conditions, SUCCEEDED).is_none_or(|c| c.reason.is_empty()) {
        CONDITIONS.mark_unknown(&mut status.conditions, SUCCEEDED, reason::RUNNING, "the build is running", now);
    }
    status
}

pub fn ended(build: &Build, outcome: &Outcome, now: Timestamp) -> BuildStatus {
    let mut status = observed(build);
    status.runtime = outcome.runtime;
    status.log_tail.clone_from(&outcome.log_tail);
    match &outcome.result {
        Ok(image) => {
            status.image = Some(image.clone());
            CONDITIONS.mark_true(&mut status.conditions, SUCCEEDED, now);
        }
        Err(refusal) => {
            CONDITIONS.mark_false(&mut status.conditions, SUCCEEDED, refusal.reason, &refusal.message, now);
        }
    }
    status
}

pub fn failed_here(build: &Build, error: &str, now: Timestamp) -> BuildStatus {
    let mut status = observed(build);
    let message = format!("the build will be tried again: {error}");
    CONDITIONS.mark_unknown(&mut status.conditions, SUCCEEDED, reason::INTERNAL, &message, now);
    status
}

fn observed(build: &Build) -> BuildStatus {
    let mut status = build.status.clone().unwrap_or_default();
    status.observed_generation = build.metadata.generation;
    status
}
