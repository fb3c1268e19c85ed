//! What a definition must be, in Kubernetes' words.

use std::collections::HashSet;

use serde_json::Value;

use super::structural;
use crate::schema;
use crate::status::FieldError;
use crate::table::Path;

const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                          alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', \
                          regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];

pub fn validate(definition: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let (name, spec) = (definition["metadata"]["name"].as_str().unwrap_or_default(), &definition["spec"]);
    let mut errors = vec![];
    if super::is_own(name) {
        errors.extend(unchanged(name, spec));
        return errors;
    }
    let text = |name: &str| spec["names"][name].as_str().unwrap_or_default();
    let group = spec["group"].as_str().unwrap_or_default();
    if name != format!("{}.{group}", text("plural")) {
        errors.push(FieldError::invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group"));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid("spec.group", group, "should be a domain with at least one dot"));
    }
    match spec["scope"].as_str() {
        None | Some("") => errors.push(FieldError::required("spec.scope", "")),
        Some("Namespaced" | "Cluster") => {}
        Some(other) => errors.push(FieldError::not_supported("spec.scope", other, &["Cluster", "Namespaced"])),
    }
    if spec["preserveUnknownFields"] == true {
        let detail = "must be false in order to use defaults in the schema";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, detail));
    }
    errors.extend(names(&spec["names"]));
    if let Some(strategy) = spec["conversion"]["strategy"].as_str().filter(|strategy| *strategy != "None") {
        errors.push(FieldError::not_supported("spec.conversion.strategy", strategy, &["None"]));
    }
    errors.extend(versions(spec));
    if let Some(old) = old {
        errors.extend(changes(definition, old));
    }
    errors
}

/// Our own types' definitions are what the code says.
fn unchanged(name: &str, spec: &Value) -> Option<FieldError> {
    let own = super::own_of(super::own_row(name)?)?;
    let detail = "this kind is built in: its definition changes only with the server";
    (own["spec"] != *spec).then(|| FieldError::forbidden("spec", detail))
}

fn names(names: &Value) -> Vec<FieldError> {
    let mut errors = vec![];
    for field in ["plural", "singular", "kind", "listKind"] {
        let at = format!("spec.names.{field}");
        match names[field].as_str().unwrap_or_default() {
            "" => errors.push(FieldError::required(at, "")),
            // Kinds are labels but for their capitals.
            name => {
                let label = if field.ends_with("ind") { name.to_ascii_lowercase() } else { name.to_owned() };
                if !is_label(&label) {
                    errors.push(FieldError::invalid(at, name, LABEL_1035));
                }
            }
        }
    }
    for field in ["shortNames", "categories"] {
        for (i, name) in names[field].as_array().into_iter().flatten().enumerate() {
            if !name.as_str().is_some_and(is_label) {
                errors.push(FieldError::invalid(format!("spec.names.{field}[{i}]"), name.clone(), LABEL_1035));
            }
        }
    }
    if names["kind"] == names["listKind"] && !names["kind"].is_null() {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid("spec.names.listKind", names["listKind"].clone(), detail));
    }
    errors
}

fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn versions(spec: &Value) -> Vec<FieldError> {
    let versions: &[Value] = spec["versions"].as_array().map_or(&[], Vec::as_slice);
    let mut errors = vec![];
    let mut seen = HashSet::new();
    for (i, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        let name = version["name"].as_str().unwrap_or_default();
        if !is_label(name) {
            errors.push(FieldError::invalid(format!("{at}.name"), name, LABEL_1035));
        }
        if !seen.insert(name) {
            errors.push(FieldError::invalid(format!("{at}.name"), name, "must contain unique version names"));
        }
        let warning = &version["deprecationWarning"];
        if !warning.is_null() && version["deprecated"] != true {
            let detail = "can only be set for deprecated versions";
            errors.push(FieldError::invalid(format!("{at}.deprecationWarning"), warning.clone(), detail));
        }
        errors.extend(columns(version, &at));
        errors.extend(scale(version, &at));
        errors.extend(selectable(version, &at));
        let schema = &version["schema"]["openAPIV3Schema"];
        let at = format!("{at}.schema.openAPIV3Schema");
        if !schema.is_object() {
            errors.push(FieldError::required(at, "schemas are required"));
            continue;
        }
        let structure = structural::check(schema, &at);
        // What is not structural has no meaning that a rule could be about.
        if structure.is_empty() {
            errors.extend(schema::check_rules(schema, &at));
        }
        errors.extend(structure);
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", spec["versions"].clone(), detail));
    }
    errors
}

fn columns(version: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = vec![];
    for (i, column) in version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.additionalPrinterColumns[{i}]");
        let text = |name: &str| column[name].as_str().unwrap_or_default();
        if text("name").is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        match text("type") {
            "" => {
                let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
                errors.push(FieldError::required(format!("{at}.type"), &detail));
            }
            form if !COLUMN_TYPES.contains(&form) => {
                let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
                errors.push(FieldError::invalid(format!("{at}.type"), form, detail));
            }
            _ => {}
        }
        match text("jsonPath") {
            "" => errors.push(FieldError::required(format!("{at}.jsonPath"), "")),
            path if Path::parse(path).is_none() => {
                errors.push(FieldError::invalid(format!("{at}.jsonPath"), path, "is an invalid JSON path"));
            }
            _ => {}
        }
    }
    errors
}

fn scale(version: &Value, at: &str) -> Vec<FieldError> {
    let scale = &version["subresources"]["scale"];
    if !scale.is_object() {
        return vec![];
    }
    let mut errors = vec![];
    for (field, roots, required) in [
        ("specReplicasPath", &[".spec."] as &[&str], true),
        ("statusReplicasPath", &[".status."], true),
        ("labelSelectorPath", &[".spec.", ".status."], false),
    ] {
        let at = format!("{at}.subresources.scale.{field}");
        match scale[field].as_str().unwrap_or_default() {
            "" if required => errors.push(FieldError::required(at, "")),
            "" => {}
            path if path.contains('[') || !roots.iter().any(|root| path.starts_with(root)) => {
                let roots = roots.iter().map(|root| root.trim_end_matches('.')).collect::<Vec<_>>().join(" or ");
                errors.push(FieldError::invalid(at, path, format!("should be a json path under {roots}")));
            }
            _ => {}
        }
    }
    errors
}

fn selectable(version: &Value, at: &str) -> Vec<FieldError> {
    const MOST: usize = 8;
    let fields = version["selectableFields"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let mut errors = vec![];
    if fields.len() > MOST {
        let fault = crate::status::Fault::TooMany { is: fields.len(), most: MOST };
        errors.push(FieldError { field: format!("{at}.selectableFields"), fault });
    }
    for (i, field) in fields.iter().enumerate() {
        let at = format!("{at}.selectableFields[{i}].jsonPath");
        let path = field["jsonPath"].as_str().unwrap_or_default();
        if path.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if !path.starts_with('.') || path.contains('[') || path.starts_with(".metadata") {
            errors.push(FieldError::invalid(at, path, "must be a simple path of a field outside metadata"));
        } else if !structural::is_simple(&version["schema"]["openAPIV3Schema"], path) {
            let detail = "must refer to a string, boolean or integer field of the schema";
            errors.push(FieldError::invalid(at, path, detail));
        }
    }
    errors
}

fn changes(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = vec![];
    for field in ["group", "names.plural", "names.kind", "scope"] {
        let pointer = format!("/spec/{}", field.replace('.', "/"));
        let (is, was) = (new.pointer(&pointer), old.pointer(&pointer));
        if is != was {
            let value = is.cloned().unwrap_or(Value::Null);
            errors.push(FieldError::invalid(format!("spec.{field}"), value, "field is immutable"));
        }
    }
    let versions: Vec<&Value> = new["spec"]["versions"].as_array().into_iter().flatten().map(|v| &v["name"]).collect();
    for (i, stored) in new["status"]["storedVersions"].as_array().into_iter().flatten().enumerate() {
        if !versions.contains(&stored) {
            let name = stored.as_str().unwrap_or_default();
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                 status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("status.storedVersions[{i}]"), stored.clone(), detail));
        }
    }
    errors
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
            (|d| d["spec"]["versions"][0]["schema"] = json!({}), Some("Required value: schemas are required")),
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
                Some("must refer to a string, boolean or integer field"),
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
            let errors = structural::check(structure, "schema");
            assert!(errors.is_empty(), "{}: {errors:?}", own["metadata"]["name"]);
            own["spec"]["scope"] = "Cluster".into();
            assert!(!validate(&own, None).is_empty());
        }
        assert!(ROWS.iter().any(|row| matches!(row.shape, Shape::Custom(_))));
    }
}
