//! What the schemas of Serving's kinds cannot say, in Knative's own words: its users' tools look for them.
//!
//! Owns templates and traffic; a pod's own fields are `pod`'s, the annotations `scaling`'s.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{ConfigurationSpec, RevisionSpec, RevisionTemplate, RouteSpec, ServiceSpec, TrafficTarget};
use super::{pod, scaling};
use crate::rules::dns_label;

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    pub path: String,
    pub message: String,
    /// What helps, if the message alone does not.
    pub details: String,
}

impl Complaint {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), details: String::new() }
    }

    pub fn invalid(path: impl Into<String>, value: impl std::fmt::Display) -> Self {
        Self::new(path, format!("invalid value: {value}"))
    }

    pub fn missing(path: impl Into<String>) -> Self {
        Self::new(path, "missing field(s)")
    }

    pub fn forbidden(path: impl Into<String>) -> Self {
        Self::new(path, "must not set the field(s)")
    }

    pub fn bounds(path: impl Into<String>, value: impl std::fmt::Display, (least, most): (i64, i64)) -> Self {
        Self::new(path, format!("expected {least} <= {value} <= {most}"))
    }

    pub fn because(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.message, self.path)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "\n{}", self.details) }
    }
}

/// Most simultaneous requests that an instance may ask for.
const MOST_CONCURRENCY: i64 = 1000;

/// A Service's own rules; `old` is how it was, on updates.
pub fn service(meta: &ObjectMeta, spec: &ServiceSpec, old: Option<&ServiceSpec>) -> Vec<Complaint> {
    let mut all = scaling::of_owner(meta);
    all.extend(template("spec.template", &spec.template, Some(meta)));
    all.extend(traffic("spec.traffic", &spec.traffic, true));
    all.extend(old.and_then(|old| unnamed_change("spec.template", &old.template, &spec.template)));
    all
}

/// A Configuration's, which a Service's is a part of.
pub fn configuration(meta: &ObjectMeta, spec: &ConfigurationSpec, old: Option<&ConfigurationSpec>) -> Vec<Complaint> {
    let mut all = scaling::of_owner(meta);
    all.extend(template("spec.template", &spec.template, Some(meta)));
    all.extend(old.and_then(|old| unnamed_change("spec.template", &old.template, &spec.template)));
    all
}

/// A Route's, which belongs to nobody or to a Service: then it has its traffic.
pub fn route(meta: &ObjectMeta, spec: &RouteSpec) -> Vec<Complaint> {
    let mut all = scaling::of_owner(meta);
    all.extend(traffic("spec.traffic", &spec.traffic, false));
    all
}

/// A Revision's, before it is there; afterwards it never changes.
pub fn revision(meta: &ObjectMeta, spec: &RevisionSpec) -> Vec<Complaint> {
    let mut all = scaling::of_template("metadata.annotations", meta);
    all.extend(pod::rules("spec", &spec.pod));
    all.extend(numbers("spec", spec));
    all
}

/// A template's rules. Its name, if it has one, must be its parent's with something behind.
fn template(path: &str, template: &RevisionTemplate, parent: Option<&ObjectMeta>) -> Vec<Complaint> {
    let mut all = pod::rules(&format!("{path}.spec"), &template.spec.pod);
    all.extend(numbers(&format!("{path}.spec"), &template.spec));
    if let Some(meta) = &template.metadata {
        all.extend(scaling::of_template(&format!("{path}.metadata.annotations"), meta));
        all.extend(parent.and_then(|parent| revision_name(path, meta, parent)));
    }
    all
}

fn numbers(path: &str, spec: &RevisionSpec) -> Vec<Complaint> {
    let longest = RevisionSpec::MAX_TIMEOUT_SECONDS;
    let numbers = [
        ("timeoutSeconds", spec.timeout_seconds, longest),
        ("responseStartTimeoutSeconds", spec.response_start_timeout_seconds, longest),
        ("idleTimeoutSeconds", spec.idle_timeout_seconds, longest),
        ("containerConcurrency", spec.container_concurrency, MOST_CONCURRENCY),
    ];
    let outside = |(name, value, most): (&str, Option<i64>, i64)| {
        let value = value.filter(|value| !(0..=most).contains(value))?;
        Some(Complaint::bounds(format!("{path}.{name}"), value, (0, most)))
    };
    numbers.into_iter().filter_map(outside).collect()
}

fn revision_name(path: &str, template: &ObjectMeta, parent: &ObjectMeta) -> Option<Complaint> {
    let name = template.name.as_deref().filter(|name| !name.is_empty())?;
    let path = format!("{path}.metadata.name");
    if let Some(why) = dns_label(name) {
        return Some(Complaint::invalid(path, format!("not a DNS 1035 label: [{why}]")));
    }
    let Some(of) = parent.name.as_deref().filter(|name| !name.is_empty()) else {
        // It is not known yet what the parent will be called.
        return Some(Complaint::forbidden(path));
    };
    let prefix = format!("{of}-");
    (!name.starts_with(&prefix)).then(|| Complaint::invalid(path, format!("{name:?} must have prefix {prefix:?}")))
}

/// A Revision never changes, so a template that names its own may change only together with the name.
fn unnamed_change(path: &str, old: &RevisionTemplate, new: &RevisionTemplate) -> Option<Complaint> {
    let name =
        |template: &RevisionTemplate| template.metadata.as_ref().and_then(|m| m.name.clone()).unwrap_or_default();
    if name(new).is_empty() || name(new) != name(old) || old == new {
        return None;
    }
    let text = |template: &RevisionTemplate| serde_json::to_value(template).unwrap_or_default();
    let message = "Saw the following changes without a name change (-old +new)";
    let changed = changes("", &text(old), &text(new));
    Some(Complaint::new(format!("{path}.metadata.name"), message).because(changed.join("\n")))
}

/// The fields that differ, each with what it was and what it is.
fn changes(path: &str, old: &serde_json::Value, new: &serde_json::Value) -> Vec<String> {
    use serde_json::Value::Object;
    match (old, new) {
        (old, new) if old == new => vec![],
        (Object(was), Object(is)) => {
            let mut names: Vec<&String> = was.keys().chain(is.keys()).collect();
            names.sort_unstable();
            names.dedup();
            let inner = |name: &String| changes(&format!("{path}.{name}"), &old[name], &new[name]);
            names.into_iter().flat_map(inner).collect()
        }
        _ => vec![format!("{}:\n\t-: {old}\n\t+: {new}", path.trim_start_matches('.'))],
    }
}

/// The rules of traffic; `whole` says that a target which names nothing means the parent's own Configuration.
fn traffic(path: &str, traffic: &[TrafficTarget], whole: bool) -> Vec<Complaint> {
    if traffic.is_empty() {
        return vec![];
    }
    let mut all = vec![];
    let mut tags: HashMap<&str, usize> = HashMap::new();
    for (i, target) in traffic.iter().enumerate() {
        let path = format!("{path}[{i}]");
        all.extend(references(&path, target, whole));
        if let Some(percent) = target.percent.filter(|percent| !(0..=100).contains(percent)) {
            all.push(Complaint::bounds(format!("{path}.percent"), percent, (0, 100)));
        }
        if target.url.as_deref().is_some_and(|url| !url.is_empty()) {
            all.push(Complaint::forbidden(format!("{path}.url")));
        }
        let Some(tag) = target.tag.as_deref().filter(|tag| !tag.is_empty()) else { continue };
        if let Some(why) = dns_label(tag) {
            all.push(Complaint::invalid(format!("{path}.tag"), format!("not a DNS 1035 label: [{why}]")));
        }
        if tags.insert(tag, i).is_some() {
            all.push(Complaint::new(format!("{path}.tag"), format!("Multiple definitions for {tag:?}")));
        }
    }
    let sum = traffic.iter().filter_map(|t| t.percent).fold(0i64, i64::saturating_add);
    if sum != 100 {
        all.push(Complaint::new(path, format!("Traffic targets sum to {sum}, want 100")));
    }
    all
}

fn references(path: &str, target: &TrafficTarget, whole: bool) -> Vec<Complaint> {
    let named = |name: &Option<String>| name.as_deref().is_some_and(|name| !name.is_empty());
    let (revision, configuration) = (named(&target.revision_name), named(&target.configuration_name));
    let mut all = vec![];
    if let Some(latest) = target.latest_revision.filter(|latest| *latest == revision) {
        let name = target.revision_name.as_deref().unwrap_or_default();
        let message = format!("may not set revisionName {name:?} when latestRevision is {latest}");
        all.push(Complaint::new(format!("{path}.latestRevision"), message));
    }
    let either = || format!("{path}.configurationName, {path}.revisionName");
    match (revision, configuration) {
        (_, true) if whole => all.push(Complaint::forbidden(format!("{path}.configurationName"))),
        (true, true) => all.push(Complaint::new(either(), "expected exactly one, got both")),
        (true, false) => all.extend(key_name(format!("{path}.revisionName"), target.revision_name.as_deref())),
        (false, true) => {
            all.extend(key_name(format!("{path}.configurationName"), target.configuration_name.as_deref()))
        }
        (false, false) if !whole => all.push(Complaint::new(either(), "expected exactly one, got neither")),
        _ => {}
    }
    all
}

/// What Kubernetes calls a qualified name, less its prefix, which no object's name has.
fn key_name(path: String, name: Option<&str>) -> Option<Complaint> {
    let name = name?;
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits =
        name.len() <= 63 && edge(name.chars().next()) && edge(name.chars().next_back()) && name.chars().all(inner);
    let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
               alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
               '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    (!fits).then(|| Complaint::new(path, format!("invalid key name {name:?}")).because(why))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn meta(name: &str) -> ObjectMeta {
        ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
    }

    fn spec(change: impl FnOnce(&mut Value)) -> ServiceSpec {
        let mut spec = json!({"template": {"metadata": {}, "spec": {"containers": [{"image": "r/x"}]}}});
        change(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn services() {
        let check = |case: &str, change: &dyn Fn(&mut Value), want: &str| {
            let got: Vec<String> =
                service(&meta("hello"), &spec(|s| change(s)), None).iter().map(ToString::to_string).collect();
            assert_eq!(got.join("; "), want, "{case}");
        };
        check("fine", &|_| (), "");
        let number = |name: &'static str, value: i64| move |s: &mut Value| s["template"]["spec"][name] = value.into();
        check("timeout", &number("timeoutSeconds", 601), "expected 0 <= 601 <= 600: spec.template.spec.timeoutSeconds");
        check(
            "concurrency",
            &number("containerConcurrency", -1),
            "expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency",
        );
        let name = |name: &'static str| move |s: &mut Value| s["template"]["metadata"]["name"] = name.into();
        check("own name", &name("hello-one"), "");
        check(
            "another's name",
            &name("other-one"),
            "invalid value: \"other-one\" must have prefix \"hello-\": spec.template.metadata.name",
        );
        let traffic = |targets: Value| move |s: &mut Value| s["traffic"] = targets.clone();
        check("sum", &traffic(json!([{"percent": 90}])), "Traffic targets sum to 90, want 100: spec.traffic");
        check(
            "pinned and latest",
            &traffic(json!([{"percent": 100, "revisionName": "a", "latestRevision": true}])),
            "may not set revisionName \"a\" when latestRevision is true: spec.traffic[0].latestRevision",
        );
        check(
            "twice the tag",
            &traffic(json!([{"percent": 100, "tag": "a"}, {"tag": "a"}])),
            "Multiple definitions for \"a\": spec.traffic[1].tag",
        );
        check(
            "configuration",
            &traffic(json!([{"percent": 100, "configurationName": "c"}])),
            "must not set the field(s): spec.traffic[0].configurationName",
        );
    }

    #[test]
    fn routes_name_what_they_lead_to() {
        let run = |targets: Value| {
            let targets: Vec<TrafficTarget> = serde_json::from_value(targets).unwrap();
            traffic("spec.traffic", &targets, false).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(run(json!([{"percent": 100, "configurationName": "c"}])), "");
        assert!(run(json!([{"percent": 100}])).starts_with("expected exactly one, got neither"));
        assert!(
            run(json!([{"percent": 100, "configurationName": "c", "revisionName": "r"}]))
                .starts_with("expected exactly one, got both")
        );
    }

    #[test]
    fn a_named_template_changes_with_its_name() {
        let named = |name: &str, image: &str| {
            spec(|s| {
                s["template"]["metadata"]["name"] = name.into();
                s["template"]["spec"]["containers"][0]["image"] = image.into();
            })
        };
        let run = |old: &ServiceSpec, new: &ServiceSpec| service(&meta("hello"), new, Some(old));
        assert_eq!(run(&named("hello-1", "a"), &named("hello-2", "b")), []);
        assert_eq!(run(&named("hello-1", "a"), &named("hello-1", "a")), []);
        let got = run(&named("hello-1", "a"), &named("hello-1", "b"));
        assert!(
            got[0].to_string().starts_with(
                "Saw the following changes without a name change (-old +new): spec.template.metadata.name\n"
            )
        );
        assert!(got[0].details.contains("\"image\":\"b\""), "{}", got[0].details);
    }
}
