//! The part of JSONPath that printer columns use: members, indexes, `[*]`, and `[?(@.field=='value')]`.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Member(String),
    Index(usize),
    All,
    Where(Vec<String>, String),
}

impl Path {
    /// `None`: not a path that this understands.
    pub fn parse(text: &str) -> Option<Self> {
        let mut steps = vec![];
        let mut rest = text.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after)?;
                steps.push(bracket(&after[..end])?);
                rest = &after[end + 1..];
            } else {
                let (name, after) = member(rest.strip_prefix('.')?);
                if !name.is_empty() {
                    steps.push(Step::Member(name));
                }
                rest = after;
            }
        }
        Some(Self(steps))
    }

    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        self.0.iter().fold(vec![value], |found, step| found.into_iter().flat_map(|v| step.take(v)).collect())
    }
}

impl Step {
    fn take<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Member(name) => value.get(name).into_iter().collect(),
            Self::Index(i) => value.get(i).into_iter().collect(),
            Self::All => match value {
                Value::Object(object) => object.values().collect(),
                Value::Array(items) => items.iter().collect(),
                _ => vec![],
            },
            Self::Where(path, wanted) => {
                let matches = |item: &&Value| {
                    let found = path.iter().try_fold(*item, |value, name| value.get(name));
                    found.is_some_and(|found| match found {
                        Value::String(text) => text == wanted,
                        Value::Number(_) | Value::Bool(_) => {
                            let found = found.to_string();
                            found == *wanted
                        }
                        _ => false,
                    })
                };
                value.as_array().into_iter().flatten().filter(matches).collect()
            }
        }
    }
}

/// A name up to the next unescaped `.` or `[`.
fn member(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket closes, quotes considered.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, ']') => return Some(i),
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step> {
    if inner == "*" {
        return Some(Step::All);
    }
    if let Ok(index) = inner.parse() {
        return Some(Step::Index(index));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (path, value) = filter.split_once("==")?;
        let path = path.trim().strip_prefix("@.")?.split('.').map(str::to_owned).collect();
        return Some(Step::Where(path, unquoted(value.trim()).unwrap_or_else(|| value.trim().to_owned())));
    }
    unquoted(inner).map(Step::Member)
}

fn unquoted(text: &str) -> Option<String> {
    let inner = ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q))?;
    Some(inner.replace('\\', ""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds() {
        let value = json!({
            "a": {"b": 1, "x.y/z": 2},
            "list": [{"type": "Ready", "status": "True", "deep": {"n": 1}}, {"type": "Other", "status": "False"}],
        });
        for (path, want) in [
            (".a.b", vec![json!(1)]),
            (".a['x\\.y/z']", vec![json!(2)]),
            (".a.x\\.y/z", vec![json!(2)]),
            (".list[?(@.type=='Ready')].status", vec![json!("True")]),
            (".list[?(@.deep.n==1)].type", vec![json!("Ready")]),
            (".list[1].type", vec![json!("Other")]),
            (".list[*].status", vec![json!("True"), json!("False")]),
            ("{.a.b}", vec![json!(1)]),
            (".missing.b", vec![]),
        ] {
            let found: Vec<Value> = Path::parse(path).unwrap().find(&value).into_iter().cloned().collect();
            assert_eq!(found, want, "{path}");
        }
        for bad in ["a", ".a[", ".a[?(x)]", ".a[x]"] {
            assert_eq!(Path::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn any_bytes() {
        let value = json!({"a": {"b": [1, {"c": null}], "x.y": "z"}, "status": {"conditions": [{"type": "Ready"}, 7]}});
        crate::fuzz::try_all("path", |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Some(path) = Path::parse(text) {
                assert!(path.find(&value).len() <= 16, "nothing is found twice");
            }
        });
    }
}
