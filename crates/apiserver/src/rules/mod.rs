//! Rules of Kubernetes' own kinds that no schema says, as tables: where, and what must be so there. Pure.
//!
//! A place is a path of members from the value that the table is about; `ports[].name` is the name of every port. What is
//! wrong is told in Kubernetes' words, all of it. Values of a wrong type are not looked at: decoding complains of them.

pub mod advice;
mod container;
pub mod event;
mod pod;
mod resources;
mod slice;
mod volume;
mod workload;

use std::collections::HashSet;

use serde_json::Value;

use crate::status::{Fault, FieldError};
pub use pod::SPEC;
pub use slice::ENDPOINT_SLICE;
pub use workload::{DEPLOYMENT, replica_set, unchanged_selector};

/// Where, and what must be so.
pub type Rule = (&'static str, Must);

#[derive(Clone, Copy)]
pub enum Must {
    /// It is there, and not empty.
    Be,
    /// If it is there, it is one of these.
    OneOf(&'static [&'static str]),
    /// If it is there, it is of a form, whose faults these are.
    Look(fn(&str) -> Vec<String>),
    /// A number between these two, unless it is none or zero, which stands for none.
    Range(i64, i64),
    AtLeast(i64),
    /// The items differ in this member, where they have it.
    Differ(&'static str),
    /// Keys and values of labels.
    BeLabels,
    /// There is more to say: about the value, found at that path.
    Hold(fn(&Value, &str) -> Vec<FieldError>),
    /// The same for a value that has rules of its own.
    Keep(&'static [Rule]),
}

/// What is wrong with the value, found at `path`.
pub fn check(value: &Value, path: &str, rules: &[Rule]) -> Vec<FieldError> {
    let mut errors = vec![];
    for (place, must) in rules {
        for (found, at) in find(value, path, place) {
            judge(found, &at, *must, &mut errors);
        }
    }
    errors
}

/// All that a place names, with the paths. A last member that is absent is null.
fn find<'a>(value: &'a Value, path: &str, place: &str) -> Vec<(&'a Value, String)> {
    let mut found = vec![(value, path.to_owned())];
    if place.is_empty() {
        return found;
    }
    for (i, step) in place.split('.').enumerate() {
        let (name, each) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        // Below what is absent there is nothing.
        found.retain(|(value, _)| i == 0 || !value.is_null());
        for (value, at) in &mut found {
            *value = &value[name];
            *at = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        }
        if each {
            let items = |(list, at): (&'a Value, String)| {
                let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
                items.iter().enumerate().map(move |(i, item)| (item, format!("{at}[{i}]"))).collect::<Vec<_>>()
            };
            found = found.into_iter().flat_map(items).collect();
        }
    }
    found
}

fn judge(value: &Value, at: &str, must: Must, errors: &mut Vec<FieldError>) {
    let text = value.as_str().filter(|text| !text.is_empty());
    match (must, value) {
        (Must::Be, value) if is_empty(value) => errors.push(FieldError::required(at, "")),
        (Must::OneOf(known), _) => {
            let odd = text.filter(|text| !known.contains(text));
            errors.extend(odd.map(|odd| FieldError::not_supported(at, odd, known)));
        }
        (Must::Look(faults), _) => {
            let faults = text.into_iter().flat_map(faults);
            errors.extend(faults.map(|why| FieldError::invalid(at, value.clone(), why)));
        }
        (Must::Range(from, to), Value::Number(number)) => {
            let number = number.as_i64().filter(|number| *number != 0 && !(from..=to).contains(number));
            let why = format!("must be between {from} and {to}, inclusive");
            errors.extend(number.map(|number| FieldError::invalid(at, number, why)));
        }
        (Must::AtLeast(least), Value::Number(number)) => {
            let number = number.as_i64().filter(|number| *number < least);
            let why = format!("must be greater than or equal to {least}");
            errors.extend(number.map(|number| FieldError::invalid(at, number, why)));
        }
        (Must::Differ(member), Value::Array(items)) => {
            let mut seen = HashSet::new();
            for (i, item) in items.iter().enumerate().filter(|(_, item)| !is_empty(&item[member])) {
                if !seen.insert(&item[member]) {
                    errors.push(FieldError::duplicate(format!("{at}[{i}].{member}"), item[member].clone()));
                }
            }
        }
        (Must::BeLabels, Value::Object(labels)) => {
            for (key, value) in labels {
                let keys = crate::forms::qualified_faults(key).into_iter();
                errors.extend(keys.map(|why| FieldError::invalid(at, key.as_str(), why)));
                let values = crate::forms::label_value_faults(value.as_str().unwrap_or_default()).into_iter();
                errors.extend(values.map(|why| FieldError::invalid(at, value.clone(), why)));
            }
        }
        (Must::Hold(faults), value) if !value.is_null() => errors.extend(faults(value, at)),
        (Must::Keep(rules), value) if !value.is_null() => errors.extend(check(value, at, rules)),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Object(_) | Value::Bool(_) => false,
    }
}

/// What is said of a value that names something that is not there.
fn not_found(at: String, name: &Value) -> FieldError {
    FieldError { field: at, fault: Fault::NotFound(name.clone()) }
}

/// Which of these members a value has.
fn given<'a>(value: &Value, members: &[&'a str]) -> Vec<&'a str> {
    members.iter().copied().filter(|member| !value[*member].is_null()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables() {
        const RULES: &[Rule] = &[
            ("name", Must::Be),
            ("name", Must::Look(crate::forms::label_faults)),
            ("list[].n", Must::Range(1, 3)),
            ("list[].word", Must::OneOf(&["a", "b"])),
            ("list", Must::Differ("name")),
            ("deep.count", Must::AtLeast(0)),
            ("deep.must", Must::Be),
            ("labels", Must::BeLabels),
        ];
        for (value, want) in [
            (json!({"name": "a"}), vec![]),
            (json!({}), vec!["x.name: Required value"]),
            (json!({"name": "a.b"}), vec!["x.name: Invalid value: \"a.b\": must not contain dots"]),
            (
                json!({"name": "a", "list": [{"n": 0}, {"n": 4}]}),
                vec!["x.list[1].n: Invalid value: 4: must be between 1 and 3, inclusive"],
            ),
            (
                json!({"name": "a", "list": [{"word": "c", "name": "y"}, {"name": "y"}]}),
                vec![
                    "x.list[0].word: Unsupported value: \"c\": supported values: \"a\", \"b\"",
                    "x.list[1].name: Duplicate value: \"y\"",
                ],
            ),
            (
                json!({"name": "a", "deep": {"count": -1}}),
                vec![
                    "x.deep.count: Invalid value: -1: must be greater than or equal to 0",
                    "x.deep.must: Required value",
                ],
            ),
        ] {
            let told: Vec<String> = check(&value, "x", RULES).iter().map(ToString::to_string).collect();
            assert_eq!(told, want, "{value}");
        }
    }
}
