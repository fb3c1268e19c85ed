//! Conditions: the vocabulary in which every object says how it is.
//!
//! A [`ConditionSet`] declares one happy condition and those it depends on; its verbs keep the happy one true
//! exactly when all the others are. Equal conditions stay equal: the transition time moves only with the status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One observation about an object, in the shape that Knative and `kubectl wait` read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub severity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

pub type Conditions = Vec<Condition>;

pub const TRUE: &str = "True";
pub const FALSE: &str = "False";
pub const UNKNOWN: &str = "Unknown";

/// The condition of that type, if it was ever set.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of that type is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == TRUE)
}

/// Whether the condition of that type is `False`.
pub fn is_false(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == FALSE)
}

/// A happy condition and the ones it is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConditionSet {
    pub happy: &'static str,
    pub dependents: &'static [&'static str],
}

impl ConditionSet {
    /// A condition set for something long-running.
    pub const fn living(dependents: &'static [&'static str]) -> Self {
        Self { happy: "Ready", dependents }
    }

    /// A condition set for something that ends.
    pub const fn batch(dependents: &'static [&'static str]) -> Self {
        Self { happy: "Succeeded", dependents }
    }

    /// Every condition that is not there yet becomes `Unknown`.
    pub fn init(&self, conditions: &mut Conditions, now: Timestamp) {
        for type_ in self.dependents.iter().chain([&self.happy]) {
            if find(conditions, type_).is_none() {
                put(conditions, type_, UNKNOWN, "", "", now);
            }
        }
    }

    pub fn mark_true(&self, conditions: &mut Conditions, type_: &str, now: Timestamp) {
        self.mark(conditions, type_, TRUE, "", "", now);
    }

    /// True for a reason that people want to know.
    pub fn mark_true_because(
        &self,
        conditions: &mut Conditions,
        type_: &str,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        self.mark(conditions, type_, TRUE, reason, message, now);
    }

    pub fn mark_false(&self, conditions: &mut Conditions, type_: &str, reason: &str, message: &str, now: Timestamp) {
        self.mark(conditions, type_, FALSE, reason, message, now);
    }

    pub fn mark_unknown(&self, conditions: &mut Conditions, type_: &str, reason: &str, message: &str, now: Timestamp) {
        self.mark(conditions, type_, UNKNOWN, reason, message, now);
    }

    /// Copies a child's condition into one of ours: its status, reason and message.
    pub fn propagate(&self, conditions: &mut Conditions, type_: &str, child: Option<&Condition>, now: Timestamp) {
        match child {
            Some(c) => self.mark(conditions, type_, &c.status, &c.reason, &c.message, now),
            None => self.mark(conditions, type_, UNKNOWN, "", "", now),
        }
    }

    fn mark(
        &self,
        conditions: &mut Conditions,
        type_: &str,
        status: &str,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        self.init(conditions, now);
        put(conditions, type_, status, reason, message, now);
        if type_ != self.happy {
            self.recompute(conditions, now);
        }
    }

    fn recompute(&self, conditions: &mut Conditions, now: Timestamp) {
        let worst = [FALSE, UNKNOWN].iter().find_map(|status| {
            self.dependents.iter().filter_map(|t| find(conditions, t)).find(|c| c.status == *status).cloned()
        });
        match worst {
            Some(c) => put(conditions, self.happy, &c.status, &c.reason, &c.message, now),
            None => put(conditions, self.happy, TRUE, "", "", now),
        }
    }
}

/// Sets one condition without recomputing any other; for informational ones.
pub fn put(conditions: &mut Conditions, type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) {
    let at = match find(conditions, type_) {
        Some(old) if old.status == status => old.last_transition_time.clone(),
        _ => Some(Time(whole_seconds(now))),
    };
    let new = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        severity: String::new(),
        last_transition_time: at,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(slot) => *slot = new,
        None => {
            conditions.push(new);
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
    }
}

/// Kubernetes times carry whole seconds; rounding here keeps a status equal to its stored form.
pub fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: ConditionSet = ConditionSet::living(&["A", "B"]);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn happy_only_when_all_are_true() {
        let mut conditions = vec![];
        SET.mark_true(&mut conditions, "A", at(1));
        assert!(!is_true(&conditions, "Ready"));
        SET.mark_true(&mut conditions, "B", at(2));
        assert!(is_true(&conditions, "Ready"));
        SET.mark_false(&mut conditions, "A", "Broken", "it broke", at(3));
        let ready = find(&conditions, "Ready").cloned();
        assert_eq!(
            ready.map(|c| (c.status, c.reason, c.message)),
            Some(("False".into(), "Broken".into(), "it broke".into()))
        );
    }

    #[test]
    fn marking_the_same_again_changes_nothing() {
        let mut conditions = vec![];
        SET.mark_true(&mut conditions, "A", at(1));
        let before = conditions.clone();
        SET.mark_true(&mut conditions, "A", at(9));
        assert_eq!(before, conditions);
    }
}
