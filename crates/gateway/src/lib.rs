//! The request path: listen, route, hold until an instance is ready, limit, balance, proxy, count.
//!
//! Owns: everything between a client's socket and an instance's. Must not know: who writes Ingresses and
//! EndpointSlices, or how instances come to be. The surprise: no request ever awaits the API server; it reads what was
//! published last, or waits for its revision to get a free slot.

mod answer;
mod backend;
mod budget;
mod certificates;
mod connection;
mod endpoints;
mod feed;
mod h2c;
mod headers;
mod hub;
mod io;
mod listen;
mod metrics;
mod peers;
mod probe;
mod push;
mod request;
mod slots;
mod table;
mod upgrade;
mod upstream;
mod watch;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use api::wire::GatewayMessage;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use feed::Feed;
pub use peers::Own;
pub use push::push;

use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::table::Side;

/// Where the gateway listens and what it allows.
#[derive(Clone, Debug)]
pub struct Config {
    /// Serves what is visible from outside.
    pub public: SocketAddr,
    /// The same as `public`, over TLS, for hosts that have a certificate.
    pub secure: Option<SocketAddr>,
    /// The port at which the outside world reaches `secure`, if it is another than it listens on.
    pub secure_port: Option<u16>,
    /// The pods' side: also serves cluster-local hosts.
    pub internal: Option<SocketAddr>,
    pub threads: usize,
    pub limits: Limits,
    /// How long requests in flight may take once the gateway was told to stop.
    pub grace: Duration,
    /// What the gateway is called in its messages, where there may be several; empty for the only one.
    pub name: String,
    /// On a cluster: kubelets say what is ready, and late, so addresses are probed from here; and the autoscaler marks
    /// the pods that it is about to remove. There are other gateways, too.
    pub cluster: Option<Own>,
}

/// Bounds on what clients may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Client connections and tunnels, over all threads; one more is closed at once.
    pub connections: usize,
    /// Requests that wait for one revision; one more is answered 503.
    pub queue: usize,
    /// Bytes of a request's head; more is answered 431.
    pub header_bytes: usize,
    /// From a head's first byte to its last.
    pub header_read: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For how long a client may read nothing of an answer.
    pub write_stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            queue: 10_000,
            header_bytes: 64 * 1024,
            header_read: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write_stall: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("the gateway cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("the gateway cannot speak TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the gateway cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    #[error("a gateway thread ended: {0}")]
    Ended(String),
}

/// Where the gateway listens, with the ports it was given for port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub public: SocketAddr,
    pub secure: Option<SocketAddr>,
    pub internal: Option<SocketAddr>,
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Public,
    Secure,
    Internal,
}

impl Door {
    pub fn side(self) -> Side {
        match self {
            Self::Public | Self::Secure => Side::Public,
            Self::Internal => Side::Internal,
        }
    }
}

/// A bound gateway that does not serve yet; clients that connect meanwhile wait.
#[derive(Debug)]
pub struct Gateway {
    feed: Feed,
    addresses: Addresses,
    /// Where clients of plain HTTP are sent that should speak TLS.
    https_port: Option<u16>,
    /// One set per thread.
    listeners: Vec<Vec<(TcpListener, Door)>>,
    limits: Limits,
    grace: Duration,
}

impl Gateway {
    /// Binds all listeners and registers the metrics.
    pub fn bind(config: Config, registry: &mut Registry) -> Result<Self, GatewayError> {
        let threads = config.threads.max(1);
        let mut listeners: Vec<Vec<(TcpListener, Door)>> = (0..threads).map(|_| vec![]).collect();
        let mut open = |address: SocketAddr, door: Door| {
            let (bound, more) = listen::bind(address, threads)?;
            listeners.iter_mut().zip(more).for_each(|(all, one)| all.push((one, door)));
            Ok::<_, GatewayError>(bound)
        };
        let public = open(config.public, Door::Public)?;
        let secure = config.secure.map(|address| open(address, Door::Secure)).transpose()?;
        let internal = config.internal.map(|address| open(address, Door::Internal)).transpose()?;
        let hub = Hub::new(Metrics::register(registry), config.limits.queue, config.name, config.cluster.is_some());
        let feed = Feed::new(hub, config.cluster);
        let addresses = Addresses { public, secure, internal };
        let https_port = config.secure_port.or(secure.map(|address| address.port()));
        Ok(Self { feed, addresses, https_port, listeners, limits: config.limits, grace: config.grace })
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What routes and instances are read from: [`Gateway::run`] fills it from an API server.
    pub fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// Serves what the API server says, until `shutdown` and then until the requests in flight are done.
    pub async fn run(
        self,
        client: kube::Client,
        to_autoscaler: mpsc::Sender<GatewayMessage>,
        shutdown: CancellationToken,
    ) -> Result<(), GatewayError> {
        let (feed, is_secure) = (self.feed.clone(), self.addresses.secure.is_some());
        tokio::select! {
            served = self.serve(to_autoscaler, shutdown) => served,
            () = watch::run(client, &feed, is_secure) => Err(GatewayError::Ended("the watches stopped".into())),
        }
    }

    /// Serves what its [`Feed`] is given by hand.
    pub async fn serve(
        self,
        to_autoscaler: mpsc::Sender<GatewayMessage>,
        shutdown: CancellationToken,
    ) -> Result<(), GatewayError> {
        let hub = self.feed.hub().clone();
        // Dropping this future, too, ends the threads.
        let drain = shutdown.child_token();
        let _ends_threads = drain.clone().drop_guard();
        let (ended, mut endings) = mpsc::unbounded_channel();
        let open = Arc::default();
        let tls = certificates::server(self.feed.clone())?;
        let count = self.listeners.len();
        for (number, listeners) in self.listeners.into_iter().enumerate() {
            let plan = worker::Plan {
                listeners,
                feed: self.feed.clone(),
                tls: tls.clone(),
                https_port: self.https_port,
                limits: self.limits,
                open: Arc::clone(&open),
                drain: drain.clone(),
                grace: self.grace,
            };
            let ended = ended.clone();
            let body = move || {
                let result = std::panic::catch_unwind(AssertUnwindSafe(|| worker::run(plan)));
                let result = result.unwrap_or_else(|_| Err(std::io::Error::other("it panicked")));
                // Nobody listens any more once the whole gateway was dropped.
                let _ = ended.send(result);
            };
            std::thread::Builder::new().name(format!("gateway-{number}")).spawn(body).map_err(GatewayError::Thread)?;
        }
        drop(ended);
        let threads = async {
            for _ in 0..count {
                match endings.recv().await {
                    Some(Ok(())) if drain.is_cancelled() => {}
                    Some(Err(error)) => return Err(GatewayError::Ended(error.to_string())),
                    Some(Ok(())) | None => return Err(GatewayError::Ended("it was not told to".into())),
                }
            }
            Ok(())
        };
        tokio::select! {
            ended = threads => ended,
            () = hub.run(to_autoscaler) => Err(GatewayError::Ended("the hub stopped".into())),
            () = probe::run(&hub) => Err(GatewayError::Ended("the prober stopped".into())),
        }
    }
}
