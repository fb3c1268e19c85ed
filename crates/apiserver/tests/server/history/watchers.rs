//! The watches: each lists, follows, comes back from where it was when it is cut off, and lists anew only when the
//! server says that it must.

use std::collections::BTreeMap;

use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::clients::{Connection, END, MAPS, name_of, parity, revision_of, value_of};
use super::{Content, Seeded, World};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: String,
    pub key: String,
    pub value: u64,
    pub revision: u64,
}

impl Event {
    /// What the key holds after it, for a watch of everything.
    pub fn content(&self) -> Content {
        (self.kind != "DELETED").then_some(self.value)
    }
}

/// All that a watch saw from one list on, across reconnections to one server.
#[derive(Debug)]
pub struct Session {
    pub server: u64,
    pub parity: Option<&'static str>,
    pub start: u64,
    pub listed: BTreeMap<String, u64>,
    pub events: Vec<Event>,
}

impl Session {
    pub fn last(&self) -> u64 {
        self.events.last().map_or(self.start, |event| event.revision)
    }

    /// In order, none twice, and each event is what can come next.
    pub fn is_a_story(&self) {
        let (mut now, mut last) = (self.listed.clone(), self.start);
        for event in &self.events {
            assert!(event.revision > last, "{event:?} came after {last}");
            last = event.revision;
            let before = match event.kind.as_str() {
                "DELETED" => now.remove(&event.key),
                _ => now.insert(event.key.clone(), event.value),
            };
            assert_eq!(before.is_none(), event.kind == "ADDED", "{event:?} came when there was {before:?}");
        }
    }

    /// What a watch with a selector saw is what the changes of all objects say it must.
    pub fn is_part_of(&self, all: &Session) {
        let wanted = |content: Content| content.is_some_and(|value| Some(parity(value)) == self.parity);
        let mut now: BTreeMap<&str, Content> = all.listed.iter().map(|(key, value)| (&**key, Some(*value))).collect();
        let mut expected = vec![];
        for event in &all.events {
            let before = now.insert(&event.key, event.content()).flatten();
            let kind = match (wanted(before), wanted(event.content())) {
                (false, true) => "ADDED",
                (true, true) => "MODIFIED",
                (true, false) => "DELETED",
                (false, false) => continue,
            };
            expected.push((kind, &*event.key, event.revision));
        }
        let (from, to) = (self.start.max(all.start), self.last().min(all.last()));
        let within = |revision: &u64| *revision > from && *revision <= to;
        expected.retain(|(.., revision)| within(revision));
        let seen = self.events.iter().filter(|event| within(&event.revision));
        let seen: Vec<_> = seen.map(|event| (&*event.kind, &*event.key, event.revision)).collect();
        assert_eq!(seen, expected, "the watch of {:?}", self.parity);
    }
}

/// The last of what a watch sees.
fn mark(parity: Option<&str>) -> &'static str {
    if parity == Some("even") { END[0] } else { END[1] }
}

/// Follows until it has seen the end.
pub async fn follow(world: World, parity: Option<&'static str>, mut random: Seeded) -> Vec<Session> {
    let selector = parity.map_or_else(String::new, |parity| format!("&labelSelector=parity%3D{parity}"));
    let mut sessions: Vec<Session> = vec![];
    loop {
        let mut connection = Connection::open(&world).await;
        let Ok((200, list)) = connection.ask(Method::GET, &format!("{MAPS}?{selector}"), String::new()).await else {
            continue;
        };
        let items = list["items"].as_array().unwrap().iter().map(|item| (name_of(item), value_of(item)));
        let (server, start) = (connection.server, revision_of(&list));
        let mut session = Session { server, parity, start, listed: items.collect(), events: vec![] };
        let mut ended = if session.listed.contains_key(mark(parity)) { Ended::All } else { Ended::CutOff };
        while ended == Ended::CutOff {
            let path = format!("{MAPS}?watch=true&resourceVersion={}{selector}", session.last());
            // Cut off after so many events, to come back from there.
            if let Ok(response) = connection.send(Method::GET, &path, String::new()).await {
                ended = read(response.into_body(), &mut session.events, 1 + random.below(60), mark(parity)).await;
            }
            // Only another server does not know what this one gave out.
            assert!(ended != Ended::TooOld || connection.server > session.server, "{} is kept", session.last());
            connection = Connection::open(&world).await;
        }
        session.events.retain(|event| !END.contains(&&*event.key));
        session.listed.retain(|key, _| !END.contains(&&**key));
        sessions.push(session);
        if ended == Ended::All {
            return sessions;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    CutOff,
    TooOld,
    All,
}

/// Reads so many events, or until there are no more, or until the mark.
async fn read(mut body: Incoming, events: &mut Vec<Event>, most: u64, mark: &str) -> Ended {
    let mut text = vec![];
    let mut left = most;
    while let Some(Ok(frame)) = body.frame().await {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).unwrap();
            let (kind, object) = (event["type"].as_str().unwrap(), &event["object"]);
            if kind == "ERROR" {
                assert_eq!(object["code"], 410, "{object}");
                return Ended::TooOld;
            }
            let (key, value, revision) = (name_of(object), value_of(object), revision_of(object));
            let last = key == mark;
            events.push(Event { kind: kind.to_owned(), key, value, revision });
            left -= 1;
            match (last, left) {
                (true, _) => return Ended::All,
                (false, 0) => return Ended::CutOff,
                _ => {}
            }
        }
    }
    Ended::CutOff
}
