//! A client's connection: TLS where the listener speaks it, then HTTP/1.1 or HTTP/2 until either side is done.
//!
//! Owns: telling the protocols apart, their bounds, and ending a connection in good order. Must not know: what a request is
//! for. The surprise: the first bytes are looked at without taking them, since both protocols come to the same port.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::io::{Client, Pulse};
use crate::worker::{Front, Worker};
use crate::{Limits, request};

/// What a client sends first when it speaks HTTP/2 without asking.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a body read ahead of its reader.
const BUFFER: usize = 64 * 1024;
/// Streams of one HTTP/2 connection, and the memory that their bodies may take in buffers.
const H2_STREAMS: u32 = 256;
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
const H2_PING: Duration = Duration::from_secs(30);

/// Serves one client until either side is done.
pub(crate) async fn serve(front: Rc<Front>, stream: TcpStream) {
    // A socket that is gone already shows on the first read.
    let _ = stream.set_nodelay(true);
    if front.peer.secure {
        Box::pin(secure(front, stream)).await;
    } else if let Some(http2) = speaks_http2(&front, &stream).await {
        converse(front, stream, http2).await;
    }
}

/// The same over TLS, in which the protocol is agreed on.
async fn secure(front: Rc<Front>, stream: TcpStream) {
    let over = std::future::poll_fn(|cx| {
        front.pulse.listen(cx);
        if front.worker.is_draining() { Poll::Ready(()) } else { Poll::Pending }
    });
    let shaken = tokio::select! {
        shaken = timeout(front.worker.limits.header_read, front.worker.tls.accept(stream)) => shaken,
        () = over => return,
    };
    // A client that asks for an unknown host, or speaks no TLS, has been told by an alert.
    if let Ok(Ok(stream)) = shaken {
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        converse(front, stream, http2).await;
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(front: Rc<Front>, stream: S, http2: bool) {
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
            let over = front.worker.is_draining() || front.pulse.is_over();
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
            _ if front.worker.is_draining() || front.pulse.is_over() => return None,
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

impl<I, S, B> Graceful for http1::UpgradeableConnection<TokioIo<Client<I>>, S>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B> Graceful for http2::Connection<TokioIo<Client<I>>, S, LocalExecutor>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
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
        if (over || this.worker.is_draining()) && !this.told {
            this.told = true;
            Pin::new(&mut this.connection).finish();
        }
        // A client's protocol error has been answered by hyper, and is nobody's news.
        Pin::new(&mut this.connection).poll(cx).map(|_| ())
    }
}
