//! Sockets as the request path uses them.
//!
//! Owns: one type for both kinds of instance socket, and a client socket that notes when a request's head begins. Must
//! not know: HTTP. The surprise: time is read from the thread's tick, since a clock call per read would cost more than
//! the precision is worth.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::endpoints::Address;

/// Up to this many bytes are copied together and sent with one plain call: for a head and a small body that is
/// cheaper than what the kernel does to take in a list of buffers.
const GATHERED: usize = 2048;

/// Joins small buffers into one.
fn gather<'a>(bufs: &[io::IoSlice<'_>], space: &'a mut [u8; GATHERED]) -> Option<&'a [u8]> {
    let mut length = 0;
    for buf in bufs {
        let end = length + buf.len();
        space.get_mut(length..end)?.copy_from_slice(buf);
        length = end;
    }
    Some(&space[..length])
}

/// A connection to an instance.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(whole) = gather(bufs, &mut [0; GATHERED]) {
            return self.poll_write(cx, whole);
        }
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What a client connection is doing, for the tick that ends idle and stalled ones.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// The thread's milliseconds, as of its last tick.
    now: Arc<AtomicU64>,
    /// Requests between their head and their answer's last byte.
    busy: AtomicU32,
    /// When it last became idle.
    idle_since: AtomicU64,
    /// When the head that is being read began; 0 for none.
    head_since: AtomicU64,
    /// When a write last found the client not reading; 0 for not stalled.
    stalled_since: AtomicU64,
    http2: AtomicBool,
    over: AtomicBool,
    waker: AtomicWaker,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub head: u64,
    pub idle: u64,
    pub stall: u64,
}

impl Pulse {
    pub fn new(now: Arc<AtomicU64>) -> Arc<Self> {
        let since = now.load(Relaxed);
        Arc::new(Self {
            now,
            busy: 0.into(),
            idle_since: since.into(),
            head_since: 0.into(),
            stalled_since: 0.into(),
            http2: false.into(),
            over: false.into(),
            waker: AtomicWaker::new(),
        })
    }

    pub fn begin(&self) {
        self.head_since.store(0, Relaxed);
        self.busy.fetch_add(1, Relaxed);
    }

    pub fn end(&self) {
        self.busy.fetch_sub(1, Relaxed);
        self.idle_since.store(self.now.load(Relaxed), Relaxed);
    }

    pub fn is_http2(&self) {
        self.http2.store(true, Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    pub fn listen(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Has the connection's future look again.
    pub fn nudge(&self) {
        self.waker.wake();
    }

    /// Ends the connection if its client is out of patience's bounds.
    pub fn check(&self, now: u64, patience: Patience) {
        let since = |at: &AtomicU64| at.load(Relaxed);
        let past = |at: u64, bound: u64| at != 0 && now.saturating_sub(at) > bound;
        let idle = self.busy.load(Relaxed) == 0;
        let reading = since(&self.head_since) != 0;
        let over = past(since(&self.stalled_since), patience.stall)
            || (idle && reading && past(since(&self.head_since), patience.head))
            || (idle && !reading && past(since(&self.idle_since), patience.idle));
        if over {
            self.over.store(true, Relaxed);
            self.nudge();
        }
    }

    fn read(&self) {
        // Frames other than requests also arrive in HTTP/2, so there only idleness counts.
        if self.busy.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 && !self.http2.load(Relaxed) {
            self.head_since.store(self.now.load(Relaxed), Relaxed);
        }
    }

    fn written(&self, pending: bool) {
        match (pending, self.stalled_since.load(Relaxed)) {
            (true, 0) => self.stalled_since.store(self.now.load(Relaxed), Relaxed),
            (false, at) if at != 0 => self.stalled_since.store(0, Relaxed),
            _ => {}
        }
    }
}

/// A client's socket, plain or with TLS around it.
#[derive(Debug)]
pub(crate) struct Client<S> {
    stream: S,
    pulse: Arc<Pulse>,
}

impl<S> Client<S> {
    pub fn new(stream: S, pulse: Arc<Pulse>) -> Self {
        Self { stream, pulse }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Client<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pulse.read();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Client<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.pulse.written(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(whole) = gather(bufs, &mut [0; GATHERED]) {
            return self.poll_write(cx, whole);
        }
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.pulse.written(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.pulse.written(polled.is_pending());
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { head: 10, idle: 75, stall: 60 };

    enum Step {
        At(u64),
        Read,
        Begin,
        End,
        Stall,
        Write,
        Http2,
    }

    fn check(steps: &[Step], want: bool) {
        let now = Arc::new(AtomicU64::new(1));
        let pulse = Pulse::new(now.clone());
        for step in steps {
            match step {
                Step::At(ms) => now.store(*ms, Relaxed),
                Step::Read => pulse.read(),
                Step::Begin => pulse.begin(),
                Step::End => pulse.end(),
                Step::Stall => pulse.written(true),
                Step::Write => pulse.written(false),
                Step::Http2 => pulse.is_http2(),
            }
        }
        pulse.check(now.load(Relaxed), PATIENCE);
        assert_eq!(pulse.is_over(), want);
    }

    #[test]
    fn a_client_may_idle_but_not_dawdle() {
        use Step::*;
        check(&[At(76)], false);
        check(&[At(77)], true);
        check(&[At(5), Read, At(15)], false);
        check(&[At(5), Read, At(16)], true);
        check(&[At(5), Read, At(14), Read, At(16)], true);
        check(&[Read, Begin, At(1000)], false);
        check(&[Read, Begin, At(1000), End, At(1075)], false);
        check(&[Read, Begin, At(1000), End, At(1076)], true);
        check(&[Http2, Read, At(70)], false);
        check(&[Begin, Stall, At(61)], false);
        check(&[Begin, Stall, At(62)], true);
        check(&[Begin, Stall, At(50), Write, At(100)], false);
    }
}
