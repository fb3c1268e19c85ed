//! Rules in CEL of structural schemas: `x-kubernetes-validations`.
//!
//! The language is the `kube-cel` crate's; here is how an object is walked with its rules, what a rule sees of it and of
//! the object as it was, and how a rule that is broken is reported. What is refused when a definition is written is
//! `check.rs`. The surprise: an item of a list has a former self only where items are told apart by keys.

mod check;
mod cost;
mod nesting;
mod types;
mod value;

use std::collections::HashMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kube_cel::KubeCelExt;
use kube_cel::cel::objects::OptionalValue;
use kube_cel::cel::parser::{Expression, Parser};
use kube_cel::cel::{Context, ExecutionError, Value as Cel};
use serde_json::Value;

use super::{ListType, Schema};
use crate::status::{Fault, FieldError};
pub use check::check;

const RULES: &str = "x-kubernetes-validations";
const OLD: &str = "oldSelf";
/// Bytes of what the parser says that are passed on.
const MOST_WORDS: usize = 1_000;

/// The compiled rules of one version of a kind: those of a node, and of what is below it.
pub struct Rules {
    own: Vec<Rule>,
    properties: HashMap<String, Rules>,
    items: Option<Box<Rules>>,
    additional: Option<Box<Rules>>,
}

struct Rule {
    text: String,
    program: Expression,
    message: Option<String>,
    message_program: Option<Expression>,
    reason: Option<String>,
    /// What to complain of instead of the node, from there.
    field: String,
    uses_old: bool,
    optional_old: bool,
}

/// A rule that an object breaks.
pub struct Broken {
    pub error: FieldError,
    /// It is about how the object changed, so that it is broken however old the fault is.
    pub transition: bool,
}

/// Where the walk is.
struct Place<'a> {
    value: &'a Value,
    old: Option<&'a Value>,
    schema: &'a Schema,
    path: String,
}

thread_local! {
    /// Knows all functions; not to be shared among threads, and too dear to make for every object.
    static CONTEXT: Context<'static> = context();
}

/// The types that `type(x)` can be compared with, by their names in rules, which stand for themselves.
const TYPES: [(&str, &str); 11] = [
    ("bool", "bool"),
    ("bytes", "bytes"),
    ("double", "double"),
    ("duration", "google.protobuf.Duration"),
    ("int", "int"),
    ("list", "list"),
    ("map", "map"),
    ("null_type", "null_type"),
    ("string", "string"),
    ("timestamp", "google.protobuf.Timestamp"),
    ("uint", "uint"),
];

/// All functions of Kubernetes, and `type`, which the library lacks.
fn context() -> Context<'static> {
    let mut context = Context::default().with_all();
    context.add_function("type", |value: Cel| -> String {
        let name = match value {
            Cel::List(_) => "list",
            Cel::Map(_) => "map",
            Cel::Int(_) => "int",
            Cel::UInt(_) => "uint",
            Cel::Float(_) => "double",
            Cel::String(_) => "string",
            Cel::Bytes(_) => "bytes",
            Cel::Bool(_) => "bool",
            Cel::Duration(_) => "google.protobuf.Duration",
            Cel::Timestamp(_) => "google.protobuf.Timestamp",
            Cel::Null => "null_type",
            Cel::Function(..) | Cel::Opaque(_) => "dyn",
        };
        name.to_owned()
    });
    for (name, of) in TYPES {
        context.add_variable_from_value(name, Cel::String(Arc::new(of.to_owned())));
    }
    context
}

/// Without the syntax of optional members: the evaluator takes a missing one for an error, so it is better refused. `Err`
/// says what is wrong, in short: the parser repeats the whole expression for each of its mistakes, which may be megabytes.
fn parse(text: &str) -> Result<Expression, String> {
    if !nesting::is_bearable(text) {
        return Err("ERROR: <input>:1:1: the expression is too long, or nested too deep".to_owned());
    }
    let parsed = catch_unwind(|| Parser::new().parse(text));
    let parsed = parsed.map_err(|_| "ERROR: <input>:1:1: the expression is not understood".to_owned())?;
    parsed.map_err(|errors| {
        let mut short = Short(String::new());
        // An error means that there was more to say.
        match write!(short, "{errors}") {
            Ok(()) => short.0,
            Err(_) => short.0 + "...",
        }
    })
}

/// Takes so many bytes and no more.
struct Short(String);

impl Write for Short {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = text.floor_char_boundary(MOST_WORDS - self.0.len());
        self.0.push_str(&text[..end]);
        if end < text.len() { Err(std::fmt::Error) } else { Ok(()) }
    }
}

impl Rules {
    /// `None`: the schema has no rules.
    pub fn of(schema: &Value) -> Option<Self> {
        let properties = schema["properties"].as_object().into_iter().flatten();
        let rules = schema[RULES].as_array().into_iter().flatten();
        let below = |name: &str| schema.get(name).and_then(Self::of).map(Box::new);
        let found = Self {
            // A definition with a rule that does not compile is not accepted.
            own: rules.filter_map(|rule| Rule::of(rule).ok()).collect(),
            properties: properties.filter_map(|(name, s)| Some((name.clone(), Self::of(s)?))).collect(),
            items: below("items"),
            additional: below("additionalProperties"),
        };
        let some = !found.own.is_empty() || !found.properties.is_empty();
        (some || found.items.is_some() || found.additional.is_some()).then_some(found)
    }

    pub fn validate(&self, object: &Value, old: Option<&Value>, schema: &Schema) -> Vec<Broken> {
        let mut broken = vec![];
        let place = Place { value: object, old, schema, path: String::new() };
        // The evaluator of a young crate: what it cannot do must not take the connection with it.
        let walked = catch_unwind(AssertUnwindSafe(|| CONTEXT.with(|context| self.walk(&place, context, &mut broken))));
        if walked.is_err() {
            let error = FieldError::unvalued("<nil>", "a validation rule could not be evaluated");
            broken.push(Broken { error, transition: true });
        }
        broken
    }

    fn walk(&self, place: &Place<'_>, context: &Context<'_>, broken: &mut Vec<Broken>) {
        if !self.own.is_empty() && !place.value.is_null() {
            let (own, old) = (value::of(place.value, place.schema), place.old.map(|old| value::of(old, place.schema)));
            let found = self.own.iter().filter_map(|rule| rule.broken_by(place, &own, old.as_ref(), context));
            broken.extend(found);
        }
        match place.value {
            Value::Object(object) => {
                for (name, value) in object {
                    let known = self.properties.get(name);
                    let (Some(rules), Some(schema)) = (known.or(self.additional.as_deref()), place.schema.member(name))
                    else {
                        continue;
                    };
                    let path = match known {
                        Some(_) if place.path.is_empty() => name.clone(),
                        Some(_) => format!("{}.{name}", place.path),
                        None => format!("{}[{name}]", place.path),
                    };
                    let old = place.old.filter(|_| !place.schema.atomic_map).and_then(|old| old.get(name));
                    rules.walk(&Place { value, old, schema, path }, context, broken);
                }
            }
            Value::Array(items) => {
                let (Some(rules), Some(schema)) = (&self.items, &place.schema.items) else { return };
                let old = place.old.map(|old| Counterparts::of(old, place.schema));
                for (i, value) in items.iter().enumerate() {
                    let old = old.as_ref().and_then(|old| old.find(value));
                    let path = format!("{}[{i}]", place.path);
                    rules.walk(&Place { value, old, schema, path }, context, broken);
                }
            }
            _ => {}
        }
    }
}

/// What the items of a list were, where they are told apart by keys.
pub struct Counterparts<'a> {
    keys: &'a [Box<str>],
    old: HashMap<Vec<&'a Value>, &'a Value>,
}

impl<'a> Counterparts<'a> {
    pub fn of(old: &'a Value, list: &'a Schema) -> Self {
        let keys = if let ListType::Map(keys) = &list.list { keys.as_slice() } else { &[] };
        let items = old.as_array().filter(|_| !keys.is_empty()).into_iter().flatten();
        // Of two with the same keys the first counts.
        Self { keys, old: items.rev().map(|item| (identity(item, keys), item)).collect() }
    }

    pub fn find(&self, item: &Value) -> Option<&'a Value> {
        self.old.get(&identity(item, self.keys)).copied()
    }
}

fn identity<'a>(item: &'a Value, keys: &[Box<str>]) -> Vec<&'a Value> {
    keys.iter().map(|key| &item[&**key]).collect()
}

impl Rule {
    fn of(rule: &Value) -> Result<Self, String> {
        let text = |name: &str| rule[name].as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let program = parse(text("rule").unwrap_or_default().as_str())?;
        let uses_old = cost::References::of(&program.expr).variables.contains(&OLD);
        Ok(Self {
            uses_old,
            text: text("rule").unwrap_or_default(),
            message: text("message"),
            message_program: text("messageExpression").and_then(|text| parse(&text).ok()),
            reason: text("reason"),
            field: text("fieldPath").unwrap_or_default().replace("['", "[").replace("']", "]"),
            optional_old: rule["optionalOldSelf"] == true,
            program,
        })
    }

    fn broken_by(&self, place: &Place<'_>, own: &Cel, old: Option<&Cel>, context: &Context<'_>) -> Option<Broken> {
        if self.uses_old && old.is_none() && !self.optional_old {
            return None;
        }
        let mut scope = context.new_inner_scope();
        scope.add_variable_from_value("self", own.clone());
        if self.optional_old {
            let old = old.map_or_else(OptionalValue::none, |old| OptionalValue::of(old.clone()));
            scope.add_variable_from_value(OLD, Cel::Opaque(Arc::new(old)));
        } else if let Some(old) = old {
            scope.add_variable_from_value(OLD, old.clone());
        }
        let error = match Cel::resolve(&self.program, &scope) {
            Ok(Cel::Bool(true)) => return None,
            Ok(Cel::Bool(false)) => self.error(place, self.said(&scope)),
            Ok(_) => self.failed(place, "no such overload"),
            Err(ExecutionError::NoSuchKey(key)) => self.failed(place, &format!("no such key: {key}")),
            Err(error) => self.failed(place, &error.to_string()),
        };
        Some(Broken { error, transition: self.uses_old })
    }

    /// Why the rule is broken, in its author's words.
    fn said(&self, scope: &Context<'_>) -> String {
        let said = match self.message_program.as_ref().map(|program| Cel::resolve(program, scope)) {
            Some(Ok(Cel::String(text))) => Some(text.trim().to_owned()),
            _ => None,
        };
        let said = said.filter(|text| !text.is_empty() && !text.contains(['\n', '\r']));
        said.or_else(|| self.message.clone()).unwrap_or_else(|| format!("failed rule: {}", self.text))
    }

    fn failed(&self, place: &Place<'_>, why: &str) -> FieldError {
        let form = match place.value {
            Value::Object(_) => "object",
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::Null => "",
        };
        let rule = self.message.as_ref().unwrap_or(&self.text);
        FieldError::invalid(shown(&place.path), form, format!("{why} evaluating rule: {rule}"))
    }

    fn error(&self, place: &Place<'_>, detail: String) -> FieldError {
        let whole = place.value.is_object() || place.value.is_array();
        let value = (!whole).then(|| place.value.clone());
        let fault = match self.reason.as_deref() {
            Some("FieldValueForbidden") => Fault::Forbidden(detail),
            Some("FieldValueRequired") => Fault::Required(detail),
            Some("FieldValueDuplicate") => Fault::Duplicate(value),
            _ => Fault::Invalid { value, detail },
        };
        let field = if place.path.is_empty() { self.field.trim_start_matches('.') } else { &self.field };
        FieldError { field: shown(&format!("{}{field}", place.path)), fault }
    }
}

/// The object as a whole has no field.
fn shown(path: &str) -> String {
    if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(rules: Value) -> Value {
        json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
                "a-b_c": {"type": "number"}, "when": {"type": "string", "format": "date-time"},
                "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                         "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer",
                            "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "may only grow"}]}}}},
            },
            "x-kubernetes-validations": rules,
        }}})
    }

    #[test]
    fn evaluates() {
        let rule = |text: &str| json!([{"rule": text, "message": "said"}]);
        let said = "spec: Invalid value: said";
        for (rules, spec, old, want) in [
            (rule("self.min <= self.max"), json!({"min": 1, "max": 2}), None, ""),
            (rule("self.min <= self.max"), json!({"min": 3, "max": 2}), None, said),
            (
                rule("self.min <= self.max"),
                json!({}),
                None,
                "spec: Invalid value: \"object\": no such key: min evaluating rule: said",
            ),
            (rule("self.name == oldSelf.name"), json!({"name": "b"}), None, ""),
            (rule("self.name == oldSelf.name"), json!({"name": "b"}), Some(json!({"name": "a"})), said),
            (rule("self.name.matches('^a') && isURL('http://a')"), json!({"name": "a"}), None, ""),
            (rule("type(self.min) == int && type(self.name) == string"), json!({"min": 1, "name": "a"}), None, ""),
            (rule("self.a__dash__b_c > 0.5"), json!({"a-b_c": 1}), None, ""),
            (
                rule("self.when < timestamp('2026-01-01T00:00:00Z')"),
                json!({"when": "2026-01-02T03:04:05Z"}),
                None,
                said,
            ),
            (
                json!([{"rule": "oldSelf.hasValue()", "optionalOldSelf": true, "messageExpression": "'no ' + self.name",
                        "reason": "FieldValueForbidden", "fieldPath": ".name"}]),
                json!({"name": "b"}),
                None,
                "spec.name: Forbidden: no b",
            ),
            (
                json!([]),
                json!({"list": [{"k": "b", "v": 1}, {"k": "a", "v": 1}]}),
                Some(json!({"list": [{"k": "a", "v": 1}, {"k": "b", "v": 2}]})),
                "spec.list[0].v: Invalid value: 1: may only grow",
            ),
        ] {
            let source = schema(rules.clone());
            let compiled = crate::schema::custom(&source);
            let object = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
            let broken = Rules::of(&source).unwrap().validate(&object(spec), old.map(object).as_ref(), &compiled);
            let told: Vec<String> = broken.iter().map(|broken| broken.error.to_string()).collect();
            assert_eq!(told.join(", "), want, "{rules}");
        }
        assert!(Rules::of(&json!({"type": "object"})).is_none());
    }

    /// What passes is evaluated, too: an expression whose cost was bounded ends soon.
    #[test]
    fn any_bytes() {
        let spec = json!({"min": 1, "max": 2, "name": "a", "list": [{"k": "a", "v": 1}, {"k": "b", "v": 2}]});
        let object = json!({"metadata": {"name": "x"}, "spec": spec});
        crate::fuzz::try_all("rule", |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let source = schema(json!([{"rule": text, "messageExpression": text}]));
            if check(&source, "schema").is_empty() {
                Rules::of(&source).unwrap().validate(&object, Some(&object), &crate::schema::custom(&source));
            }
        });
    }

    /// Whatever is repeated for as long as it goes, it is refused, or it is checked and evaluated; and what is said about it
    /// is short.
    #[test]
    fn long_and_deep() {
        let object = json!({"metadata": {"name": "x"}, "spec": {"min": 1}});
        for (open, close) in [
            ("(", ")"),
            ("[", "][0]"),
            ("{1:", "}[1]"),
            ("!", ""),
            ("-", ""),
            ("1+", ""),
            ("", ".min"),
            ("true?1:", ""),
            ("true||", ""),
            ("true&&", ""),
            ("[1].all(x,x==", ")"),
            ("size([", "])"),
            ("1 in [1] in ", ""),
            ("@", ""),
            ("self.", ""),
            ("'a',", ""),
        ] {
            for count in [20, 45, 60, 95, 198, 1_000, 2_000, 10_000] {
                let rule = format!("{}self.min{} == 1", open.repeat(count), close.repeat(count));
                let source = schema(json!([{"rule": rule}]));
                let errors = check(&source, "schema");
                // As an older program would have let it in, too.
                if let Some(rules) = Rules::of(&source) {
                    rules.validate(&object, None, &crate::schema::custom(&source));
                }
                let Some(FieldError { fault: Fault::Invalid { detail, .. }, .. }) = errors.first() else { continue };
                assert!(detail.len() <= 2 * MOST_WORDS, "{open} {count}: {} bytes are said", detail.len());
            }
        }
    }
}
