//! What type an expression in CEL has, where `self` is what a schema describes.
//!
//! It finds what people get wrong: a member that is not there, things that cannot be compared, a rule that is no truth.
//! What is not known here has any type, so that nothing is refused that Kubernetes takes. Undeclared names are not looked for.

use std::fmt;

use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};
use serde_json::Value;

use super::value::escaped;

#[derive(Clone, Debug, PartialEq)]
pub enum Type<'a> {
    Any,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Null,
    Time,
    Duration,
    List(Box<Type<'a>>),
    Map(Box<Type<'a>>),
    Object(&'a Value),
}

/// Variables in scope. The innermost comes last.
type Scope<'a> = Vec<(String, Type<'a>)>;
type Found<'a> = Result<Type<'a>, String>;

/// The type of the expression, or why it has none.
pub fn of<'a>(expr: &Expr, node: &'a Value, optional_old: bool) -> Found<'a> {
    let own = Type::of_schema(node);
    let old = if optional_old { Type::Any } else { own.clone() };
    infer(expr, &mut vec![("self".to_owned(), own), (super::OLD.to_owned(), old)])
}

impl<'a> Type<'a> {
    fn of_schema(node: &'a Value) -> Self {
        let open = node["x-kubernetes-int-or-string"] == true || node["x-kubernetes-preserve-unknown-fields"] == true;
        match node["type"].as_str().filter(|_| !open) {
            Some("boolean") => Self::Bool,
            Some("integer") => Self::Int,
            Some("number") => Self::Double,
            Some("string") => match node["format"].as_str() {
                Some("date" | "date-time") => Self::Time,
                Some("duration") => Self::Duration,
                Some("byte") => Self::Bytes,
                _ => Self::Text,
            },
            Some("array") => Self::List(Box::new(Self::of_schema(&node["items"]))),
            Some("object") if node["additionalProperties"].is_object() => {
                Self::Map(Box::new(Self::of_schema(&node["additionalProperties"])))
            }
            Some("object") => Self::Object(node),
            _ => Self::Any,
        }
    }

    fn is(&self, wanted: &Type<'_>) -> bool {
        *self == Type::Any || self == wanted
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether values of both can be the same.
    fn meets(&self, other: &Type<'_>) -> bool {
        match (self, other) {
            (Self::Any | Self::Null, _) | (_, Type::Any | Type::Null) => true,
            (Self::List(a), Type::List(b)) | (Self::Map(a), Type::Map(b)) => a.meets(b),
            (Self::Object(_), Type::Object(_) | Type::Map(_)) | (Self::Map(_), Type::Object(_)) => true,
            (a, b) => a == b,
        }
    }

    /// A member of an object, of a map, or of what nothing is known about.
    fn member(&self, name: &str) -> Found<'a> {
        match self {
            Self::Any => Ok(Self::Any),
            Self::Map(of) => Ok((**of).clone()),
            Self::Object(node) => {
                let properties = node["properties"].as_object().into_iter().flatten();
                let found = properties.into_iter().find(|(property, _)| escaped(property) == name);
                match found {
                    Some((_, member)) => Ok(Self::of_schema(member)),
                    // Every object of the API has these, whatever its schema says, and which schemas are of one is not known.
                    None if matches!(name, "apiVersion" | "kind") => Ok(Self::Text),
                    None if name == "metadata" => Ok(Self::Any),
                    None => Err(format!("undefined field '{name}'")),
                }
            }
            other => Err(format!("type '{other}' does not support field selection")),
        }
    }
}

impl fmt::Display for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("dyn"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::Text => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Null => f.write_str("null"),
            Self::Time => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(of) => write!(f, "list({of})"),
            Self::Map(of) => write!(f, "map(string, {of})"),
            Self::Object(_) => f.write_str("object"),
        }
    }
}

fn infer<'a>(expr: &Expr, scope: &mut Scope<'a>) -> Found<'a> {
    match expr {
        Expr::Literal(literal) => Ok(match literal {
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Bytes(_) => Type::Bytes,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::Null => Type::Null,
            LiteralValue::String(_) => Type::Text,
            LiteralValue::UInt(_) => Type::Uint,
        }),
        Expr::Ident(name) => {
            let found = scope.iter().rev().find(|(known, _)| known == name);
            Ok(found.map_or(Type::Any, |(_, found)| found.clone()))
        }
        Expr::Select(select) => {
            let found = infer(&select.operand.expr, scope)?.member(&select.field)?;
            Ok(if select.test { Type::Bool } else { found })
        }
        Expr::Call(call) => called(call, scope),
        Expr::List(list) => {
            let items: Result<Vec<Type<'a>>, String> = list.elements.iter().map(|e| infer(&e.expr, scope)).collect();
            Ok(Type::List(Box::new(common(items?))))
        }
        Expr::Map(map) => {
            let mut values = vec![];
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    infer(&entry.key.expr, scope)?;
                    values.push(infer(&entry.value.expr, scope)?);
                }
            }
            Ok(Type::Map(Box::new(common(values))))
        }
        Expr::Comprehension(comprehension) => repeated(comprehension, scope),
        Expr::Struct(_) | Expr::Unspecified => Ok(Type::Any),
    }
}

fn common(types: Vec<Type<'_>>) -> Type<'_> {
    let mut types = types.into_iter();
    let Some(first) = types.next() else { return Type::Any };
    if types.all(|other| other == first) { first } else { Type::Any }
}

fn called<'a>(call: &CallExpr, scope: &mut Scope<'a>) -> Found<'a> {
    let target = call.target.as_ref().map(|target| infer(&target.expr, scope)).transpose()?;
    let args: Result<Vec<Type<'a>>, String> = call.args.iter().map(|arg| infer(&arg.expr, scope)).collect();
    let args = args?;
    if let ("matches", Some(Expr::Literal(LiteralValue::String(pattern)))) =
        (call.func_name.as_str(), call.args.last().map(|arg| &arg.expr))
        && crate::schema::pattern(pattern.inner()).is_err()
    {
        return Err("invalid matches argument".to_owned());
    }
    let found = match &target {
        None => applied(&call.func_name, &args),
        Some(target) => method(&call.func_name, target, &args),
    };
    found.ok_or_else(|| {
        let of = args.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let target = target.map(|target| format!("{target}.")).unwrap_or_default();
        format!("found no matching overload for '{}' applied to '{target}({of})'", call.func_name)
    })
}

/// `None`: there is no such operator or function of these.
fn applied<'a>(name: &str, args: &[Type<'a>]) -> Option<Type<'a>> {
    use Type::{Any, Bool, Duration, Int, List, Map, Text, Time};
    match (name, args) {
        (operators::CONDITIONAL, [test, a, b]) => {
            (test.is(&Bool) && a.meets(b)).then(|| if *a == Any { b.clone() } else { a.clone() })
        }
        (operators::LOGICAL_AND | operators::LOGICAL_OR, args) => args.iter().all(|arg| arg.is(&Bool)).then_some(Bool),
        (operators::LOGICAL_NOT, [arg]) => arg.is(&Bool).then_some(Bool),
        (operators::NOT_STRICTLY_FALSE, _) => Some(Bool),
        (operators::EQUALS | operators::NOT_EQUALS, [a, b]) => a.meets(b).then_some(Bool),
        (operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS, [a, b]) => {
            let ordered =
                |of: &Type<'_>| of.is_number() || matches!(of, Any | Bool | Text | Type::Bytes | Time | Duration);
            let both = ordered(a) && ordered(b);
            (both && (a.meets(b) || a.is_number() && b.is_number())).then_some(Bool)
        }
        (operators::ADD, [Time, Duration] | [Duration, Time]) | (operators::SUBSTRACT, [Time, Duration]) => Some(Time),
        (operators::SUBSTRACT, [Time, Time]) => Some(Duration),
        (operators::ADD, [List(a), List(b)]) => {
            let known = [a, b].into_iter().filter(|of| ***of != Any).map(|of| (**of).clone());
            Some(List(Box::new(common(known.collect()))))
        }
        (operators::ADD, [a, b]) if a.meets(b) => {
            let adds = |of: &Type<'_>| of.is_number() || matches!(of, Any | Text | Type::Bytes | Duration | List(_));
            (adds(a) && adds(b)).then(|| if *a == Any { b.clone() } else { a.clone() })
        }
        (operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO, [a, b]) if a.meets(b) => {
            let counts = |of: &Type<'_>| of.is_number() || matches!(of, Any | Duration);
            (counts(a) && counts(b)).then(|| if *a == Any { b.clone() } else { a.clone() })
        }
        (operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO, _) => {
            None
        }
        (operators::NEGATE, [of]) => (of.is_number() || matches!(of, Any | Duration)).then(|| of.clone()),
        (operators::IN, [item, List(of)]) => item.meets(of).then_some(Bool),
        (operators::IN, [item, Map(_)]) => item.is(&Text).then_some(Bool),
        (operators::IN, [_, of]) => (*of == Any).then_some(Bool),
        (operators::INDEX, [List(of), at]) => (at.is_number() || *at == Any).then(|| (**of).clone()),
        (operators::INDEX, [Map(of), key]) => key.is(&Text).then(|| (**of).clone()),
        (operators::INDEX, [of, _]) => (*of == Any).then_some(Any),
        ("size", [of]) => is_sized(of).then_some(Int),
        ("int", _) => Some(Int),
        ("uint", _) => Some(Type::Uint),
        ("double", _) => Some(Type::Double),
        ("string", _) => Some(Text),
        ("bytes", _) => Some(Type::Bytes),
        ("bool" | "isURL" | "isQuantity" | "isIP" | "isCIDR" | "isSemver", _) => Some(Bool),
        ("timestamp", _) => Some(Time),
        ("duration", _) => Some(Duration),
        _ => Some(Any),
    }
}

fn is_sized(of: &Type<'_>) -> bool {
    matches!(of, Type::Any | Type::Text | Type::Bytes | Type::List(_) | Type::Map(_))
}

/// `None`: there is no such function of these. Of a target that is a name, such as `math`, nothing is known.
fn method<'a>(name: &str, target: &Type<'a>, args: &[Type<'a>]) -> Option<Type<'a>> {
    let texts = || target.is(&Type::Text) && args.iter().all(|arg| arg.is(&Type::Text));
    match name {
        "contains" | "startsWith" | "endsWith" | "matches" if *target != Type::Any => texts().then_some(Type::Bool),
        "size" => is_sized(target).then_some(Type::Int),
        "lowerAscii" | "upperAscii" | "trim" | "replace" | "join" | "format" => Some(Type::Text),
        "split" => Some(Type::List(Box::new(Type::Text))),
        "hasValue" | "isSorted" => Some(Type::Bool),
        _ => Some(Type::Any),
    }
}

fn repeated<'a>(comprehension: &ComprehensionExpr, scope: &mut Scope<'a>) -> Found<'a> {
    let range = infer(&comprehension.iter_range.expr, scope)?;
    let (first, second) = match range {
        Type::Any => (Type::Any, Type::Any),
        Type::List(of) => ((*of).clone(), *of),
        Type::Map(of) => (Type::Text, *of),
        other => {
            let why = "cannot be range of a comprehension (must be list, map, or dynamic)";
            return Err(format!("expression of type '{other}' {why}"));
        }
    };
    let start = infer(&comprehension.accu_init.expr, scope)?;
    let variables = scope.len();
    // With two variables the first is an index or a key.
    let first = if comprehension.iter_var2.is_some() { Type::Any } else { first };
    scope.push((comprehension.iter_var.clone(), first));
    scope.extend(comprehension.iter_var2.iter().map(|name| (name.clone(), second.clone())));
    scope.push((comprehension.accu_var.clone(), start));
    let found = infer(&comprehension.loop_cond.expr, scope).and_then(|_| infer(&comprehension.loop_step.expr, scope));
    let found = found.and_then(|step| {
        if let Some((_, collected)) = scope.last_mut() {
            *collected = step;
        }
        infer(&comprehension.result.expr, scope)
    });
    scope.truncate(variables);
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types() {
        let node = json!({"type": "object", "properties": {
            "n": {"type": "integer"}, "s": {"type": "string"}, "f": {"type": "number"},
            "when": {"type": "string", "format": "date-time"}, "either": {"x-kubernetes-int-or-string": true},
            "list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        }});
        for (text, want) in [
            ("self.n > 1 && self.s == 'x'", Ok("bool")),
            ("self.x == 1", Err("undefined field 'x'")),
            ("self.n == 'x'", Err("found no matching overload for '_==_' applied to '(int, string)'")),
            ("self.n", Ok("int")),
            ("self.f > 1", Ok("bool")),
            ("self.either == 1 || self.either == '1'", Ok("bool")),
            ("self.list.all(x, x.k == 'a')", Ok("bool")),
            ("self.list.exists(x, x.j == 'a')", Err("undefined field 'j'")),
            ("self.list.map(x, x.k)", Ok("list(string)")),
            ("self.list.filter(x, x.k != '').size()", Ok("int")),
            ("self.map.all(k, self.map[k] > 0)", Ok("bool")),
            ("self.map.a + 1 == 2", Ok("bool")),
            ("self.s.contains(self.n)", Err("found no matching overload for 'contains' applied to 'string.(int)'")),
            ("size(self.list) == 1.0", Err("found no matching overload for '_==_' applied to '(int, double)'")),
            ("self.when + duration('1h') > timestamp('2026-01-01T00:00:00Z')", Ok("bool")),
            ("self.n == 1 ? 'a' : 'b'", Ok("string")),
            ("has(self.n) && has(self.s)", Ok("bool")),
            ("self.n.all(x, true)", Err("expression of type 'int' cannot be range")),
            ("'a' in self.map && 'x' in ['x']", Ok("bool")),
        ] {
            let program = super::super::parse(text).unwrap();
            let found = of(&program.expr, &node, false);
            match (&found, want) {
                (Ok(found), Ok(want)) => assert_eq!(found.to_string(), want, "{text}"),
                (Err(found), Err(want)) => assert!(found.starts_with(want), "{text}: {found}"),
                _ => panic!("{text}: {found:?}, not {want:?}"),
            }
        }
    }
}
