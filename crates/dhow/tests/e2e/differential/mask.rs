//! What a server makes up, replaced by what can be compared.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Of one server and one script: the same uid or revision gets the same name again.
pub struct Masks {
    uids: HashMap<String, String>,
    /// Of one object, apart from the others: what differs in one is no difference in the next.
    revisions: HashMap<(String, String), usize>,
    /// Names that the server completed, with what is shown for them.
    names: Vec<(String, String)>,
}

impl Masks {
    pub fn new() -> Self {
        Self { uids: HashMap::new(), revisions: HashMap::new(), names: vec![] }
    }

    pub fn body(&mut self, body: &Value) -> Value {
        self.find_names(body);
        let masked = self.value(&without_controllers(body, ""), "");
        match masked {
            Value::Array(events) => Value::Array(without_repeats(events)),
            other => other,
        }
    }

    fn find_names(&mut self, value: &Value) {
        match value {
            Value::Object(map) => {
                if let (Some(prefix), Some(name)) = (text(map, "generateName"), text(map, "name"))
                    && name.len() > prefix.len()
                    && name.starts_with(prefix)
                    && !self.names.iter().any(|(known, _)| known == name)
                {
                    let shown = format!("{prefix}<{}>", name.len() - prefix.len());
                    self.names.push((name.to_owned(), shown));
                }
                map.values().for_each(|value| self.find_names(value));
            }
            Value::Array(items) => items.iter().for_each(|item| self.find_names(item)),
            _ => {}
        }
    }

    fn value(&mut self, value: &Value, key: &str) -> Value {
        match value {
            Value::Object(map) => Value::Object(self.object(map)),
            Value::Array(items) => items.iter().map(|item| self.value(item, key)).collect(),
            Value::String(text) if key == "continue" && !text.is_empty() => "<continue>".into(),
            Value::String(text) => self.text(text).into(),
            other => other.clone(),
        }
    }

    fn object(&mut self, map: &Map<String, Value>) -> Map<String, Value> {
        let is_list = map.get("items").is_some() || map.get("rows").is_some() || text(map, "kind") == Some("Table");
        let mut masked = Map::new();
        for (key, value) in map {
            let value = match (key.as_str(), value) {
                // Of a whole collection: others write to it meanwhile.
                ("metadata", Value::Object(metadata)) if is_list => {
                    let mut metadata = self.object(metadata);
                    if text(&metadata, "resourceVersion").is_some_and(|revision| revision.starts_with("<revision")) {
                        metadata.insert("resourceVersion".into(), "<revision>".into());
                    }
                    Value::Object(metadata)
                }
                ("resourceVersion", Value::String(revision)) if revision.parse::<u64>().is_ok_and(|n| n > 0) => {
                    let name = self.shown_name(map);
                    let next = self.revisions.keys().filter(|(of, _)| *of == name).count() + 1;
                    let number = *self.revisions.entry((name, revision.clone())).or_insert(next);
                    format!("<revision {number}>").into()
                }
                ("uid", Value::String(uid)) if find_uid(uid).is_some() => {
                    let name = self.shown_name(map);
                    let next =
                        self.uids.values().filter(|shown| shown.starts_with(&format!("<uid {name} "))).count() + 1;
                    self.uids.entry(uid.clone()).or_insert_with(|| format!("<uid {name} {next}>")).clone().into()
                }
                ("causes", Value::Array(causes)) => {
                    // A real server says some of them twice.
                    let mut once = vec![];
                    for cause in causes {
                        let cause = self.value(cause, key);
                        if !once.contains(&cause) {
                            once.push(cause);
                        }
                    }
                    // Of conflicts with several managers the order is that of a map in Go.
                    once.sort_by_key(Value::to_string);
                    Value::Array(once)
                }
                ("managedFields", Value::Array(owners)) => {
                    // Their order depends on when a second ended.
                    let mut owners: Vec<Value> = owners.iter().map(|owner| self.value(owner, key)).collect();
                    owners.sort_by_key(|owner| {
                        format!("{}{}{}", owner["operation"], owner["manager"], owner["subresource"])
                    });
                    Value::Array(owners)
                }
                _ => self.value(value, key),
            };
            masked.insert(key.clone(), value);
        }
        masked
    }

    fn shown_name(&self, map: &Map<String, Value>) -> String {
        let name = text(map, "name").unwrap_or_default();
        self.names.iter().find(|(made, _)| made == name).map_or(name, |(_, shown)| shown).to_owned()
    }

    pub fn text(&mut self, text: &str) -> String {
        let mut masked = text.to_owned();
        for (name, shown) in &self.names {
            masked = masked.replace(name, shown);
        }
        while let Some((at, uid)) = find_uid(&masked) {
            let next = self.uids.values().filter(|shown| shown.starts_with("<uid ? ")).count() + 1;
            let shown = self.uids.entry(uid.to_owned()).or_insert_with(|| format!("<uid ? {next}>")).clone();
            masked.replace_range(at..at + UID, &shown);
        }
        if let Some(start) = masked.find("current: ").map(|at| at + "current: ".len()) {
            let digits = masked[start..].chars().take_while(char::is_ascii_digit).count();
            masked.replace_range(start..start + digits, "<revision>");
        }
        match time(&masked) {
            Some(mask) => mask.to_owned(),
            None if is_age(&masked) => "<age>".to_owned(),
            None => masked,
        }
    }
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str)
}

/// Kinds that a controller writes to while a script runs, when it comes to it.
const CONTROLLED: [&str; 3] = ["Deployment", "ReplicaSet", DEFINITION];
/// A real server establishes a definition a moment after it accepts its names, in steps; the rest of its status is compared.
const DEFINITION: &str = "CustomResourceDefinition";
const CONTROLLERS: [&str; 2] = ["kube-controller-manager", "kube-apiserver"];

/// What controllers say of an object is left out, and when they last did. `kind`: of a list's items, which do not say it.
fn without_controllers(value: &Value, kind: &str) -> Value {
    let Value::Object(map) = value else {
        let Value::Array(items) = value else { return value.clone() };
        return items.iter().map(|item| without_controllers(item, kind)).collect();
    };
    let kind = text(map, "kind").map_or(kind, |own| own.trim_end_matches("List"));
    let mut kept: Map<String, Value> = map
        .iter()
        .map(|(name, value)| (name.clone(), without_controllers(value, if name == "metadata" { "" } else { kind })))
        .collect();
    let is_object = map.contains_key("metadata") && !map.contains_key("items");
    if !is_object || !CONTROLLED.contains(&kind) {
        return Value::Object(kept);
    }
    match kept.get_mut("status").filter(|_| kind == DEFINITION) {
        Some(status) => {
            let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
            conditions.into_iter().for_each(|list| list.retain(|condition| condition["type"] != "Established"));
        }
        None => drop(kept.remove("status")),
    }
    if let Some(metadata) = kept.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), "<revision>".into());
        if let Some(owners) = metadata.get_mut("managedFields").and_then(Value::as_array_mut) {
            owners.retain(|owner| {
                let manager = owner["manager"].as_str().unwrap_or_default();
                !CONTROLLERS.contains(&manager) && !manager.starts_with("dhow-")
            });
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("deployment.kubernetes.io/revision");
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    Value::Object(kept)
}

/// Events that repeat the one before of the same object tell of a controller's work.
fn without_repeats(events: Vec<Value>) -> Vec<Value> {
    let mut last: HashMap<String, Value> = HashMap::new();
    let is_news = |event: &Value| {
        let name = event["object"]["metadata"]["name"].to_string();
        let state = event["object"].clone();
        event["type"] != "MODIFIED" || last.insert(name, state.clone()) != Some(state)
    };
    let mut is_news = is_news;
    events.into_iter().filter(|event| is_news(event)).collect()
}

const UID: usize = 36;

fn find_uid(text: &str) -> Option<(usize, &str)> {
    let is_uid = |piece: &&str| {
        piece.bytes().enumerate().all(|(i, byte)| match i {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    (0..text.len()).find_map(|at| text.get(at..at + UID).filter(is_uid).map(|uid| (at, uid)))
}

/// A whole string that is a time, in one of the two precisions.
fn time(text: &str) -> Option<&'static str> {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    match shape.as_str() {
        "0000-00-00T00:00:00Z" => Some("<time>"),
        "0000-00-00T00:00:00.000000Z" => Some("<micro time>"),
        _ => None,
    }
}

/// As tables show it; no script runs for a minute.
fn is_age(text: &str) -> bool {
    text.strip_suffix('s').is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[test]
fn what_is_made_up_is_masked() {
    use serde_json::json;
    let mut masks = Masks::new();
    let (one, two) = ("0f0e0d0c-0000-4000-8000-000000000001", "0f0e0d0c-0000-4000-8000-000000000002");
    for (given, want) in [
        (json!({"uid": one, "resourceVersion": "12"}), json!({"uid": "<uid  1>", "resourceVersion": "<revision 1>"})),
        (json!({"uid": two, "resourceVersion": "12"}), json!({"uid": "<uid  2>", "resourceVersion": "<revision 1>"})),
        (json!({"message": format!("no {one}")}), json!({"message": "no <uid  1>"})),
        (
            json!({"items": [], "metadata": {"resourceVersion": "13"}}),
            json!({"items": [], "metadata": {"resourceVersion": "<revision>"}}),
        ),
        (json!({"generateName": "a-", "name": "a-bcdfg"}), json!({"generateName": "a-", "name": "a-<5>"})),
        (json!(["a-bcdfg", "2026-01-02T03:04:05Z", "5s", "s"]), json!(["a-<5>", "<time>", "<age>", "s"])),
        (
            json!({"kind": "ReplicaSet", "status": {"replicas": 1}, "metadata": {
                "resourceVersion": "20", "managedFields": [{"manager": "kube-controller-manager"}, {"manager": "me"}]}}),
            json!({"kind": "ReplicaSet", "metadata": {
                "resourceVersion": "<revision>", "managedFields": [{"manager": "me"}]}}),
        ),
        (json!("version: 9, current: 123"), json!("version: 9, current: <revision>")),
    ] {
        assert_eq!(masks.body(&given), want, "{given}");
    }
}
