//! The clients: random requests for few keys, and a record of what was asked and answered.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Action, KEYS, Operation, Outcome, Seeded, World};
use crate::harness::TOKEN;

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// What the run ends with, one for each parity: the largest values.
pub const END: [&str; 2] = ["end-even", "end-odd"];

/// A list that was answered.
#[derive(Debug)]
pub struct Listed {
    pub server: u64,
    pub revision: u64,
    pub values: BTreeMap<String, u64>,
}

#[derive(Default)]
pub struct Recorded {
    pub operations: Vec<(String, Operation)>,
    /// From when to when which revision was given out, to a write or as that of a list.
    pub revisions: Vec<(u64, u64, u64)>,
    /// What was written at which revision, by answers.
    pub writes: BTreeMap<u64, (String, u64)>,
    /// Which key each value was meant for, answered or not.
    pub asked: HashMap<u64, String>,
    pub lists: Vec<Listed>,
}

impl Recorded {
    pub fn add(&mut self, other: Recorded) {
        self.operations.extend(other.operations);
        self.revisions.extend(other.revisions);
        self.writes.extend(other.writes);
        self.asked.extend(other.asked);
        self.lists.extend(other.lists);
    }
}

/// A connection to one server.
pub struct Connection {
    pub server: u64,
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl Connection {
    /// To the server that runs, whichever it is.
    pub async fn open(world: &World) -> Self {
        loop {
            let (server, address) = world.server().await;
            let Ok(stream) = tokio::net::TcpStream::connect(address).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let Ok((sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await else {
                continue;
            };
            let mut driver = JoinSet::new();
            driver.spawn(async move { drop(connection.await) });
            return Self { server, sender, _driver: driver };
        }
    }

    /// `Err`: it broke, and nobody knows.
    pub async fn send(&mut self, method: Method, path: &str, body: String) -> Result<http::Response<Incoming>, ()> {
        let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request.header("authorization", format!("Bearer {TOKEN}")).header("content-type", media);
        self.sender.ready().await.map_err(drop)?;
        self.sender.send_request(request.body(Full::from(body)).unwrap()).await.map_err(drop)
    }

    pub async fn ask(&mut self, method: Method, path: &str, body: String) -> Result<(u16, Value), ()> {
        let response = self.send(method, path, body).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.map_err(drop)?.to_bytes();
        Ok((status, serde_json::from_slice(&bytes).map_err(drop)?))
    }
}

pub fn revision_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

pub fn value_of(object: &Value) -> u64 {
    object["data"]["v"].as_str().unwrap().parse().unwrap()
}

pub fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

pub fn parity(value: u64) -> &'static str {
    if value.is_multiple_of(2) { "even" } else { "odd" }
}

fn object(key: &str, value: u64, at: Option<u64>) -> String {
    let mut object =
        json!({"metadata": {"name": key, "labels": {"parity": parity(value)}}, "data": {"v": value.to_string()}});
    if let Some(revision) = at {
        object["metadata"]["resourceVersion"] = revision.to_string().into();
    }
    object.to_string()
}

struct Client {
    world: World,
    random: Seeded,
    connection: Connection,
    /// What was last seen of each key: the value and its revision.
    seen: HashMap<String, (u64, u64)>,
    recorded: Recorded,
}

pub async fn run(world: World, random: Seeded, requests: u64) -> Recorded {
    let connection = Connection::open(&world).await;
    let mut client = Client { world, random, connection, seen: HashMap::new(), recorded: Recorded::default() };
    for _ in 0..requests {
        let key = format!("k{}", client.random.below(KEYS));
        match client.random.below(20) {
            0 | 1 => client.list().await,
            kind => client.one(key, kind).await,
        }
        client.world.finished.send_modify(|finished| *finished += 1);
    }
    client.recorded
}

impl Client {
    fn value(&mut self, key: &str) -> u64 {
        let value = self.world.values.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.recorded.asked.insert(value, key.to_owned());
        value
    }

    async fn one(&mut self, key: String, kind: u64) {
        let path = format!("{MAPS}/{key}");
        let seen = self.seen.get(&key).copied();
        let value = self.value(&key);
        let (action, method, path, body) = match (kind, seen) {
            (2..=5, _) => (Action::Create(value), Method::POST, MAPS.to_owned(), object(&key, value, None)),
            (6..=10, Some((old, at))) => {
                (Action::Replace(old, value), Method::PUT, path, object(&key, value, Some(at)))
            }
            (11..=13, _) => {
                let patch =
                    json!({"metadata": {"labels": {"parity": parity(value)}}, "data": {"v": value.to_string()}});
                (Action::Patch(value), Method::PATCH, path, patch.to_string())
            }
            (14, _) => (Action::Delete, Method::DELETE, path, String::new()),
            (15, Some((old, at))) => {
                let only = json!({"preconditions": {"resourceVersion": at.to_string()}});
                (Action::DeleteOnly(old), Method::DELETE, path, only.to_string())
            }
            _ => (Action::Read, Method::GET, path, String::new()),
        };
        let from = self.world.moment();
        let answer = self.connection.ask(method, &path, body).await;
        let outcome = match answer {
            Err(()) => self.broken().await,
            Ok((status, answer)) => self.outcome(&key, action, status, &answer),
        };
        let to = self.world.moment();
        // A read names the revision of the last write, which may be long ago.
        if let (Outcome::Done(Some(_)), Some((_, revision))) = (outcome, self.seen.get(&key))
            && action != Action::Read
        {
            self.recorded.revisions.push((from, to, *revision));
        }
        self.recorded.operations.push((key, Operation { from, to, action, outcome }));
    }

    fn outcome(&mut self, key: &str, action: Action, status: u16, answer: &Value) -> Outcome {
        match (status, answer["reason"].as_str().unwrap_or_default()) {
            (200 | 201, _) if matches!(action, Action::Delete | Action::DeleteOnly(_)) => {
                self.seen.remove(key);
                Outcome::Done(None)
            }
            (200 | 201, _) => {
                let (value, revision) = (value_of(answer), revision_of(answer));
                self.seen.insert(key.to_owned(), (value, revision));
                if action != Action::Read {
                    self.recorded.writes.insert(revision, (key.to_owned(), value));
                }
                Outcome::Done(Some(value))
            }
            (404, _) => Outcome::Missing,
            (409, "AlreadyExists") => Outcome::Exists,
            (409, "Conflict") => Outcome::Conflict,
            other => panic!("{action:?} of {key}: {other:?} {answer}"),
        }
    }

    async fn broken(&mut self) -> Outcome {
        self.world.after(self.connection.server).await;
        self.connection = Connection::open(&self.world).await;
        Outcome::Unknown
    }

    async fn list(&mut self) {
        let from = self.world.moment();
        let Ok((status, list)) = self.connection.ask(Method::GET, MAPS, String::new()).await else {
            self.broken().await;
            return;
        };
        let to = self.world.moment();
        assert_eq!(status, 200, "{list}");
        let values: BTreeMap<_, _> =
            list["items"].as_array().unwrap().iter().map(|item| (name_of(item), value_of(item))).collect();
        for key in (0..KEYS).map(|key| format!("k{key}")) {
            let outcome = values.get(&key).map_or(Outcome::Missing, |value| Outcome::Done(Some(*value)));
            self.recorded.operations.push((key, Operation { from, to, action: Action::Read, outcome }));
        }
        let revision = revision_of(&list);
        self.recorded.revisions.push((from, to, revision));
        self.recorded.lists.push(Listed { server: self.connection.server, revision, values });
    }
}

/// The last two changes, so that a watch knows that it has seen all others.
pub async fn mark_the_end(world: &World) {
    let mut connection = Connection::open(world).await;
    for (value, name) in END.into_iter().enumerate() {
        let (status, _) =
            connection.ask(Method::POST, MAPS, object(name, u64::MAX - 1 + value as u64, None)).await.unwrap();
        assert_eq!(status, 201);
    }
}
