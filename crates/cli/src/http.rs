//! Plain HTTP to the gateway and the platform API.
//!
//! Never resolves a function's host name: it goes through the platform's [`Door`] and says the name in `Host`.

use bytes::Bytes;
use http::uri::Authority;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::door::Door;
use crate::failure::innermost;
use crate::{Failure, Result};

const CHUNK: usize = 64 << 10;

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// An answer, and the connection that it comes through.
pub struct Answer {
    pub response: Response<Incoming>,
    _connection: JoinSet<()>,
    _forwarder: Option<kube::api::Portforwarder>,
}

pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A file, read as it is sent.
pub fn streamed(file: tokio::fs::File) -> Body {
    let chunks = futures::stream::try_unfold(file, |mut file| async move {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
        let count = file.read_buf(&mut chunk).await?;
        Ok((count > 0).then(|| (Frame::data(chunk.freeze()), file)))
    });
    StreamBody::new(chunks).boxed_unsync()
}

/// Sends one request, whose target is a path.
pub async fn send(what: &str, door: &Door, request: Request<Body>) -> Result<Answer> {
    let unreachable = |error: String| {
        Failure::unreachable(format!("{what} at {door} does not answer: {error}"))
            .next("is the platform running? look with: dhow status")
    };
    let way = door.connect().await.map_err(unreachable)?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(way.stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| unreachable(innermost(&e)))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Its errors reach whoever reads the answer.
        let _ = connection.with_upgrades().await;
    });
    let sent = sender.send_request(request).await;
    let broken = |e: hyper::Error| Failure::failed(format!("{what} at {door} broke off: {}", innermost(&e)));
    Ok(Answer { response: sent.map_err(broken)?, _connection: driver, _forwarder: way.forwarder })
}

/// What the platform API says instead of what was asked for.
#[derive(Deserialize)]
struct Problem {
    message: String,
    next: String,
}

/// Why the platform API did not do it.
pub fn refused(what: &str, status: StatusCode, text: &str) -> Failure {
    let what = |message: &str| format!("{what} ({}): {message}", status.as_u16());
    match serde_json::from_str::<Problem>(text) {
        Ok(problem) => Failure::failed(what(&problem.message)).next(problem.next),
        Err(_) if status == StatusCode::UNAUTHORIZED => {
            Failure::failed(what("the kubeconfig's token is not known there"))
                .next("use the kubeconfig that this `dhow up` wrote, with --kubeconfig or DHOW_KUBECONFIG")
        }
        Err(_) => Failure::failed(what(text.trim())),
    }
}

/// The host and port of a URL.
pub fn authority(url: &str) -> Option<Authority> {
    let uri: Uri = url.parse().ok()?;
    if uri.scheme_str() == Some("http") { uri.authority().cloned() } else { None }
}

impl Answer {
    /// The beginning of the body, as text.
    pub async fn text(mut self, most: usize) -> String {
        let mut bytes = vec![];
        while bytes.len() < most
            && let Some(Ok(frame)) = self.response.body_mut().frame().await
        {
            if let Some(data) = frame.data_ref() {
                bytes.extend_from_slice(&data[..data.len().min(most - bytes.len())]);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
