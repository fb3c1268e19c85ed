//! From JSON to the values that rules in CEL see, as the schema has them.
//!
//! Names of members are escaped as Kubernetes does, since not every name is one in CEL; keys of maps are data and are not.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Program, Value as Cel};
use serde_json::{Number, Value};

use crate::schema::{Form, Schema};

const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
const ESCAPES: [(&str, &str); 4] = [("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")];

pub fn of(value: &Value, schema: &Schema) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(truth) => Cel::Bool(*truth),
        Value::Number(number) => of_number(number, schema.form),
        Value::String(text) => of_text(text, schema),
        Value::Array(items) => {
            let any = Schema::default();
            let item = schema.items.as_deref().unwrap_or(&any);
            Cel::List(Arc::new(items.iter().map(|value| of(value, item)).collect()))
        }
        Value::Object(object) => {
            let any = Schema::default();
            let member = |(name, value): (&String, &Value)| {
                let key = if schema.names(name) { escaped(name) } else { name.clone() };
                (Key::String(Arc::new(key)), of(value, schema.member(name).unwrap_or(&any)))
            };
            Cel::Map(Map { map: Arc::new(object.iter().map(member).collect::<HashMap<_, _>>()) })
        }
    }
}

fn of_number(number: &Number, form: Form) -> Cel {
    match (form, number.as_i64(), number.as_f64()) {
        (Form::Number, _, Some(float)) | (_, None, Some(float)) => Cel::Float(float),
        (_, Some(whole), _) => Cel::Int(whole),
        (_, None, None) => Cel::Null,
    }
}

fn of_text(text: &str, schema: &Schema) -> Cel {
    let format = schema.demands.as_ref().and_then(|demands| demands.format.as_deref());
    let converted = match format.filter(|_| schema.form == Form::String) {
        Some("date-time" | "datetime") => evaluated(&TIMESTAMP, text),
        Some("date") => evaluated(&TIMESTAMP, &format!("{text}T00:00:00Z")),
        Some("duration") => evaluated(&DURATION, text),
        Some("byte") => {
            base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| Cel::Bytes(Arc::new(bytes)))
        }
        _ => None,
    };
    converted.unwrap_or_else(|| Cel::String(Arc::new(text.to_owned())))
}

/// The language's own conversions make the language's own types.
static TIMESTAMP: LazyLock<Program> = LazyLock::new(|| Program::compile("timestamp(text)").expect("it is CEL"));
static DURATION: LazyLock<Program> = LazyLock::new(|| Program::compile("duration(text)").expect("it is CEL"));

fn evaluated(program: &Program, text: &str) -> Option<Cel> {
    let mut context = Context::default();
    context.add_variable_from_value("text", Cel::String(Arc::new(text.to_owned())));
    program.execute(&context).ok()
}

/// A member's name as rules write it.
pub fn escaped(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    let mut escaped = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let found = ESCAPES.iter().find_map(|(plain, escape)| Some((rest.strip_prefix(plain)?, escape)));
        rest = match found {
            Some((after, escape)) => {
                escaped.push_str(escape);
                after
            }
            None => {
                escaped.push(first);
                &rest[first.len_utf8()..]
            }
        };
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, want) in [
            ("plain", "plain"),
            ("one_two", "one_two"),
            ("a__b", "a__underscores__b"),
            ("a-b.c/d", "a__dash__b__dot__c__slash__d"),
            ("namespace", "__namespace__"),
        ] {
            assert_eq!(escaped(name), want);
        }
    }
}
