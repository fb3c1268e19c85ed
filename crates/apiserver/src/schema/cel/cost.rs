//! What a rule in CEL can cost at the most, from its text and the bounds that its schema declares.
//!
//! Evaluation cannot be interrupted, so a rule that could take for ever is refused with its definition. The surprise:
//! collecting with `map` or `filter` costs the square of a list, since the evaluator copies what it has collected so far.

use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};
use serde_json::Value;

/// The size of a request bounds what no schema bounds.
const REQUEST: f64 = (3 << 20) as f64;
/// The shortest item of a list with its comma, and the shortest member of a map.
const SHORTEST_ITEM: f64 = 2.0;
const SHORTEST_MEMBER: f64 = 6.0;
/// Looking at one byte of a text, beside one step of an expression.
const PER_BYTE: f64 = 0.1;
/// Copying one collected item.
const PER_COPY: f64 = 0.01;

/// What is known of a part of an expression.
#[derive(Clone, Default)]
struct Part<'a> {
    cost: f64,
    /// Bytes of a text, items of a list, members of a map.
    size: f64,
    /// The size of an item, where the schema does not say.
    item: f64,
    node: Option<&'a Value>,
}

/// Variables in scope. The innermost comes last.
type Scope<'a> = Vec<(String, Part<'a>)>;

/// How large the list or map that a schema describes can become.
pub fn most(node: &Value) -> f64 {
    let declared = |name: &str| node[name].as_f64();
    match node["type"].as_str() {
        Some("array") => declared("maxItems").unwrap_or(REQUEST / shortest(&node["items"])),
        Some("object") => declared("maxProperties").unwrap_or(REQUEST / SHORTEST_MEMBER),
        Some("string") => match node["enum"].as_array() {
            Some(values) => values.iter().filter_map(|v| Some(v.as_str()?.len())).max().unwrap_or(0) as f64,
            None => declared("maxLength").unwrap_or(REQUEST),
        },
        Some(_) => 1.0,
        None => REQUEST,
    }
}

/// The fewest bytes that an item takes with its comma.
fn shortest(item: &Value) -> f64 {
    let quoted = matches!(item["type"].as_str(), Some("string" | "object" | "array"));
    if quoted { SHORTEST_ITEM + 1.0 } else { SHORTEST_ITEM }
}

/// The cost of evaluating the expression once, where `self` is what `node` describes.
pub fn of(expr: &Expr, node: &Value) -> f64 {
    let own = Part { size: most(node), node: Some(node), ..Part::default() };
    let mut scope: Scope<'_> = ["self", "oldSelf"].map(|name| (name.to_owned(), own.clone())).into();
    part(expr, &mut scope).cost
}

fn part<'a>(expr: &Expr, scope: &mut Scope<'a>) -> Part<'a> {
    match expr {
        Expr::Literal(literal) => {
            let size = match literal {
                LiteralValue::String(text) => text.inner().len(),
                LiteralValue::Bytes(bytes) => bytes.inner().len(),
                _ => 1,
            };
            Part { size: size as f64, ..Part::default() }
        }
        Expr::Ident(name) => {
            let found = scope.iter().rev().find(|(known, _)| known == name);
            let known = found.map_or_else(|| Part { size: 1.0, ..Part::default() }, |(_, part)| part.clone());
            Part { cost: 1.0, ..known }
        }
        Expr::Select(select) => {
            let operand = part(&select.operand.expr, scope);
            let cost = operand.cost + 1.0;
            if select.test {
                return Part { cost, size: 1.0, ..Part::default() };
            }
            let node = operand.node.and_then(|node| member(node, &select.field));
            Part { cost, size: node.map_or(operand.size, most), item: operand.item, node }
        }
        Expr::List(list) => {
            let parts: Vec<Part<'_>> = list.elements.iter().map(|e| part(&e.expr, scope)).collect();
            collected(&parts)
        }
        Expr::Map(map) => {
            let entries = map.entries.iter().filter_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => Some(entry),
                EntryExpr::StructField(_) => None,
            });
            let parts: Vec<Part<'_>> =
                entries.flat_map(|e| [part(&e.key.expr, scope), part(&e.value.expr, scope)]).collect();
            collected(&parts)
        }
        Expr::Call(call) => called(call, scope),
        Expr::Comprehension(comprehension) => repeated(comprehension, scope),
        Expr::Struct(_) | Expr::Unspecified => Part::default(),
    }
}

/// The schema of a member; of the object's own, or of any.
fn member<'a>(node: &'a Value, name: &str) -> Option<&'a Value> {
    node["properties"].get(name).or_else(|| node.get("additionalProperties").filter(|node| node.is_object()))
}

fn collected<'a>(parts: &[Part<'a>]) -> Part<'a> {
    let item = parts.iter().map(|part| part.size).fold(0.0, f64::max);
    Part { cost: parts.iter().map(|part| part.cost + 1.0).sum(), size: parts.len() as f64, item, node: None }
}

fn called<'a>(call: &CallExpr, scope: &mut Scope<'a>) -> Part<'a> {
    let inputs = call.target.iter().map(|target| &target.expr).chain(call.args.iter().map(|arg| &arg.expr));
    let inputs: Vec<Part<'a>> = inputs.map(|expr| part(expr, scope)).collect();
    let cost = 1.0 + inputs.iter().map(|part| part.cost).sum::<f64>();
    let sizes = inputs.iter().map(|part| part.size).sum::<f64>();
    let item = inputs.iter().map(|part| part.item).fold(0.0, f64::max);
    match (call.func_name.as_str(), inputs.as_slice()) {
        (operators::INDEX | operators::OPT_INDEX, [list, _]) => {
            let node = list.node.and_then(|node| node.get("items").or_else(|| node.get("additionalProperties")));
            Part { cost, size: node.map_or(list.item.max(1.0), most), item: list.item, node }
        }
        (operators::CONDITIONAL, [_, a, b]) => {
            let larger = if a.size > b.size { a } else { b };
            Part { cost, ..larger.clone() }
        }
        // Every occurrence of the one can become the other.
        ("replace", [text, _, by, ..]) => {
            let size = text.size * (by.size + 1.0);
            Part { cost: cost + size * PER_BYTE, size, item: 0.0, node: None }
        }
        ("size" | "has" | "type", _) => Part { cost, size: 1.0, ..Part::default() },
        (operators::EQUALS | operators::NOT_EQUALS, [a, b]) => {
            // The shorter one decides.
            Part { cost: cost + a.size.min(b.size) * PER_BYTE, size: 1.0, ..Part::default() }
        }
        (name, _) if name.starts_with(['_', '!', '-', '@']) && name != operators::ADD => {
            // A comparison looks at all of both at the most; its result is small.
            Part { cost: cost + sizes * PER_BYTE, size: 1.0, ..Part::default() }
        }
        _ => Part { cost: cost + sizes * PER_BYTE, size: sizes, item, node: None },
    }
}

fn repeated<'a>(comprehension: &ComprehensionExpr, scope: &mut Scope<'a>) -> Part<'a> {
    let range = part(&comprehension.iter_range.expr, scope);
    let start = part(&comprehension.accu_init.expr, scope);
    let times = range.size;
    let node = range.node.and_then(|node| node.get("items"));
    // The items of a map are its keys.
    let size = node.map_or(range.item.max(1.0), most);
    let variables = scope.len();
    for name in comprehension.iter_var2.iter().chain([&comprehension.iter_var]) {
        scope.push((name.clone(), Part { cost: 1.0, size, item: 0.0, node }));
    }
    scope.push((comprehension.accu_var.clone(), Part { cost: 1.0, size: 0.0, ..Part::default() }));
    let step = part(&comprehension.loop_step.expr, scope);
    let condition = part(&comprehension.loop_cond.expr, scope);
    let result = part(&comprehension.result.expr, scope);
    scope.truncate(variables);
    let mut cost = range.cost + start.cost + result.cost + times * (1.0 + step.cost + condition.cost);
    let collects = matches!(comprehension.accu_init.expr, Expr::List(_) | Expr::Map(_));
    if !collects {
        return Part { cost, size: step.size.max(1.0), item: step.item, node: None };
    }
    cost += times * times * PER_COPY;
    Part { cost, size: times, item: step.item.max(step.size), node: None }
}

/// What an expression relies on being there.
#[derive(Default)]
pub struct References<'e> {
    /// Operators aside.
    pub functions: Vec<&'e str>,
    /// Variables that it does not bring itself.
    pub variables: Vec<&'e str>,
}

impl<'e> References<'e> {
    pub fn of(expr: &'e Expr) -> Self {
        let mut found = Self::default();
        found.collect(expr, &mut vec![]);
        found
    }

    fn collect(&mut self, expr: &'e Expr, scope: &mut Vec<&'e str>) {
        match expr {
            Expr::Ident(name) if !scope.contains(&name.as_str()) => self.variables.push(name),
            Expr::Call(call) => {
                if call.func_name.starts_with(|c: char| c.is_ascii_alphabetic()) {
                    self.functions.push(&call.func_name);
                }
                let inputs = call.target.iter().map(|target| &target.expr).chain(call.args.iter().map(|e| &e.expr));
                inputs.for_each(|expr| self.collect(expr, scope));
            }
            Expr::Comprehension(c) => {
                [&c.iter_range, &c.accu_init].into_iter().for_each(|e| self.collect(&e.expr, scope));
                let outer = scope.len();
                scope.extend([c.iter_var.as_str(), c.accu_var.as_str()]);
                scope.extend(c.iter_var2.as_deref());
                [&c.loop_cond, &c.loop_step, &c.result].into_iter().for_each(|e| self.collect(&e.expr, scope));
                scope.truncate(outer);
            }
            Expr::List(list) => list.elements.iter().for_each(|e| self.collect(&e.expr, scope)),
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        [&entry.key, &entry.value].into_iter().for_each(|e| self.collect(&e.expr, scope));
                    }
                }
            }
            Expr::Select(select) => self.collect(&select.operand.expr, scope),
            // The evaluator has no structs.
            Expr::Struct(made) => self.functions.push(&made.type_name),
            Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use kube_cel::cel::Program;
    use serde_json::json;

    use super::*;

    #[test]
    fn costs() {
        let list = |most: Option<u64>| json!({"type": "array", "maxItems": most, "items": {"type": "string", "maxLength": 10}});
        let bounded = json!({"type": "object", "properties": {"a": list(Some(100)), "b": list(Some(100))}});
        let open = json!({"type": "object", "properties": {"a": list(None), "b": list(None)}});
        for (rule, node, from, to) in [
            ("self.a.size() > 0", &open, 1.0, 10.0),
            ("self.a.all(x, x.size() > 0)", &open, 1e6, 1e8),
            ("self.a.all(x, self.b.exists(y, y == x))", &open, 1e12, f64::MAX),
            ("self.a.all(x, self.b.exists(y, y == x))", &bounded, 1e4, 1e6),
            ("self.a.map(x, x + 'b').size() > 0", &open, 1e9, f64::MAX),
            ("self.a.map(x, x + 'b').size() > 0", &bounded, 1e2, 1e4),
            ("self.a[0].replace('', self.b[0]).replace('', self.b[0]).size() > 1", &bounded, 1e2, 1e4),
            (
                "['ab'].map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a)[0] == ''",
                &bounded,
                50.0,
                1e4,
            ),
        ] {
            let program = Program::compile(rule).unwrap();
            let cost = of(&program.expression().expr, node);
            assert!((from..=to).contains(&cost), "{rule}: {cost}");
        }
    }
}
