//! A Kubernetes-style API server: HTTP over `store`, for controllers, kubectl and everything that speaks to a cluster.
//!
//! Owns: paths, verbs, content types, validation, patches, field ownership, tables, watches, and how errors are worded.
//! One generic handler serves every kind; a kind is one [`kinds::Strategy`] row. Must not know: sockets, TLS, files,
//! or what any controller does with an object.
//!
//! The surprise: an object is a parsed value only inside one request. It is stored, cached and watched as JSON bytes
//! that already carry their resourceVersion, beside a small [`Index`] that selectors are matched against.

mod auth;
mod discovery;
mod fieldset;
mod forms;
#[cfg(test)]
mod fuzz;
mod handler;
mod index;
mod kinds;
mod listing;
mod logs;
mod openapi;
mod options;
mod patch;
mod protobuf;
mod quantity;
mod request;
mod rules;
mod schema;
mod selector;
mod service;
mod status;
mod stream;
mod swagger;
mod table;
mod watch;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use auth::User;
pub use index::{Index, examine, index};
pub use service::{External, Local};
pub use status::ApiError;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;
/// What either service takes, whatever the transport's body was.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
pub type ObjectStore = store::Store<Index>;

/// Reaches the node's API for the pods' logs (`GET /containerLogs/{namespace}/{pod}/{container}`), and for visits: POST to
/// `/exec/…` and `/attach/…` of the same form, whose bodies are [`api::frames`], and to
/// `/portForward/{namespace}/{pod}?port=…`, whose bodies are the bytes of one connection.
pub type NodeProxy =
    tower::util::BoxCloneSyncService<http::Request<RequestBody>, http::Response<ResponseBody>, BoxError>;

/// Everything that the composition root decides. Each bound says what happens beyond it.
pub struct Config {
    /// Bearer tokens of [`ApiServer::external`]; all others get 401.
    pub tokens: Vec<(String, User)>,
    pub clock: api::Clock,
    /// Absent: pod logs and visits answer 503.
    pub node_proxy: Option<NodeProxy>,
    /// Larger bodies get 413.
    pub max_body_bytes: usize,
    /// Bytes of external clients' bodies that have not come to their end; who sends more gets 429.
    pub max_pending_bytes: usize,
    /// A body that has not come to its end by then gets 504.
    pub body_timeout: Duration,
    /// Open watches of external clients; more get 429. Watches in process are as many as the program starts.
    pub max_watches: usize,
    /// Visits to pods (exec, attach, port-forward) that are open; more get 429.
    pub max_visits: usize,
    /// Events kept; the oldest are dropped.
    pub max_events: usize,
    /// Whether an external client is shown only what is on disk.
    pub external_durable: bool,
    /// Ends every watch and every visit, so that a draining listener does not wait for them.
    pub stop: CancellationToken,
}

impl Config {
    /// The bounds that Kubernetes has, no token, no node.
    pub fn new(clock: api::Clock) -> Self {
        Self {
            tokens: vec![],
            clock,
            node_proxy: None,
            max_body_bytes: 3 << 20,
            max_pending_bytes: 128 << 20,
            body_timeout: Duration::from_secs(60),
            max_watches: 4096,
            max_visits: 512,
            max_events: 10_000,
            external_durable: true,
            stop: CancellationToken::new(),
        }
    }
}

/// The server. All clones are the same one.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub store: ObjectStore,
    pub kinds: ArcSwap<kinds::Kinds>,
    pub definitions: Mutex<handler::Definitions>,
    pub tokens: auth::Tokens,
    pub clock: api::Clock,
    pub node_proxy: Option<NodeProxy>,
    pub max_body_bytes: usize,
    pub pending: Semaphore,
    pub body_timeout: Duration,
    pub max_events: usize,
    pub external_durable: bool,
    pub watches: Arc<Semaphore>,
    pub visits: Arc<Semaphore>,
    pub max_visits: usize,
    /// Since the program began, as [`stream::KINDS`] has them.
    pub visits_begun: [AtomicU64; stream::KINDS.len()],
    /// The tasks that serve visits; each ends with its client, or when `stop` says so.
    pub visitors: TaskTracker,
    pub stop: CancellationToken,
    /// Keys of Events, oldest first, so that the oldest can be dropped.
    pub events: Mutex<VecDeque<Arc<str>>>,
    pub documents: openapi::Documents,
}

impl ApiServer {
    /// Serves what the store holds. The namespaces that every cluster has are made when they are missing, and the
    /// definitions of our own types brought to what this program knows.
    pub fn new(store: ObjectStore, config: Config) -> Result<Self, ApiError> {
        let events = store.list(kinds::EVENT_PREFIX);
        let mut oldest_first = events.entries;
        oldest_first.sort_by_key(|entry| entry.created);
        let inner = Inner {
            store,
            kinds: ArcSwap::from_pointee(kinds::Kinds::new()),
            definitions: Mutex::default(),
            tokens: auth::Tokens::new(config.tokens),
            clock: config.clock,
            node_proxy: config.node_proxy,
            max_body_bytes: config.max_body_bytes,
            pending: Semaphore::new(config.max_pending_bytes.min(Semaphore::MAX_PERMITS)),
            body_timeout: config.body_timeout,
            max_events: config.max_events,
            external_durable: config.external_durable,
            watches: Arc::new(Semaphore::new(config.max_watches)),
            visits: Arc::new(Semaphore::new(config.max_visits)),
            max_visits: config.max_visits,
            visits_begun: Default::default(),
            visitors: TaskTracker::new(),
            stop: config.stop,
            events: Mutex::new(oldest_first.into_iter().map(|entry| entry.key).collect()),
            documents: openapi::Documents::default(),
        };
        let server = Self { inner: Arc::new(inner) };
        server.inner.make_namespaces()?;
        server.inner.make_definitions()?;
        Ok(server)
    }

    /// For clients outside: needs a bearer token, and answers a write once it is on disk.
    pub fn external(&self) -> External {
        External::new(self.inner.clone())
    }

    /// For the program itself: trusted, and never behind an fsync.
    pub fn local(&self) -> Local {
        Local::new(self.inner.clone())
    }

    /// The visits to pods that are open, and how many of each kind have begun.
    pub fn visits(&self) -> (usize, impl Iterator<Item = (&'static str, u64)>) {
        let begun = self.inner.visits_begun.iter().map(|count| count.load(Ordering::Relaxed));
        (self.inner.max_visits - self.inner.visits.available_permits(), stream::KINDS.into_iter().zip(begun))
    }

    /// Waits until no visit to a pod is open any more; to be called once `stop` has been given.
    pub async fn visits_ended(&self) {
        self.inner.visitors.close();
        self.inner.visitors.wait().await;
    }

    /// A client over [`ApiServer::local`]. Must be called inside a tokio runtime.
    pub fn client(&self, default_namespace: &str) -> kube::Client {
        kube::Client::new(self.local(), default_namespace)
    }
}

pub(crate) fn whole(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
