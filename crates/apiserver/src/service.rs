//! The server as tower services: one for clients outside, one for the program itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::Service;

use crate::auth::User;
use crate::handler::Caller;
use crate::{BoxError, Inner, ResponseBody};

/// Needs a bearer token; answers a write once it is on disk.
#[derive(Clone)]
pub struct External {
    inner: Arc<Inner>,
}

/// Trusted, in process; never waits for the disk.
#[derive(Clone)]
pub struct Local {
    inner: Arc<Inner>,
    caller: Caller,
}

impl External {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }
}

impl Local {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        let user = User { name: "system:dhow".into(), groups: vec!["system:masters".into()] };
        Self { inner, caller: Caller { user: Arc::new(user), trusted: true } }
    }
}

impl<B> Service<Request<B>> for External
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = self.inner.clone();
        let (parts, body) = request.into_parts();
        let body = body.map_err(Into::into).boxed_unsync();
        Box::pin(async move { Ok(inner.serve(None, parts, body).await) })
    }
}

impl<B> Service<Request<B>> for Local
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (inner, caller) = (self.inner.clone(), self.caller.clone());
        let (parts, body) = request.into_parts();
        let body = body.map_err(Into::into).boxed_unsync();
        Box::pin(async move { Ok(inner.serve(Some(caller), parts, body).await) })
    }
}
