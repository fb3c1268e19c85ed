//! What it does to an object that Kubernetes decodes it into Go's types and encodes it again: which values do not fit,
//! what is left out, and what is there without having been written.
//!
//! Only for Kubernetes' own kinds; their definitions mark a struct by an empty default.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Form, Schema};
use crate::quantity::Quantity;

/// Leaves out empty lists and maps that Go leaves out, puts in what it always shows, and writes quantities as it does.
pub fn settle(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(object) => {
            for (name, _) in schema.properties.iter().filter(|(_, member)| is_struct(member)) {
                if !object.contains_key(&**name) {
                    object.insert(name.to_string(), Value::Object(Map::new()));
                }
            }
            for name in &schema.required {
                let is_truth = schema.properties.get(name).is_some_and(|member| member.form == Form::Boolean);
                if is_truth && !object.contains_key(&**name) {
                    object.insert(name.to_string(), false.into());
                }
            }
            for name in schema.times {
                object.entry(*name).or_insert(Value::Null);
            }
            object.retain(|name, value| {
                schema.properties.get(&**name).is_none_or(|member| {
                    let is_empty = match value {
                        Value::Array(items) => items.is_empty(),
                        Value::Object(map) => map.is_empty() && member.additional.is_some(),
                        _ => false,
                    };
                    !is_empty || schema.required.iter().any(|kept| **kept == **name)
                })
            });
            for (name, value) in object.iter_mut() {
                if let Some(member) = schema.member(name) {
                    settle(value, member);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = &schema.items {
                items.iter_mut().for_each(|value| settle(value, item));
            }
        }
        Value::String(text) if schema.form == Form::Quantity => {
            if let Some(quantity) = Quantity::parse(text) {
                *text = quantity.text();
            }
        }
        Value::Number(number) if schema.form == Form::Quantity => {
            if let Some(quantity) = Quantity::parse(&number.to_string()) {
                *value = quantity.text().into();
            }
        }
        _ => {}
    }
}

/// An object of the kind that nobody wrote anything into, as owners of fields are compared with it.
pub fn empty(schema: &Schema) -> Value {
    let members = schema.properties.iter().filter_map(|(name, member)| {
        let is_kept_list = member.form == Form::Array && schema.required.iter().any(|kept| kept == name);
        match (is_struct(member), is_kept_list) {
            (true, _) => Some((name.to_string(), empty(member))),
            (_, true) => Some((name.to_string(), Value::Array(vec![]))),
            _ => None,
        }
    });
    let times = schema.times.iter().map(|name| ((*name).to_owned(), Value::Null));
    Value::Object(members.chain(times).collect())
}

fn is_struct(schema: &Schema) -> bool {
    schema.form == Form::Object && schema.default.as_ref().and_then(Value::as_object).is_some_and(Map::is_empty)
}

/// Why the value cannot be decoded, in the words of Go's decoder.
pub fn misfit(value: &Value, schema: &Schema, kind: &str) -> Option<String> {
    Decoder { path: vec![], structs: vec![kind] }.misfit(value, schema)
}

/// Where decoding is: the names of the fields on the way, and the structs that they are in.
struct Decoder<'a> {
    path: Vec<&'a str>,
    structs: Vec<&'a str>,
}

impl<'a> Decoder<'a> {
    fn misfit(&mut self, value: &'a Value, schema: &'a Schema) -> Option<String> {
        match (schema.form, value) {
            (_, Value::Null) | (Form::Any, _) => None,
            (Form::ObjectOrOther, other) if !other.is_object() => None,
            (Form::Object | Form::ObjectOrOther, Value::Object(object)) => object.iter().find_map(|(name, value)| {
                let Some(field) = schema.properties.get(&**name) else {
                    return schema.additional.as_ref().and_then(|schema| self.misfit(value, schema));
                };
                self.path.push(name);
                let is_root = self.path.len() == 1;
                let owner = schema.go.as_deref().map(short).filter(|_| !is_root);
                self.structs.extend(owner);
                let found = self.misfit(value, field);
                if owner.is_some() {
                    self.structs.pop();
                }
                self.path.pop();
                found
            }),
            (Form::Array, Value::Array(items)) => {
                let item = schema.items.as_ref()?;
                items.iter().find_map(|value| self.misfit(value, item))
            }
            (Form::String, Value::String(text)) => of_text(text, schema),
            (Form::Quantity, Value::String(text)) => (!is_quantity(text)).then(|| QUANTITY.to_owned()),
            (Form::Boolean, Value::Bool(_))
            | (Form::Number | Form::Quantity, Value::Number(_))
            | (Form::IntOrString, Value::Number(_) | Value::String(_)) => None,
            (Form::Integer, Value::Number(number)) if fits(number, schema) => None,
            (Form::Integer, Value::Number(number)) => Some(self.words(&format!("number {number}"), schema)),
            (_, other) => Some(self.words(name_of(other), schema)),
        }
    }

    fn words(&self, what: &str, schema: &Schema) -> String {
        let owner = self.structs.last().copied().unwrap_or_default();
        let path = self.path.join(".");
        format!("json: cannot unmarshal {what} into Go struct field {owner}.{path} of type {}", go_type(schema))
    }
}

const QUANTITY: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

fn short(go: &str) -> &str {
    go.rsplit('.').next().unwrap_or(go)
}

fn go_type(schema: &Schema) -> String {
    let of = |schema: &Option<std::sync::Arc<Schema>>| schema.as_ref().map_or("any".to_owned(), |s| go_type(s));
    match (&schema.go, schema.form) {
        (Some(name), _) => name.to_string(),
        (None, Form::Array) => format!("[]{}", of(&schema.items)),
        (None, Form::Object) => format!("map[string]{}", of(&schema.additional)),
        (None, _) => "any".to_owned(),
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn fits(number: &serde_json::Number, schema: &Schema) -> bool {
    let narrow = schema.go.as_deref() == Some("int32");
    number.as_i64().is_some_and(|number| !narrow || i32::try_from(number).is_ok())
}

const MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";
/// The length of a time up to its seconds.
const WHOLE_SECONDS: usize = 19;

/// Exactly six digits of a fraction, as Go wants them.
fn has_microseconds(rest: &str) -> bool {
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    digits == 6
}

/// Times, and bytes in base64.
fn of_text(text: &str, schema: &Schema) -> Option<String> {
    match schema.go.as_deref() {
        Some("v1.Time") if text.parse::<jiff::Timestamp>().is_err() => {
            Some(bad_time(text, "2006-01-02T15:04:05Z07:00"))
        }
        Some("v1.MicroTime") if text.parse::<jiff::Timestamp>().is_err() => Some(bad_time(text, MICRO)),
        Some("v1.MicroTime") => {
            let rest = text.get(WHOLE_SECONDS..).filter(|rest| !has_microseconds(rest))?;
            Some(format!("parsing time {text:?} as {MICRO:?}: cannot parse {rest:?} as \".000000\""))
        }
        Some("[]uint8") => {
            let at = match STANDARD.decode(text).err()? {
                base64::DecodeError::InvalidByte(at, _) => at,
                _ => text.len(),
            };
            Some(format!("illegal base64 data at input byte {at}"))
        }
        _ => None,
    }
}

fn bad_time(text: &str, layout: &str) -> String {
    format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
}

/// A number, and a suffix of a decimal exponent or of one of the two scales.
fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 16] = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let is_number = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
    let exponent = suffix.strip_prefix(['e', 'E']).filter(|rest| !rest.is_empty());
    is_number && (SUFFIXES.contains(&suffix) || exponent.is_some_and(|digits| digits.parse::<i32>().is_ok()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::builtin;

    #[test]
    fn misfits_are_worded_as_by_go() {
        let field = |what: &str, path: &str, go: &str| {
            Some(format!("json: cannot unmarshal {what} into Go struct field {path} of type {go}"))
        };
        for (kind, value, want) in [
            ("ConfigMap", json!({"metadata": {"name": "a"}, "data": {"k": "v"}, "odd": 1}), None),
            ("ConfigMap", json!({"data": {"k": 1}}), field("number", "ConfigMap.data", "string")),
            ("ConfigMap", json!({"data": []}), field("array", "ConfigMap.data", "map[string]string")),
            ("ConfigMap", json!({"metadata": "x"}), field("string", "ConfigMap.metadata", "v1.ObjectMeta")),
            (
                "ConfigMap",
                json!({"metadata": {"labels": {"a": 1}}}),
                field("number", "ObjectMeta.metadata.labels", "string"),
            ),
            ("ConfigMap", json!({"immutable": "yes"}), field("string", "ConfigMap.immutable", "bool")),
            (
                "ConfigMap",
                json!({"binaryData": {"k": "no base64!"}}),
                Some("illegal base64 data at input byte 2".into()),
            ),
            ("Pod", json!({"spec": {"containers": "x"}}), field("string", "PodSpec.spec.containers", "[]v1.Container")),
            (
                "Pod",
                json!({"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}}),
                field("string", "ContainerPort.spec.containers.ports.containerPort", "int32"),
            ),
            (
                "Pod",
                json!({"spec": {"terminationGracePeriodSeconds": 1.5}}),
                field("number 1.5", "PodSpec.spec.terminationGracePeriodSeconds", "int64"),
            ),
            (
                "Pod",
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "much"}}}]}}),
                Some(QUANTITY.into()),
            ),
            (
                "Pod",
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1.5", "memory": "64Mi"}}}]}}),
                None,
            ),
        ] {
            let schema = builtin(&format!("io.k8s.api.core.v1.{kind}"));
            assert_eq!(misfit(&value, &schema, kind), want, "{kind} {value}");
        }
    }

    #[test]
    fn quantities() {
        for (text, want) in [
            ("1", true),
            ("1.5", true),
            (".5", true),
            ("-1k", true),
            ("1e3", true),
            ("1E", true),
            ("64Mi", true),
            ("", false),
            ("x", false),
            ("1x", false),
            ("1.2.3", false),
            ("e3", false),
        ] {
            assert_eq!(is_quantity(text), want, "{text}");
        }
    }

    #[test]
    fn settled() {
        for (kind, value, want) in [
            (
                "core.v1.ConfigMap",
                json!({"metadata": {"labels": {}, "finalizers": []}, "data": {}, "odd": {}}),
                json!({"metadata": {}, "odd": {}}),
            ),
            (
                "core.v1.Pod",
                json!({"spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": []}}),
                json!({"metadata": {}, "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}, "status": {}}),
            ),
            (
                "apps.v1.Deployment",
                json!({"spec": {"selector": {"matchLabels": {}}}}),
                json!({
                    "metadata": {}, "status": {},
                    "spec": {"selector": {}, "strategy": {}, "template": {"metadata": {}, "spec": {}}},
                }),
            ),
        ] {
            let mut settled = value.clone();
            settle(&mut settled, &builtin(&format!("io.k8s.api.{kind}")));
            assert_eq!(settled, want, "{kind} {value}");
        }
        let spec = json!({"strategy": {}, "template": {"metadata": {}, "spec": {"containers": []}}});
        assert_eq!(
            empty(&builtin("io.k8s.api.apps.v1.Deployment")),
            json!({"metadata": {}, "spec": spec, "status": {}})
        );
    }
}
