//! What is refused of the rules of a definition: what does not compile, what could cost too much, and an earlier self where
//! there is none.

use kube_cel::cel::common::ast::Expr;
use kube_cel::cel::{Context, ExecutionError, Program};
use serde_json::Value;

use super::types::Type;
use super::{OLD, RULES, TYPES, cost, parse, types};
use crate::status::FieldError;

/// What one rule may cost, however often its schema lets it be evaluated, and what all of them may; Kubernetes' own figures.
const MOST_COST: f64 = 10_000_000.0;
const MOST_COST_OF_ALL: f64 = 100_000_000.0;
/// Of rules that together cost too much so many are named.
const DEAREST: usize = 4;

struct Checker {
    context: Context<'static>,
    errors: Vec<FieldError>,
    /// What each rule costs, and where it is.
    costs: Vec<(f64, String)>,
}

/// Where a node is.
#[derive(Clone)]
struct Place {
    path: String,
    /// How often it can occur in an object.
    times: f64,
    /// The node above, below which values have no former selves.
    anonymous: Option<String>,
}

/// What is wrong with the rules of a schema, found below `path`.
pub fn check(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut checker = Checker { context: super::context(), errors: vec![], costs: vec![] };
    checker.node(schema, &Place { path: path.to_owned(), times: 1.0, anonymous: None });
    let total = checker.costs.iter().map(|(cost, _)| cost).sum::<f64>();
    if total > MOST_COST_OF_ALL {
        checker.costs.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        for (_, at) in checker.costs.iter().take(DEAREST) {
            let detail = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            checker.errors.push(FieldError::forbidden(at.as_str(), detail));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        checker.errors.push(FieldError::forbidden(path, &too_dear(what, total / MOST_COST_OF_ALL)));
    }
    checker.errors
}

fn too_dear(what: &str, factor: f64) -> String {
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

impl Checker {
    fn node(&mut self, schema: &Value, place: &Place) {
        for (i, rule) in schema[RULES].as_array().into_iter().flatten().enumerate() {
            self.rule(rule, &format!("{}.{RULES}[{i}]", place.path), schema, place);
        }
        let anonymous = || Some(place.anonymous.clone().unwrap_or_else(|| place.path.clone()));
        let below = |path: String, times: f64, named: bool| {
            let anonymous = if named { place.anonymous.clone() } else { anonymous() };
            Place { path, times, anonymous }
        };
        let named = schema["x-kubernetes-map-type"] != "atomic";
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            self.node(member, &below(format!("{}.properties[{name}]", place.path), place.times, named));
        }
        let times = place.times * cost::most(schema);
        for (name, named) in [("items", schema["x-kubernetes-list-type"] == "map"), ("additionalProperties", named)] {
            if let Some(item) = schema.get(name).filter(|item| item.is_object()) {
                self.node(item, &below(format!("{}.{name}", place.path), times, named));
            }
        }
    }

    fn rule(&mut self, rule: &Value, at: &str, node: &Value, place: &Place) {
        let expression = self.expression(rule, "rule", at, node, place.times);
        if rule["messageExpression"].as_str().is_some_and(|text| !text.is_empty()) {
            self.expression(rule, "messageExpression", at, node, place.times);
        }
        let Some(expression) = expression else { return };
        let uses_old = cost::References::of(&expression).variables.contains(&OLD);
        if let (true, Some(anonymous)) = (uses_old, &place.anonymous) {
            let detail =
                format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {anonymous}");
            self.errors.push(FieldError::invalid(format!("{at}.rule"), rule["rule"].clone(), detail));
        }
        if !uses_old && let Some(given) = rule["optionalOldSelf"].as_bool() {
            let detail = "may not be set if oldSelf is not used in rule";
            self.errors.push(FieldError::invalid(format!("{at}.optionalOldSelf"), given, detail));
        }
    }

    /// `None`: it does not compile, which is told.
    fn expression(&mut self, rule: &Value, field: &str, at: &str, node: &Value, times: f64) -> Option<Expr> {
        let at = format!("{at}.{field}");
        let text = rule[field].as_str().unwrap_or_default();
        let is_rule = field == "rule";
        let expression = match self.compiled(text, node, rule["optionalOldSelf"] == true, is_rule) {
            Ok(expression) => expression,
            Err(why) => {
                self.errors.push(FieldError::invalid(at, rule.clone(), why));
                return None;
            }
        };
        let cost = cost::of(&expression, node) * times;
        if cost > MOST_COST {
            let what = if is_rule { "estimated rule cost" } else { "estimated messageExpression cost" };
            self.errors.push(FieldError::forbidden(at.as_str(), &too_dear(what, cost / MOST_COST)));
        }
        self.costs.push((cost, at));
        Some(expression)
    }

    fn compiled(&self, text: &str, node: &Value, optional_old: bool, is_rule: bool) -> Result<Expr, String> {
        let before = if is_rule { "" } else { "messageExpression " };
        let failed = |why: &str| format!("{before}compilation failed: {why}");
        let expression = parse(text).map_err(|why| failed(&why))?.expr;
        let references = cost::References::of(&expression);
        let unknown = references.variables.iter().find(|name| !is_known(name));
        let unknown = unknown.or_else(|| references.functions.iter().find(|name| !self.is_function(name)));
        if let Some(name) = unknown {
            return Err(failed(&format!("ERROR: undeclared reference to '{name}' (in container '')")));
        }
        let found = types::of(&expression, node, optional_old).map_err(|why| failed(&format!("ERROR: {why}")))?;
        match (is_rule, found) {
            (true, Type::Bool | Type::Any) | (false, Type::Text | Type::Any) => Ok(expression),
            (true, _) => Err("cel expression must evaluate to a bool".to_owned()),
            (false, _) => Err("messageExpression must evaluate to a string".to_owned()),
        }
    }

    /// Whether the evaluator has such a function: called without arguments, one that is there complains of those.
    fn is_function(&self, name: &str) -> bool {
        match Program::compile(&format!("{name}()")) {
            Ok(program) => !matches!(program.execute(&self.context), Err(ExecutionError::UndeclaredReference(_))),
            Err(_) => false,
        }
    }
}

/// The variables that a rule is given, the types that it can compare with, and what stands before functions' names.
fn is_known(name: &str) -> bool {
    let prefixes = ["math", "sets", "optional", "ip", "cidr", "quantity", "format", "semver", "url"];
    let types = || TYPES.iter().any(|(known, _)| *known == name);
    matches!(name, "self" | OLD | "dyn") || types() || prefixes.contains(&name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn refuses() {
        for (rule, want) in [
            ("self.min <= self.max", ""),
            ("self.min <=", "compilation failed"),
            ("other.x", "undeclared reference to 'other'"),
            ("cel.bind(x, 1, x == 1)", "undeclared reference"),
            ("frobnicate(self.min)", "undeclared reference to 'frobnicate'"),
            ("self.none > 1", "undefined field 'none'"),
            ("self.min", "cel expression must evaluate to a bool"),
            ("self.open.all(x, self.open.exists(y, x == y))", "exceeds budget by factor of more than 100x"),
            ("sets.contains([self.min], [1])", ""),
        ] {
            let node = json!({"type": "object", "properties": {"spec": {
                "type": "object",
                "properties": {
                    "min": {"type": "integer"}, "max": {"type": "integer"},
                    "open": {"type": "array", "items": {"type": "string"}},
                },
                "x-kubernetes-validations": [{"rule": rule}],
            }}});
            let told = check(&node, "schema").iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            assert!(told.contains(want) && told.is_empty() == want.is_empty(), "{rule}: {told}");
        }
        let list = json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}});
        let told = check(&json!({"type": "object", "properties": {"a": list}}), "s");
        let why = "oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[a]";
        assert!(told.iter().any(|error| error.to_string().ends_with(why)), "{told:?}");
    }
}
