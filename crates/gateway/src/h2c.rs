//! Requests to instances that speak HTTP/2 without TLS.
//!
//! Owns: the one shared connection per instance and thread, and what HTTP/2 wants different in a request. Must not
//! know: slots beyond asking for another. The surprise: unlike HTTP/1 connections these have a task of their own, since
//! many requests share one.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http::header::{self, HeaderValue};
use http::uri::{Authority, Scheme, Uri};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;

use crate::connection::LocalExecutor;
use crate::io::Stream;
use crate::request::{Exchange, Failure, copy};
use crate::slots::Instance;
use crate::upstream::Outbound;
use crate::worker::Worker;

pub(crate) async fn run(
    exchange: &mut Exchange<'_>,
    request: Request<Outbound>,
    host: &HeaderValue,
) -> Result<Response<Incoming>, Failure> {
    let worker = exchange.worker;
    let mut deadline = worker.deadline(exchange.deadline);
    let mut request = adapt(request, host);
    loop {
        let instance = exchange.visit.instance().expect("a request is sent only while it holds a slot").clone();
        let shared = worker.pool.borrow().shared(&instance);
        let mut sender = match shared {
            Some(sender) => sender,
            None => exchange.connect(async |instance: &Arc<Instance>| connect(worker, instance).await).await?,
        };
        let spare = copy(&request);
        let mut answer = pin!(sender.try_send_request(request));
        let answered = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if deadline.passed(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match answered.await {
            None => return Err(Failure::Late),
            Some(Ok(response)) => return Ok(response),
            Some(Err(mut error)) => match error.take_message() {
                Some(intact) => {
                    request = intact;
                    exchange.elsewhere("closed the connection").await?;
                    worker.hub.metrics.retries.inc();
                }
                None if error.error().is_user() => return Err(Failure::BadBody),
                None => {
                    request = exchange.resend(spare, &error.into_error()).await?;
                    worker.hub.metrics.retries.inc();
                }
            },
        }
    }
}

/// HTTP/2 names the host in the target and frames bodies by itself.
fn adapt(mut request: Request<Outbound>, host: &HeaderValue) -> Request<Outbound> {
    let host = request.headers_mut().remove(header::HOST).unwrap_or_else(|| host.clone());
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    request.headers_mut().remove(header::CONNECTION);
    request.headers_mut().remove(header::UPGRADE);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Authority::try_from(host.as_bytes()).ok();
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    request
}

async fn connect(worker: &Worker, instance: &Arc<Instance>) -> std::io::Result<http2::SendRequest<Outbound>> {
    let stream = Stream::connect(&instance.ready.address).await?;
    let builder = http2::Builder::new(LocalExecutor);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    worker.tasks.spawn_local(async move {
        // Requests on it hear of its end themselves.
        let _ = connection.await;
    });
    worker.pool.borrow_mut().share(instance.clone(), sender.clone());
    Ok(sender)
}
