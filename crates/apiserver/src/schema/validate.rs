//! Values against schemas: types always, demands where the schema is structural.

use std::collections::HashMap;

use serde_json::Value;

use super::{Demands, Form, ListType, Schema, format};
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

fn check(given: &Value, schema: &Schema, path: &mut String, errors: &mut Vec<FieldError>) {
    let value = given;
    if errors.len() >= MOST_ERRORS {
        return;
    }
    if value.is_null() && (schema.nullable || schema.demands.is_none() || schema.form == Form::Any) {
        return;
    }
    if let Some(wanted) = mismatch(value, schema.form) {
        let detail = format!("{path} in body must be of type {wanted}: {:?}", type_name(value));
        let value = type_name(value).into();
        errors.push(FieldError { field: path.clone(), fault: Fault::TypeInvalid { value, detail } });
        if let Some(demands) = &schema.demands {
            enumerated(given, demands, path, errors);
            if schema.form == Form::Integer && given.is_number() {
                errors.push(unformatted(path, "(default format)"));
            }
        }
        return;
    }
    if let Some(demands) = &schema.demands {
        demand(value, demands, path, errors);
        branches(value, demands, path, errors);
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
            schema.visit_items(items, path, |value, schema, path| check(value, schema, path, errors));
        }
        _ => {}
    }
}

/// The items of sets, and of lists that are maps, that a merge could not tell apart. Typed decoding does not refuse them in
/// Kubernetes' own kinds; their rules do where it matters.
pub fn duplicates(value: &Value, schema: &Schema) -> Vec<FieldError> {
    let mut errors = vec![];
    find_duplicates(value, schema, &mut String::new(), &mut errors);
    errors
}

fn find_duplicates(value: &Value, schema: &Schema, path: &mut String, errors: &mut Vec<FieldError>) {
    let length = path.len();
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let Some(member) = schema.member(name) else { continue };
                match schema.names(name) {
                    true if path.is_empty() => path.push_str(name),
                    true => path.extend([".", name]),
                    false => path.extend(["[", name, "]"]),
                }
                find_duplicates(value, member, path, errors);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            unique(items, schema, path, errors);
            schema.visit_items(items, path, |value, schema, path| find_duplicates(value, schema, path, errors));
        }
        _ => {}
    }
}

/// What is said of a value as a whole names no field.
const NO_FIELD: &str = "<nil>";

/// `allOf`, `anyOf`, `oneOf` and `not`, each with what is wrong in the branches that are nearest.
fn branches(value: &Value, demands: &Demands, path: &mut String, errors: &mut Vec<FieldError>) {
    let mut check_all = |schemas: &[std::sync::Arc<Schema>]| -> Vec<Vec<FieldError>> {
        let found = schemas.iter().map(|schema| {
            let mut found = vec![];
            check(value, schema, path, &mut found);
            found
        });
        found.collect()
    };
    let (all, any) = (check_all(&demands.all_of), check_all(&demands.any_of));
    let (one, not) = (check_all(&demands.one_of), check_all(demands.not.as_slice()));
    let valid = |found: &[Vec<FieldError>]| found.iter().filter(|errors| errors.is_empty()).count();
    let mut say = |what: &str| errors.push(FieldError::invalid(NO_FIELD, "", format!("{path:?} {what}")));
    let mut nearest = vec![];
    if valid(&all) < all.len() {
        let none = if valid(&all) == 0 { ". None validated" } else { "" };
        say(&format!("must validate all the schemas (allOf){none}"));
        nearest.extend(all.into_iter().flatten());
    }
    if !any.is_empty() && valid(&any) == 0 {
        say("must validate at least one schema (anyOf)");
        nearest.extend(any.into_iter().next().unwrap_or_default());
    }
    match valid(&one) {
        _ if one.is_empty() => {}
        0 => {
            say("must validate one and only one schema (oneOf). Found none valid");
            nearest.extend(one.into_iter().next().unwrap_or_default());
        }
        1 => {}
        many => say(&format!("must validate one and only one schema (oneOf). Found {many} valid alternatives")),
    }
    if valid(&not) > 0 {
        say("must not validate the schema (not)");
    }
    errors.extend(nearest);
}

fn mismatch(value: &Value, form: Form) -> Option<&'static str> {
    let (matches, wanted) = match form {
        Form::Any | Form::ObjectOrOther => (true, ""),
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

fn demand(value: &Value, demands: &Demands, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Number(_) => demand_number(value, demands, path, errors),
        Value::String(text) => demand_text(text, demands, path, errors),
        Value::Array(items) => {
            if let Some(least) = demands.min_items.filter(|least| items.len() < *least) {
                let detail = format!("{path} in body should have at least {least} items");
                errors.push(FieldError::invalid(path, items.len(), detail));
            }
            if let Some(most) = demands.max_items.filter(|most| items.len() > *most) {
                errors.push(FieldError { field: path.into(), fault: Fault::TooMany { is: items.len(), most } });
            }
        }
        Value::Object(object) => {
            if let Some(least) = demands.min_properties.filter(|least| object.len() < *least) {
                let detail = format!("{path} in body should have at least {least} properties");
                errors.push(FieldError::invalid(path, object.len(), detail));
            }
            if let Some(most) = demands.max_properties.filter(|most| object.len() > *most) {
                errors.push(FieldError { field: path.into(), fault: Fault::TooMany { is: object.len(), most } });
            }
            for name in demands.required.iter().filter(|name| !object.contains_key(&***name)) {
                let field = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
                errors.push(FieldError::required(field, ""));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    enumerated(value, demands, path, errors);
}

fn enumerated(value: &Value, demands: &Demands, path: &str, errors: &mut Vec<FieldError>) {
    if !demands.enumeration.is_empty() && !demands.enumeration.contains(value) {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let supported = demands.enumeration.iter().filter(|value| !value.is_null()).map(text).collect();
        let fault = Fault::NotSupported { value: value.clone(), supported };
        errors.push(FieldError { field: path.to_owned(), fault });
    }
}

fn demand_number(value: &Value, demands: &Demands, path: &str, errors: &mut Vec<FieldError>) {
    let Some(number) = value.as_f64() else { return };
    let mut invalid = |detail: String| errors.push(FieldError::invalid(path, value.clone(), detail));
    if let Some(least) = demands.minimum {
        match (number < least.number, number == least.number && least.exclusive) {
            (true, _) if !least.exclusive => {
                invalid(format!("{path} in body should be greater than or equal to {}", least.number));
            }
            (true, _) | (_, true) => invalid(format!("{path} in body should be greater than {}", least.number)),
            _ => {}
        }
    }
    if let Some(most) = demands.maximum {
        match (number > most.number, number == most.number && most.exclusive) {
            (true, _) if !most.exclusive => {
                invalid(format!("{path} in body should be less than or equal to {}", most.number));
            }
            (true, _) | (_, true) => invalid(format!("{path} in body should be less than {}", most.number)),
            _ => {}
        }
    }
    if let Some(factor) = demands.multiple_of.filter(|factor| *factor > 0.0) {
        let times = number / factor;
        if (times - times.round()).abs() > f64::EPSILON * times.abs().max(1.0) {
            invalid(format!("{path} in body should be a multiple of {factor}"));
        }
    }
    if demands.format.as_deref() == Some("int32") && value.as_i64().is_none_or(|n| i32::try_from(n).is_err()) {
        errors.push(unformatted(path, "with format int32"));
    }
}

/// Which number is wrong is told in words only.
fn unformatted(path: &str, how: &str) -> FieldError {
    FieldError::invalid(NO_FIELD, "", format!("Checked value must be of type integer {how} in {path}"))
}

fn demand_text(text: &str, demands: &Demands, path: &str, errors: &mut Vec<FieldError>) {
    let length = text.chars().count();
    if let Some(most) = demands.max_length.filter(|most| length > *most) {
        errors.push(FieldError { field: path.into(), fault: Fault::TooLong { most } });
    }
    let mut invalid = |detail: String| errors.push(FieldError::invalid(path, text, detail));
    if let Some(least) = demands.min_length.filter(|least| length < *least) {
        invalid(format!("{path} in body should be at least {least} chars long"));
    }
    if let Some(pattern) = demands.pattern.as_ref().filter(|(_, regex)| !regex.is_match(text)) {
        invalid(format!("{path} in body should match '{}'", pattern.0));
    }
    if let Some(format) = demands.format.as_deref().filter(|format| !format::is_of(format, text)) {
        let detail = format!("{path} in body must be of type {format}: {text:?}");
        let fault = Fault::TypeInvalid { value: text.into(), detail };
        errors.push(FieldError { field: path.into(), fault });
    }
}

/// Objects inside objects must say what they are.
pub fn embedded(value: &Value, schema: &Schema) -> Vec<FieldError> {
    let mut errors = vec![];
    find_embedded(value, schema, &mut String::new(), &mut errors);
    errors
}

fn find_embedded(value: &Value, schema: &Schema, path: &mut String, errors: &mut Vec<FieldError>) {
    let length = path.len();
    if schema.embedded && value.is_object() {
        let missing = ["apiVersion", "kind"].into_iter().filter(|name| value.get(name).is_none());
        errors.extend(missing.map(|name| FieldError::required(format!("{path}.{name}"), "")));
    }
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let Some(member) = schema.member(name) else { continue };
                path.extend([if path.is_empty() { "" } else { "." }, name]);
                find_embedded(value, member, path, errors);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            schema.visit_items(items, path, |value, schema, path| find_embedded(value, schema, path, errors));
        }
        _ => {}
    }
}

/// What is there more than once is told once.
fn unique(items: &[Value], schema: &Schema, path: &str, errors: &mut Vec<FieldError>) {
    if schema.list == ListType::Atomic || schema.demands.is_none() {
        return;
    }
    let mut seen = HashMap::new();
    for (i, item) in items.iter().enumerate() {
        let key = match &schema.list {
            ListType::Map(_) if !item.is_object() && !item.is_null() => {
                let why = "must be an object for an array of list-type map";
                return errors.push(FieldError::invalid(format!("{path}[{i}]"), item.clone(), why));
            }
            ListType::Map(keys) => {
                let keys = keys.iter().filter_map(|key| Some((key.to_string(), item.get(&**key)?.clone())));
                Value::Object(keys.collect())
            }
            _ => item.clone(),
        };
        let times = seen.entry(key.to_string()).or_insert(0);
        *times += 1;
        if *times == 2 {
            errors.push(FieldError::duplicate(format!("{path}[{i}]"), key));
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
        let definition = crate::kinds::Version::of_type(&api::function::Function::crd());
        let schema = crate::schema::custom(&definition.schema);
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
        ] {
            let errors = validate(&json!({"spec": spec}), &schema);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), want, "{spec}");
        }
        let twice = json!({"spec": {"env": [{"name": "A"}, {"name": "A"}, {"name": "A"}]}});
        let errors: Vec<String> = duplicates(&twice, &schema).iter().map(ToString::to_string).collect();
        assert_eq!(errors, [r#"spec.env[1]: Duplicate value: {"name":"A"}"#]);
    }
}
