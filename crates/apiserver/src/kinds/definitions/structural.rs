//! Whether a schema is structural: every value has one type, and what is said of it is said in one place.

use serde_json::Value;

use crate::schema;
use crate::status::FieldError;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Deeper schemas are nobody's; walking them takes stack.
const DEEPEST: usize = 64;
const FORBIDDEN: [&str; 4] = ["$ref", "definitions", "dependencies", "patternProperties"];
const JUNCTORS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// What only the structure may say, not the alternatives beside it.
const STRUCTURE: [&str; 8] = [
    "type",
    "additionalProperties",
    "default",
    "title",
    "description",
    "nullable",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
];

/// What is wrong with the schema, found below `path`.
pub fn check(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = vec![];
    match schema["type"].as_str() {
        None | Some("") => errors.push(FieldError::required(format!("{path}.type"), "must not be empty at the root")),
        Some("object") => {}
        Some(other) => errors.push(FieldError::invalid(format!("{path}.type"), other, "must be object at the root")),
    }
    let metadata = schema["properties"]["metadata"]["properties"].as_object();
    if metadata.is_some_and(|properties| properties.keys().any(|name| name != "name" && name != "generateName")) {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden(format!("{path}.properties[metadata]"), detail));
    }
    node(schema, path, "at the root", 0, &mut errors);
    if errors.is_empty() {
        defaults(schema, path, &mut errors);
    }
    errors
}

fn node(schema: &Value, path: &str, place: &str, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > DEEPEST {
        return errors.push(FieldError::forbidden(path, &format!("must not be more than {DEEPEST} levels deep")));
    }
    let flag = |name: &str| schema[name] == true;
    let typeless = flag("x-kubernetes-int-or-string") || flag("x-kubernetes-preserve-unknown-fields");
    match schema["type"].as_str() {
        None | Some("") if depth > 0 && !typeless => {
            errors.push(FieldError::required(format!("{path}.type"), &format!("must not be empty for {place}")));
        }
        Some(form) if !TYPES.contains(&form) => {
            errors.push(FieldError::not_supported(format!("{path}.type"), form, &TYPES));
        }
        _ => {}
    }
    for name in FORBIDDEN.iter().filter(|name| schema.get(**name).is_some()) {
        errors.push(FieldError::forbidden(format!("{path}.{name}"), &format!("{name} is not supported")));
    }
    if flag("uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(format!("{path}.uniqueItems"), detail));
    }
    containers(schema, path, errors);
    values(schema, path, errors);
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        node(member, &format!("{path}.properties[{name}]"), "specified object fields", depth + 1, errors);
    }
    for (name, place) in [("items", "specified array items"), ("additionalProperties", "specified object fields")] {
        if let Some(item) = schema.get(name).filter(|item| item.is_object()) {
            node(item, &format!("{path}.{name}"), place, depth + 1, errors);
        }
    }
    for name in JUNCTORS {
        for (i, branch) in schema[name].as_array().into_iter().flatten().enumerate() {
            alternative(branch, schema, &format!("{path}.{name}[{i}]"), depth + 1, errors);
        }
    }
    if let Some(branch) = schema.get("not") {
        alternative(branch, schema, &format!("{path}.not"), depth + 1, errors);
    }
}

/// Lists and maps: what they hold and how their items are told apart.
fn containers(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if schema["type"] == "array" {
        match schema.get("items") {
            None | Some(Value::Null) => errors.push(FieldError::required(format!("{path}.items"), "must be specified")),
            Some(Value::Array(_)) => {
                let detail = "items must be a schema object and not an array";
                errors.push(FieldError::forbidden(format!("{path}.items"), detail));
            }
            Some(_) => {}
        }
    }
    if schema["additionalProperties"].is_object() && schema["properties"].as_object().is_some_and(|p| !p.is_empty()) {
        let detail = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), detail));
    }
    if schema["additionalProperties"] == false {
        let detail = "additionalProperties cannot be set to false";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), detail));
    }
    let keys = schema["x-kubernetes-list-map-keys"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    match schema["x-kubernetes-list-type"].as_str() {
        Some("map") if keys.is_empty() => {
            let detail = "must not be empty if x-kubernetes-list-type is map";
            errors.push(FieldError::required(format!("{path}.x-kubernetes-list-map-keys"), detail));
        }
        Some("map") => {
            for (i, key) in keys.iter().enumerate() {
                let item = &schema["items"];
                let name = key.as_str().unwrap_or_default();
                let required = item["required"].as_array().into_iter().flatten().any(|required| required == name);
                let known = item["properties"].get(name);
                if known.is_none() {
                    let at = format!("{path}.x-kubernetes-list-map-keys[{i}]");
                    let detail = "entries must all be names of item properties";
                    errors.push(FieldError::invalid(at, name, detail));
                } else if !required && known.is_some_and(|known| known.get("default").is_none()) {
                    let at = format!("{path}.items.properties[{name}].default");
                    let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a \
                                  required property";
                    errors.push(FieldError::required(at, detail));
                }
            }
        }
        Some("set" | "atomic") | None => {}
        Some(other) => {
            let at = format!("{path}.x-kubernetes-list-type");
            errors.push(FieldError::not_supported(at, other, &["atomic", "map", "set"]));
        }
    }
    if let Some(form) = schema["x-kubernetes-map-type"].as_str().filter(|form| !["atomic", "granular"].contains(form)) {
        let at = format!("{path}.x-kubernetes-map-type");
        errors.push(FieldError::not_supported(at, form, &["atomic", "granular"]));
    }
}

fn values(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(text) = schema["pattern"].as_str()
        && let Err(why) = schema::pattern(text)
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), text, detail));
    }
    if schema["x-kubernetes-embedded-resource"] == true && schema["type"] != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(FieldError::invalid(format!("{path}.type"), schema["type"].clone(), detail));
    }
}

/// A branch may only demand what the structure beside it names.
fn alternative(branch: &Value, core: &Value, path: &str, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > DEEPEST {
        return errors.push(FieldError::forbidden(path, &format!("must not be more than {DEEPEST} levels deep")));
    }
    let int_or_string = core["x-kubernetes-int-or-string"] == true;
    for name in STRUCTURE.iter().filter(|name| branch.get(**name).is_some() && !(int_or_string && **name == "type")) {
        errors.push(FieldError::forbidden(format!("{path}.{name}"), "must be empty to be structural"));
    }
    values(branch, path, errors);
    for (name, member) in branch["properties"].as_object().into_iter().flatten() {
        let at = format!("{path}.properties[{name}]");
        let known = core["properties"].get(name).or_else(|| core.get("additionalProperties").filter(|a| a.is_object()));
        match known {
            Some(known) => alternative(member, known, &at, depth + 1, errors),
            None => errors.push(FieldError::required(at, "because it is not defined in the structure beside it")),
        }
    }
    if let Some(item) = branch.get("items") {
        alternative(item, &core["items"], &format!("{path}.items"), depth + 1, errors);
    }
    for name in JUNCTORS {
        for (i, inner) in branch[name].as_array().into_iter().flatten().enumerate() {
            alternative(inner, core, &format!("{path}.{name}[{i}]"), depth + 1, errors);
        }
    }
    if let Some(inner) = branch.get("not") {
        alternative(inner, core, &format!("{path}.not"), depth + 1, errors);
    }
}

/// Defaults must be values that the schema accepts.
fn defaults(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        let compiled = schema::value(schema);
        let mut pruned = default.clone();
        schema::prune(&mut pruned, &compiled);
        let at = format!("{path}.default");
        if pruned != *default {
            errors.push(FieldError::invalid(at.clone(), default.clone(), "must not have unknown fields"));
        }
        schema::apply_defaults(&mut pruned, &compiled);
        let wrong = schema::validate(&pruned, &compiled);
        errors.extend(wrong.into_iter().map(|error| {
            let field = if error.field.is_empty() { at.clone() } else { format!("{at}.{}", error.field) };
            FieldError { field, ..error }
        }));
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        defaults(member, &format!("{path}.properties[{name}]"), errors);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(item) = schema.get(name).filter(|item| item.is_object()) {
            defaults(item, &format!("{path}.{name}"), errors);
        }
    }
}

/// Whether the path leads to a field that can be selected by.
pub fn is_simple(schema: &Value, path: &str) -> bool {
    let found = path.split('.').skip(1).try_fold(schema, |node, name| node["properties"].get(name));
    found.is_some_and(|node| ["string", "boolean", "integer"].iter().any(|form| node["type"] == *form))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn structural() {
        let of = |spec: Value| json!({"type": "object", "properties": {"spec": spec}});
        for (schema, want) in [
            (of(json!({"type": "object"})), None),
            (json!({"type": "string"}), Some("s.type: Invalid value: \"string\": must be object at the root")),
            (
                of(json!({})),
                Some("s.properties[spec].type: Required value: must not be empty for specified object fields"),
            ),
            (of(json!({"type": "array"})), Some("s.properties[spec].items: Required value: must be specified")),
            (
                of(json!({"type": "array", "items": {}})),
                Some("s.properties[spec].items.type: Required value: must not be empty for specified array items"),
            ),
            (of(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})), None),
            (of(json!({"x-kubernetes-preserve-unknown-fields": true})), None),
            (
                of(json!({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}]})),
                None,
            ),
            (
                of(json!({"type": "string", "anyOf": [{"type": "string"}]})),
                Some("s.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural"),
            ),
            (of(json!({"type": "string", "pattern": "["})), Some("must be a valid regular expression, but isn't")),
            (
                of(json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true})),
                Some("uniqueItems cannot be set to true"),
            ),
            (
                of(json!({"type": "integer", "default": "x"})),
                Some("s.properties[spec].default: Invalid value: \"string\""),
            ),
            (of(json!({"type": "integer", "default": 3})), None),
            (
                of(json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"})),
                Some("must not be empty if x-kubernetes-list-type is map"),
            ),
            (of(json!({"$ref": "#/x", "type": "object"})), Some("s.properties[spec].$ref: Forbidden")),
        ] {
            let errors = check(&schema, "s");
            let got = errors.first().map(ToString::to_string);
            match (&got, want) {
                (Some(got), Some(want)) => assert!(got.contains(want), "{schema}: {got}"),
                (None, None) => {}
                _ => panic!("{schema}: {got:?}, not {want:?}"),
            }
        }
    }
}
