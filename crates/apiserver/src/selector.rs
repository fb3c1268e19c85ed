//! Label and field selectors, matched against the index alone.

use std::borrow::Cow;

use crate::forms::{label_value_faults, qualified_faults};
use crate::index::Index;
use crate::kinds::{Selectable, Strategy};
use crate::status::{ApiError, Result};

/// Everything that a list or watch must satisfy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    /// `None`: a field of the metadata.
    place: Option<Selectable>,
    equal: bool,
    value: String,
}

/// An object as a selector sees it.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    pub key: &'a str,
    pub index: &'a Index,
    pub value: &'a [u8],
}

impl Selector {
    pub fn parse(labels: Option<&str>, fields: Option<&str>, row: &Strategy) -> Result<Self> {
        let labels = parse_labels(labels.unwrap_or_default())
            .map_err(|text| ApiError::BadRequest(format!("unable to parse requirement: {text}")))?;
        Ok(Self { labels, fields: parse_fields(fields.unwrap_or_default(), row)? })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that can match, which makes a list a look-up.
    pub fn name(&self) -> Option<&str> {
        self.fields.iter().find(|field| field.equal && field.name == "metadata.name").map(|field| field.value.as_str())
    }

    pub fn matches(&self, candidate: Candidate<'_>) -> bool {
        self.labels.iter().all(|requirement| requirement.matches(candidate.index))
            && self.fields.iter().all(|field| (candidate.field(field) == field.value) == field.equal)
    }
}

impl<'a> Candidate<'a> {
    pub fn of(entry: &'a store::Entry<Index>) -> Self {
        Self { key: &entry.key, index: &entry.index, value: &entry.value }
    }

    fn field(self, field: &Field) -> Cow<'a, str> {
        let mut parts = self.key.rsplit('/');
        let object = parts.next().unwrap_or_default();
        match field.name.as_str() {
            "metadata.name" => object.into(),
            "metadata.namespace" if self.key.split('/').count() == 4 => parts.next().unwrap_or_default().into(),
            name => match self.index.fields.get(name) {
                Some(value) => value.into(),
                // Indexed before its definition was known.
                None => field.place.map(|place| crate::index::field(self.value, &place)).unwrap_or_default().into(),
            },
        }
    }
}

impl Requirement {
    fn matches(&self, index: &Index) -> bool {
        let label = |key: &str| index.labels.get(key);
        let number = |key: &str| label(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(key, values) => label(key).is_some_and(|value| values.iter().any(|v| v == value)),
            Self::NotIn(key, values) => label(key).is_none_or(|value| values.iter().all(|v| v != value)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
            Self::Greater(key, than) => number(key).is_some_and(|n| n > *than),
            Self::Less(key, than) => number(key).is_some_and(|n| n < *than),
        }
    }
}

fn parse_fields(text: &str, row: &Strategy) -> Result<Vec<Field>> {
    let mut fields = vec![];
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, equal, value) = if let Some((name, value)) = part.split_once("!=") {
            (name, false, value)
        } else if let Some((name, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (name, true, value)
        } else {
            let why = format!("invalid selector: '{text}'; can't understand '{part}'");
            return Err(ApiError::BadRequest(why));
        };
        let metadata = name == "metadata.name" || (name == "metadata.namespace" && row.namespaced);
        let place = row.fields.iter().find(|known| known.name == name).copied();
        if !metadata && place.is_none() {
            return Err(ApiError::BadRequest(match row.fields {
                [] if row.namespaced => {
                    format!("{name:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
                }
                [] => format!("{name:?} is not a known field selector: only \"metadata.name\""),
                _ => format!("field label not supported: {name}"),
            }));
        }
        fields.push(Field { name: name.to_owned(), place, equal, value: value.to_owned() });
    }
    Ok(fields)
}

/// `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`
fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    let mut requirements = vec![];
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (requirement, after) = parse_requirement(rest)?;
        requirements.push(requirement);
        rest = match after.trim_start().strip_prefix(',') {
            Some(after) if after.trim().is_empty() => return Err("found '', expected: identifier".into()),
            Some(after) => after.trim_start(),
            None if after.trim().is_empty() => "",
            None => return Err(format!("found {:?}, expected: ',' or 'end of string'", after.trim())),
        };
    }
    Ok(requirements)
}

fn parse_requirement(text: &str) -> Result<(Requirement, &str), String> {
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = word(rest.trim_start());
        return Ok((Requirement::Absent(check_key(key)?), rest));
    }
    let (key, rest) = word(text);
    let key = check_key(key)?;
    let rest = rest.trim_start();
    for (operator, equal) in [("==", true), ("!=", false), ("=", true)] {
        if let Some(value) = rest.strip_prefix(operator) {
            let (value, rest) = word(value.trim_start());
            if let Some(odd) = rest.chars().next().filter(|c| value.is_empty() && "=!<>(".contains(*c)) {
                return Err(format!("found '{odd}', expected: identifier"));
            }
            let values = vec![check_value(&key, 0, value)?];
            let requirement = if equal { Requirement::In(key, values) } else { Requirement::NotIn(key, values) };
            return Ok((requirement, rest));
        }
    }
    for (operator, greater) in [(">", true), ("<", false)] {
        if let Some(value) = rest.strip_prefix(operator) {
            let (text, rest) = word(value.trim_start());
            let integer = "for 'Gt', 'Lt' operators, the value must be an integer";
            let number = text.parse().map_err(|_| format!("values[0]: Invalid value: {text:?}: {integer}"))?;
            let requirement = if greater { Requirement::Greater(key, number) } else { Requirement::Less(key, number) };
            return Ok((requirement, rest));
        }
    }
    match word(rest).0 {
        "in" => set(&key, rest, "in").map(|(values, rest)| (Requirement::In(key, values), rest)),
        "notin" => set(&key, rest, "notin").map(|(values, rest)| (Requirement::NotIn(key, values), rest)),
        "" => Ok((Requirement::Exists(key), rest)),
        other => Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
    }
}

fn set<'a>(key: &str, text: &'a str, operator: &str) -> Result<(Vec<String>, &'a str), String> {
    let rest = text.trim_start()[operator.len()..].trim_start();
    let inner = rest.strip_prefix('(').ok_or_else(|| format!("found {rest:?}, expected: '('"))?;
    let (inner, rest) = inner.split_once(')').ok_or("found '', expected: ',', ')' or identifier")?;
    let values = inner.split(',').enumerate().map(|(i, value)| check_value(key, i, value.trim()));
    let values = values.collect::<Result<_, _>>()?;
    Ok((values, rest))
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c.is_whitespace() || "=!<>,()".contains(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn check_key(key: &str) -> Result<String, String> {
    match qualified_faults(key).first() {
        Some(why) => Err(format!("<nil>: Invalid value: {key:?}: {why}")),
        None => Ok(key.to_owned()),
    }
}

fn check_value(key: &str, at: usize, value: &str) -> Result<String, String> {
    match label_value_faults(value).first() {
        Some(why) => Err(format!("values[{at}][{key}]: Invalid value: {value:?}: {why}")),
        None => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Kinds;

    #[test]
    fn selects() {
        let kinds = Kinds::new();
        let pods = kinds.find("", "v1", "pods").unwrap();
        let object = json!({
            "metadata": {"labels": {"app": "a", "tier": "web", "n": "5"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        });
        let index = Index::of(pods.fields, &object);
        let candidate = Candidate { key: "core/pods/default/p1", index: &index, value: &[] };
        for (labels, fields, want) in [
            ("", "", Some(true)),
            ("app=a", "", Some(true)),
            ("app==a,tier=web", "", Some(true)),
            ("app=b", "", Some(false)),
            ("app!=b", "", Some(true)),
            ("missing!=b", "", Some(true)),
            ("app in (a, b),tier notin (db)", "", Some(true)),
            ("app in (b)", "", Some(false)),
            ("app", "", Some(true)),
            ("!app", "", Some(false)),
            ("!missing , app", "", Some(true)),
            ("n>4,n<6", "", Some(true)),
            ("n>5", "", Some(false)),
            ("app in a", "", None),
            ("app=a,", "", None),
            ("app~a", "", None),
            ("", "metadata.name=p1", Some(true)),
            ("", "spec.hostNetwork=false", Some(true)),
            ("", "spec.hostNetwork=true", Some(false)),
            ("", "metadata.name!=p1", Some(false)),
            ("", "metadata.namespace=default,spec.nodeName=n1", Some(true)),
            ("", "status.phase!=Running", Some(false)),
            ("", "spec.nodeName=", Some(false)),
            ("", "spec.unknown=x", None),
            ("", "garbage", None),
        ] {
            let selector = Selector::parse(Some(labels), Some(fields), pods);
            assert_eq!(selector.ok().map(|s| s.matches(candidate)), want, "{labels:?} {fields:?}");
        }
    }

    #[test]
    fn any_bytes() {
        let kinds = Kinds::new();
        let pods = kinds.find("", "v1", "pods").unwrap();
        let object = json!({"metadata": {"labels": {"app": "a", "n": "5"}}, "spec": {"nodeName": "n1"}});
        let index = Index::of(pods.fields, &object);
        let candidate = Candidate { key: "core/pods/default/p1", index: &index, value: b"{}" };
        crate::fuzz::try_all("selector", |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            for (labels, fields) in [(Some(text), None), (None, Some(text)), (Some(text), Some(text))] {
                match Selector::parse(labels, fields, pods) {
                    Ok(selector) => drop((selector.matches(candidate), selector.name().map(str::to_owned))),
                    Err(error) => assert_eq!(error.code(), 400),
                }
            }
        });
    }
}
