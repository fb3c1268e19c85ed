//! Listeners for the program's own APIs: bound eagerly, bounded, drained.
//!
//! Accepting stops when the token is cancelled; connections then finish the request in hand.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::DaemonError;

/// A bound socket that nobody serves yet.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    pub header_timeout: Duration,
    /// How long requests in hand may go on once the token is cancelled.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 4096, header_timeout: Duration::from_secs(10), drain: Duration::from_secs(5) }
    }
}

impl Listener {
    /// `flag` is what a person would change to choose another address.
    pub async fn bind(address: &str, flag: &str) -> Result<Self, DaemonError> {
        let failed = |source| DaemonError::Listen { address: address.to_owned(), flag: flag.to_owned(), source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
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
        let room = Arc::new(Semaphore::new(limits.connections));
        let tasks = TaskTracker::new();
        loop {
            // Waiting for room before accepting leaves what is too much in the kernel's queue.
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                permit = room.clone().acquire_owned() => permit,
            };
            let Ok(permit) = permit else { break };
            let stream = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, address = %self.address, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let _ = stream.set_nodelay(true);
            let (acceptor, handle, stop) = (acceptor.clone(), handle.clone(), stop.clone());
            tasks.spawn(async move {
                let _permit = permit;
                match acceptor {
                    None => connection(TokioIo::new(stream), limits, handle, stop).await,
                    Some(acceptor) => {
                        match tokio::time::timeout(limits.header_timeout, acceptor.accept(stream)).await {
                            Ok(Ok(stream)) => connection(TokioIo::new(stream), limits, handle, stop).await,
                            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                            Err(_) => tracing::debug!("TLS handshake took too long"),
                        }
                    }
                }
            });
        }
        tasks.close();
        if tokio::time::timeout(limits.drain, tasks.wait()).await.is_err() {
            tracing::debug!(address = %self.address, "connections were still open after the drain");
        }
        Ok(())
    }
}

async fn connection<I, S, F, B>(io: I, limits: Limits, handle: S, stop: CancellationToken)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(256);
    let connection = builder.serve_connection_with_upgrades(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(limits.drain, connection).await;
        }
    }
}
