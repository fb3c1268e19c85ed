//! What makes pods from a template: a selector that finds them again, and how many there are.

use serde_json::{Map, Value};

use super::Must::{AtLeast, BeLabels, Hold, Keep};
use super::{Rule, pod};
use crate::status::FieldError;

/// What is wrong with a `ReplicaSet`, or with what a `Deployment` shares with it.
pub fn replica_set(object: &Value) -> Vec<FieldError> {
    let mut errors = super::check(object, "", REPLICA_SET);
    let selector = &object["spec"]["selector"];
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    if expressions.any(|one| !expression(one, "").is_empty()) {
        errors.push(FieldError::invalid("spec.selector", selector.clone(), "invalid label selector"));
    } else {
        errors.extend(super::check(object, "", TEMPLATE));
    }
    errors
}

const REPLICA_SET: &[Rule] = &[
    ("spec.replicas", AtLeast(0)),
    ("spec.minReadySeconds", AtLeast(0)),
    ("spec.selector.matchLabels", BeLabels),
    ("spec.selector.matchExpressions[]", Hold(expression)),
];

/// Of what is selected, if the selector means anything.
const TEMPLATE: &[Rule] =
    &[("spec", Hold(selects)), ("spec.template", Keep(pod::TEMPLATE)), ("spec.template.spec", Hold(restarts))];

/// Of a `Deployment`, beside what a replica set must be.
pub const DEPLOYMENT: &[Rule] = &[
    ("spec.revisionHistoryLimit", AtLeast(0)),
    ("spec.progressDeadlineSeconds", AtLeast(0)),
    ("spec", Hold(progress)),
    ("spec.strategy", Hold(strategy)),
];

/// What is decided when it is made.
pub fn unchanged_selector(object: &Value, old: &Value) -> Option<FieldError> {
    let (is, was) = (&object["spec"]["selector"], &old["spec"]["selector"]);
    (is != was).then(|| FieldError::invalid("spec.selector", is.clone(), "field is immutable"))
}

/// A selector must select the template's own labels, or a controller would never see its pods.
fn selects(spec: &Value, at: &str) -> Vec<FieldError> {
    let selector = &spec["selector"];
    let mut errors = vec![];
    let labels = selector["matchLabels"].as_object();
    let expressions = selector["matchExpressions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_empty = labels.is_none_or(Map::is_empty) && expressions.is_empty();
    if selector.is_null() {
        errors.push(FieldError::required(format!("{at}.selector"), ""));
    } else if is_empty {
        let why = "empty selector is invalid for deployment";
        errors.push(FieldError::invalid(format!("{at}.selector"), selector.clone(), why));
        return errors;
    }
    let own = &spec["template"]["metadata"]["labels"];
    let mut labels = labels.into_iter().flatten();
    if selector.is_null()
        || !labels.all(|(key, value)| own[key.as_str()] == *value)
        || !expressions.iter().all(|expression| matches(expression, own))
    {
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(format!("{at}.template.metadata.labels"), own.clone(), why));
    }
    errors
}

fn matches(expression: &Value, labels: &Value) -> bool {
    let value = labels.get(expression["key"].as_str().unwrap_or_default());
    let is_in = || value.is_some_and(|value| expression["values"].as_array().is_some_and(|all| all.contains(value)));
    match expression["operator"].as_str() {
        Some("In") => is_in(),
        Some("NotIn") => !is_in(),
        Some("Exists") => value.is_some(),
        Some("DoesNotExist") => value.is_none(),
        // What it means is not known, which is told.
        _ => true,
    }
}

fn expression(expression: &Value, at: &str) -> Vec<FieldError> {
    let has_values = expression["values"].as_array().is_some_and(|values| !values.is_empty());
    let values = format!("{at}.values");
    match expression["operator"].as_str().unwrap_or_default() {
        "In" | "NotIn" if !has_values => {
            vec![FieldError::required(values, "must be specified when `operator` is 'In' or 'NotIn'")]
        }
        "Exists" | "DoesNotExist" if has_values => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            vec![FieldError::forbidden(values, why)]
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => vec![],
        other => vec![FieldError::invalid(format!("{at}.operator"), other, "not a valid selector operator")],
    }
}

fn restarts(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = vec![];
    if spec["restartPolicy"] != "Always" {
        let given = spec["restartPolicy"].clone();
        errors.push(FieldError::not_supported(format!("{at}.restartPolicy"), given, &["Always"]));
    }
    if !spec["activeDeadlineSeconds"].is_null() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(format!("{at}.activeDeadlineSeconds"), why));
    }
    errors
}

fn progress(spec: &Value, at: &str) -> Vec<FieldError> {
    let number = |name: &str| spec[name].as_i64();
    let deadline = number("progressDeadlineSeconds");
    let soon = deadline.filter(|deadline| *deadline <= number("minReadySeconds").unwrap_or(0));
    let field = format!("{at}.progressDeadlineSeconds");
    soon.map(|soon| FieldError::invalid(field, soon, "must be greater than minReadySeconds")).into_iter().collect()
}

fn strategy(strategy: &Value, at: &str) -> Vec<FieldError> {
    match strategy["type"].as_str().unwrap_or_default() {
        "Recreate" if !strategy["rollingUpdate"].is_null() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            vec![FieldError::forbidden(format!("{at}.rollingUpdate"), why)]
        }
        "Recreate" => vec![],
        "RollingUpdate" => rolling(&strategy["rollingUpdate"], &format!("{at}.rollingUpdate")),
        _ => vec![FieldError::not_supported(at, strategy.clone(), &["Recreate", "RollingUpdate"])],
    }
}

fn rolling(rolling: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = vec![];
    let percent = |value: &Value| value.as_str().and_then(|text| text.strip_suffix('%')?.parse::<u32>().ok());
    for name in ["maxUnavailable", "maxSurge"] {
        let (at, value) = (format!("{at}.{name}"), &rolling[name]);
        if value.is_string() && percent(value).is_none() {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                       regex used for validation is '[0-9]+%')";
            errors.push(FieldError::invalid(at, value.clone(), why));
        } else if value.as_i64().is_some_and(|number| number < 0) {
            errors.push(FieldError::invalid(at, value.clone(), "must be greater than or equal to 0"));
        }
    }
    let (at, value) = (format!("{at}.maxUnavailable"), &rolling["maxUnavailable"]);
    let is_zero = |value: &Value| value.as_i64() == Some(0) || percent(value) == Some(0);
    if is_zero(value) && is_zero(&rolling["maxSurge"]) {
        errors.push(FieldError::invalid(at.clone(), value.clone(), "may not be 0 when `maxSurge` is 0"));
    }
    if percent(value).is_some_and(|percent| percent > 100) {
        errors.push(FieldError::invalid(at, value.clone(), "must not be greater than 100%"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workloads() {
        let object = |edit: &dyn Fn(&mut Value)| {
            let mut object = json!({"spec": {
                "replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
                "template": {"metadata": {"labels": {"a": "b"}},
                             "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}]}},
            }});
            edit(&mut object["spec"]);
            object
        };
        type Edit = fn(&mut Value);
        for (edit, want) in [
            ((|_| {}) as Edit, ""),
            (|s| s["replicas"] = (-1).into(), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                |s| s["selector"] = json!({}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                |s| s["selector"] = json!({"matchLabels": {"a": "c"}}),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ),
            (
                |s| s["selector"] = json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ),
            (
                |s| s["template"]["spec"]["restartPolicy"] = "Never".into(),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                |s| s["strategy"]["rollingUpdate"]["maxSurge"] = 0.into(),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
            (
                |s| s["minReadySeconds"] = 600.into(),
                "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
            ),
        ] {
            let object = object(&edit);
            let mut errors = replica_set(&object);
            errors.extend(super::super::check(&object, "", DEPLOYMENT));
            let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(told.join(", "), want);
        }
    }
}
