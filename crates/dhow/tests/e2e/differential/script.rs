//! Requests as text, one after another.
//!
//! A script begins with `### title`; its requests are separated by blank lines: a line `METHOD path`, headers, a body.
//! `{ns}` is the script's namespace, `{2/metadata/uid}` what the second answer says there, `{repeat 3 ab}` is `ababab`,
//! and `\x7b` is the byte 0x7b, also where it makes no UTF-8. `WAIT path` is a GET that is repeated until it succeeds: a
//! real server takes a moment to serve a kind that was just defined. A request that ends with lines `= text` is made once for
//! each of them, with the text where it says `{it}`.

use bytes::Bytes;
use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Script {
    pub title: String,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, Default)]
pub struct Step {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// What stands for `{it}`.
    pub it: Option<String>,
}

/// A step with everything filled in.
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

pub fn parse(file: &str, text: &str) -> Vec<Script> {
    let text = text.trim_start_matches('\u{feff}');
    let scripts = text.split("### ").skip(1);
    scripts
        .map(|script| {
            let (title, rest) = script.split_once('\n').unwrap_or((script, ""));
            let paragraphs = rest.split("\n\n").map(str::trim).filter(|p| !p.is_empty() && !p.starts_with('#'));
            Script { title: format!("{file}: {}", title.trim()), steps: paragraphs.flat_map(steps).collect() }
        })
        .collect()
}

/// One for each line that begins so; without such lines, one.
const ROW: &str = "= ";

fn steps(text: &str) -> Vec<Step> {
    let (rows, template): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with(ROW));
    let template = template.join("\n");
    if rows.is_empty() {
        return vec![step(&template)];
    }
    let rows = rows.into_iter().map(|row| &row[ROW.len()..]);
    rows.map(|it| Step { it: Some(it.into()), ..step(&template.replace("{it}", it)) }).collect()
}

fn step(text: &str) -> Step {
    let mut lines = text.lines();
    let (method, path) = lines.next().and_then(|line| line.split_once(' ')).expect("METHOD path");
    let mut headers = vec![];
    let mut body = String::new();
    for line in lines {
        match line.split_once(": ").filter(|(name, _)| body.is_empty() && is_header(name)) {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => {
                body.push_str(line);
                body.push('\n');
            }
        }
    }
    Step { method: method.into(), path: path.into(), headers, body: body.trim_end().to_owned(), it: None }
}

fn is_header(name: &str) -> bool {
    matches!(name.to_ascii_lowercase().as_str(), "accept" | "content-type" | "user-agent")
}

impl Script {
    /// As it could stand in a file.
    pub fn text(&self) -> String {
        let mut text = format!("### {}\n", self.title);
        for step in &self.steps {
            text += &format!("{} {}\n", step.method, step.path);
            for (name, value) in &step.headers {
                text += &format!("{name}: {value}\n");
            }
            if !step.body.is_empty() {
                text += &step.body;
                text.push('\n');
            }
            text.push('\n');
        }
        text
    }
}

impl Step {
    pub fn fill(&self, namespace: &str, answers: &[Value]) -> Request {
        let text = |text: &str| fill(text, namespace, answers);
        let headers = self.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect();
        let path = text(&self.path).replace(' ', "%20");
        Request { method: self.method.clone(), path, headers, body: bytes(&text(&self.body)).into() }
    }
}

fn fill(text: &str, namespace: &str, answers: &[Value]) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        let inside = &rest[at + 1..];
        let found = inside.find('}').and_then(|end| Some((variable(&inside[..end], namespace, answers)?, end)));
        match found {
            Some((value, end)) => {
                filled.push_str(&value);
                rest = &inside[end + 1..];
            }
            None => {
                filled.push('{');
                rest = inside;
            }
        }
    }
    filled + rest
}

/// `None`: these braces mean themselves.
fn variable(name: &str, namespace: &str, answers: &[Value]) -> Option<String> {
    if name == "ns" {
        return Some(namespace.to_owned());
    }
    if let Some(repeat) = name.strip_prefix("repeat ") {
        let (times, what) = repeat.split_once(' ')?;
        return Some(what.repeat(times.parse().ok()?));
    }
    let (number, _) = name.split_once('/')?;
    let number: usize = number.parse().ok()?;
    let value = answers.get(number.checked_sub(1)?).and_then(|answer| answer.pointer(&name[name.find('/')?..]));
    Some(match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "absent".to_owned(),
    })
}

fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = vec![];
    let mut rest = text;
    while let Some(at) = rest.find("\\x") {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let byte = rest.get(at + 2..at + 4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.extend(byte.map_or(vec![b'\\', b'x'], |byte| vec![byte]));
        rest = &rest[at + if byte.is_some() { 4 } else { 2 }..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

#[test]
fn scripts_are_read() {
    let text = "### a title\nPOST /api/{ns}?a=b\ncontent-type: x/y\n{\"a\": \"{1/b}\",\n \"c\": 1}\n\n# why\n\nGET /{repeat 3 ab}\n";
    let scripts = parse("file", text);
    assert_eq!((scripts.len(), scripts[0].title.as_str(), scripts[0].steps.len()), (1, "file: a title", 2));
    let first = scripts[0].steps[0].fill("n", &[serde_json::json!({"b": "v"})]);
    assert_eq!((first.method.as_str(), first.path.as_str()), ("POST", "/api/n?a=b"));
    assert_eq!(first.headers, [("content-type".to_owned(), "x/y".to_owned())]);
    assert_eq!(first.body, "{\"a\": \"v\",\n \"c\": 1}");
    assert_eq!(scripts[0].steps[1].fill("n", &[]).path, "/ababab");
    let rows = parse("file", "### t\nPOST /a\n{\"x\": {it}}\n= 1\n= [2]\n");
    assert_eq!(rows[0].steps.iter().map(|step| step.body.as_str()).collect::<Vec<_>>(), ["{\"x\": 1}", "{\"x\": [2]}"]);
    assert_eq!(bytes("a\\x7b\\xff\\xg"), b"a{\xff\\xg");
    assert_eq!(parse("file", &scripts[0].text().replace("file: ", ""))[0].text(), scripts[0].text());
}
