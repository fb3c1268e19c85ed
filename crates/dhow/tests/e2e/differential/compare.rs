//! Where two answers differ, and which differences are meant.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Mutex;

use serde_json::Value;

use super::script::Script;
use super::server::Answer;

/// Longer values are cut in reports.
const SHOWN: usize = 600;

#[derive(Debug)]
pub struct Difference {
    script: String,
    step: usize,
    /// `POST /api/v1/...`, as the script has it, and which of its rows.
    request: String,
    /// `status`, `media`, `warnings`, or where in the body, as `/metadata/name`.
    place: String,
    real: String,
    ours: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { script, step, request, place, real, ours } = self;
        writeln!(f, "{script}, step {step}: {request}\n  {place}")?;
        writeln!(f, "    real: {}", cut(real))?;
        write!(f, "    ours: {}", cut(ours))
    }
}

fn cut(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// The answers of both to the same script.
pub fn answers(script: &Script, real: &[Answer], ours: &[Answer]) -> Vec<Difference> {
    let mut all = vec![];
    for (i, ((step, real), ours)) in script.steps.iter().zip(real).zip(ours).enumerate() {
        let mut note = |place: &str, real: String, ours: String| {
            let row = step.it.iter().map(|it| format!(" = {it}")).collect::<String>();
            let request = format!("{} {}{row}", step.method, step.path);
            all.push(Difference {
                script: script.title.clone(),
                step: i + 1,
                request,
                place: place.into(),
                real,
                ours,
            });
        };
        if real.status != ours.status {
            // Two different things were said; where they differ tells nothing.
            note("status", format!("{} {}", real.status, real.body), format!("{} {}", ours.status, ours.body));
            continue;
        }
        if real.media != ours.media {
            note("media", real.media.clone(), ours.media.clone());
        }
        if real.warnings != ours.warnings {
            note("warnings", format!("{:?}", real.warnings), format!("{:?}", ours.warnings));
        }
        if is_status(&real.body) {
            let message = |answer: &Answer| answer.body["message"].as_str().unwrap_or_default().to_owned();
            let same_faults = same_faults(&real.body, &ours.body);
            let (real, ours) = (message(real), message(ours));
            if same_faults {
                continue;
            }
            if real != ours {
                // What is told in words is told again in the details. One that says more is none the worse.
                if !ours.starts_with(&real) {
                    note("/message", real, ours);
                }
                continue;
            }
        }
        values("", &real.body, &ours.body, &mut note);
    }
    all
}

fn is_status(body: &Value) -> bool {
    body["kind"] == "Status" && body["status"] == "Failure"
}

/// Whether both refuse the same object for the same causes. Their order in the message is that of a map in Go.
fn same_faults(real: &Value, ours: &Value) -> bool {
    let parts = |body: &Value| {
        let message = body["message"].as_str().unwrap_or_default();
        let (of, _) = message.split_once(" is invalid: [")?;
        Some((of.to_owned(), body["details"]["causes"].clone()))
    };
    parts(real).is_some_and(|real| Some(real) == parts(ours))
}

fn values(place: &str, real: &Value, ours: &Value, note: &mut impl FnMut(&str, String, String)) {
    match (real, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let place = format!("{place}/{key}");
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => values(&place, a, b, note),
                    (a, b) => note(&place, shown(a), shown(b)),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                values(&format!("{place}/{i}"), a, b, note);
            }
        }
        _ if real != ours => note(if place.is_empty() { "/" } else { place }, real.to_string(), ours.to_string()),
        _ => {}
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or("(absent)".into(), Value::to_string)
}

/// Ends the place of a difference that shows only sometimes.
const SOMETIMES: &str = "?";

/// The differences that are meant. A line: a pattern of `script | METHOD path | place`, ` # ` and the reason; `*` stands for anything.
pub struct Allowed {
    lines: Vec<[String; 3]>,
    used: Mutex<BTreeSet<usize>>,
}

impl Allowed {
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let parsed = lines.map(|line| {
            let (pattern, reason) = line.split_once(" # ").unwrap_or_else(|| panic!("no reason in {line:?}"));
            assert!(!reason.trim().is_empty(), "no reason in {line:?}");
            let parts: Vec<String> = pattern.split(" | ").map(|part| part.trim().to_owned()).collect();
            parts.try_into().unwrap_or_else(|_| panic!("not `script | request | place` in {line:?}"))
        });
        Self { lines: parsed.collect(), used: Mutex::default() }
    }

    pub fn covers(&self, difference: &Difference) -> bool {
        let Difference { script, request, place, .. } = difference;
        let texts = [script, request, place];
        let fits = |pattern: &String, text| fits(pattern.trim_end_matches(SOMETIMES), text);
        let found = self.lines.iter().position(|line| line.iter().zip(texts).all(|(p, text)| fits(p, text)));
        self.used.lock().expect("nobody panics with it").extend(found);
        found.is_some()
    }

    pub fn unused(&self) -> Vec<String> {
        let used = self.used.lock().expect("nobody panics with it");
        // What random scripts show depends on the seed, and what a controller does meanwhile on its speed.
        let is_fixed = |line: &[String; 3]| !line[0].starts_with("random: ") && !line[2].ends_with(SOMETIMES);
        let lines = self.lines.iter().enumerate().filter(|(i, line)| !used.contains(i) && is_fixed(line));
        lines.map(|(_, line)| line.join(" | ")).collect()
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| fits(after, rest)))),
    }
}

#[test]
fn patterns_fit() {
    for (pattern, text, want) in [
        ("*", "", true),
        ("a*c", "abc", true),
        ("a*c", "abcd", false),
        ("/items/*/spec/*", "/items/0/spec/a/b", true),
        ("/items/*/spec", "/items/0", false),
    ] {
        assert_eq!(fits(pattern, text), want, "{pattern} {text}");
    }
}
