//! Manifests as YAML, for the API server and, with Helm's expressions in it, for the chart. Pure.
//!
//! The surprise: three marks in a value are for Helm alone. An object of [`IF`] and [`THEN`] is a part that Helm leaves
//! out, [`number`] is an expression that must not be quoted, and a text may have expressions in it: Helm then quotes the
//! whole, since nobody knows what a value has in it.

use serde_json::{Map, Value, json};

pub const IF: &str = "@if";
pub const THEN: &str = "@then";
const NUMBER: &str = "@number";

/// An expression of Helm's that is a number.
pub fn number(expression: &str) -> Value {
    json!({NUMBER: expression})
}

/// Without what is not there.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        ),
        Value::Array(items) => items.into_iter().filter(|v| !v.is_null()).map(without_nulls).collect(),
        other => other,
    }
}

pub fn documents(values: &[Value]) -> String {
    let mut text = String::new();
    for value in values {
        match conditional(value) {
            Some((condition, value)) => {
                text += &format!("{{{{- if {condition} }}}}\n---\n");
                node(value, 0, &mut text);
                text += "{{- end }}\n";
            }
            None => {
                text += "---\n";
                node(value, 0, &mut text);
            }
        }
    }
    text
}

fn conditional(value: &Value) -> Option<(&str, &Value)> {
    Some((value.get(IF)?.as_str()?, value.get(THEN)?))
}

/// A block, each line of it indented.
fn node(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(object) => members(object, indent, text),
        Value::Array(items) => {
            items.iter().for_each(|item| guarded(item, text, |item, text| entry(item, indent, text)))
        }
        other => *text += &format!("{}{}\n", " ".repeat(indent), scalar(other)),
    }
}

/// With Helm's condition around it, where it has one.
fn guarded(value: &Value, text: &mut String, write: impl FnOnce(&Value, &mut String)) {
    match conditional(value) {
        Some((condition, value)) => {
            *text += &format!("{{{{- if {condition} }}}}\n");
            write(value, text);
            *text += "{{- end }}\n";
        }
        None => write(value, text),
    }
}

fn members(object: &Map<String, Value>, indent: usize, text: &mut String) {
    for (key, value) in object {
        guarded(value, text, |value, text| {
            *text += &format!("{}{}:", " ".repeat(indent), name(key));
            match value {
                value if is_block(value) => {
                    *text += "\n";
                    node(value, indent + 2, text);
                }
                value => *text += &format!(" {}\n", scalar(value)),
            }
        });
    }
}

fn entry(item: &Value, indent: usize, text: &mut String) {
    if !is_block(item) {
        *text += &format!("{}- {}\n", " ".repeat(indent), scalar(item));
        return;
    }
    // The first line of a block shares its line with the dash, unless a condition stands before it.
    let mut block = String::new();
    node(item, indent + 2, &mut block);
    if block.starts_with("{{-") {
        *text += &format!("{}-\n{block}", " ".repeat(indent));
    } else {
        *text += &format!("{}- {}", " ".repeat(indent), &block[indent + 2..]);
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(object) => !object.is_empty() && !object.contains_key(NUMBER),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// Plain where nobody could take it for anything but a name.
fn name(key: &str) -> String {
    let taken =
        ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&key.to_ascii_lowercase().as_str());
    let plain = !taken && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if plain && key.starts_with(|c: char| c.is_ascii_alphabetic()) { key.to_owned() } else { quoted(key) }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Object(object) => match object.get(NUMBER).and_then(Value::as_str) {
            Some(expression) => format!("{{{{ {expression} }}}}"),
            None => "{}".into(),
        },
        Value::Array(_) => "[]".into(),
        other => other.to_string(),
    }
}

/// In double quotes, as in JSON.
fn quoted(text: &str) -> String {
    let mut format = String::new();
    let mut expressions = vec![];
    for (i, part) in text.split("{{").enumerate() {
        let plain = match (i, part.split_once("}}")) {
            (1.., Some((expression, rest))) => {
                expressions.push(expression.trim());
                format += "%v";
                rest
            }
            _ => part,
        };
        format += &plain.replace('%', "%%");
    }
    match expressions.as_slice() {
        [] => json!(text).to_string(),
        [whole] if format == "%v" => format!("{{{{ {whole} | quote }}}}"),
        several => {
            let arguments: String = several.iter().map(|expression| format!(" ({expression})")).collect();
            format!("{{{{ printf {}{arguments} | quote }}}}", json!(format))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        for (value, want) in [
            (json!({"a": 1, "b": {"c": "x: y"}}), "---\na: 1\nb:\n  c: \"x: y\"\n"),
            (
                json!({"a": [{"b": 1, "c": [1, 2]}, "d"]}),
                "---\na:\n  - b: 1\n    c:\n      - 1\n      - 2\n  - \"d\"\n",
            ),
            (
                json!({"a": {}, "b": [], "true": true, "x y": null}),
                "---\na: {}\nb: []\n\"true\": true\n\"x y\": null\n",
            ),
            (json!({"a": "{{ .Values.x }}"}), "---\na: {{ .Values.x | quote }}\n"),
            (
                json!({"a": "--x={{ join \",\" .Values.x }}"}),
                "---\na: {{ printf \"--x=%v\" (join \",\" .Values.x) | quote }}\n",
            ),
            (json!({"a": "5% {{ .A }}:{{ .B }}"}), "---\na: {{ printf \"5%% %v:%v\" (.A) (.B) | quote }}\n"),
            (json!({"a": number(".Values.n")}), "---\na: {{ .Values.n }}\n"),
            (json!({"a": {IF: "x", THEN: {"b": 1}}, "c": 2}), "---\n{{- if x }}\na:\n  b: 1\n{{- end }}\nc: 2\n"),
            (json!({"a": [{IF: "x", THEN: "b"}]}), "---\na:\n{{- if x }}\n  - \"b\"\n{{- end }}\n"),
            (json!({IF: "x", THEN: {"a": 1}}), "{{- if x }}\n---\na: 1\n{{- end }}\n"),
        ] {
            assert_eq!(documents(std::slice::from_ref(&value)), want, "{value}");
        }
        assert_eq!(without_nulls(json!({"a": null, "b": [null, {"c": null}]})), json!({"b": [{}]}));
    }
}
