//! A seeded load that comes at its own rate, however long answers take, and looks at every one of them.
//!
//! The surprise: requests that are due wait for one of a bounded number of connections, so a platform that stalls is asked
//! everything that it missed at once when it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Platform, eventually};

/// How often requests that are due are let go.
const PACE: Duration = Duration::from_millis(5);
/// Failures that are told in full; the others are counted.
const TOLD: usize = 20;
/// One in so many requests is a POST, while there may be any.
const POSTS: u64 = 8;
/// One in so many connections ends with a request.
const CLOSES: u64 = 64;
/// The instance takes its time, up to so many milliseconds, for one in so many requests.
const PAUSES: [(u64, u64); 2] = [(128, 1_000), (4, 40)];
/// Versions that may answer for a target at any time: the one that had the traffic, the newest, which has it when a rollback
/// ends, and the next.
const VERSIONS: usize = 3;

/// A small generator of its own, so that a seed means the same for ever (splitmix, Steele 2014).
pub struct Seeded(pub u64);

impl Seeded {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A service that answers with its name, its version, the request's method and target, and its body.
#[derive(Clone)]
pub struct Target {
    pub name: &'static str,
    /// Its part of the load.
    pub weight: u64,
}

/// Requests that come until they are told to end.
pub struct Flood {
    shared: Arc<Shared>,
    running: JoinSet<()>,
}

struct Shared {
    gateway: String,
    hosts: Vec<String>,
    targets: Vec<Target>,
    seed: u64,
    begun: Instant,
    due: Semaphore,
    next: AtomicU64,
    answered: AtomicU64,
    ended: AtomicBool,
    posting: AtomicBool,
    /// POSTs that are under way.
    posts: AtomicUsize,
    posted: AtomicU64,
    slowest: Mutex<Duration>,
    /// What else is going on, for whoever reads of a failure.
    action: Mutex<String>,
    /// Of each target the versions that may answer now.
    versions: Mutex<Vec<Vec<String>>>,
    failures: Mutex<(u64, Vec<String>)>,
}

/// One request, as its number says.
struct Call {
    number: u64,
    target: usize,
    post: bool,
    closes: bool,
    path: String,
}

impl Flood {
    pub fn start(platform: &Platform, targets: &[Target], rate: u64, connections: usize, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            gateway: platform.endpoint("gateway"),
            hosts: targets.iter().map(|target| platform.host(target.name)).collect(),
            targets: targets.to_vec(),
            seed,
            begun: Instant::now(),
            due: Semaphore::new(0),
            next: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            posting: AtomicBool::new(true),
            posts: AtomicUsize::new(0),
            posted: AtomicU64::new(0),
            slowest: Mutex::default(),
            action: Mutex::default(),
            versions: Mutex::new(vec![vec![]; targets.len()]),
            failures: Mutex::default(),
        });
        let mut running = JoinSet::new();
        for _ in 0..connections {
            running.spawn(caller(shared.clone()));
        }
        running.spawn(pacer(shared.clone(), rate));
        Self { shared, running }
    }

    /// Requests that have been answered, or have failed.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    /// Says what is under way from now on.
    pub fn during(&self, action: &str) {
        *self.shared.action.lock().expect("no panic") = action.to_owned();
    }

    /// From now on this version may answer for the target, beside the last ones.
    pub fn allow(&self, name: &str, version: &str) {
        let at = self.shared.targets.iter().position(|target| target.name == name).expect("a target");
        let versions = &mut self.shared.versions.lock().expect("no panic")[at];
        versions.retain(|known| known != version);
        versions.push(version.to_owned());
        let surplus = versions.len().saturating_sub(VERSIONS);
        versions.drain(..surplus);
    }

    /// No POSTs from now on; returns once none is under way.
    pub async fn only_safe(&self) {
        self.shared.posting.store(false, Relaxed);
        eventually("the POSTs are answered", || async {
            let count = self.shared.posts.load(std::sync::atomic::Ordering::SeqCst);
            if count == 0 { Ok(()) } else { Err(count) }
        })
        .await;
    }

    /// Whether a request failed.
    pub fn has_failed(&self) -> bool {
        self.shared.failures.lock().expect("no panic").0 > 0
    }

    /// Lets what is due come to its end; panics with what failed.
    pub async fn end(mut self) -> String {
        self.shared.ended.store(true, Relaxed);
        while let Some(ended) = self.running.join_next().await {
            ended.expect("the load ends");
        }
        let Shared { next, posted, begun, slowest, failures, seed, .. } = &*self.shared;
        let (count, told) = &*failures.lock().expect("no panic");
        let slowest = *slowest.lock().expect("no panic");
        let sent = next.load(Relaxed);
        let words = format!(
            "{sent} requests, {} of them POSTs, in {:.0?}; the slowest took {slowest:.0?}; seed {seed}",
            posted.load(Relaxed),
            begun.elapsed()
        );
        assert!(*count == 0, "{count} failed of {words}:\n{}", told.join("\n"));
        words
    }
}

/// Lets requests go as they become due.
async fn pacer(shared: Arc<Shared>, rate: u64) {
    let (begun, mut let_go) = (Instant::now(), 0);
    while !shared.ended.load(Relaxed) {
        let due = begun.elapsed().as_millis() as u64 * rate / 1000;
        shared.due.add_permits((due - let_go) as usize);
        let_go = due;
        tokio::time::sleep(PACE).await;
    }
    shared.due.close();
}

/// One connection at a time, and one request at a time on it.
async fn caller(shared: Arc<Shared>) {
    let mut connection = None;
    while let Ok(permit) = shared.due.acquire().await {
        permit.forget();
        let call = shared.call();
        let sent = shared.begun.elapsed();
        let doing = shared.action.lock().expect("no panic").clone();
        let before = shared.versions.lock().expect("no panic")[call.target].clone();
        if call.post {
            shared.posted.fetch_add(1, Relaxed);
        }
        let answered = shared.ask(&mut connection, &call).await;
        if call.post {
            shared.posts.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        }
        let took = shared.begun.elapsed() - sent;
        {
            let mut slowest = shared.slowest.lock().expect("no panic");
            *slowest = took.max(*slowest);
        }
        if let Err(why) = answered.and_then(|body| shared.judge(&call, &before, &body)) {
            let action = shared.action.lock().expect("no panic").clone();
            let name = shared.targets[call.target].name;
            let method = if call.post { "POST" } else { "GET" };
            shared.fail(format!(
                "request {} ({method} {name} {}) sent at {sent:.3?} during [{doing}], after {took:.3?} during [{action}]: {why}",
                call.number, call.path
            ));
        }
        shared.answered.fetch_add(1, Relaxed);
    }
}

impl Shared {
    /// The next request.
    fn call(&self) -> Call {
        let number = self.next.fetch_add(1, Relaxed);
        let mut random = Seeded(self.seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        let mut dice = random.below(self.targets.iter().map(|target| target.weight).sum());
        let target = self.targets.iter().position(|target| {
            let here = dice < target.weight;
            dice = dice.saturating_sub(target.weight);
            here
        });
        // Counted before it is looked at again, so that whoever forbids them sees every one that is still to come.
        self.posts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let post = random.below(POSTS) == 0 && self.posting.load(std::sync::atomic::Ordering::SeqCst);
        if !post {
            self.posts.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        }
        let slow = PAUSES.into_iter().find(|(one_in, _)| random.below(*one_in) == 0);
        let pause = slow.map_or_else(String::new, |(_, most)| format!("?pause={}", random.below(most)));
        let closes = random.below(CLOSES) == 0;
        Call { number, target: target.unwrap_or(0), post, closes, path: format!("/{number}{pause}") }
    }

    async fn ask(&self, connection: &mut Option<SendRequest<Full<Bytes>>>, call: &Call) -> Result<String, String> {
        let mut sender = match connection.take() {
            Some(sender) => sender,
            None => self.connect().await.map_err(|error| format!("no connection: {error}"))?,
        };
        let method = if call.post { Method::POST } else { Method::GET };
        let body = if call.post { Bytes::from(format!("body {}", call.number)) } else { Bytes::new() };
        let mut request = Request::builder().method(method).uri(&call.path).header("host", &self.hosts[call.target]);
        if call.closes {
            request = request.header("connection", "close");
        }
        let request = request.body(Full::new(body)).expect("a request");
        sender.ready().await.map_err(|error| format!("the kept connection ended: {error}"))?;
        let response = sender.send_request(request).await.map_err(|error| format!("no answer: {error:?}"))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| format!("{} broke off: {error:?}", parts.status))?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        if parts.status != 200 {
            return Err(format!("{} {:?} {body}", parts.status, parts.headers));
        }
        if !call.closes {
            *connection = Some(sender);
        }
        Ok(body)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&self.gateway).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // What happens to it is told to whoever waits for an answer.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Whether it is the answer to this very request, by a version that might give it.
    fn judge(&self, call: &Call, before: &[String], body: &str) -> Result<(), String> {
        let (method, sent) = if call.post { ("POST", format!("body {}", call.number)) } else { ("GET", String::new()) };
        let name = self.targets[call.target].name;
        let after = self.versions.lock().expect("no panic")[call.target].clone();
        let wants = |version: &String| format!("{name} {version} {method} {} {sent}", call.path) == body;
        if before.iter().chain(&after).any(wants) {
            return Ok(());
        }
        Err(format!("not its answer: {body:?}; versions {before:?}, then {after:?}"))
    }

    fn fail(&self, words: String) {
        let mut failures = self.failures.lock().expect("no panic");
        failures.0 += 1;
        if failures.1.len() < TOLD {
            println!("{words}");
            failures.1.push(words);
        }
    }
}
