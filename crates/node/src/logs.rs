//! Which pods have logs, and the last words of those whose sandbox is no more.
//!
//! Owns the directory that the workers keep and the node's API reads. Bounded: of each ended run the last
//! [`KEPT_BYTES`] are kept, and of each pod two runs at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use runtime::{LogOptions, Provider};

use crate::plan::Ended;
use crate::translate;

/// Kept of a run that ended.
pub const KEPT_BYTES: usize = 64 << 10;
/// Lines asked of the Provider for that.
const KEPT_LINES: usize = 2000;
/// The last words in a container's status, as Kubernetes bounds them.
const MESSAGE_BYTES: usize = 2048;
const MESSAGE_LINES: usize = 80;

/// A pod's part of the directory.
#[derive(Clone, Default)]
pub struct Entry {
    pub uid: String,
    pub containers: Vec<String>,
    /// Runs it, once something does.
    pub provider: Option<Arc<dyn Provider>>,
    /// The latest run that ended.
    pub ended: Option<Logs>,
    /// The run before the present one.
    pub previous: Option<Logs>,
    /// Why there is no log yet.
    pub waiting: String,
}

/// Of each container of a run, by its name; with the time before each line.
pub type Logs = HashMap<String, Bytes>;

#[derive(Default)]
pub struct Directory {
    entries: Mutex<HashMap<(String, String), Entry>>,
}

impl Directory {
    pub fn get(&self, namespace: &str, pod: &str) -> Option<Entry> {
        self.lock().get(&(namespace.to_owned(), pod.to_owned())).cloned()
    }

    /// A pod of the same name may have been there before.
    pub fn add(&self, namespace: &str, pod: &str, entry: Entry) {
        self.lock().insert((namespace.to_owned(), pod.to_owned()), entry);
    }

    /// Nothing happens when the name belongs to another pod by now.
    pub fn update(&self, namespace: &str, pod: &str, uid: &str, edit: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(&(namespace.to_owned(), pod.to_owned())).filter(|e| e.uid == uid) {
            edit(entry);
        }
    }

    pub fn remove(&self, namespace: &str, pod: &str, uid: &str) {
        let mut entries = self.lock();
        let key = (namespace.to_owned(), pod.to_owned());
        if entries.get(&key).is_some_and(|e| e.uid == uid) {
            entries.remove(&key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ends of a run's logs.
pub async fn collect_all(provider: &dyn Provider, uid: &str, containers: Vec<String>) -> Logs {
    let mut logs = Logs::default();
    for container in containers {
        let log = collect(provider, uid, &container).await;
        logs.insert(container, log);
    }
    logs
}

/// The end of a container's log, with times. What cannot be read is left out: a status must not wait for it.
async fn collect(provider: &dyn Provider, uid: &str, container: &str) -> Bytes {
    let options = LogOptions { tail_lines: Some(KEPT_LINES), timestamps: true, ..LogOptions::default() };
    let mut kept = Vec::new();
    match provider.logs(uid, container, options).await {
        Ok(mut lines) => {
            while let Some(Ok(chunk)) = lines.next().await {
                kept.extend_from_slice(&chunk);
                if kept.len() > 2 * KEPT_BYTES {
                    kept.drain(..kept.len() - KEPT_BYTES);
                }
            }
        }
        Err(error) => tracing::debug!(uid, %error, "the log of an ended container cannot be read"),
    }
    if kept.len() > KEPT_BYTES {
        kept.drain(..kept.len() - KEPT_BYTES);
        let first_whole = kept.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
        kept.drain(..first_whole);
    }
    kept.into()
}

/// Adds what a person should read of a container's end.
pub fn give_words(pod: &Pod, end: &mut Ended, logs: &Logs) {
    let containers = pod.spec.iter().flat_map(translate::containers);
    let container = containers.into_iter().find(|container| container.name == end.container);
    let policy = container.and_then(|c| c.termination_message_policy.as_deref());
    if end.code != 0 && end.message.is_empty() && policy == Some("FallbackToLogsOnError") {
        end.message = logs.get(&end.container).map(|log| last_words(log)).unwrap_or_default();
    }
    if end.reason == "OOMKilled" {
        let limit = container.and_then(|c| c.resources.as_ref()?.limits.as_ref()?.get("memory"));
        let limit = limit.map_or("the node's default".to_owned(), |l| l.0.clone());
        end.message = format!("out of memory: its limit is {limit}\n{}", end.message).trim_end().to_owned();
    }
}

/// The last lines of a log, as a container's status shows them.
pub fn last_words(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> = text.lines().map(|line| split(line).1).collect();
    let mut words = lines[lines.len().saturating_sub(MESSAGE_LINES)..].join("\n");
    if words.len() > MESSAGE_BYTES {
        let cut = (words.len() - MESSAGE_BYTES..).find(|at| words.is_char_boundary(*at)).unwrap_or(0);
        words.drain(..cut);
    }
    words
}

/// What the options leave of a kept log.
pub fn select(log: &[u8], options: &LogOptions) -> Bytes {
    let text = String::from_utf8_lossy(log);
    let recent = |line: &&str| match (options.since, split(line).0) {
        (Some(since), Some(at)) => at >= since,
        _ => true,
    };
    let lines: Vec<&str> = text.lines().filter(recent).collect();
    let skip = options.tail_lines.map_or(0, |tail| lines.len().saturating_sub(tail));
    let mut out = String::new();
    for line in &lines[skip..] {
        out.push_str(if options.timestamps { line } else { split(line).1 });
        out.push('\n');
    }
    let mut out = out.into_bytes();
    if let Some(limit) = options.limit_bytes {
        out.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    out.into()
}

/// A line's time, when it has one, and the rest.
fn split(line: &str) -> (Option<Timestamp>, &str) {
    match line.split_once(' ').and_then(|(at, rest)| Some((at.parse::<Timestamp>().ok()?, rest))) {
        Some((at, rest)) => (Some(at), rest),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"1970-01-01T00:00:01Z one\n1970-01-01T00:00:02Z two\n1970-01-01T00:00:03Z three words\nbare\n";

    #[test]
    fn selection() {
        let all = LogOptions::default;
        let since = Timestamp::from_second(2).ok();
        for (options, want) in [
            (all(), "one\ntwo\nthree words\nbare\n"),
            (LogOptions { tail_lines: Some(2), ..all() }, "three words\nbare\n"),
            (LogOptions { tail_lines: Some(0), ..all() }, ""),
            (LogOptions { since, ..all() }, "two\nthree words\nbare\n"),
            (
                LogOptions { since, tail_lines: Some(9), timestamps: true, limit_bytes: Some(25), ..all() },
                "1970-01-01T00:00:02Z two\n",
            ),
            (LogOptions { limit_bytes: Some(3), ..all() }, "one"),
        ] {
            assert_eq!(select(LOG, &options), want, "{options:?}");
        }
    }

    #[test]
    fn words() {
        assert_eq!(last_words(LOG), "one\ntwo\nthree words\nbare");
        assert_eq!(last_words(b""), "");
        let long = "é".repeat(3000);
        assert_eq!(last_words(long.as_bytes()).len(), MESSAGE_BYTES);
        let many = "x\n".repeat(200);
        assert_eq!(last_words(many.as_bytes()).lines().count(), MESSAGE_LINES);
    }
}
