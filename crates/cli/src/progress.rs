//! How far a deploy is, from one look at the Function to the next. Pure.

use api::condition::{self, Condition, FALSE, TRUE};
use api::function::{BUILT, Function, SERVING, SOURCE_READY, reason};

/// The conditions in the order in which they come true.
const STAGES: [&str; 4] = [SOURCE_READY, BUILT, SERVING, "Ready"];

/// How a message goes on with what a container said before it ended.
const LAST_WORDS: &str = " with: ";

/// What has been shown.
#[derive(Debug, Default)]
pub struct Progress {
    shown: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The controllers are at it.
    Going,
    Ready {
        url: String,
    },
    /// A stage failed, and will not pass without a change.
    Failed {
        stage: &'static str,
        reason: String,
        message: String,
    },
    /// A stage failed that may yet pass, such as an instance that crashed once.
    Failing {
        stage: &'static str,
        reason: String,
        message: String,
    },
}

impl Progress {
    /// The lines to show since the last look.
    pub fn lines(&mut self, function: &Function) -> Vec<String> {
        if !is_current(function) {
            return vec![];
        }
        let mut lines = vec![];
        for stage in STAGES {
            let Some(found) = find(function, stage) else { continue };
            // The sum says nothing that its parts do not say, until all is well.
            let early = stage == SERVING && !counts(function, found);
            if stage == "Ready" && found.status != TRUE || early || is_silent(found) {
                continue;
            }
            let line = line(stage, found);
            // What failed may word it anew each time it fails; the last words come at the end.
            let told = if found.status == FALSE { format!("failed {}", found.reason) } else { line.clone() };
            match self.shown.iter_mut().find(|(s, _)| s == stage) {
                Some((_, before)) if *before == told => continue,
                Some((_, before)) => *before = told,
                None => self.shown.push((stage.to_owned(), told)),
            }
            lines.push(line);
        }
        lines
    }
}

/// Whether the status speaks of the present spec.
fn is_current(function: &Function) -> bool {
    function.status.as_ref().is_some_and(|s| s.observed_generation == function.metadata.generation)
}

fn find<'a>(function: &'a Function, type_: &str) -> Option<&'a Condition> {
    condition::find(&function.status.as_ref()?.conditions, type_)
}

/// Until this source is built, what serves is the one before.
fn counts(function: &Function, serving: &Condition) -> bool {
    serving.reason == reason::NAME_TAKEN || find(function, BUILT).is_some_and(|c| c.status == TRUE)
}

fn is_silent(condition: &Condition) -> bool {
    condition.status == condition::UNKNOWN && condition.reason.is_empty() && condition.message.is_empty()
}

fn line(stage: &str, condition: &Condition) -> String {
    let mark = match condition.status.as_str() {
        TRUE => "ok",
        FALSE => "failed",
        _ => "...",
    };
    let first = headline(&condition.message);
    let text = match (condition.reason.as_str(), first) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    };
    format!("{stage:<11}  {mark:<6}  {text}").trim_end().to_owned()
}

/// The sentence of a message, without the output of a container that it may go on with.
pub fn headline(message: &str) -> &str {
    let sentence = message.find(LAST_WORDS).map_or(message, |at| &message[..at]);
    sentence.lines().next().unwrap_or_default().trim_end_matches([':', ' '])
}

/// The output that a message goes on with, if it does.
pub fn last_words(message: &str) -> Vec<String> {
    let said = match message.find(LAST_WORDS) {
        Some(at) => &message[at + LAST_WORDS.len()..],
        None => message.split_once('\n').map_or("", |(_, rest)| rest),
    };
    said.lines().map(str::to_owned).collect()
}

pub fn state(function: &Function) -> State {
    if !is_current(function) {
        return State::Going;
    }
    let failed = |stage: &str| find(function, stage).filter(|c| c.status == FALSE);
    for stage in [SOURCE_READY, BUILT] {
        if let Some(c) = failed(stage) {
            return State::Failed { stage, reason: c.reason.clone(), message: c.message.clone() };
        }
    }
    if let Some(c) = failed(SERVING).filter(|c| counts(function, c)) {
        let (reason, message) = (c.reason.clone(), c.message.clone());
        return match reason == reason::NAME_TAKEN {
            true => State::Failed { stage: SERVING, reason, message },
            false => State::Failing { stage: SERVING, reason, message },
        };
    }
    let url = function.status.as_ref().and_then(|s| s.url.clone());
    match (find(function, "Ready").is_some_and(|c| c.status == TRUE), url) {
        (true, Some(url)) => State::Ready { url },
        _ => State::Going,
    }
}

/// Where it stands, in one sentence.
pub fn summary(function: &Function) -> String {
    let unfinished = STAGES.iter().find_map(|stage| find(function, stage).filter(|c| c.status != TRUE));
    match unfinished {
        Some(c) => line(&c.type_, c).split_whitespace().collect::<Vec<_>>().join(" "),
        None => "nothing is known of it yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn function(observed: i64, conditions: &[(&str, &str, &str, &str)]) -> Function {
        let conditions: Vec<Value> =
            conditions.iter().map(|(t, s, r, m)| json!({"type": t, "status": s, "reason": r, "message": m})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "hello", "generation": 2}, "spec": {"source": {}},
            "status": {"observedGeneration": observed, "url": "http://hello", "conditions": conditions}
        }))
        .unwrap()
    }

    #[test]
    fn lines_as_they_change() {
        let mut progress = Progress::default();
        let source = (SOURCE_READY, "True", "", "");
        for (look, want) in [
            (function(1, &[source]), vec![]),
            (function(2, &[source, (BUILT, "Unknown", "", "")]), vec!["SourceReady  ok"]),
            (function(2, &[source, (BUILT, "Unknown", "Building", "")]), vec!["Built        ...     Building"]),
            (function(2, &[source, (BUILT, "Unknown", "Building", "")]), vec![]),
            (
                function(2, &[source, (BUILT, "True", "", ""), (SERVING, "Unknown", "Deploying", "one\ntwo")]),
                vec!["Built        ok", "Serving      ...     Deploying: one"],
            ),
            (
                function(2, &[source, (BUILT, "True", "", ""), (SERVING, "True", "", ""), ("Ready", "True", "", "")]),
                vec!["Serving      ok", "Ready        ok"],
            ),
        ] {
            assert_eq!(progress.lines(&look), want);
        }
    }

    #[test]
    fn messages() {
        for (message, sentence, words) in [
            ("", "", &[][..]),
            ("one", "one", &[]),
            ("one\ntwo\nthree", "one", &["two", "three"]),
            ("Revision failed: Container failed with: a\nb", "Revision failed: Container failed", &["a", "b"]),
        ] {
            assert_eq!(
                (headline(message), last_words(message)),
                (sentence, words.iter().map(|w| (*w).to_owned()).collect())
            );
        }
        let mut progress = Progress::default();
        let failing = |m| function(2, &[(BUILT, "True", "", ""), (SERVING, "False", "RevisionFailed", m)]);
        assert_eq!(progress.lines(&failing("it failed with: a")).len(), 2);
        assert_eq!(progress.lines(&failing("it failed with: b")), Vec::<String>::new());
    }

    #[test]
    fn states() {
        let ok = |stage| (stage, "True", "", "");
        let failed = |stage, reason: &str| State::Failed { stage, reason: reason.into(), message: "m".into() };
        let url = "http://hello".to_owned();
        for (look, want) in [
            (function(2, &[]), State::Going),
            (function(2, &[ok(SOURCE_READY), ok(BUILT), ok(SERVING), ok("Ready")]), State::Ready { url }),
            (function(1, &[ok(SOURCE_READY), ok(BUILT), ok(SERVING), ok("Ready")]), State::Going),
            (function(1, &[(BUILT, "False", "x", "m")]), State::Going),
            (function(2, &[(BUILT, "False", "x", "m")]), failed(BUILT, "x")),
            (function(2, &[(SOURCE_READY, "False", "x", "m"), (BUILT, "False", "y", "m")]), failed(SOURCE_READY, "x")),
            (function(2, &[(SERVING, "False", "NameTaken", "m")]), failed(SERVING, "NameTaken")),
            (
                function(2, &[(BUILT, "Unknown", "Building", ""), (SERVING, "False", "RevisionFailed", "m")]),
                State::Going,
            ),
            (
                function(2, &[ok(BUILT), (SERVING, "False", "RevisionFailed", "m")]),
                State::Failing { stage: SERVING, reason: "RevisionFailed".into(), message: "m".into() },
            ),
            (function(2, &[(SERVING, "Unknown", "x", "m")]), State::Going),
        ] {
            assert_eq!(state(&look), want);
        }
        assert_eq!(summary(&function(2, &[(BUILT, "Unknown", "Building", "")])), "Built ... Building");
    }
}
