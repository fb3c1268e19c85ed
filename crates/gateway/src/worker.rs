//! One gateway thread: a single-threaded runtime with its own listeners, connections and pool.
//!
//! Owns: accepting, the connections' lifetimes, the thread's tick, drain. Must not know: routing or back ends' slots.
//! The surprise: nothing of a request has a timer of its own; one tick looks at all connections and deadlines, and
//! stops when there are none, so an idle gateway does not wake up.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::feed::Feed;
use crate::headers::Peer;
use crate::hub::Hub;
use crate::io::{Patience, Pulse};
use crate::table::Side;
use crate::upstream::Pool;
use crate::{Door, Limits, connection};

/// How exactly deadlines and patience are kept.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at the pool.
const SWEEP_TICKS: u64 = 10;
/// After accept failed for want of descriptors or memory: trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a thread is started with.
pub(crate) struct Plan {
    pub listeners: Vec<(std::net::TcpListener, Door)>,
    pub feed: Feed,
    pub tls: Arc<rustls::ServerConfig>,
    pub https_port: Option<u16>,
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
    pub limits: Limits,
    pub tls: TlsAcceptor,
    pub https_port: Option<u16>,
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
        tls: plan.tls.into(),
        https_port: plan.https_port,
        open: plan.open,
        feed: plan.feed,
    });
    let sweep = Arc::new(Notify::new());
    worker.hub.register_sweep(sweep.clone());
    let mut chores = JoinSet::new();
    chores.spawn_local(tick(worker.clone()));
    chores.spawn_local(sweep_when_told(worker.clone(), sweep));
    let mut accepting = JoinSet::new();
    for (listener, door) in plan.listeners {
        let listener = TcpListener::from_std(listener)?;
        accepting.spawn_local(accept(worker.clone(), listener, door, plan.drain.clone()));
    }
    while accepting.join_next().await.is_some() {}
    // What is left after the grace ends with the runtime.
    let _ = timeout(plan.grace, worker.drain()).await;
    Ok(())
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, door: Door, drain: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => worker.admit(stream, address, door),
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // The kernel has already promised these clients a connection; closing the listener would reset them.
    while let Poll::Ready(Ok((stream, address))) = listener.poll_accept(&mut Context::from_waker(Waker::noop())) {
        worker.admit(stream, address, door);
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

    fn admit(self: &Rc<Self>, stream: TcpStream, address: SocketAddr, door: Door) {
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
            peer: Peer::new(address.ip(), door == Door::Secure),
            side: door.side(),
            forwarded: RefCell::new(None),
        });
        self.tasks.spawn_local(async move {
            let _leaves = Leaves(front.worker.clone(), id);
            connection::serve(front, stream).await;
        });
    }

    fn leave(&self, id: u64) {
        self.connections.borrow_mut().remove(&id);
        self.open.fetch_sub(1, Relaxed);
        self.hub.metrics.connections.dec();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.get()
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
