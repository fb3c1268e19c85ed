//! One gateway thread: a single-threaded runtime with its own listeners, connections and pool.
//!
//! Owns: accepting, the connections' lifetimes, the thread's tick, drain. Must not know: routing or back ends' slots.
//! The surprise: nothing of a request has a timer of its own; one tick looks at all connections and deadlines, and
//! stops when there are none, so an idle gateway does not wake up.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::feed::Feed;
use crate::headers::Peer;
use crate::hub::Hub;
use crate::io::{Client, Patience, Pulse};
use crate::table::Side;
use crate::upstream::Pool;
use crate::{Limits, request};

/// How exactly deadlines and patience are kept.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at the pool.
const SWEEP_TICKS: u64 = 10;
/// After accept failed for want of descriptors or memory: trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// What a client sends first when it speaks HTTP/2 without asking.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a body read ahead of its reader.
const BUFFER: usize = 64 * 1024;
/// Streams of one HTTP/2 connection, and the memory that their bodies may take in buffers.
const H2_STREAMS: u32 = 256;
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
const H2_PING: Duration = Duration::from_secs(30);

/// What a thread is started with.
pub(crate) struct Plan {
    pub listeners: Vec<(std::net::TcpListener, Side)>,
    pub feed: Feed,
    pub limits: Limits,
    /// Open connections of all threads.
    pub open: Arc<AtomicUsize>,
    pub drain: CancellationToken,
    pub grace: Duration,
}

pub(crate) struct Worker {
    pub feed: Feed,
    pub hub: Arc<Hub>,
    pub pool: RefCell<Pool>,
    /// What outlives a request: tunnels of upgraded connections, HTTP/2 connections to instances.
    pub tasks: TaskTracker,
    millis: Arc<AtomicU64>,
    random: Cell<u64>,
    deadlines: RefCell<Deadlines>,
    connections: RefCell<HashMap<u64, Arc<Pulse>>>,
    next_connection: Cell<u64>,
    draining: Cell<bool>,
    /// Something to watch over again, or nothing left.
    changed: Notify,
    limits: Limits,
    open: Arc<AtomicUsize>,
}

/// Requests that wait for an answer's first byte.
#[derive(Default)]
struct Deadlines {
    entries: Vec<Option<(u64, Waker)>>,
    free: Vec<usize>,
}

/// A request's deadline; costs no timer.
pub(crate) struct Deadline {
    worker: Rc<Worker>,
    at: u64,
    entry: Option<usize>,
}

/// Forgets a connection when its task ends, however it ends.
struct Leaves(Rc<Worker>, u64);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

/// One of the open connections, until dropped.
pub(crate) struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A client connection, as its requests see it.
pub(crate) struct Front {
    pub worker: Rc<Worker>,
    pub pulse: Arc<Pulse>,
    pub peer: Peer,
    pub side: Side,
    /// The Forwarded header made last, for the host it was made for: a connection mostly talks to one.
    pub forwarded: RefCell<Option<(http::HeaderValue, http::HeaderValue)>>,
}

/// Runs the thread until it has drained.
pub(crate) fn run(plan: Plan) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(serve(plan))
}

async fn serve(plan: Plan) -> std::io::Result<()> {
    let hub = plan.feed.hub().clone();
    let worker = Rc::new(Worker {
        hub,
        pool: RefCell::default(),
        tasks: TaskTracker::new(),
        millis: Arc::new(AtomicU64::new(1)),
        random: Cell::new(RandomState::new().hash_one(0u8) | 1),
        deadlines: RefCell::default(),
        connections: RefCell::default(),
        next_connection: Cell::new(0),
        draining: Cell::new(false),
        changed: Notify::new(),
        limits: plan.limits,
        open: plan.open,
        feed: plan.feed,
    });
    let sweep = Arc::new(Notify::new());
    worker.hub.register_sweep(sweep.clone());
    let mut chores = JoinSet::new();
    chores.spawn_local(tick(worker.clone()));
    chores.spawn_local(sweep_when_told(worker.clone(), sweep));
    let mut accepting = JoinSet::new();
    for (listener, side) in plan.listeners {
        let listener = TcpListener::from_std(listener)?;
        accepting.spawn_local(accept(worker.clone(), listener, side, plan.drain.clone()));
    }
    while accepting.join_next().await.is_some() {}
    // What is left after the grace ends with the runtime.
    let _ = timeout(plan.grace, worker.drain()).await;
    Ok(())
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, side: Side, drain: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => worker.admit(stream, address, side),
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // The kernel has already promised these clients a connection; closing the listener would reset them.
    while let Poll::Ready(Ok((stream, address))) = listener.poll_accept(&mut Context::from_waker(Waker::noop())) {
        worker.admit(stream, address, side);
    }
}

async fn tick(worker: Rc<Worker>) {
    let mut ticks: u64 = 0;
    loop {
        worker.update_millis();
        if worker.is_idle() {
            worker.changed.notified().await;
            continue;
        }
        sleep(TICK).await;
        ticks += 1;
        let now = worker.update_millis();
        let limits = &worker.limits;
        let patience = Patience {
            head: limits.header_read.as_millis() as u64,
            idle: limits.idle.as_millis() as u64,
            stall: limits.write_stall.as_millis() as u64,
        };
        for pulse in worker.connections.borrow().values() {
            pulse.check(now, patience);
        }
        worker.deadlines.borrow().wake_overdue(now);
        if ticks.is_multiple_of(SWEEP_TICKS) {
            worker.pool.borrow_mut().sweep(now);
        }
    }
}

async fn sweep_when_told(worker: Rc<Worker>, told: Arc<Notify>) {
    loop {
        told.notified().await;
        worker.pool.borrow_mut().sweep(worker.millis());
    }
}

impl Worker {
    /// Milliseconds as of the last tick.
    pub fn millis(&self) -> u64 {
        self.millis.load(Relaxed)
    }

    fn update_millis(&self) -> u64 {
        // One is added since zero means "not set" in the places that remember a time.
        let now = self.hub.micros() / 1000 + 1;
        self.millis.store(now, Relaxed);
        now
    }

    /// Xorshift: good enough to spread load and to name requests, which need not be secret.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&self, bound: usize) -> usize {
        (((self.random() >> 32) * bound as u64) >> 32) as usize
    }

    fn is_idle(&self) -> bool {
        self.connections.borrow().is_empty() && self.pool.borrow().is_empty() && self.deadlines.borrow().is_empty()
    }

    /// A deadline at a time on the hub's clock.
    pub fn deadline(self: &Rc<Self>, micros: u64) -> Deadline {
        Deadline { worker: self.clone(), at: micros.div_ceil(1000) + 1, entry: None }
    }

    /// A deadline so many microseconds after the last tick.
    pub fn deadline_in(self: &Rc<Self>, micros: u64) -> Deadline {
        self.deadline(self.millis() * 1000 + micros)
    }

    /// Counts something beside a client connection against the bound on connections.
    pub fn hold(&self) -> Held {
        self.open.fetch_add(1, Relaxed);
        Held(self.open.clone())
    }

    fn admit(self: &Rc<Self>, stream: TcpStream, address: SocketAddr, side: Side) {
        if self.open.fetch_add(1, Relaxed) >= self.limits.connections {
            self.open.fetch_sub(1, Relaxed);
            self.hub.metrics.connections_refused.inc();
            return;
        }
        if self.is_idle() {
            self.update_millis();
        }
        self.hub.metrics.connections.inc();
        let pulse = Pulse::new(self.millis.clone());
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        self.connections.borrow_mut().insert(id, pulse.clone());
        self.changed.notify_one();
        let front = Rc::new(Front {
            worker: self.clone(),
            pulse,
            peer: Peer::new(address.ip()),
            side,
            forwarded: RefCell::new(None),
        });
        self.tasks.spawn_local(async move {
            let _leaves = Leaves(front.worker.clone(), id);
            connection(front, stream).await;
        });
    }

    fn leave(&self, id: u64) {
        self.connections.borrow_mut().remove(&id);
        self.open.fetch_sub(1, Relaxed);
        self.hub.metrics.connections.dec();
    }

    async fn drain(&self) {
        self.draining.set(true);
        for pulse in self.connections.borrow().values() {
            pulse.nudge();
        }
        self.pool.borrow_mut().close();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Serves one client until either side is done.
async fn connection(front: Rc<Front>, stream: TcpStream) {
    // A socket that is gone already shows on the first read.
    let _ = stream.set_nodelay(true);
    let Some(http2) = speaks_http2(&front, &stream).await else { return };
    let pulse = front.pulse.clone();
    let io = TokioIo::new(Client::new(stream, pulse.clone()));
    let worker = front.worker.clone();
    let service = service_fn(move |request: Request<Incoming>| request::serve(front.clone(), request));
    if http2 {
        pulse.is_http2();
        let connection = h2_builder(&worker.limits).serve_connection(io, service);
        Serve { connection, pulse, worker, told: false }.await;
    } else {
        let connection = h1_builder(&worker.limits).serve_connection(io, service).with_upgrades();
        Serve { connection, pulse, worker, told: false }.await;
    }
}

/// Looks at the first bytes without taking them. `None` if there will be none.
async fn speaks_http2(front: &Front, stream: &TcpStream) -> Option<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        // A connection that has sent nothing has nothing to lose.
        let over = std::future::poll_fn(|cx| {
            front.pulse.listen(cx);
            let over = front.worker.draining.get() || front.pulse.is_over();
            if over { Poll::Ready(()) } else { Poll::Pending }
        });
        let count = tokio::select! {
            biased;
            count = stream.peek(&mut first) => count.ok()?,
            () = over => return None,
        };
        match count {
            0 => return None,
            // No method but HTTP/2's preface begins like this.
            count if count >= 3 || !PREFACE.starts_with(&first[..count]) => return Some(first.starts_with(b"PRI")),
            _ if front.worker.draining.get() || front.pulse.is_over() => return None,
            // Too few bytes to tell, which are still there and would be peeked again at once.
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}

fn h1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // The tick keeps the head's deadline; see `Pulse`.
    builder
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes.max(BUFFER));
    builder
}

fn h2_builder(limits: &Limits) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_STREAM_WINDOW as usize)
        .max_header_list_size(limits.header_bytes as u32)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    builder
}

/// Puts the streams of an HTTP/2 connection on the thread's runtime, where the connection itself runs; they end with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// A connection, ended by its pulse and told once when the gateway drains.
struct Serve<C> {
    connection: C,
    pulse: Arc<Pulse>,
    worker: Rc<Worker>,
    told: bool,
}

/// What both protocols' connections can do.
trait Graceful: Future<Output = hyper::Result<()>> + Unpin {
    fn finish(self: Pin<&mut Self>);
}

impl<S, B> Graceful for http1::UpgradeableConnection<TokioIo<Client>, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S, B> Graceful for http2::Connection<TokioIo<Client>, S, LocalExecutor>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Future: 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<C: Graceful> Future for Serve<C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.pulse.listen(cx);
        let over = this.pulse.is_over();
        if over && this.told {
            return Poll::Ready(());
        }
        // An idle client is told that the connection ends; one in the middle of a head is dropped at the next tick.
        if (over || this.worker.draining.get()) && !this.told {
            this.told = true;
            Pin::new(&mut this.connection).finish();
        }
        // A client's protocol error has been answered by hyper, and is nobody's news.
        Pin::new(&mut this.connection).poll(cx).map(|_| ())
    }
}

impl Deadlines {
    fn is_empty(&self) -> bool {
        self.entries.len() == self.free.len()
    }

    fn wake_overdue(&self, now: u64) {
        for (_, waker) in self.entries.iter().flatten().filter(|(at, _)| *at <= now) {
            waker.wake_by_ref();
        }
    }
}

impl Deadline {
    /// Whether it has passed; if not, the task is woken soon after it does.
    pub fn passed(&mut self, cx: &Context<'_>) -> bool {
        if self.at <= self.worker.millis() {
            return true;
        }
        let deadlines = &mut *self.worker.deadlines.borrow_mut();
        match self.entry.and_then(|at| deadlines.entries[at].as_mut()) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => {
                let entry = Some((self.at, cx.waker().clone()));
                let at = match deadlines.free.pop() {
                    Some(at) => {
                        deadlines.entries[at] = entry;
                        at
                    }
                    None => {
                        deadlines.entries.push(entry);
                        deadlines.entries.len() - 1
                    }
                };
                self.entry = Some(at);
            }
        }
        false
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some(at) = self.entry {
            let deadlines = &mut *self.worker.deadlines.borrow_mut();
            deadlines.entries[at] = None;
            deadlines.free.push(at);
        }
    }
}
