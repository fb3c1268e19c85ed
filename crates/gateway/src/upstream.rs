//! Connections to instances.
//!
//! Owns: dialling, sending one request on a connection, and each thread's pool of idle ones. Must not know: routing,
//! slots. The surprise: no task stands behind an HTTP/1 connection. Whoever uses it polls it within their own task, so
//! a request costs no wake-up across tasks; an idle one is looked at when it is taken or swept.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures::task::AtomicWaker;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioIo;

use crate::io::Stream;
use crate::slots::Instance;

/// Idle connections kept per instance and thread.
const IDLE_PER_INSTANCE: usize = 256;
/// How long one is kept: less than the 5 s after which Node's and uvicorn's servers close theirs, since a POST that
/// meets such a close cannot be sent again.
const IDLE_MILLIS: u64 = 4_000;
/// Bytes of an answer's head, and of its body read ahead of the client.
const BUFFER: usize = 64 * 1024;

/// A request's body on its way to the instance.
#[derive(Debug)]
pub(crate) enum Outbound {
    Empty,
    Stream(Incoming),
}

impl From<Incoming> for Outbound {
    fn from(body: Incoming) -> Self {
        if body.is_end_stream() { Self::Empty } else { Self::Stream(body) }
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// Wakes the task that uses a connection now. The connection always sees the same waker, so it never has to replace
/// one, and nobody is woken for a connection that lies in the pool.
#[derive(Debug, Default)]
struct Relay {
    task: AtomicWaker,
    attached: AtomicBool,
    /// Woken while nobody was attached.
    missed: AtomicBool,
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.attached.load(Relaxed) {
            self.task.wake();
        } else {
            self.missed.store(true, Relaxed);
        }
    }
}

/// An HTTP/1 connection to an instance.
pub(crate) struct Upstream {
    sender: http1::SendRequest<Outbound>,
    /// Gone once it has ended: it must be dropped then, since it may still hold a request that was never sent.
    driver: Option<Driver>,
    relay: Arc<Relay>,
    waker: Waker,
    pub instance: Arc<Instance>,
    /// Whether it served a request before, so that the instance may have closed it meanwhile.
    pub reused: bool,
    idle_since: u64,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nothing was sent; the request is intact.
    Unsent(Box<Request<Outbound>>),
    /// The connection ended before the answer's first byte.
    Reset(hyper::Error),
    /// The answer is not HTTP.
    Garbled(hyper::Error),
    TimedOut,
}

impl Upstream {
    pub async fn connect(instance: &Arc<Instance>) -> io::Result<Self> {
        let stream = Stream::connect(&instance.ready.address).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let relay = Arc::new(Relay::default());
        Ok(Self {
            sender,
            driver: Some(Box::pin(connection.with_upgrades())),
            waker: Waker::from(relay.clone()),
            relay,
            instance: instance.clone(),
            reused: false,
            idle_since: 0,
        })
    }

    /// Makes progress in both directions, for the calling task.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        self.relay.missed.store(false, Relaxed);
        self.relay.task.register(cx.waker());
        self.relay.attached.store(true, Relaxed);
        poll_driver(&mut self.driver, &self.waker);
    }

    /// Polls the body that comes on this connection. Taking a frame wakes the connection, which would have this very
    /// task run once more for nothing; the caller drives the connection anyway when [`Upstream::missed`] says so.
    pub fn poll_body(&mut self, body: &mut Incoming) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.relay.attached.store(false, Relaxed);
        let polled = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
        self.relay.attached.store(true, Relaxed);
        polled
    }

    /// Whether the connection has to be driven again.
    pub fn missed(&self) -> bool {
        self.relay.missed.load(Relaxed)
    }

    /// Hands a request over; it is written when the answer is waited for.
    pub fn send(
        &mut self,
        request: Request<Outbound>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Outbound>>>> + use<> {
        self.sender.try_send_request(request)
    }

    /// Waits for the answer's head. `overdue` is asked whenever nothing has come yet.
    pub async fn answer(
        &mut self,
        answer: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Outbound>>>>,
        mut overdue: impl FnMut(&mut Context<'_>) -> bool,
    ) -> Result<Response<Incoming>, Failed> {
        let mut answer = pin!(answer);
        let (relay, driver, waker) = (&self.relay, &mut self.driver, &self.waker);
        std::future::poll_fn(|cx| {
            relay.task.register(cx.waker());
            relay.attached.store(true, Relaxed);
            poll_driver(driver, waker);
            // The answer comes only out of the driver, which this task polls: nobody else needs to wake it.
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(answer) => Poll::Ready(answer.map_err(failed)),
                Poll::Pending if overdue(cx) => Poll::Ready(Err(Failed::TimedOut)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Whether the last exchange is over on both sides and another may begin.
    fn is_reusable(&mut self) -> bool {
        if !self.sender.is_ready() {
            poll_driver(&mut self.driver, &self.waker);
        }
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Drives the connection to its end, which for an upgrade is the moment the socket is handed over.
    pub async fn finish(&mut self) {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            if self.driver.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn detach(&mut self) {
        self.relay.attached.store(false, Relaxed);
        self.relay.task.take();
    }
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

fn poll_driver(driver: &mut Option<Driver>, waker: &Waker) {
    let ended = driver.as_mut().is_some_and(|d| d.as_mut().poll(&mut Context::from_waker(waker)).is_ready());
    if ended {
        // An error also reaches whoever waits for the answer or its body, and is told there.
        *driver = None;
    }
}

fn failed(mut error: TrySendError<Request<Outbound>>) -> Failed {
    match error.take_message() {
        Some(request) => Failed::Unsent(Box::new(request)),
        None => {
            let error = error.into_error();
            if error.is_parse() { Failed::Garbled(error) } else { Failed::Reset(error) }
        }
    }
}

/// Ids are counted up, so they need no mixing beyond a spread over the table.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type ByInstance<T> = HashMap<u64, T, BuildHasherDefault<IdHasher>>;

/// One thread's connections that no request uses.
#[derive(Default)]
pub(crate) struct Pool {
    idle: ByInstance<Vec<Upstream>>,
    /// HTTP/2 connections carry many requests at once; each has a task of its own.
    shared: ByInstance<(Arc<Instance>, http2::SendRequest<Outbound>)>,
}

impl Pool {
    /// The connection used last, since it is the least likely to have been closed.
    pub fn take(&mut self, instance: &Instance) -> Option<Upstream> {
        self.idle.get_mut(&instance.id)?.pop()
    }

    pub fn put(&mut self, mut upstream: Upstream, now_millis: u64) {
        if upstream.instance.is_gone() || !upstream.is_reusable() {
            return;
        }
        upstream.detach();
        upstream.reused = true;
        upstream.idle_since = now_millis;
        let idle = self.idle.entry(upstream.instance.id).or_default();
        if idle.len() < IDLE_PER_INSTANCE {
            idle.push(upstream);
        }
    }

    pub fn shared(&self, instance: &Instance) -> Option<http2::SendRequest<Outbound>> {
        let (_, sender) = self.shared.get(&instance.id)?;
        (!sender.is_closed()).then(|| sender.clone())
    }

    pub fn share(&mut self, instance: Arc<Instance>, sender: http2::SendRequest<Outbound>) {
        self.shared.insert(instance.id, (instance, sender));
    }

    /// Closes what is too old, was closed by the instance, or leads to one that left.
    pub fn sweep(&mut self, now_millis: u64) {
        self.idle.retain(|_, connections| {
            connections.retain_mut(|upstream| {
                poll_driver(&mut upstream.driver, &upstream.waker);
                upstream.driver.is_some()
                    && !upstream.instance.is_gone()
                    && now_millis.saturating_sub(upstream.idle_since) < IDLE_MILLIS
            });
            !connections.is_empty()
        });
        self.shared.retain(|_, (instance, sender)| !instance.is_gone() && !sender.is_closed());
    }

    pub fn close(&mut self) {
        self.idle.clear();
        self.shared.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.shared.is_empty()
    }
}
