//! What a schema may say, whether or not it is structural: the words it knows, how they go together, and its rules' texts.
//!
//! All faults are told, in Kubernetes' words; their order means nothing.

use serde_json::Value;

use crate::status::FieldError;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Words of JSON Schema that no schema here may use.
const FOREIGN: [&str; 6] = ["$ref", "additionalItems", "definitions", "dependencies", "id", "patternProperties"];
/// What the root may say beside a status that is separated from the rest, under the names that Go has for it.
const AT_ROOT: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
    ("x-kubernetes-validations", "XValidations"),
];
const RULES: &str = "x-kubernetes-validations";
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// What is wrong with the schema, found below `path`. `status`: it is of a kind whose status is a part of its own.
pub fn check(schema: &Value, path: &str, status: bool) -> Vec<FieldError> {
    let mut errors = vec![];
    if status {
        root(schema, path, &mut errors);
    }
    if schema["nullable"] == true {
        errors.push(FieldError::forbidden(format!("{path}.nullable"), "nullable cannot be true at the root"));
    }
    for name in ["metadata", "kind", "apiVersion"] {
        if schema["properties"][name].get("default").is_some_and(|default| !default.is_null()) {
            let detail = format!("must not be set in top-level {name}");
            errors.push(FieldError::forbidden(format!("{path}.properties[{name}].default"), &detail));
        }
    }
    node(schema, path, 0, &mut errors);
    errors
}

/// Whether it uses words that make it something else than a schema of Kubernetes; its structure is then not looked at.
pub fn is_foreign(schema: &Value) -> bool {
    FOREIGN.iter().any(|name| says(schema, name))
        || schema["items"].is_array()
        || below(schema, "").iter().any(|(member, _)| is_foreign(member))
}

fn says(schema: &Value, name: &str) -> bool {
    match schema.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Object(members)) => !members.is_empty(),
        Some(_) => true,
    }
}

fn root(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(form) = schema["type"].as_str().filter(|form| *form != "object") {
        let detail =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return errors.push(FieldError::invalid(format!("{path}.type"), form, detail));
    }
    let mut members = schema.as_object().into_iter().flatten();
    if members.any(|(name, _)| says(schema, name) && !AT_ROOT.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = AT_ROOT.iter().map(|(_, known)| *known).collect();
        let known = known.join(" ");
        let detail =
            format!("only [{known}] fields are allowed at the root of the schema if the status subresource is enabled");
        errors.push(FieldError::invalid(path, schema.clone(), detail));
    }
}

/// The schemas inside one, with their paths.
fn below<'a>(schema: &'a Value, path: &str) -> Vec<(&'a Value, String)> {
    let mut found = vec![];
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        found.push((member, format!("{path}.properties[{name}]")));
    }
    for name in ["items", "additionalProperties", "not"] {
        found.extend(schema.get(name).filter(|item| item.is_object()).map(|item| (item, format!("{path}.{name}"))));
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        let branches = schema[name].as_array().into_iter().flatten().enumerate();
        found.extend(branches.map(|(i, branch)| (branch, format!("{path}.{name}[{i}]"))));
    }
    found
}

fn node(schema: &Value, path: &str, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > super::structural::DEEPEST {
        // Its structure's check says so.
        return;
    }
    if let Some(form) = schema["type"].as_str().filter(|form| !form.is_empty() && !TYPES.contains(form)) {
        errors.push(FieldError::not_supported(format!("{path}.type"), form, &TYPES));
        if form == "null" {
            let detail = "type cannot be set to null, use nullable as an alternative";
            errors.push(FieldError::forbidden(format!("{path}.type"), detail));
        }
    }
    for name in FOREIGN.into_iter().filter(|name| says(schema, name)) {
        errors.push(FieldError::forbidden(format!("{path}.{name}"), &format!("{name} is not supported")));
    }
    let mut forbidden = |wrong: bool, name: &str, detail: &str| {
        if wrong {
            errors.push(FieldError::forbidden(format!("{path}.{name}"), detail));
        }
    };
    forbidden(schema["items"].is_array(), "items", "items must be a schema object and not an array");
    let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
    forbidden(schema["uniqueItems"] == true, "uniqueItems", detail);
    let additional = &schema["additionalProperties"];
    let exclusive = says(schema, "properties") && (additional.is_object() || *additional == false);
    forbidden(exclusive, "additionalProperties", "additionalProperties and properties are mutual exclusive");
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        let at = format!("{path}.x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(at, false, "must be true or undefined"));
    }
    merged(schema, path, errors);
    for (i, rule) in schema[RULES].as_array().into_iter().flatten().enumerate() {
        texts(rule, schema, &format!("{path}.{RULES}[{i}]"), errors);
    }
    for (member, path) in below(schema, path) {
        node(member, &path, depth + 1, errors);
    }
}

/// How lists and maps are merged.
fn merged(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (name, form, known) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"] as &[&str]),
        ("x-kubernetes-list-type", "array", &["atomic", "set", "map"]),
    ] {
        let Some(given) = schema[name].as_str() else { continue };
        let detail = format!("must be {form} if {name} is specified");
        match schema["type"].as_str().unwrap_or_default() {
            "" => errors.push(FieldError::required(format!("{path}.type"), &detail)),
            is if is != form => errors.push(FieldError::invalid(format!("{path}.type"), is, detail)),
            _ => {}
        }
        if !known.contains(&given) {
            errors.push(FieldError::not_supported(format!("{path}.{name}"), given, known));
        }
    }
    let list = schema["x-kubernetes-list-type"].as_str();
    let keys = schema["x-kubernetes-list-map-keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !keys.is_empty() && list != Some("map") {
        let (at, detail) =
            (format!("{path}.x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
        errors.push(match list {
            None => FieldError::required(at, detail),
            Some(list) => FieldError::invalid(at, list, detail),
        });
    }
    let items = &schema["items"];
    match list {
        Some("set") if schema["type"] == "array" => set(items, path, errors),
        Some("map") => map(schema, keys, path, errors),
        _ => {}
    }
    if matches!(list, Some("set" | "map")) && items["nullable"] == true {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {}", list.unwrap_or_default());
        errors.push(FieldError::forbidden(format!("{path}.items.nullable"), &detail));
    }
}

/// The items of a set are taken as wholes.
fn set(items: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let merges = match items["type"].as_str() {
        Some("array") => items["x-kubernetes-list-type"].as_str().filter(|list| *list != "atomic").map(|_| "list"),
        Some("object") => (items["x-kubernetes-map-type"] != "atomic").then_some("map"),
        _ => None,
    };
    if let Some(what) = merges {
        let given = items["x-kubernetes-list-type"].clone();
        errors.push(FieldError::invalid(format!("{path}.items.x-kubernetes-{what}-type"), given, detail));
    }
}

/// The items of a list that is a map are told apart by keys, which each of them must have.
fn map(schema: &Value, keys: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let (items, at) = (&schema["items"], format!("{path}.x-kubernetes-list-map-keys"));
    if keys.is_empty() {
        errors.push(FieldError::required(at.clone(), "must not be empty if x-kubernetes-list-type is map"));
    }
    if items.is_null() {
        let detail = "must have a schema if x-kubernetes-list-type is map";
        return errors.push(FieldError::required(format!("{path}.items"), detail));
    }
    let form = items["type"].as_str().unwrap_or_default();
    if form != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(format!("{path}.items.type"), form, detail));
    }
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        let known = items["properties"].get(name);
        let all = Value::from(keys);
        if form == "object" && keys[..i].contains(key) {
            errors.push(FieldError::invalid(at.clone(), all.clone(), "must not contain duplicate entries"));
        }
        let Some(known) = known else {
            if form == "object" {
                errors.push(FieldError::invalid(at.clone(), all, "entries must all be names of item properties"));
            }
            continue;
        };
        let of = |member: &str| format!("{path}.items.properties[{name}].{member}");
        if matches!(known["type"].as_str(), Some("array" | "object")) {
            let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(FieldError::invalid(of("type"), form, detail));
        }
        let required = items["required"].as_array().is_some_and(|required| required.contains(key));
        if !required && known.get("default").is_none_or(Value::is_null) {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                          property";
            errors.push(FieldError::required(of("default"), detail));
        }
        if known["nullable"] == true {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(of("nullable"), detail));
        }
    }
}

/// The texts of a rule beside the rule itself, which must have one.
fn texts(rule: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let text = |name: &str| rule[name].as_str().unwrap_or_default();
    let breaks = |name: &str| text(name).trim().contains(['\n', '\r']);
    let blank = |name: &str| !text(name).is_empty() && text(name).trim().is_empty();
    let at = |name: &str| format!("{path}.{name}");
    let invalid = |name: &str, detail: &str| FieldError::invalid(at(name), text(name), detail);
    if text("rule").trim().is_empty() {
        errors.push(FieldError::required(at("rule"), "rule is not specified"));
    } else if blank("message") {
        errors.push(invalid("message", "must be non-empty if specified"));
    } else if breaks("message") {
        errors.push(invalid("message", "must not contain line breaks"));
    } else if breaks("rule") && text("message").is_empty() {
        let detail = "message must be specified if rule contains line breaks";
        errors.push(FieldError::required(at("message"), detail));
    }
    if blank("messageExpression") {
        let detail = "messageExpression must be non-empty if specified";
        errors.push(FieldError::required(at("messageExpression"), detail));
    }
    if let Some(reason) = rule["reason"].as_str().filter(|reason| !REASONS.contains(reason)) {
        errors.push(FieldError::not_supported(at("reason"), reason, &REASONS));
    }
    if blank("fieldPath") {
        errors.push(invalid("fieldPath", "must be non-empty if specified"));
    }
    if text("fieldPath").contains(['\n', '\r']) {
        errors.push(invalid("fieldPath", "must not contain line breaks"));
    }
    if !text("fieldPath").is_empty() && find(schema, text("fieldPath"), true).is_err() {
        errors.push(invalid("fieldPath", "must be a valid path"));
    }
}

/// The schema of what a path of members leads to, or why it leads nowhere. `brackets`: `['name']` is a step, too.
pub fn find<'a>(schema: &'a Value, path: &str, brackets: bool) -> Result<&'a Value, String> {
    let nowhere = || "does not refer to a valid field".to_owned();
    let ended = || "unexpected end of JSON path".to_owned();
    let step = |schema: &'a Value, name: &str| match schema["properties"].as_object() {
        Some(properties) if !properties.is_empty() => properties.get(name).ok_or_else(nowhere),
        _ => schema.get("additionalProperties").filter(|member| member.is_object()).ok_or_else(nowhere),
    };
    let (mut schema, mut rest) = (schema, path);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            if after.is_empty() {
                return Err(ended());
            }
            // A delimiter stands for itself, which is no member's name.
            let end = end.max(1);
            (schema, rest) = (step(schema, &after[..end])?, &after[end..]);
        } else if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let quoted = after.strip_prefix('\'').and_then(|after| after.split_once('\''));
            let (name, after) = quoted.ok_or_else(|| format!("expected single quoted string but got {after}"))?;
            schema = step(schema, name)?;
            rest = after.strip_prefix(']').ok_or_else(ended)?;
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len()).max(1);
            return Err(format!("expected [ or . but got: {}", &rest[..end]));
        }
    }
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas() {
        let item = |key: Value| json!({"type": "object", "properties": {"k": key}, "required": ["k"]});
        let map = |items: Value, keys: Value| json!({"type": "array", "items": items, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys});
        for (schema, want) in [
            (json!({"type": "object"}), ""),
            (json!({"type": "odd"}), "s.type: Unsupported value: \"odd\""),
            (json!({"$ref": "#/x", "type": "object"}), "s.$ref: Forbidden: $ref is not supported"),
            (json!({"type": "array", "uniqueItems": true}), "s.uniqueItems: Forbidden: uniqueItems cannot be set"),
            (
                json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {}}),
                "s.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ),
            (map(item(json!({"type": "string"})), json!(["k"])), ""),
            (map(item(json!({"type": "string"})), json!(["l"])), "entries must all be names of item properties"),
            (map(item(json!({"type": "object"})), json!(["k"])), "must be a scalar type"),
            (map(json!({"type": "string"}), json!(["k"])), "s.items.type: Invalid value: \"string\": must be object"),
            (
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}),
                "s.items.x-kubernetes-map-type: Invalid value: null: must be atomic",
            ),
            (json!({"type": "string", "x-kubernetes-map-type": "odd"}), "s.type: Invalid value: \"string\""),
            (json!({"x-kubernetes-validations": [{}]}), "s.x-kubernetes-validations[0].rule: Required value"),
            (
                json!({"x-kubernetes-validations": [{"rule": "true", "fieldPath": ".x"}]}),
                "s.x-kubernetes-validations[0].fieldPath: Invalid value: \".x\": must be a valid path",
            ),
            (
                json!({"x-kubernetes-validations": [{"rule": "true", "reason": "Odd"}]}),
                "s.x-kubernetes-validations[0].reason: Unsupported value: \"Odd\"",
            ),
        ] {
            let errors = check(&schema, "s", false);
            let got = errors.first().map(ToString::to_string).unwrap_or_default();
            assert!(got.contains(want) && got.is_empty() == want.is_empty(), "{schema}: {got}");
        }
    }

    #[test]
    fn paths() {
        let schema = json!({"properties": {"a": {"properties": {"b": {"type": "string"}}}, "m": {"additionalProperties": {"type": "integer"}}}});
        for (path, brackets, want) in [
            (".a.b", false, Ok("string")),
            (".m.any", false, Ok("integer")),
            (".m['x.y']", true, Ok("integer")),
            (".a.c", false, Err("does not refer to a valid field")),
            (".a.b.c", false, Err("does not refer to a valid field")),
            (".a[0]", false, Err("array notation is not allowed")),
            ("a.b", false, Err("expected [ or . but got: a")),
            (".", false, Err("unexpected end of JSON path")),
        ] {
            let found = find(&schema, path, brackets).map(|found| found["type"].as_str().unwrap_or_default());
            assert_eq!(found, want.map_err(str::to_owned), "{path}");
        }
    }
}
