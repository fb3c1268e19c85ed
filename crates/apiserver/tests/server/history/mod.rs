//! Eight clients at random over HTTP, watches beside them, and a server that is killed under them: what they saw is the
//! story of one object store, and every watch tells the same story.

mod checker;
mod clients;
mod watchers;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apiserver::ApiServer;
use tokio::sync::watch;

use self::checker::{Action, Content, Operation, Outcome, check};
use self::clients::{Listed, Recorded};
use self::watchers::{Event, Session};
use crate::harness;

const DATA: &str = "DHOW_HISTORY_CHILD_DATA";
const CLIENTS: u64 = 8;
const KEYS: u64 = 12;

/// A small generator of its own, so that a seed means the same requests for ever (xorshift, Marsaglia 2003).
#[derive(Clone)]
pub struct Seeded(u64);

impl Seeded {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What all clients share.
#[derive(Clone)]
pub struct World {
    /// Counts moments: what is counted later happened later.
    moments: Arc<AtomicU64>,
    values: Arc<AtomicU64>,
    /// Requests that were answered, or not.
    finished: watch::Sender<u64>,
    /// Where the server is, and the how manyth it is; `None` while there is none.
    server: watch::Receiver<Option<(u64, SocketAddr)>>,
}

impl World {
    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    /// The server that runs, or the next one.
    async fn server(&self) -> (u64, SocketAddr) {
        let mut server = self.server.clone();
        let found = server.wait_for(Option::is_some).await.unwrap();
        found.unwrap()
    }

    /// Waits until a server that broke a connection is surely dead: nothing it was asked for can happen after that.
    async fn after(&self, dead: u64) {
        let mut server = self.server.clone();
        let _ = server.wait_for(|now| now.is_some_and(|(number, _)| number > dead)).await.unwrap();
    }
}

/// What the child does: it serves a file until it is killed, or whoever started it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(folder) = std::env::var_os(DATA).map(PathBuf::from) else { return };
    let options = store::Options { checkpoint_bytes: 256 << 10, log_bytes: 1 << 20, ..store::Options::default() };
    let store = store::Store::open(&folder.join("objects.db"), apiserver::index, options).unwrap();
    let server = ApiServer::new(store, harness::config()).unwrap();
    let address = harness::listen_plainly(&server).await;
    println!("listening {address}");
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await.unwrap().unwrap();
}

fn start(folder: &Path) -> (Child, SocketAddr) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "history::child", "--nocapture", "--test-threads=1"]).env(DATA, folder);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines.map_while(Result::ok).find_map(|line| {
        // The test harness prints its own words in front of it.
        line.split_once("listening ").map(|(_, address)| address.parse().unwrap())
    });
    (child, address.expect("the child listens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_and_watches_see_one_history() {
    let long = std::env::var_os("DHOW_LONG").is_some();
    let (requests, crashes) = if long { (24_000, 24) } else { (1_600, 4) };
    let seed = std::env::var("DHOW_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(2026);
    println!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let (announce, server) = watch::channel(None);
    let world = World { moments: Arc::default(), values: Arc::default(), finished: watch::Sender::new(0), server };
    let (mut child, address) = start(folder.path());
    announce.send_replace(Some((0, address)));
    let watches: Vec<_> = [None, Some("even"), Some("odd")]
        .into_iter()
        .map(|parity| tokio::spawn(watchers::follow(world.clone(), parity, Seeded::new(seed ^ 0xbeef))))
        .collect();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            tokio::spawn(clients::run(world.clone(), Seeded::new(seed * CLIENTS + number), requests / CLIENTS))
        })
        .collect();
    let mut random = Seeded::new(seed);
    for crash in 1..=crashes {
        // At any moment of a part of the run of its own.
        let at = (crash - 1) * (requests / crashes) + random.below(requests / crashes * 3 / 4);
        drop(world.finished.subscribe().wait_for(|finished| *finished >= at).await.unwrap());
        announce.send_replace(None);
        child.kill().unwrap();
        child.wait().unwrap();
        let (next, address) = start(folder.path());
        child = next;
        announce.send_replace(Some((crash, address)));
    }
    let mut recorded = Recorded::default();
    for client in clients {
        recorded.add(client.await.unwrap());
    }
    clients::mark_the_end(&world).await;
    let mut sessions = vec![];
    for watch in watches {
        sessions.push(watch.await.unwrap());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    judge(&recorded, &sessions);
    let unknown = recorded.operations.iter().filter(|(_, operation)| operation.outcome == Outcome::Unknown).count();
    println!("{} operations, {unknown} of them unknown", recorded.operations.len());
}

/// Everything that must hold of what was seen.
fn judge(recorded: &Recorded, sessions: &[Vec<Session>]) {
    let mut by_key: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
    for (key, operation) in &recorded.operations {
        by_key.entry(key).or_default().push(*operation);
    }
    for (key, operations) in by_key {
        check(operations).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    revisions_follow_time(&recorded.revisions);
    for session in sessions.iter().flatten() {
        session.is_a_story();
    }
    let [all, of_parity @ ..] = sessions else { panic!("no watch") };
    for session in all {
        changes_are_all_there(recorded, session);
        for selected in of_parity.iter().flatten().filter(|selected| selected.server == session.server) {
            selected.is_part_of(session);
        }
        for listed in recorded.lists.iter().filter(|listed| listed.server == session.server) {
            lists_are_of_one_moment(listed, session);
        }
    }
}

/// Of two answers, one before the other, the later one's revision is not the lower one.
fn revisions_follow_time(revisions: &[(u64, u64, u64)]) {
    let mut by_end: Vec<_> = revisions.to_vec();
    by_end.sort_by_key(|(_, to, _)| *to);
    let mut by_start: Vec<_> = revisions.to_vec();
    by_start.sort();
    let (mut ended, mut highest) = (by_end.into_iter().peekable(), 0);
    for (from, _, revision) in by_start {
        while let Some((_, _, earlier)) = ended.next_if(|(_, to, _)| *to < from) {
            highest = highest.max(earlier);
        }
        assert!(revision >= highest, "revision {revision} was given out after {highest}");
    }
}

/// A watch of everything saw every write that was answered, and nothing that was never asked for.
fn changes_are_all_there(recorded: &Recorded, session: &Session) {
    let seen: HashMap<u64, &Event> = session.events.iter().map(|event| (event.revision, event)).collect();
    for (revision, (key, value)) in recorded.writes.range(session.start + 1..=session.last()) {
        let event = seen.get(revision).unwrap_or_else(|| panic!("no event for {key} at {revision}"));
        assert_eq!((&event.key, event.content()), (key, Some(*value)), "revision {revision}");
    }
    for event in &session.events {
        let known = recorded.asked.get(&event.value);
        assert_eq!(known, Some(&event.key), "somebody wrote what {event:?} shows");
    }
}

/// A list shows what all changes up to its revision make.
fn lists_are_of_one_moment(listed: &Listed, session: &Session) {
    if !(session.start..=session.last()).contains(&listed.revision) {
        return;
    }
    let mut then: BTreeMap<String, Content> =
        session.listed.iter().map(|(key, value)| (key.clone(), Some(*value))).collect();
    for event in session.events.iter().take_while(|event| event.revision <= listed.revision) {
        then.insert(event.key.clone(), event.content());
    }
    let then: BTreeMap<_, _> = then.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    assert_eq!(listed.values, then, "the list at {}", listed.revision);
}
