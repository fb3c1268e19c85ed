//! What a definition must be, in Kubernetes' words. All faults are told; their order means nothing.

use std::collections::HashSet;

use serde_json::Value;

use super::{properties, structural};
use crate::forms::{label_1035_faults, subdomain_faults};
use crate::schema;
use crate::status::{Fault, FieldError};

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const MOST_SELECTABLE: usize = 8;
const LONGEST_WARNING: usize = 256;

pub fn validate(definition: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let (name, spec) = (definition["metadata"]["name"].as_str().unwrap_or_default(), &definition["spec"]);
    if super::is_own(name) {
        return unchanged(name, spec).into_iter().collect();
    }
    let mut errors = identity(spec);
    let wanted = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
    if old.is_none() && !name.is_empty() && name != wanted {
        errors.push(FieldError::invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group"));
    }
    errors.extend(approval(definition));
    errors.extend(names(&spec["names"]));
    let conversion = &spec["conversion"];
    match conversion["strategy"].as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required("spec.conversion.strategy", "")),
        "None" => {}
        // Nothing here calls a webhook; a definition that needs one is refused rather than served wrongly.
        strategy => errors.push(FieldError::not_supported("spec.conversion.strategy", strategy, &["None"])),
    }
    if conversion["strategy"] == "None" && conversion["webhook"].is_object() {
        let webhook = &conversion["webhook"];
        for (field, given) in [
            ("webhookClientConfig", &webhook["clientConfig"]),
            ("conversionReviewVersions", &webhook["conversionReviewVersions"]),
        ] {
            if !given.is_null() {
                let detail = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(format!("spec.conversion.{field}"), detail));
            }
        }
    }
    errors.extend(versions(spec));
    if let Some(old) = old {
        errors.extend(changes(definition, old));
    }
    errors.extend(stored(definition));
    errors
}

/// Our own types' definitions are what the code says.
fn unchanged(name: &str, spec: &Value) -> Option<FieldError> {
    let own = super::own_of(super::own_row(name)?)?;
    let detail = "this kind is built in: its definition changes only with the server";
    (own["spec"] != *spec).then(|| FieldError::forbidden("spec", detail))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Groups of the Kubernetes project itself are not for everybody.
fn approval(definition: &Value) -> Option<FieldError> {
    const ANNOTATION: &str = "api-approved.kubernetes.io";
    let group = text(&definition["spec"]["group"]);
    let is_of = |domain: &str| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let approved = !text(&definition["metadata"]["annotations"][ANNOTATION]).is_empty();
    let detail = format!(
        "protected groups must have approval annotation {ANNOTATION:?}, see \
         https://github.com/kubernetes/enhancements/pull/1111"
    );
    let field = format!("metadata.annotations[{ANNOTATION}]");
    ((is_of("k8s.io") || is_of("kubernetes.io")) && !approved).then(|| FieldError::required(field, &detail))
}

/// The group and the scope.
fn identity(spec: &Value) -> Vec<FieldError> {
    let mut errors = vec![];
    let group = text(&spec["group"]);
    let faults = subdomain_faults(group);
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !faults.is_empty() {
        errors.push(FieldError::invalid("spec.group", group, faults.join(",")));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid("spec.group", group, "should be a domain with at least one dot"));
    }
    match spec["scope"].as_str() {
        None | Some("") => errors.push(FieldError::required("spec.scope", "")),
        Some("Namespaced" | "Cluster") => {}
        Some(other) => errors.push(FieldError::not_supported("spec.scope", other, &["Cluster", "Namespaced"])),
    }
    if spec["preserveUnknownFields"] == true {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema \
                      instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, detail));
    }
    errors
}

fn names(names: &Value) -> Vec<FieldError> {
    let mut errors = vec![];
    for field in ["plural", "singular", "kind", "listKind"] {
        let (at, name) = (format!("spec.names.{field}"), names[field].as_str().unwrap_or_default());
        // Kinds are labels but for their capitals.
        let is_kind = field.ends_with("ind");
        let faults = label_1035_faults(&if is_kind { name.to_ascii_lowercase() } else { name.to_owned() }).join(",");
        let before = if is_kind { "may have mixed case, but should otherwise match: " } else { "" };
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if !faults.is_empty() {
            errors.push(FieldError::invalid(at, name, format!("{before}{faults}")));
        }
    }
    for field in ["shortNames", "categories"] {
        for (i, name) in names[field].as_array().into_iter().flatten().enumerate() {
            let faults = label_1035_faults(name.as_str().unwrap_or_default());
            if !faults.is_empty() {
                errors.push(FieldError::invalid(format!("spec.names.{field}[{i}]"), name.clone(), faults.join(",")));
            }
        }
    }
    if names["kind"] == names["listKind"] && names["kind"].as_str().is_some_and(|kind| !kind.is_empty()) {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid("spec.names.listKind", names["listKind"].clone(), detail));
    }
    errors
}

fn versions(spec: &Value) -> Vec<FieldError> {
    let versions: &[Value] = spec["versions"].as_array().map_or(&[], Vec::as_slice);
    // What all versions say alike is told as said once, beside them, under its former name.
    let shared = |field: &str| versions.iter().all(|version| version[field] == versions[0][field]);
    let place = |i: usize, field: &str, shared_name: &str| match shared(field) {
        true => format!("spec.{shared_name}"),
        false => format!("spec.versions[{i}].{field}"),
    };
    let mut errors = vec![];
    let says_once = |field: &str, i: usize| !(shared(field) && i > 0);
    for (i, version) in versions.iter().enumerate() {
        let name = version["name"].as_str().unwrap_or_default();
        let faults = label_1035_faults(name);
        if !faults.is_empty() {
            errors.push(FieldError::invalid(format!("spec.versions[{i}].name"), name, faults.join(",")));
            if i == 0 {
                errors.push(FieldError::invalid("spec.version", name, faults.join(",")));
            }
        }
        errors.extend(deprecation(version, &format!("spec.versions[{i}].deprecationWarning")));
        if says_once("additionalPrinterColumns", i) {
            errors.extend(columns(version, &place(i, "additionalPrinterColumns", "additionalPrinterColumns")));
        }
        if says_once("subresources", i) {
            errors.extend(scale(version, &place(i, "subresources", "subresources")));
        }
        if says_once("selectableFields", i) {
            errors.extend(selectable(version, &place(i, "selectableFields", "selectableFields")));
        }
        let structure = &version["schema"]["openAPIV3Schema"];
        if !structure.is_object() {
            errors.push(FieldError::required(format!("spec.versions[{i}].schema.openAPIV3Schema"), ""));
        } else if says_once("schema", i) {
            let at = place(i, "schema", "validation") + ".openAPIV3Schema";
            errors.extend(check_schema(structure, &at, version["subresources"]["status"].is_object()));
        }
    }
    let mut names = HashSet::new();
    if !versions.iter().all(|version| names.insert(&version["name"])) {
        let detail = "must contain unique version names";
        errors.push(FieldError::invalid("spec.versions", spec["versions"].clone(), detail));
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", spec["versions"].clone(), detail));
    }
    errors
}

fn check_schema(structure: &Value, at: &str, status: bool) -> Vec<FieldError> {
    let mut errors = properties::check(structure, at, status);
    if !properties::is_foreign(structure) {
        errors.extend(structural::check(structure, at));
    }
    // What makes no sense has no meaning that a rule could be about.
    if errors.is_empty() {
        errors.extend(schema::check_rules(structure, at));
    }
    errors
}

fn deprecation(version: &Value, at: &str) -> Vec<FieldError> {
    let Some(warning) = version["deprecationWarning"].as_str() else { return vec![] };
    let unprintable = warning.char_indices().find(|(_, c)| c.is_control());
    let faults = match version["deprecated"] == true {
        false => vec!["can only be set for deprecated versions".to_owned()],
        true => [
            (warning.len() > LONGEST_WARNING).then(|| "must be <= 256 characters long".to_owned()),
            warning.is_empty().then(|| "must not be an empty string".to_owned()),
            unprintable.map(|(i, _)| {
                format!("must only contain printable UTF-8 characters; non-printable character found at index {i}")
            }),
        ]
        .into_iter()
        .flatten()
        .collect(),
    };
    faults.into_iter().map(|why| FieldError::invalid(at, warning, why)).collect()
}

fn columns(version: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = vec![];
    for (i, column) in version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}[{i}]");
        let text = |name: &str| column[name].as_str().unwrap_or_default();
        if text("name").is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        let known = format!("must be one of {}", COLUMN_TYPES.join(","));
        match text("type") {
            "" => errors.push(FieldError::required(format!("{at}.type"), &known)),
            form if !COLUMN_TYPES.contains(&form) => {
                errors.push(FieldError::invalid(format!("{at}.type"), form, known));
            }
            _ => {}
        }
        let format = text("format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.push(FieldError::invalid(format!("{at}.format"), format, detail));
        }
        match text("jsonPath") {
            "" => errors.push(FieldError::required(format!("{at}.JSONPath"), "")),
            path => errors.extend(simple_path(path, format!("{at}.JSONPath"))),
        }
    }
    errors
}

fn simple_path(path: &str, at: String) -> Option<FieldError> {
    (!path.starts_with('.')).then(|| FieldError::invalid(at, path, "must be a simple json path starting with ."))
}

fn scale(version: &Value, at: &str) -> Vec<FieldError> {
    let scale = &version["subresources"]["scale"];
    if !scale.is_object() {
        return vec![];
    }
    let mut errors = vec![];
    for (field, roots, where_to, required) in [
        ("specReplicasPath", &[".spec."] as &[&str], ".spec", true),
        ("statusReplicasPath", &[".status."], ".status", true),
        ("labelSelectorPath", &[".spec.", ".status."], "either .spec or .status", false),
    ] {
        let at = format!("{at}.scale.{field}");
        match scale[field].as_str().unwrap_or_default() {
            "" if required => errors.push(FieldError::required(at, "")),
            "" => {}
            path if !path.starts_with('.') => errors.extend(simple_path(path, at)),
            path if !roots.iter().any(|root| path.starts_with(root)) => {
                errors.push(FieldError::invalid(at, path, format!("should be a json path under {where_to}")));
            }
            _ => {}
        }
    }
    errors
}

fn selectable(version: &Value, at: &str) -> Vec<FieldError> {
    let structure = &version["schema"]["openAPIV3Schema"];
    let mut errors = vec![];
    let mut seen = HashSet::new();
    for (i, field) in version["selectableFields"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}[{i}].jsonPath");
        let path = field["jsonPath"].as_str().unwrap_or_default();
        if path.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let found = match properties::find(structure, path, false) {
            Ok(found) => found,
            Err(why) => {
                errors.push(FieldError::invalid(at, path, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if path == ".metadata" || path.starts_with(".metadata.") {
            errors.push(FieldError::invalid(at.clone(), path, "must not point to fields in metadata"));
        }
        if !["string", "boolean", "integer"].iter().any(|form| found["type"] == *form) {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings \
                          with formats are allowed.";
            errors.push(FieldError::invalid(at.clone(), path, detail));
        }
        if !seen.insert(path) {
            errors.push(FieldError::duplicate(at, path));
        }
    }
    if seen.len() > MOST_SELECTABLE {
        let fault = Fault::TooMany { is: seen.len(), most: MOST_SELECTABLE };
        errors.push(FieldError { field: at.to_owned(), fault });
    }
    errors
}

/// What is decided once the kind is served, and what its objects are found by.
fn changes(new: &Value, old: &Value) -> Vec<FieldError> {
    let served = super::settle::served(old);
    let mut errors = vec![];
    for (field, always) in [("group", true), ("names.plural", true), ("names.kind", false), ("scope", false)] {
        let pointer = format!("/spec/{}", field.replace('.', "/"));
        let (is, was) = (new.pointer(&pointer), old.pointer(&pointer));
        if is != was && (always || served) {
            let value = is.cloned().unwrap_or(Value::Null);
            errors.push(FieldError::invalid(format!("spec.{field}"), value, "field is immutable"));
        }
    }
    errors
}

/// Objects may be stored as every version that is said to be stored.
fn stored(definition: &Value) -> Vec<FieldError> {
    const FIELD: &str = "status.storedVersions";
    // A new definition has no status until its write is complete.
    let Some(stored) = definition["status"]["storedVersions"].as_array() else { return vec![] };
    if stored.is_empty() {
        return vec![FieldError::invalid(FIELD, Value::Null, "must have at least one stored version")];
    }
    let versions: Vec<&Value> =
        definition["spec"]["versions"].as_array().into_iter().flatten().map(|version| &version["name"]).collect();
    let gone = stored.iter().enumerate().filter(|(_, name)| !versions.contains(name));
    gone.map(|(i, name)| {
        let text = name.as_str().unwrap_or_default();
        let detail = format!(
            "missing from spec.versions; {text} was previously a storage version, and must remain in spec.versions \
             until a storage migration ensures no data remains persisted in {text} and removes {text} from \
             status.storedVersions"
        );
        FieldError::invalid(format!("{FIELD}[{i}]"), name.clone(), detail)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{ROWS, Shape};

    fn definition(edit: impl FnOnce(&mut Value)) -> Value {
        let mut definition = json!({
            "metadata": {"name": "widgets.a.example"},
            "spec": {
                "group": "a.example", "scope": "Namespaced", "conversion": {"strategy": "None"},
                "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": {"type": "object", "properties": {
                        "color": {"type": "string"}, "replicas": {"type": "integer"},
                    }}},
                }}}],
            },
        });
        edit(&mut definition);
        definition
    }

    #[test]
    fn definitions() {
        type Edit = fn(&mut Value);
        let cases: &[(Edit, Option<&str>)] = &[
            (|_| {}, None),
            (
                |d| d["metadata"]["name"] = "x".into(),
                Some("metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"),
            ),
            (|d| d["spec"]["scope"] = "All".into(), Some("spec.scope: Unsupported value: \"All\"")),
            (|d| d["spec"]["names"]["kind"] = "".into(), Some("spec.names.kind: Required value")),
            (|d| d["spec"]["names"]["plural"] = "Widgets".into(), Some("metadata.name: Invalid value")),
            (|d| d["spec"]["names"]["listKind"] = "Widget".into(), Some("kind and listKind may not be the same")),
            (|d| d["spec"]["versions"][0]["storage"] = false.into(), Some("must have exactly one version marked")),
            (
                |d| d["spec"]["versions"][0]["name"] = "V_1".into(),
                Some("spec.versions[0].name: Invalid value: \"V_1\""),
            ),
            (
                |d| d["spec"]["versions"][0]["schema"] = json!({}),
                Some("spec.versions[0].schema.openAPIV3Schema: Required value"),
            ),
            (
                |d| d["spec"]["conversion"]["strategy"] = "Webhook".into(),
                Some("spec.conversion.strategy: Unsupported value: \"Webhook\": supported values: \"None\""),
            ),
            (
                |d| d["spec"]["versions"][0]["subresources"] = json!({"scale": {"specReplicasPath": ".spec.replicas"}}),
                Some("statusReplicasPath: Required value"),
            ),
            (
                |d| {
                    d["spec"]["versions"][0]["additionalPrinterColumns"] =
                        json!([{"name": "A", "type": "text", "jsonPath": ".a"}]);
                },
                Some("must be one of boolean,date,integer,number,string"),
            ),
            (|d| d["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.color"}]), None),
            (
                |d| d["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.none"}]),
                Some("is an invalid path: does not refer to a valid field"),
            ),
        ];
        for (i, (edit, want)) in cases.iter().enumerate() {
            let errors = validate(&definition(edit), None);
            let got = errors.first().map(ToString::to_string);
            match (&got, want) {
                (Some(got), Some(want)) => assert!(got.contains(want), "{i}: {got}"),
                (None, None) => {}
                _ => panic!("{i}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn what_may_not_change() {
        let mut old = definition(|_| {});
        old["status"] = json!({"storedVersions": ["v1"]});
        old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
        let mut new = old.clone();
        assert!(validate(&new, Some(&old)).is_empty());
        new["spec"]["scope"] = "Cluster".into();
        new["spec"]["versions"][0]["name"] = "v2".into();
        let errors: Vec<String> = validate(&new, Some(&old)).iter().map(|error| error.field.clone()).collect();
        assert_eq!(errors, ["spec.scope", "status.storedVersions[0]"]);
    }

    #[test]
    fn our_own_are_what_the_code_says() {
        for mut own in super::super::own() {
            assert!(validate(&own, None).is_empty(), "{}", own["metadata"]["name"]);
            let structure = &own["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let errors = check_schema(structure, "schema", true);
            assert!(errors.is_empty(), "{}: {errors:?}", own["metadata"]["name"]);
            let other = if own["spec"]["scope"] == "Cluster" { "Namespaced" } else { "Cluster" };
            own["spec"]["scope"] = other.into();
            assert!(!validate(&own, None).is_empty());
        }
        assert!(ROWS.iter().any(|row| matches!(row.shape, Shape::Custom(_))));
    }
}
