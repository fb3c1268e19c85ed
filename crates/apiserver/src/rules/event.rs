//! What an event must be: little as it was once, more when it says when it happened, all of it in its own group.

use serde_json::Value;

use crate::forms::{qualified_faults, subdomain_faults};
use crate::status::FieldError;

/// Texts that must be there, and how long they may be.
const TEXTS: [(&str, usize); 3] = [("reportingInstance", 128), ("action", 128), ("reason", 128)];
const LONGEST_MESSAGE: usize = 1024;

/// `reporter`: what the group calls who reports.
pub fn check(event: &Value, reporter: &str) -> Vec<FieldError> {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    let own = event["metadata"]["namespace"].as_str().unwrap_or_default();
    let about = event["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let dated = !event["eventTime"].is_null();
    let fits = match (about, dated) {
        ("", false) => matches!(own, "" | "default"),
        ("", true) => matches!(own, "default" | "kube-system"),
        (about, false) => about == own,
        (_, true) => true,
    };
    let mut errors = vec![];
    if !fits {
        errors.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
    if dated {
        let who = text("reportingComponent");
        if who.is_empty() {
            errors.push(FieldError::required(reporter, ""));
        }
        errors.extend(qualified_faults(who).into_iter().map(|why| FieldError::invalid(reporter, who, why)));
        for (name, most) in TEXTS {
            if text(name).is_empty() {
                errors.push(FieldError::required(name, ""));
            }
            errors.extend(too_long(name, text(name), most));
        }
        errors.extend(too_long("message", text("message"), LONGEST_MESSAGE));
    }
    errors.extend(subdomain_faults(own).into_iter().map(|why| FieldError::invalid("namespace", own, why)));
    errors
}

fn too_long(name: &str, text: &str, most: usize) -> Option<FieldError> {
    (text.len() > most).then(|| FieldError::invalid(name, "", format!("can have at most {most} characters")))
}

/// Of an event that is written as one of `events.k8s.io`.
pub fn check_new(event: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = check(event, "reportingController");
    if let Some(old) = old {
        let fixed = [
            ("involvedObject", "involvedObject"),
            ("reason", "reason"),
            ("message", "message"),
            ("type", "type"),
            ("action", "action"),
            ("reportingComponent", "reportingController"),
            ("reportingInstance", "reportingInstance"),
        ];
        let changed = fixed.into_iter().filter(|(kept, _)| event[*kept] != old[*kept]);
        errors.extend(changed.map(|(kept, said)| FieldError::invalid(said, event[kept].clone(), "field is immutable")));
        return errors;
    }
    if event["eventTime"].is_null() {
        errors.push(FieldError::required("eventTime", ""));
    }
    let form = event["type"].as_str().unwrap_or_default();
    if !matches!(form, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {form}")));
    }
    for name in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        let is_set = match &event[name] {
            Value::Null => false,
            Value::Object(members) => !members.is_empty(),
            other => other.as_i64() != Some(0),
        };
        if is_set {
            errors.push(FieldError::invalid(name, "", "needs to be unset"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events() {
        let old = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "a"}});
        assert!(check(&old, "r").is_empty());
        let other = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}});
        assert_eq!(check(&other, "r").len(), 1);
        let told: Vec<String> = check_new(&old, None).iter().map(ToString::to_string).collect();
        assert_eq!(told, ["eventTime: Required value", "type: Invalid value: \"\": has invalid value: "]);
        let new = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "a"}, "eventTime": "t",
                         "reportingComponent": "a.b/c", "reportingInstance": "i", "action": "A", "reason": "R", "type": "Normal"});
        assert!(check_new(&new, None).is_empty());
        let mut changed = new.clone();
        changed["reason"] = "S".into();
        assert_eq!(check_new(&changed, Some(&new)).len(), 1);
    }
}
