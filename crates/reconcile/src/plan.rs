//! A plan: the writes one run of a controller wants, already behind the equality gate.
//!
//! Owns the vocabulary of writes. Must not know how they are sent. An empty plan means: nothing to do.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::gate;
use crate::refusal::Refusal;
use crate::view::{Kind, uid};

/// The address of one object, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    pub api_version: String,
    pub kind: String,
    /// Empty for cluster-wide objects.
    pub namespace: String,
    pub name: String,
}

impl Target {
    pub fn of<K: Kind>(object: &K) -> Self {
        let meta = object.meta();
        Self::named::<K>(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }

    pub fn named<K: Kind>(namespace: &str, name: &str) -> Self {
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The address written inside an untyped object.
    pub fn of_value(object: &Value) -> Self {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        Self {
            api_version: text(&object["apiVersion"]),
            kind: text(&object["kind"]),
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// What happens to the objects that a deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// One request to the API server, on untyped JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// POST. An existing object of that name is a conflict.
    Create { object: Value },
    /// Server-side apply with force, as the controller's field manager.
    Apply { object: Value },
    /// Server-side apply of the status subresource.
    ApplyStatus { object: Value },
    /// JSON merge patch of some fields.
    Patch { target: Target, patch: Value },
    /// PUT, of the object or of one subresource.
    Replace { object: Value, subresource: Option<&'static str> },
    /// DELETE, only of the object with this uid; `at_once` without the object's own grace period.
    Delete { target: Target, uid: String, propagation: Propagation, at_once: bool },
    /// A core Event, named by its content; one that is already there is left alone. Never fails a run.
    Event { object: Value },
}

impl Write {
    pub fn target(&self) -> Target {
        match self {
            Write::Create { object }
            | Write::Apply { object }
            | Write::ApplyStatus { object }
            | Write::Replace { object, .. }
            | Write::Event { object } => Target::of_value(object),
            Write::Patch { target, .. } | Write::Delete { target, .. } => target.clone(),
        }
    }

    pub fn action(&self) -> &'static str {
        match self {
            Write::Create { .. } => "create",
            Write::Apply { .. } => "apply",
            Write::ApplyStatus { .. } => "status",
            Write::Patch { .. } => "patch",
            Write::Replace { .. } => "replace",
            Write::Delete { .. } => "delete",
            Write::Event { .. } => "event",
        }
    }
}

/// One line for tests and logs, such as `apply Deployment default/hello-00001-deployment`.
impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::Event { object } => write!(
                f,
                "event {} {}: {}",
                object["involvedObject"]["kind"].as_str().unwrap_or_default(),
                object["reason"].as_str().unwrap_or_default(),
                object["message"].as_str().unwrap_or_default()
            ),
            _ => write!(f, "{} {}", self.action(), self.target()),
        }
    }
}

/// What one run of a controller wants. Writes are sent in order, the status last; the first failure ends the
/// run, and the next one plans again from what is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    /// At most one, of the object the plan is for.
    pub status: Option<Write>,
    pub events: Vec<Write>,
    /// Who is told when a write is refused.
    pub refusal: Option<Refusal>,
    /// When to plan again although nothing changed.
    pub requeue_after: Option<SignedDuration>,
}

impl Plan {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.status.is_none() && self.events.is_empty()
    }

    /// Every write in the order it is sent.
    pub fn in_order(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().chain(&self.status).chain(&self.events)
    }

    pub fn create<K: Kind>(&mut self, object: &K) {
        self.writes.push(Write::Create { object: to_value(object) });
    }

    /// Applies `wanted` unless `observed` already has all of it.
    pub fn apply<K: Kind>(&mut self, observed: Option<&K>, wanted: &K) {
        let mut object = to_value(wanted);
        gate::stamp(&mut object);
        if observed.is_some_and(|o| gate::satisfied(&to_value(o), &object)) {
            return;
        }
        self.writes.push(Write::Apply { object });
    }

    /// Merges `patch` into an observed object unless that changes nothing.
    pub fn patch<K: Kind>(&mut self, observed: &K, patch: Value) {
        if gate::patch_is_noop(&to_value(observed), &patch) {
            return;
        }
        self.writes.push(Write::Patch { target: Target::of(observed), patch });
    }

    pub fn delete<K: Kind>(&mut self, observed: &K, propagation: Propagation) {
        let (target, uid) = (Target::of(observed), uid(observed).to_owned());
        self.writes.push(Write::Delete { target, uid, propagation, at_once: false });
    }

    /// Deletes an object that nobody is left to end gracefully.
    pub fn delete_at_once<K: Kind>(&mut self, observed: &K) {
        let (target, uid) = (Target::of(observed), uid(observed).to_owned());
        self.writes.push(Write::Delete { target, uid, propagation: Propagation::Background, at_once: true });
    }

    /// Writes the whole status of `observed`, unless it is already so. A `Ready` or `Succeeded` condition that
    /// changed to true or false is also told as an Event.
    pub fn status<K: Kind, S: Serialize>(&mut self, observed: &K, status: &S, now: Timestamp) {
        self.status_value(&to_value(observed), serde_json::to_value(status).unwrap_or_default(), now);
    }

    pub(crate) fn status_value(&mut self, before: &Value, after: Value, now: Timestamp) {
        if without_nulls(&before["status"]) == without_nulls(&after) {
            return;
        }
        if let Some((reason, message, warning)) = news(&before["status"], &after) {
            self.tell(&Target::of_value(before), &before["metadata"]["uid"], &reason, &message, warning, now);
        }
        self.status = Some(status_write(before, after));
    }

    /// Writes the whole status of another object than the one the plan is for; for a kind whose status this
    /// controller owns too.
    pub fn child_status<K: Kind, S: Serialize>(&mut self, observed: &K, status: &S) {
        let before = to_value(observed);
        let after = serde_json::to_value(status).unwrap_or_default();
        if without_nulls(&before["status"]) != without_nulls(&after) {
            self.writes.push(status_write(&before, after));
        }
    }

    /// Tells people what happened. The same words about the same object are one Event.
    pub fn event<K: Kind>(&mut self, about: &K, reason: &str, message: &str, warning: bool, now: Timestamp) {
        self.tell(&Target::of(about), &json!(uid(about)), reason, message, warning, now);
    }

    fn tell(&mut self, target: &Target, uid: &Value, reason: &str, message: &str, warning: bool, now: Timestamp) {
        let namespace = if target.namespace.is_empty() { "default" } else { &target.namespace };
        let identity = format!("{target}\0{}\0{reason}\0{message}", uid.as_str().unwrap_or_default());
        let hash = hex::encode(&Sha256::digest(identity.as_bytes())[..8]);
        let time = api::condition::whole_seconds(now);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "name": format!("{}.{hash}", target.name)},
            "involvedObject": {
                "apiVersion": target.api_version, "kind": target.kind, "namespace": target.namespace,
                "name": target.name, "uid": uid,
            },
            "reason": reason,
            "message": message,
            "type": if warning { "Warning" } else { "Normal" },
            "firstTimestamp": time, "lastTimestamp": time, "count": 1,
            "source": {"component": "dhow"},
        });
        self.events.push(Write::Event { object });
    }

    /// Plans again after this time at the latest.
    pub fn requeue_after(&mut self, after: SignedDuration) {
        self.requeue_after = Some(self.requeue_after.map_or(after, |old| old.min(after)));
    }
}

fn status_write(observed: &Value, status: Value) -> Write {
    let meta = &observed["metadata"];
    let mut metadata = json!({"name": meta["name"], "uid": meta["uid"]});
    if meta["namespace"].is_string() {
        metadata["namespace"] = meta["namespace"].clone();
    }
    let (api_version, kind) = (&observed["apiVersion"], &observed["kind"]);
    Write::ApplyStatus {
        object: json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "status": status}),
    }
}

/// Objects come from typed values with string keys, which JSON can always hold.
fn to_value<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("an API object is JSON")
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        Value::Null => Value::Object(Default::default()),
        other => other.clone(),
    }
}

/// The change of the happy condition worth an Event: its reason, its message, whether it is bad news.
fn news(before: &Value, after: &Value) -> Option<(String, String, bool)> {
    ["Ready", "Succeeded"].iter().find_map(|happy| {
        let now = condition(after, happy)?;
        let status = now["status"].as_str().unwrap_or_default();
        let same = condition(before, happy)
            .is_some_and(|old| old["status"] == now["status"] && old["reason"] == now["reason"]);
        if same || status == api::condition::UNKNOWN {
            return None;
        }
        if status == api::condition::TRUE {
            return Some(((*happy).to_owned(), format!("{happy} is now true"), false));
        }
        let text = |field: &str| now[field].as_str().unwrap_or_default().to_owned();
        Some((text("reason"), text("message"), true))
    })
}

fn condition<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status.get("conditions")?.as_array()?.iter().find(|c| c["type"] == type_)
}
