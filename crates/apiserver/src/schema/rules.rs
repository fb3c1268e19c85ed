//! Rules in CEL of structural schemas: `x-kubernetes-validations`.
//!
//! The language is the `kube-cel` crate's; here is what is refused when a definition is written (what does not compile,
//! what the crate does not know, what could cost too much), and how a rule that is broken is reported.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kube_cel::cel::{Context, ExecutionError, Program};
use kube_cel::{CompiledSchema, ErrorKind, KubeCelExt, RootContext, Validator, compile_schema};
use serde_json::Value;

use super::cost;
use crate::kinds::Strategy;
use crate::status::{Fault, FieldError};

const RULES: &str = "x-kubernetes-validations";
/// What one rule may cost, however often its schema lets it be evaluated; Kubernetes' own figure.
const MOST_COST: f64 = 10_000_000.0;

/// The variables that a rule is given, and the types that it can compare with.
const KNOWN: [&str; 17] = [
    "self",
    "oldSelf",
    "apiVersion",
    "apiGroup",
    "kind",
    "bool",
    "bytes",
    "double",
    "duration",
    "dyn",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "uint",
];

/// The compiled rules of one version of a kind.
pub struct Rules {
    compiled: CompiledSchema,
    root: RootContext,
}

thread_local! {
    /// Knows all functions; not to be shared among threads, and too dear to make for every object.
    static VALIDATOR: Validator = Validator::new();
}

impl Rules {
    /// `None`: the schema has no rules.
    pub fn of(schema: &Value, kind: &Strategy) -> Option<Self> {
        let root =
            RootContext { api_version: kind.api_version(), api_group: kind.group.into(), kind: kind.kind.into() };
        has_rules(schema).then(|| Self { compiled: compile_schema(schema), root })
    }

    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let validate = || {
            VALIDATOR.with(|validator| {
                validator.validate_compiled_with_context(&self.compiled, object, old, Some(&self.root))
            })
        };
        // The evaluator of a young crate: what it cannot do must not take the connection with it.
        let Ok(outcome) = catch_unwind(AssertUnwindSafe(validate)) else {
            return vec![FieldError::invalid("", "object", "a validation rule could not be evaluated")];
        };
        let Err(errors) = outcome else { return vec![] };
        errors.into_vec().into_iter().map(|error| broken(object, error)).collect()
    }
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(object) => object.contains_key(RULES) || object.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

fn broken(object: &Value, error: kube_cel::ValidationError) -> FieldError {
    let detail = match error.kind {
        ErrorKind::ValidationFailure => error.message,
        _ => format!("rule evaluation failed: {}", error.message),
    };
    let value = match super::at(object, &error.field_path) {
        Some(Value::Array(_)) => "array",
        Some(Value::String(_)) => "string",
        Some(Value::Bool(_)) => "boolean",
        Some(Value::Number(number)) if number.is_f64() => "number",
        Some(Value::Number(_)) => "integer",
        _ => "object",
    };
    let fault = match error.reason.as_deref() {
        Some("FieldValueForbidden") => Fault::Forbidden(detail),
        Some("FieldValueRequired") => Fault::Required(detail),
        Some("FieldValueDuplicate") => Fault::Duplicate(value.into()),
        _ => Fault::Invalid { value: value.into(), detail },
    };
    FieldError { field: error.field_path, fault }
}

/// What is wrong with the rules of a schema, found below `path`.
pub fn check(schema: &Value, path: &str) -> Vec<FieldError> {
    let context = Context::default().with_all();
    let mut errors = vec![];
    check_node(schema, path, 1.0, &context, &mut errors);
    errors
}

fn check_node(schema: &Value, path: &str, times: f64, context: &Context<'_>, errors: &mut Vec<FieldError>) {
    for (i, rule) in schema[RULES].as_array().into_iter().flatten().enumerate() {
        let at = format!("{path}.{RULES}[{i}]");
        check_expression(rule, "rule", &at, schema, times, context, errors);
        if rule.get("messageExpression").is_some() {
            check_expression(rule, "messageExpression", &at, schema, times, context, errors);
        }
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        check_node(member, &format!("{path}.properties[{name}]"), times, context, errors);
    }
    for (name, step) in [("items", "items"), ("additionalProperties", "additionalProperties")] {
        if let Some(item) = schema.get(name).filter(|item| item.is_object()) {
            check_node(item, &format!("{path}.{step}"), times * cost::most(schema), context, errors);
        }
    }
}

fn check_expression(
    rule: &Value,
    field: &str,
    at: &str,
    node: &Value,
    times: f64,
    context: &Context<'_>,
    errors: &mut Vec<FieldError>,
) {
    let at = format!("{at}.{field}");
    let Some(text) = rule[field].as_str().filter(|text| !text.trim().is_empty()) else {
        errors.push(FieldError::required(at, format!("{field} is not specified").as_str()));
        return;
    };
    let mut invalid = |detail: String| errors.push(FieldError::invalid(at.clone(), text, detail));
    let program = match catch_unwind(|| Program::compile(text)) {
        Ok(Ok(program)) => program,
        Ok(Err(error)) => return invalid(format!("compilation failed: ERROR: {error}")),
        Err(_) => return invalid("compilation failed: ERROR: the expression is not understood".into()),
    };
    let expression = &program.expression().expr;
    let references = cost::References::of(expression);
    let unknown = references.variables.iter().find(|name| !KNOWN.contains(name));
    let unknown = unknown.or_else(|| references.functions.iter().find(|name| !is_known(name, context)));
    if let Some(name) = unknown {
        return invalid(format!("compilation failed: ERROR: undeclared reference to '{name}'"));
    }
    let factor = cost::of(expression, node) * times / MOST_COST;
    if factor > 1.0 {
        let factor = if factor > 100.0 { "more than 100x".to_owned() } else { format!("{factor:.1}x") };
        let detail = format!(
            "estimated rule cost exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, \
             maxProperties, and maxLength where arrays, maps, and strings are declared)"
        );
        errors.push(FieldError::forbidden(at, &detail));
    }
}

/// Whether the evaluator has such a function: called without arguments, one that is there complains of those.
fn is_known(name: &str, context: &Context<'_>) -> bool {
    match Program::compile(&format!("{name}()")) {
        Ok(program) => !matches!(program.execute(context), Err(ExecutionError::UndeclaredReference(_))),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(rule: &str) -> Value {
        json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string", "maxLength": 20},
                "open": {"type": "array", "items": {"type": "string"}},
            },
            "x-kubernetes-validations": [{"rule": rule, "message": "said"}],
        }}})
    }

    #[test]
    fn evaluates() {
        let kind = crate::kinds::Kinds::new();
        let kind = kind.find("dhow.dev", "v1alpha1", "functions").unwrap();
        for (rule, spec, old, want) in [
            ("self.min <= self.max", json!({"min": 1, "max": 2}), None, None),
            ("self.min <= self.max", json!({"min": 3, "max": 2}), None, Some("spec: Invalid value: \"object\": said")),
            ("self.name == oldSelf.name", json!({"name": "b"}), None, None),
            (
                "self.name == oldSelf.name",
                json!({"name": "b"}),
                Some(json!({"name": "a"})),
                Some("spec: Invalid value: \"object\": said"),
            ),
            ("self.name.matches('^a') && isURL('http://a')", json!({"name": "a"}), None, None),
        ] {
            let rules = Rules::of(&schema(rule), kind).unwrap();
            let object = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
            let errors = rules.validate(&object(spec), old.map(object).as_ref());
            assert_eq!(errors.first().map(ToString::to_string).as_deref(), want, "{rule}");
        }
        assert!(Rules::of(&json!({"type": "object"}), kind).is_none());
    }

    #[test]
    fn refuses() {
        for (rule, want) in [
            ("self.min <= self.max", None),
            ("self.min <=", Some("compilation failed")),
            ("other.x", Some("undeclared reference to 'other'")),
            ("cel.bind(x, 1, x == 1)", Some("undeclared reference")),
            ("frobnicate(self.min)", Some("undeclared reference to 'frobnicate'")),
            ("self.open.all(x, self.open.exists(y, x == y))", Some("exceeds budget by factor of more than 100x")),
            ("", Some("rule is not specified")),
        ] {
            let errors = check(&schema(rule), "schema");
            let got = errors.first().map(ToString::to_string);
            match (&got, want) {
                (Some(got), Some(want)) => assert!(got.contains(want), "{rule}: {got}"),
                (None, None) => {}
                _ => panic!("{rule}: {got:?}"),
            }
        }
    }
}
