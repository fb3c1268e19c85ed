//! The options of a request, as Kubernetes checks and words them: `CreateOptions`, `ListOptions` and their like.
//!
//! Must not know: objects. The surprise: several verbs share a word, and each names its own options in the complaint.

use http::Method;
use serde_json::Value;

use crate::request::Query;
use crate::status::{ApiError, Fault, FieldError, Result};

const LONGEST_MANAGER: usize = 128;

/// What is wrong with the options of a request for a resource. `applies`: whether its body is applied.
pub fn check(method: &Method, query: &Query, applies: bool) -> Result<()> {
    let (options, errors) = match *method {
        Method::GET => ("ListOptions", of_read(query)?),
        Method::POST => ("CreateOptions", of_write(query)),
        Method::PUT => ("UpdateOptions", of_write(query)),
        Method::PATCH => ("PatchOptions", [of_patch(query, applies)?, of_write(query)].concat()),
        _ => return Ok(()),
    };
    if errors.is_empty() { Ok(()) } else { Err(ApiError::InvalidOptions { options, errors }) }
}

fn of_patch(query: &Query, applies: bool) -> Result<Vec<FieldError>> {
    let force = query.get("force").is_some();
    Ok(match (applies, query.get("fieldManager")) {
        (true, None) => vec![FieldError::required("fieldManager", "is required for apply patch")],
        (false, _) if force => vec![FieldError::forbidden("force", "may not be specified for non-apply patch")],
        _ => vec![],
    })
}

fn of_write(query: &Query) -> Vec<FieldError> {
    let mut errors = vec![];
    errors.extend(dry_run(query.get("dryRun").map(|text| vec![Value::from(text)])));
    errors.extend(query.get("fieldManager").and_then(manager));
    let known = ["", "Ignore", "Strict", "Warn"];
    errors.extend(one_of("fieldValidation", query.get("fieldValidation"), &known));
    errors
}

/// What `dryRun` may say is one word, in a list.
pub fn dry_run(given: Option<Vec<Value>>) -> Option<FieldError> {
    let given = given.filter(|given| given.iter().any(|stage| stage != "All"))?;
    Some(FieldError::not_supported("dryRun", given, &["All"]))
}

pub fn one_of(field: &str, given: Option<&str>, known: &[&str]) -> Option<FieldError> {
    let given = given.filter(|given| !known.contains(given))?;
    Some(FieldError::not_supported(field, given, known))
}

fn manager(name: &str) -> Option<FieldError> {
    if name.len() > LONGEST_MANAGER {
        let fault = Fault::TooLong { most: LONGEST_MANAGER };
        return Some(FieldError { field: "fieldManager".into(), fault });
    }
    let (at, bad) = name.chars().enumerate().find(|(_, c)| c.is_control())?;
    let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(bad));
    Some(FieldError::invalid("fieldManager", name, detail))
}

/// What is shown beside the cells of a table.
pub fn table(query: &Query) -> Result<()> {
    match query.get("includeObject") {
        None | Some("Metadata" | "Object" | "None") => Ok(()),
        Some(other) => {
            let why = FieldError::invalid("includeObject", other, "must be 'Metadata', 'Object', 'None', or empty");
            Err(ApiError::BadRequest(format!("Unable to convert to Table as requested: {why}")))
        }
    }
}

fn of_read(query: &Query) -> Result<Vec<FieldError>> {
    let matching = query.get("resourceVersionMatch");
    let forbidden = |field: &str, detail: &str| FieldError::forbidden(field, detail);
    let kinds = one_of("resourceVersionMatch", matching, &["Exact", "NotOlderThan", ""]);
    let mut errors = vec![];
    if query.flag("watch") {
        match (query.get("sendInitialEvents").is_some(), matching) {
            (true, None) => errors.push(forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )),
            (false, Some(_)) => errors.push(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )),
            (true, Some("Exact")) => errors.extend(one_of("resourceVersionMatch", matching, &["NotOlderThan"])),
            _ => errors.extend(kinds),
        }
        return Ok(errors);
    }
    let given = query.get("resourceVersion");
    if let Some(matching) = matching {
        let because = |detail: &str| forbidden("resourceVersionMatch", detail);
        if given.is_none() {
            errors.push(because("resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        if query.get("continue").is_some() {
            errors.push(because("resourceVersionMatch is forbidden when continue is provided"));
        }
        errors.extend(kinds);
        if matching == "Exact" && given == Some("0") {
            errors.push(because("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
        }
    }
    if query.get("sendInitialEvents").is_some() {
        errors.push(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if errors.is_empty() && query.get("continue").is_some() && given.is_some_and(|given| given != "0") {
        return Err(ApiError::BadRequest("specifying resource version is not allowed when using continue".into()));
    }
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let list = |why: &str| Some(format!(r#"ListOptions.meta.k8s.io "" is invalid: {why}"#));
        let matching = |why: &str| list(&format!("resourceVersionMatch: Forbidden: {why}"));
        for (method, query, applies, want) in [
            (Method::GET, "limit=5&resourceVersion=7&resourceVersionMatch=Exact", false, None),
            (
                Method::GET,
                "resourceVersionMatch=Exact",
                false,
                matching("resourceVersionMatch is forbidden unless resourceVersion is provided"),
            ),
            (
                Method::GET,
                "resourceVersion=0&resourceVersionMatch=Exact",
                false,
                matching(r#"resourceVersionMatch "exact" is forbidden for resourceVersion "0""#),
            ),
            (
                Method::GET,
                "watch=1&sendInitialEvents=true",
                false,
                matching("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
            ),
            (Method::GET, "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", false, None),
            (
                Method::GET,
                "sendInitialEvents=true",
                false,
                list("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"),
            ),
            (
                Method::GET,
                "continue=x&resourceVersion=5",
                false,
                Some("specifying resource version is not allowed when using continue".into()),
            ),
            (
                Method::POST,
                "dryRun=Some",
                false,
                Some(
                    r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Some"]: supported values: "All""#
                        .into(),
                ),
            ),
            (
                Method::PUT,
                "fieldManager=a%09",
                false,
                Some(
                    r#"UpdateOptions.meta.k8s.io "" is invalid: fieldManager: Invalid value: "a\t": invalid character U+0009 (at position 1)"#
                        .into(),
                ),
            ),
            (
                Method::PATCH,
                "force=true",
                false,
                Some(
                    r#"PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch"#
                        .into(),
                ),
            ),
            (
                Method::PATCH,
                "",
                true,
                Some(
                    r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#
                        .into(),
                ),
            ),
            (Method::PATCH, "fieldManager=a&force=true&dryRun=All&fieldValidation=Strict", true, None),
        ] {
            let said = check(&method, &Query::parse(Some(query)), applies).err().map(|error| error.to_string());
            assert_eq!(said, want, "{method} {query}");
        }
    }
}
