//! A child that the API server refuses must not leave its parent waiting without a word.
//!
//! Owns: the status that says so, instead of the one that was planned. Must not know: why it was refused, but in the
//! server's own words. The surprise: the refused write is still tried again, since quotas and policies change.

use api::condition::{Condition, ConditionSet};
use jiff::Timestamp;
use serde_json::Value;

use crate::error::{Class, Error};
use crate::plan::{Plan, Write};

/// Where a refusal is told: a condition of the object that the plan is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The object as it was seen.
    pub(crate) observed: Value,
    /// Its status as planned.
    pub(crate) status: Value,
    pub(crate) set: ConditionSet,
    pub(crate) type_: &'static str,
    pub(crate) now: Timestamp,
}

impl Refusal {
    /// What to write when a write failed like this; `None` for a failure that may pass by itself.
    pub(crate) fn plan(&self, error: &Error) -> Option<Plan> {
        if error.class() != Class::Invalid {
            return None;
        }
        let mut conditions: Vec<Condition> =
            serde_json::from_value(self.status["conditions"].clone()).unwrap_or_default();
        self.set.mark_false(&mut conditions, self.type_, reason(error), &error.to_string(), self.now);
        let mut status = self.status.clone();
        status["conditions"] = serde_json::to_value(conditions).expect("conditions are JSON");
        let mut plan = Plan::default();
        plan.status_value(&self.observed, status, self.now);
        Some(plan)
    }
}

/// The server's word for it, such as `Invalid` or `Forbidden`.
fn reason(error: &Error) -> &str {
    match error {
        Error::Api { source, .. } => match source.as_ref() {
            kube::Error::Api(status) if !status.reason.is_empty() => &status.reason,
            _ => "Refused",
        },
        _ => "Refused",
    }
}

impl Plan {
    /// Says which condition becomes false when one of the writes so far is refused. To be called when the status is
    /// otherwise complete.
    pub fn tell_refusal<K: crate::Kind>(
        &mut self,
        observed: &K,
        status: &impl serde::Serialize,
        set: ConditionSet,
        type_: &'static str,
        now: Timestamp,
    ) {
        let told = |write: &Write| matches!(write, Write::Create { .. } | Write::Apply { .. } | Write::Patch { .. });
        if self.writes.iter().any(told) {
            let value = |v: serde_json::Result<Value>| v.expect("an API object is JSON");
            let (observed, status) = (value(serde_json::to_value(observed)), value(serde_json::to_value(status)));
            self.refusal = Some(Refusal { observed, status, set, type_, now });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Target;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;
    use serde_json::json;

    const SET: ConditionSet = ConditionSet::living(&["ChildReady"]);

    fn failed(code: u16, reason: &str) -> Error {
        let status = Status::failure("env: \"PORT\" is reserved", reason).with_code(code);
        Error::Api {
            action: "apply",
            target: Box::new(Target::default()),
            source: Box::new(kube::Error::Api(Box::new(status))),
        }
    }

    #[test]
    fn a_refused_child_is_a_false_condition_and_a_passing_failure_is_not() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut parent = ConfigMap::default();
        parent.metadata.name = Some("parent".into());
        let mut plan = Plan::default();
        plan.tell_refusal(&parent, &json!({}), SET, "ChildReady", now);
        assert_eq!(plan.refusal, None, "nothing that could be refused");
        plan.create(&ConfigMap::default());
        plan.tell_refusal(&parent, &json!({"url": "kept"}), SET, "ChildReady", now);
        let refusal = plan.refusal.expect("a write can be refused");

        assert_eq!(refusal.plan(&failed(409, "Conflict")), None);
        assert_eq!(refusal.plan(&failed(503, "ServiceUnavailable")), None);
        let told = refusal.plan(&failed(422, "Invalid")).expect("it is told");
        let Some(Write::ApplyStatus { object }) = &told.status else { panic!("{told:?}") };
        assert_eq!(object["status"]["url"], "kept");
        for (at, type_) in ["ChildReady", "Ready"].iter().enumerate() {
            let condition = &object["status"]["conditions"][at];
            assert_eq!((condition["type"].as_str(), condition["status"].as_str()), (Some(*type_), Some("False")));
            assert_eq!(condition["reason"], "Invalid");
            assert!(condition["message"].as_str().unwrap().contains("PORT"), "{condition}");
        }
        assert_eq!(told.events.len(), 1, "and an Event");
    }
}
