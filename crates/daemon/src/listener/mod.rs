//! Listeners for the program's own APIs: bound eagerly, bounded, drained.
//!
//! Accepting stops when the token is cancelled; connections then finish the request in hand. Everybody is accepted at once:
//! when there are too many, the one who has asked for nothing for longest goes ([`room`]), and while all have requests in
//! hand, whoever comes is told so in HTTP. A client that does not read is not waited for ([`answers`]).

mod answers;
mod counting;
mod room;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::answers::{Answers, PIECE_BYTES};
use self::counting::Counted;
pub use self::counting::Counters;
use self::room::{Place, Room};
use crate::DaemonError;

/// Connections beside the others whose requests are refused; more than these are closed at once.
const REFUSALS: usize = 64;
/// Of what was not sent yet, and of the head of a request, this much is held for each connection or stream.
const BUFFER_BYTES: usize = PIECE_BYTES;

/// A bound socket that nobody serves yet.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    counted: Counted,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that are served. More take the place of those without a request in hand, or are answered 429.
    pub connections: usize,
    /// How long a client may take for the TLS handshake, and then for its first request's head.
    pub header_timeout: Duration,
    /// A connection that was of use is closed when it has had no request in hand for that long.
    pub idle: Duration,
    /// An answer is broken off when its next piece was not taken for that long.
    pub stall: Duration,
    /// How long requests in hand may go on once the token is cancelled.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            header_timeout: Duration::from_secs(10),
            // As long as Kubernetes has it: clients rely on it for their pools.
            idle: Duration::from_secs(90),
            stall: Duration::from_secs(60),
            drain: Duration::from_secs(5),
        }
    }
}

impl Listener {
    /// `flag` is what a person would change to choose another address.
    pub async fn bind(address: &str, flag: &str) -> Result<Self, DaemonError> {
        let failed = |source| DaemonError::Listen { address: address.to_owned(), flag: flag.to_owned(), source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, counted: Counted::default() })
    }

    /// Lets it be seen what becomes of its clients.
    pub fn counted(self, counters: &Counters, name: &'static str) -> Self {
        Self { counted: counters.of(name), ..self }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves HTTP/1.1 and HTTP/2, over TLS when a configuration is given, until the token is cancelled.
    pub async fn serve<S, F, B>(
        self,
        tls: Option<Arc<rustls::ServerConfig>>,
        limits: Limits,
        handle: S,
        stop: CancellationToken,
    ) -> Result<(), Infallible>
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
        let (room, refusals) =
            (Room::new(limits.connections, self.counted.dismissed.clone()), Arc::new(Semaphore::new(REFUSALS)));
        let tasks = TaskTracker::new();
        let mut failing = false;
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Usually that there are no more file descriptors: said once, not for every try.
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(%error, address = %self.address, "cannot accept a connection");
                        }
                        room.dismiss();
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            failing = false;
            let _ = stream.set_nodelay(true);
            let (acceptor, handle, stop) = (acceptor.clone(), handle.clone(), stop.clone());
            let Some(place) = room.enter() else {
                self.counted.refused.inc();
                // Beyond these, a connection is closed without a word.
                if let Ok(permit) = refusals.clone().try_acquire_owned() {
                    tasks.spawn(async move {
                        refused(stream, acceptor, limits).await;
                        drop(permit);
                    });
                }
                continue;
            };
            let answers = Arc::new(Answers::new(self.counted.broken_off.clone()));
            tasks.spawn(guest(stream, acceptor, Guest { place, answers, limits }, handle, stop));
        }
        tasks.close();
        if tokio::time::timeout(limits.drain, tasks.wait()).await.is_err() {
            tracing::debug!(address = %self.address, "connections were still open after the drain");
        }
        Ok(())
    }
}

/// What a connection has of its listener.
struct Guest {
    place: Arc<Place>,
    answers: Arc<Answers>,
    limits: Limits,
}

/// Serves one client, as long as it may stay.
async fn guest<S, F, B>(
    stream: TcpStream,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    guest: Guest,
    handle: S,
    stop: CancellationToken,
) where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Some(acceptor) = acceptor else { return connection(TokioIo::new(stream), guest, handle, stop).await };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(guest.limits.header_timeout, acceptor.accept(stream)) => shaken,
        () = guest.place.lost() => return,
        () = stop.cancelled() => return,
    };
    match shaken {
        Ok(Ok(stream)) => connection(TokioIo::new(stream), guest, handle, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

/// Tells a client, in HTTP, that there is no room for it.
async fn refused(stream: TcpStream, acceptor: Option<tokio_rustls::TlsAcceptor>, limits: Limits) {
    // One place, never needed by anybody else: it is left when the first request was answered.
    let (answered, alone) = (CancellationToken::new(), Room::new(1, Counter::default()));
    let Some(place) = alone.enter() else { return };
    let answers = Arc::new(Answers::new(Counter::default()));
    let said = answered.clone();
    let handle = move |request: Request<Incoming>| {
        said.cancel();
        std::future::ready(too_many(request.version()))
    };
    // All of it takes no longer than a head may.
    let serving = guest(stream, acceptor, Guest { place, answers, limits }, handle, answered);
    if tokio::time::timeout(limits.header_timeout, serving).await.is_err() {
        tracing::debug!("a client that was to be refused asked for nothing");
    }
}

/// The words of Kubernetes, whose clients then come back by themselves.
fn too_many(version: Version) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"Too many requests, please try again later.\n")));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if version < Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn connection<I, S, F, B>(io: I, guest: Guest, handle: S, stop: CancellationToken)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (Guest { place, answers, limits }, used) = (guest, Arc::<AtomicBool>::default());
    let service = hyper::service::service_fn({
        let (place, answers, used) = (place.clone(), answers.clone(), used.clone());
        move |request| {
            used.store(true, Ordering::Relaxed);
            let (in_hand, answers, answer) = (place.request(), answers.clone(), handle(request));
            async move { Ok::<_, Infallible>(answer.await.map(|body| answers.answer(body, in_hand))) }
        }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // The first head has less time, see [`unused`]; here begins what a client may take between two requests.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.idle).max_buf_size(BUFFER_BYTES);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(256).max_send_buf_size(BUFFER_BYTES);
    let connection = builder.serve_connection_with_upgrades(io, service);
    let mut connection = std::pin::pin!(connection);
    let grace = tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            return;
        }
        () = unused(&place, &answers, &used, limits) => Duration::ZERO,
        // A request may have come in just now.
        () = place.lost() => if place.idle_since().is_some() { Duration::ZERO } else { limits.drain },
        () = stop.cancelled() => limits.drain,
    };
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(grace, connection).await;
}

/// Waits until the client has wanted nothing for too long; meanwhile lets go of what it does not take.
async fn unused(place: &Place, answers: &Answers, used: &AtomicBool, limits: Limits) {
    let mut look_again = Instant::now() + limits.header_timeout;
    loop {
        sleep_until(look_again).await;
        let now = Instant::now();
        answers.let_go(limits.stall);
        let patience = if used.load(Ordering::Relaxed) { limits.idle } else { limits.header_timeout };
        let soon = now + limits.stall / 2;
        look_again = match place.idle_since() {
            Some(since) if now >= since + patience => return,
            Some(since) => soon.min(since + patience),
            None => soon,
        };
    }
}
