//! Values against schemas: types always, demands where the schema is structural.

use serde_json::Value;

use super::{Form, ListType, Rules, Schema};
use crate::status::{Fault, FieldError};

/// More errors than this help nobody.
const MOST_ERRORS: usize = 20;

/// What is wrong with the value. Metadata is not looked at beyond its types.
pub fn validate(value: &Value, schema: &Schema) -> Vec<FieldError> {
    let mut errors = vec![];
    check(value, schema, &mut String::new(), &mut errors);
    errors.truncate(MOST_ERRORS);
    errors
}

fn check(value: &Value, schema: &Schema, path: &mut String, errors: &mut Vec<FieldError>) {
    if value.is_null() || errors.len() >= MOST_ERRORS {
        return;
    }
    if let Some(wanted) = mismatch(value, schema.form) {
        let detail = format!("{path} in body must be of type {wanted}: {:?}", type_name(value));
        let value = type_name(value).into();
        errors.push(FieldError { field: path.clone(), fault: Fault::TypeInvalid { value, detail } });
        return;
    }
    if let Some(rules) = &schema.rules {
        demand(value, rules, path, errors);
    }
    let length = path.len();
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let Some(member) = schema.member(name) else { continue };
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                check(value, member, path, errors);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            if let Some(item) = &schema.items {
                for (i, value) in items.iter().enumerate() {
                    path.push_str(&format!("[{i}]"));
                    check(value, item, path, errors);
                    path.truncate(length);
                }
            }
            unique(items, schema, path, errors);
        }
        _ => {}
    }
}

fn mismatch(value: &Value, form: Form) -> Option<&'static str> {
    let (matches, wanted) = match form {
        Form::Any => (true, ""),
        Form::Object => (value.is_object(), "object"),
        Form::Array => (value.is_array(), "array"),
        Form::String => (value.is_string(), "string"),
        Form::Integer => (value.is_i64() || value.is_u64() || is_whole(value), "integer"),
        Form::Number => (value.is_number(), "number"),
        Form::Boolean => (value.is_boolean(), "boolean"),
        Form::IntOrString => (value.is_i64() || value.is_u64() || value.is_string(), "integer,string"),
        Form::Quantity => (value.is_number() || value.is_string(), "string"),
    };
    (!matches).then_some(wanted)
}

fn is_whole(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_whole(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn demand(value: &Value, rules: &Rules, path: &str, errors: &mut Vec<FieldError>) {
    let mut invalid = |detail: String| errors.push(FieldError::invalid(path, value.clone(), detail));
    if let Some(number) = value.as_f64() {
        if let Some(least) = rules.minimum.filter(|least| number < *least) {
            invalid(format!("{path} in body should be greater than or equal to {least}"));
        }
        if let Some(most) = rules.maximum.filter(|most| number > *most) {
            invalid(format!("{path} in body should be less than or equal to {most}"));
        }
        if rules.format.as_deref() == Some("int32") && value.as_i64().is_some_and(|n| i32::try_from(n).is_err()) {
            invalid(format!("{path} in body must be of type int32: {value}"));
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count();
        if let Some(least) = rules.min_length.filter(|least| length < *least) {
            invalid(format!("{path} in body should be at least {least} chars long"));
        }
        if let Some(most) = rules.max_length.filter(|most| length > *most) {
            invalid(format!("{path} in body should be at most {most} chars long"));
        }
        if let Some(pattern) = rules.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            invalid(format!("{path} in body should match '{pattern}'"));
        }
        if rules.format.as_deref() == Some("date-time") && text.parse::<jiff::Timestamp>().is_err() {
            invalid(format!("{path} in body must be of type date-time: {text:?}"));
        }
    }
    if let Some(items) = value.as_array() {
        if let Some(least) = rules.min_items.filter(|least| items.len() < *least) {
            invalid(format!("{path} in body should have at least {least} items"));
        }
        if let Some(most) = rules.max_items.filter(|most| items.len() > *most) {
            invalid(format!("{path} in body should have at most {most} items"));
        }
    }
    if !rules.enumeration.is_empty() && !rules.enumeration.contains(value) {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let supported = rules.enumeration.iter().map(text).collect();
        let fault = Fault::NotSupported { value: value.clone(), supported };
        errors.push(FieldError { field: path.to_owned(), fault });
    }
    if let Some(object) = value.as_object() {
        for name in rules.required.iter().filter(|name| object.get(&***name).is_none_or(Value::is_null)) {
            let field = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
            errors.push(FieldError::required(field, ""));
        }
    }
}

/// Items that a merge could not tell apart.
fn unique(items: &[Value], schema: &Schema, path: &str, errors: &mut Vec<FieldError>) {
    if schema.list == ListType::Atomic || items.len() < 2 {
        return;
    }
    // Typed decoding does not refuse duplicates in Kubernetes' own kinds; their rules do where it matters.
    if schema.rules.is_none() {
        return;
    }
    let mut seen = std::collections::HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let key = match &schema.list {
            ListType::Map(keys) => keys.iter().map(|key| item[&**key].to_string()).collect::<Vec<_>>().join("\0"),
            _ => item.to_string(),
        };
        if !seen.insert(key) {
            let value = match &schema.list {
                ListType::Map(keys) => keys.iter().map(|key| (key.to_string(), item[&**key].clone())).collect(),
                _ => item.clone(),
            };
            errors.push(FieldError { field: format!("{path}[{i}]"), fault: Fault::Duplicate(value) });
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use serde_json::json;

    use super::*;

    #[test]
    fn function() {
        let schema = crate::schema::custom(&api::function::Function::crd());
        for (spec, want) in [
            (json!({"source": {"inline": {"files": {"a.py": ""}}}}), vec![]),
            (json!({}), vec!["spec.source: Required value"]),
            (
                json!({"source": {}, "runtime": "perl"}),
                vec![r#"spec.runtime: Unsupported value: "perl": supported values: "python", "node""#],
            ),
            (
                json!({"source": {}, "timeoutSeconds": 601}),
                vec![concat!(
                    "spec.timeoutSeconds: Invalid value: 601: ",
                    "spec.timeoutSeconds in body should be less than or equal to 600"
                )],
            ),
            (
                json!({"source": {}, "concurrency": "many"}),
                vec![concat!(
                    r#"spec.concurrency: Invalid value: "string": "#,
                    r#"spec.concurrency in body must be of type integer: "string""#
                )],
            ),
            (
                json!({"source": {"blob": {"digest": "x"}}}),
                vec![concat!(
                    r#"spec.source.blob.digest: Invalid value: "x": "#,
                    "spec.source.blob.digest in body should match '^sha256:[0-9a-f]{64}$'"
                )],
            ),
            (
                json!({"source": {}, "env": [{"name": "A"}, {"name": "A"}]}),
                vec![r#"spec.env[1]: Duplicate value: {"name":"A"}"#],
            ),
        ] {
            let errors = validate(&json!({"spec": spec}), &schema);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), want, "{spec}");
        }
    }
}
