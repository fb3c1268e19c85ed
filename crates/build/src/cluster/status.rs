//! What a Build's status says only on a cluster. Pure.

use api::build::{Build, BuildStatus, CONDITIONS, SUCCEEDED, reason};
use api::condition::find;
use jiff::Timestamp;

/// It is under way and nothing keeps it. One that is tried again keeps saying why until it is over.
pub fn running(build: &Build, now: Timestamp) -> BuildStatus {
    let mut status = build.status.clone().unwrap_or_default();
    status.observed_generation = build.metadata.generation;
    if find(&status.conditions, SUCCEEDED).is_none_or(|condition| condition.reason != reason::INTERNAL) {
        CONDITIONS.mark_unknown(&mut status.conditions, SUCCEEDED, reason::RUNNING, "the build is running", now);
    }
    status
}

/// It is under way and something keeps it: said in the condition, for as long as it lasts.
pub fn waiting(build: &Build, why: &str, now: Timestamp) -> BuildStatus {
    let mut status = build.status.clone().unwrap_or_default();
    status.observed_generation = build.metadata.generation;
    CONDITIONS.mark_unknown(
        &mut status.conditions,
        SUCCEEDED,
        reason::RUNNING,
        &format!("the build waits: {why}"),
        now,
    );
    status
}
