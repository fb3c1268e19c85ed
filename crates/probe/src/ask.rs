//! One probe over one connection: whether there is one, the HTTP request, the gRPC health question.

use std::io;

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body::Body;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::check::{Check, How};

/// By what an application may tell a probe from a visitor, as it does with a kubelet's.
const USER_AGENT: &str = "kube-probe/dhow";
/// Bytes read of the answer to a gRPC health question.
const ANSWER: usize = 1024;
/// `HealthCheckResponse.status`: field 1, a varint.
const STATUS_FIELD: u8 = 0x08;
const SERVING: u8 = 1;

/// How the container is reached.
pub trait Connect {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// To this port, or to the one that serves requests.
    fn connect(&self, port: Option<u16>) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// What the `Host` of a request to this port is.
    fn host(&self, port: Option<u16>) -> String;
}

/// Whether the container is well now. A command inside is nothing that a connection can tell: never.
pub async fn ask(check: &Check, to: &impl Connect) -> bool {
    let asked = async {
        match &check.how {
            How::Tcp(port) => to.connect(*port).await.is_ok(),
            How::Http { port, path, headers } => http(to, *port, path, headers).await.unwrap_or(false),
            How::Grpc { port, service } => grpc(to, *port, service).await.unwrap_or(false),
            How::Exec(_) => false,
        }
    };
    timeout(check.timeout, asked).await.unwrap_or(false)
}

/// A redirect is a success, as it is for a kubelet when it leads elsewhere.
async fn http(
    to: &impl Connect,
    port: Option<u16>,
    path: &str,
    headers: &[(header::HeaderName, header::HeaderValue)],
) -> io::Result<bool> {
    let mut request = Request::get(path).header(header::HOST, to.host(port)).header(header::USER_AGENT, USER_AGENT);
    if let Some(all) = request.headers_mut() {
        headers.iter().for_each(|(name, value)| _ = all.insert(name, value.clone()));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let stream = TokioIo::new(to.connect(port).await?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    let answer = async { sender.send_request(request).await.map_err(io::Error::other) };
    let status = driven(connection, answer).await?.status();
    Ok((200..400).contains(&status.as_u16()))
}

/// `grpc.health.v1.Health/Check`.
async fn grpc(to: &impl Connect, port: Option<u16>, service: &str) -> io::Result<bool> {
    let uri = format!("http://{}/grpc.health.v1.Health/Check", to.host(port));
    let request = Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Question(Some(question(service)?)))
        .map_err(io::Error::other)?;
    let stream = TokioIo::new(to.connect(port).await?);
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
