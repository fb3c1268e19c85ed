//! Whether a schema is structural: every value has one type, and what is said of it is said in one place.
//!
//! What may be said at all is `properties.rs`. All faults are told, in Kubernetes' words; their order means nothing.

use serde_json::Value;

use crate::schema;
use crate::status::FieldError;

/// Deeper schemas are nobody's; walking them takes stack.
pub const DEEPEST: usize = 64;
const JUNCTORS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// What only the structure may say, not the alternatives beside it, and what such a member must be instead.
const STRUCTURE: [(&str, &str); 12] = [
    ("type", "empty"),
    ("additionalProperties", "undefined"),
    ("default", "undefined"),
    ("title", "empty"),
    ("description", "empty"),
    ("nullable", "false"),
    ("x-kubernetes-preserve-unknown-fields", "false"),
    ("x-kubernetes-embedded-resource", "false"),
    ("x-kubernetes-int-or-string", "false"),
    ("x-kubernetes-list-map-keys", "empty"),
    ("x-kubernetes-list-type", "undefined"),
    ("x-kubernetes-map-type", "undefined"),
];
const RULES: &str = "x-kubernetes-validations";

/// Where a node is, which decides what is demanded of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Item,
    Field,
}

/// What is wrong with the schema, found below `path`.
pub fn check(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = vec![];
    node(schema, path, Place::Root, 0, &mut errors);
    complete(schema, schema, path, path, &mut errors);
    if errors.is_empty() {
        if schema["default"].is_object() {
            let missing = ["apiVersion", "kind"].into_iter().filter(|name| schema["default"].get(name).is_none());
            errors.extend(missing.map(|name| FieldError::required(format!("{path}.default.{name}"), "")));
        }
        defaults(schema, path, &mut errors);
    }
    errors
}

fn node(schema: &Value, path: &str, place: Place, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > DEEPEST {
        return errors.push(FieldError::forbidden(path, &format!("must not be more than {DEEPEST} levels deep")));
    }
    own_type(schema, path, place, errors);
    resource(schema, path, place, errors);
    if schema["additionalProperties"].is_object() || schema["additionalProperties"].is_boolean() {
        let at = format!("{path}.additionalProperties");
        if place == Place::Root {
            errors.push(FieldError::forbidden(at.clone(), "must not be used at the root"));
        }
        if schema["x-kubernetes-embedded-resource"] == true {
            errors.push(FieldError::forbidden(at, "must not be used if x-kubernetes-embedded-resource is set"));
        }
    }
    if schema["x-kubernetes-int-or-string"] == true {
        for name in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
            if schema[name] == true {
                let detail = "must be false if x-kubernetes-int-or-string is true";
                errors.push(FieldError::invalid(format!("{path}.{name}"), true, detail));
            }
        }
    }
    values(schema, path, int_or_string(schema), errors);
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        node(member, &format!("{path}.properties[{name}]"), Place::Field, depth + 1, errors);
    }
    for (name, place) in [("items", Place::Item), ("additionalProperties", Place::Field)] {
        if let Some(item) = schema.get(name).filter(|item| item.is_object()) {
            node(item, &format!("{path}.{name}"), place, depth + 1, errors);
        }
    }
}

fn own_type(schema: &Value, path: &str, place: Place, errors: &mut Vec<FieldError>) {
    let flag = |name: &str| schema[name] == true;
    let form = schema["type"].as_str().unwrap_or_default();
    let at = format!("{path}.type");
    if form == "array" && !schema["items"].is_object() {
        errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
    }
    if flag("x-kubernetes-embedded-resource") && form != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if form.is_empty() {
            FieldError::required(at.clone(), detail)
        } else {
            FieldError::invalid(at.clone(), form, detail)
        });
    } else if form.is_empty() && !flag("x-kubernetes-int-or-string") && !flag("x-kubernetes-preserve-unknown-fields") {
        let place = match place {
            Place::Root => "at the root",
            Place::Item => "for specified array items",
            Place::Field => "for specified object fields",
        };
        errors.push(FieldError::required(at.clone(), &format!("must not be empty {place}")));
    }
    if place == Place::Root && !matches!(form, "" | "object") {
        errors.push(FieldError::invalid(at, form, "must be object at the root"));
    }
}

/// What the schema says of the members that every object of the API has.
fn resource(schema: &Value, path: &str, place: Place, errors: &mut Vec<FieldError>) {
    let embedded = schema["x-kubernetes-embedded-resource"] == true;
    let properties = schema["properties"].as_object();
    if embedded
        && schema["x-kubernetes-preserve-unknown-fields"] != true
        && properties.is_none_or(|properties| properties.is_empty())
    {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(format!("{path}.properties"), detail));
    }
    if !embedded && place != Place::Root {
        return;
    }
    for (name, form) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        let Some(member) = properties.and_then(|properties| properties.get(name)) else { continue };
        if member["type"] != form {
            let given = member["type"].as_str().unwrap_or_default();
            let at = format!("{path}.properties[{name}].type");
            errors.push(FieldError::invalid(at, given, format!("must be {form}")));
        }
    }
    let says_more = |metadata: &Value| {
        let members = metadata.as_object().into_iter().flatten();
        let mut more = members.filter(|(name, _)| !matches!(name.as_str(), "type" | "properties" | "default"));
        let named = metadata["properties"].as_object().into_iter().flatten();
        more.next().is_some() || named.into_iter().any(|(name, _)| name != "name" && name != "generateName")
    };
    if place == Place::Root && schema["properties"].get("metadata").is_some_and(says_more) {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden(format!("{path}.properties[metadata]"), detail));
    }
}

/// Which alternatives say no more than that a value is a number or a text, as an int-or-string may.
#[derive(Clone, Copy, Default)]
struct Spared {
    any_of: bool,
    first_all_of: bool,
}

fn int_or_string(schema: &Value) -> Spared {
    let pattern = serde_json::json!([{"type": "integer"}, {"type": "string"}]);
    Spared { any_of: schema["anyOf"] == pattern, first_all_of: schema["allOf"][0]["anyOf"] == pattern }
}

fn values(schema: &Value, path: &str, spared: Spared, errors: &mut Vec<FieldError>) {
    if let Some(text) = schema["pattern"].as_str()
        && let Err(why) = schema::pattern(text)
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), text, detail));
    }
    for name in JUNCTORS.into_iter().filter(|name| !(*name == "anyOf" && spared.any_of)) {
        for (i, branch) in schema[name].as_array().into_iter().flatten().enumerate() {
            let below = Spared { any_of: spared.first_all_of && name == "allOf" && i == 0, first_all_of: false };
            alternative(branch, &format!("{path}.{name}[{i}]"), below, errors);
        }
    }
    if let Some(branch) = schema.get("not").filter(|branch| branch.is_object()) {
        alternative(branch, &format!("{path}.not"), Spared::default(), errors);
    }
}

/// A branch may demand, and not describe.
fn alternative(branch: &Value, path: &str, spared: Spared, errors: &mut Vec<FieldError>) {
    values(branch, path, spared, errors);
    for (name, what) in STRUCTURE {
        let given = &branch[name];
        let says = match what {
            "false" => *given == true,
            "empty" => given.as_str().is_some_and(|text| !text.is_empty()) || given.as_array().is_some(),
            _ => !given.is_null(),
        };
        if says {
            errors.push(FieldError::forbidden(format!("{path}.{name}"), &format!("must be {what} to be structural")));
        }
    }
    if branch[RULES].as_array().is_some_and(|rules| !rules.is_empty()) {
        errors.push(FieldError::forbidden(format!("{path}.{RULES}"), "must be empty to be structural"));
    }
    for (name, member) in branch["properties"].as_object().into_iter().flatten() {
        let at = format!("{path}.properties[{name}]");
        if name == "metadata" {
            errors.push(FieldError::forbidden(at.clone(), "must not be specified in a nested context"));
        }
        alternative(member, &at, Spared::default(), errors);
    }
    if let Some(item) = branch.get("items").filter(|item| item.is_object()) {
        alternative(item, &format!("{path}.items"), Spared::default(), errors);
    }
}

/// What alternatives demand of a member must be about one that the structure names. `at`: where that is.
fn complete(of: &Value, core: &Value, at: &str, path: &str, errors: &mut Vec<FieldError>) {
    for name in JUNCTORS {
        for (i, branch) in of[name].as_array().into_iter().flatten().enumerate() {
            complete_branch(branch, Some(core), at, &format!("{path}.{name}[{i}]"), errors);
        }
    }
    if let Some(branch) = of.get("not").filter(|branch| branch.is_object()) {
        complete_branch(branch, Some(core), at, &format!("{path}.not"), errors);
    }
}

fn complete_branch(branch: &Value, core: Option<&Value>, at: &str, path: &str, errors: &mut Vec<FieldError>) {
    let Some(core) = core else {
        return errors.push(FieldError::required(at, &format!("because it is defined in {path}")));
    };
    complete(branch, core, at, path, errors);
    if let Some(item) = branch.get("items").filter(|item| item.is_object()) {
        complete_branch(item, core.get("items"), &format!("{at}.items"), &format!("{path}.items"), errors);
    }
    for (name, member) in branch["properties"].as_object().into_iter().flatten() {
        let below = |path: &str| format!("{path}.properties[{name}]");
        complete_branch(member, core["properties"].get(name), &below(at), &below(path), errors);
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
        let wrong = schema::validate(default, &compiled);
        errors.extend(wrong.into_iter().map(|error| {
            let field = if error.field.is_empty() { at.clone() } else { format!("{at}.{}", error.field) };
            FieldError { field, ..error }
        }));
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        defaults(member, &format!("{path}.properties[{name}]"), errors);
    }
    if let Some(item) = schema.get("items").filter(|item| item.is_object()) {
        defaults(item, &format!("{path}.items"), errors);
    }
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
            (
                of(json!({"x-kubernetes-int-or-string": true, "allOf": [
                    {"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"minimum": 3}]})),
                None,
            ),
            (of(json!({"x-kubernetes-preserve-unknown-fields": true})), None),
            (
                of(json!({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}]})),
                None,
            ),
            (
                json!({"type": "object", "oneOf": [{"properties": {"c": {"minLength": 1}}}]}),
                Some("s.properties[c]: Required value: because it is defined in s.oneOf[0].properties[c]"),
            ),
            (
                of(json!({"type": "string", "anyOf": [{"type": "string"}]})),
                Some("s.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural"),
            ),
            (of(json!({"type": "string", "pattern": "["})), Some("must be a valid regular expression, but isn't")),
            (
                of(json!({"type": "integer", "default": "x"})),
                Some("s.properties[spec].default: Invalid value: \"string\""),
            ),
            (of(json!({"type": "integer", "default": 3})), None),
            (
                of(json!({"type": "object", "x-kubernetes-embedded-resource": true})),
                Some("s.properties[spec].properties: Required value: must not be empty"),
            ),
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
