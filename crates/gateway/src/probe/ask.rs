//! One probe of one address, over the network.
//!
//! Owns: the TCP connect, the HTTP request and the gRPC health question. Must not know: when, or what follows.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::check::{Check, How};
use crate::upstream::Outbound;

/// A first packet that was lost, since the pod's network was not there yet, is sent again by a new connection much
/// sooner than by the kernel.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
/// By what an application may tell a probe from a visitor, as it does with a kubelet's.
const USER_AGENT: &str = "kube-probe/dhow";
/// Bytes read of the answer to a gRPC health question.
const ANSWER: usize = 1024;
/// `HealthCheckResponse.status`: field 1, a varint.
const STATUS_FIELD: u8 = 0x08;
const SERVING: u8 = 1;

/// Whether the instance behind `address` is ready now.
pub(crate) async fn ask(check: &Check, address: SocketAddr) -> bool {
    let port = match &check.how {
        How::Tcp(port) | How::Http { port, .. } | How::Grpc { port, .. } => port.unwrap_or(address.port()),
    };
    let address = SocketAddr::new(address.ip(), port);
    let asked = async {
        match &check.how {
            How::Tcp(_) => connect(address).await.is_ok(),
            How::Http { path, headers, .. } => http(address, path, headers).await.unwrap_or(false),
            How::Grpc { service, .. } => grpc(address, service).await.unwrap_or(false),
        }
    };
    timeout(check.timeout, asked).await.unwrap_or(false)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// A redirect is a success, as it is for a kubelet when it leads elsewhere.
async fn http(
    address: SocketAddr,
    path: &str,
    headers: &[(header::HeaderName, header::HeaderValue)],
) -> io::Result<bool> {
    let mut request =
        Request::get(path).header(header::HOST, address.to_string()).header(header::USER_AGENT, USER_AGENT);
    if let Some(all) = request.headers_mut() {
        headers.iter().for_each(|(name, value)| _ = all.insert(name, value.clone()));
    }
    let request = request.body(Outbound::Empty).map_err(io::Error::other)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(connect(address).await?)).await.map_err(io::Error::other)?;
    let answer = async { sender.send_request(request).await.map_err(io::Error::other) };
    let status = driven(connection, answer).await?.status();
    Ok((200..400).contains(&status.as_u16()))
}

/// `grpc.health.v1.Health/Check`.
async fn grpc(address: SocketAddr, service: &str) -> io::Result<bool> {
    let uri = format!("http://{address}/grpc.health.v1.Health/Check");
    let request = Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Question(Some(question(service)?)))
        .map_err(io::Error::other)?;
    let stream = TokioIo::new(connect(address).await?);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.map_err(io::Error::other)?;
    let answer = async {
        let (head, mut body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
        Ok(is_fine(&head.headers) && serves(&read(&mut body).await?))
    };
    driven(connection, answer).await
}

/// Runs a connection for as long as its one question takes.
async fn driven<T>(connection: impl Future, answer: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::select! {
        biased;
        answer = answer => answer,
        _ = connection => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

/// `HealthCheckRequest{service}` in gRPC's frame.
fn question(service: &str) -> io::Result<Bytes> {
    let length = u8::try_from(service.len()).ok().filter(|n| *n < 0x80).ok_or(io::ErrorKind::InvalidInput)?;
    let mut message = vec![];
    if length > 0 {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0, 0, 0, 0, message.len() as u8];
    frame.extend(message);
    Ok(frame.into())
}

/// An error without a message comes in the head.
fn is_fine(head: &HeaderMap) -> bool {
    head.get("grpc-status").is_none_or(|status| status == "0")
}

async fn read(body: &mut Incoming) -> io::Result<Vec<u8>> {
    let mut all = vec![];
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(all)
}

/// Five bytes of gRPC's frame, then the message.
fn serves(answer: &[u8]) -> bool {
    answer.get(5..).is_some_and(|message| message.starts_with(&[STATUS_FIELD, SERVING]))
}

struct Question(Option<Bytes>);

impl Body for Question {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_frames() {
        assert_eq!(question("").unwrap().as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab").unwrap().as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(question(&"x".repeat(128)).is_err());
        for (answer, want) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], true),
            (&[0, 0, 0, 0, 2, 8, 2], false),
            (&[0, 0, 0, 0, 0], false),
            (&[], false),
        ] {
            assert_eq!(serves(answer), want, "{answer:?}");
        }
    }
}
