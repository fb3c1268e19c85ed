//! What a container may ask for: known resources, in quantities that go together.

use serde_json::Value;

use crate::forms::qualified_faults;
use crate::quantity::Quantity;
use crate::status::FieldError;

/// Of these a container may ask for less than it may use.
const STANDARD: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
const HUGE_PAGES: &str = "hugepages-";

pub fn check(resources: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = vec![];
    for side in ["limits", "requests"] {
        for (name, value) in resources[side].as_object().into_iter().flatten() {
            let at = format!("{at}.{side}[{name}]");
            errors.extend(known(name, &at));
            let Some(quantity) = quantity(value) else { continue };
            if quantity.is_negative() {
                let why = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(at, quantity.text(), why));
            } else if name.contains('/') && !quantity.is_whole() {
                errors.push(FieldError::invalid(at, quantity.text(), "must be an integer"));
            }
        }
    }
    for (name, asked) in resources["requests"].as_object().into_iter().flatten() {
        let at = format!("{at}.requests");
        let limit = &resources["limits"][name];
        let Some((asked, limit)) = quantity(asked).zip(quantity(limit)) else {
            if !may_differ(name) && limit.is_null() {
                let why = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(at.replace(".requests", ".limits"), why));
            }
            continue;
        };
        let (order, what) = (asked.compare(limit), limit.text());
        if !may_differ(name) && order.is_ne() {
            errors.push(FieldError::invalid(at, asked.text(), format!("must be equal to {name} limit of {what}")));
        } else if order.is_gt() {
            let why = format!("must be less than or equal to {name} limit of {what}");
            errors.push(FieldError::invalid(at, asked.text(), why));
        }
    }
    errors
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text),
        Value::Number(number) => Quantity::parse(&number.to_string()),
        _ => None,
    }
}

fn may_differ(name: &str) -> bool {
    !name.contains('/') && !name.starts_with(HUGE_PAGES)
}

fn known(name: &str, at: &str) -> Vec<FieldError> {
    let faults = qualified_faults(name);
    if !faults.is_empty() {
        return faults.into_iter().map(|why| FieldError::invalid(at, name, why)).collect();
    }
    if name.contains('/') || STANDARD.contains(&name) || name.starts_with(HUGE_PAGES) {
        return vec![];
    }
    ["must be a standard resource type or fully qualified", "must be a standard resource for containers"]
        .into_iter()
        .map(|why| FieldError::invalid(at, name, why))
        .collect()
}
