//! Rules that no schema can say, of fields that several kinds have. Texts as Kubernetes words them; each complaint is
//! `(field path, message)`.

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements};

use crate::quantity;

pub type Complaint = (String, String);

/// Set by the platform in every instance.
pub(crate) const RESERVED: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
pub(crate) const DNS_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start \
    with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name', or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// What is wrong with a name that becomes part of a host name.
pub fn dns_label(name: &str) -> Option<String> {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (first, last) = (name.bytes().next().unwrap_or_default(), name.bytes().next_back().unwrap_or_default());
    if name.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    let good = first.is_ascii_lowercase() && alphanumeric(last) && name.bytes().all(|b| alphanumeric(b) || b == b'-');
    (!good).then(|| DNS_LABEL.into())
}

pub fn env(path: &str, env: &[EnvVar]) -> Vec<Complaint> {
    let mut complaints = vec![];
    for (i, variable) in env.iter().enumerate() {
        let name = variable.name.as_str();
        let printable = |c: char| (' '..='~').contains(&c) && c != '=';
        if RESERVED.contains(&name) {
            complaints.push((path.to_owned(), format!("{name:?} is a reserved environment variable")));
        } else if name.is_empty() || !name.chars().all(printable) {
            let text =
                "a valid environment variable name must consist only of printable ASCII characters other than '='";
            complaints.push((format!("{path}[{i}].name"), text.into()));
        }
    }
    complaints
}

/// Only what an instance is held to; another resource's amount may mean something to somebody.
pub fn resources(path: &str, resources: &ResourceRequirements) -> Vec<Complaint> {
    let mut complaints = vec![];
    for (which, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for (name, amount) in amounts.iter().flatten() {
            let at = || format!("{path}.{which}[{name}]");
            match quantity::millis(amount).or(quantity::units(amount)) {
                None => complaints.push((at(), format!("{:?} is no quantity, such as 500m or 128Mi", amount.0))),
                Some(0) if which == "limits" => complaints.push((at(), "must be greater than 0".into())),
                Some(_) => {}
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        let long = "a".repeat(64);
        for (name, good) in
            [("hello", true), ("a-1", true), ("a.b", false), ("1a", false), ("a-", false), ("A", false), ("", false)]
        {
            assert_eq!(dns_label(name).is_none(), good, "{name}");
        }
        assert!(dns_label(&long).is_some_and(|text| text.contains("63")));
    }

    #[test]
    fn variables() {
        for (name, want) in
            [("GREETING", ""), ("my.name-1", ""), ("PORT", "reserved"), ("A=B", "printable"), ("", "printable")]
        {
            let given = [EnvVar { name: name.into(), ..EnvVar::default() }];
            let complaints = env("spec.env", &given);
            assert_eq!(complaints.is_empty(), want.is_empty(), "{name}");
            assert!(complaints.iter().all(|(_, text)| text.contains(want)), "{complaints:?}");
        }
    }

    #[test]
    fn amounts() {
        for (given, want) in [
            (json!({"limits": {"memory": "128Mi", "cpu": "500m"}, "requests": {"cpu": "0"}}), vec![]),
            (json!({"limits": {"memory": "lots"}}), vec!["r.limits[memory]"]),
            (json!({"limits": {"cpu": "0"}}), vec!["r.limits[cpu]"]),
            (json!({"requests": {"cpu": "-1"}}), vec!["r.requests[cpu]"]),
        ] {
            let complaints = resources("r", &serde_json::from_value(given.clone()).unwrap());
            let paths: Vec<&str> = complaints.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(paths, want, "{given}");
        }
    }
}
