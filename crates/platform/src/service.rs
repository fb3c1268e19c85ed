//! Routes, and the upload itself: straight from the socket to where it is kept, bounded in size, number and silence.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyStream;
use registry::{Digest, RegistryError};
use tokio::sync::Semaphore;

use crate::answer::{Body, Refusal, healthy, stored};
use crate::backup::{self, Backup};
use crate::guard;
use crate::sink::Sink;

/// What the composition root finds out about a caller who wants to use a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authorization {
    Allowed,
    Unauthenticated,
    Forbidden,
    /// Who knows it does not answer.
    Unknown,
}

/// Decides by the head of a request and the namespace it is for; the empty one is all of the platform.
pub type Authorize = Arc<dyn Fn(&Parts, &str) -> BoxFuture<'static, Authorization> + Send + Sync>;

#[derive(Clone, Debug)]
pub struct Limits {
    pub max_source_bytes: u64,
    /// Uploads at the same time; more are told to come back with 503.
    pub uploads: usize,
    /// A body that says nothing for this long is given up.
    pub body_idle: Duration,
    /// Names besides loopback that this API answers to.
    pub hosts: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_source_bytes: 256 << 20, uploads: 32, body_idle: Duration::from_secs(60), hosts: vec![] }
    }
}

/// How much of a refused stranger's body is read, so that the refusal reaches a client that sends before it reads.
const STRANGERS_BYTES: u64 = 1 << 20;

/// Where a namespace's sources lie in the registry.
pub fn sources_repository(namespace: &str) -> String {
    format!("{namespace}/sources")
}

/// The platform API as a tower service; clones share its bounds.
pub fn service(sink: impl Into<Sink>, authorize: Authorize, limits: Limits) -> Service {
    let uploads = Arc::new(Semaphore::new(limits.uploads));
    Service { sink: sink.into(), authorize, limits: Arc::new(limits), uploads, backups: None }
}

#[derive(Clone)]
pub struct Service {
    sink: Sink,
    authorize: Authorize,
    limits: Arc<Limits>,
    uploads: Arc<Semaphore>,
    backups: Option<backup::Backups>,
}

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.handle(request).await) })
    }
}

impl Service {
    /// Also hands out copies of everything that the platform knows.
    pub fn with_backups(mut self, backup: Backup) -> Self {
        self.backups = Some(backup::Backups::new(backup));
        self
    }

    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let (parts, body) = request.into_parts();
        let mut body = pin!(chunks(body, self.limits.body_idle));
        match self.route(&parts, body.as_mut()).await {
            Ok(response) => response,
            Err(refusal) => {
                let patience = if refusal.is_strangers() { STRANGERS_BYTES } else { self.limits.max_source_bytes };
                // What is sent beyond that is cut off by the server closing the connection.
                drain(body, patience).await;
                refusal.answer()
            }
        }
    }

    async fn route(&self, parts: &Parts, body: Pin<&mut impl Chunks>) -> Result<Response<Body>, Refusal> {
        let path = parts.uri.path();
        if path == "/healthz" && matches!(parts.method, Method::GET | Method::HEAD) {
            return Ok(healthy());
        }
        guard::check(parts, &self.limits.hosts)?;
        if let (backup::PATH, Some(backups)) = (path, &self.backups) {
            if parts.method != Method::GET {
                return Err(Refusal::Method { allowed: "GET" });
            }
            self.check(parts, "").await?;
            return backups.answer().await;
        }
        let segments: Vec<&str> = path.split('/').collect();
        let ["", "v1", "namespaces", namespace, "blobs", digest] = segments.as_slice() else {
            return Err(Refusal::NotFound { path: path.chars().take(200).collect() });
        };
        if !matches!(parts.method, Method::PUT | Method::HEAD) {
            return Err(Refusal::Method { allowed: "PUT, HEAD" });
        }
        if !is_namespace(namespace) {
            return Err(Refusal::InvalidNamespace { namespace: namespace.chars().take(200).collect() });
        }
        self.check(parts, namespace).await?;
        let repository = sources_repository(namespace);
        // Some clients encode the colon.
        let digest: Digest = digest.replacen("%3A", ":", 1).replacen("%3a", ":", 1).parse()?;
        let there = self.sink.has(&repository, &digest).await?;
        match (&parts.method, there) {
            (&Method::HEAD, true) => Ok(stored(StatusCode::OK, digest, None)),
            (&Method::HEAD, false) => Err(Refusal::Registry(RegistryError::BlobUnknown { repository, digest })),
            (_, true) => {
                drain(body, self.limits.max_source_bytes).await;
                Ok(stored(StatusCode::OK, digest, None))
            }
            (_, false) => self.upload(parts, &repository, digest, body).await,
        }
    }

    async fn check(&self, parts: &Parts, namespace: &str) -> Result<(), Refusal> {
        match (self.authorize)(parts, namespace).await {
            Authorization::Allowed => Ok(()),
            Authorization::Unauthenticated => Err(Refusal::Unauthenticated),
            Authorization::Forbidden => Err(Refusal::Forbidden { namespace: namespace.into() }),
            Authorization::Unknown => Err(Refusal::Undecided),
        }
    }

    async fn upload(
        &self,
        parts: &Parts,
        repository: &str,
        digest: Digest,
        body: Pin<&mut impl Chunks>,
    ) -> Result<Response<Body>, Refusal> {
        let limit = self.limits.max_source_bytes;
        let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: u64| length > limit) {
            return Err(Refusal::Registry(RegistryError::TooLarge { limit }));
        }
        let _one_of_few = self.uploads.try_acquire().map_err(|_| Refusal::Busy { with: "uploads" })?;
        let size = self.sink.put(repository, &digest, limit, body).await?;
        tracing::debug!(%repository, %digest, size, "a source was uploaded");
        Ok(stored(StatusCode::CREATED, digest, Some(size)))
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Refusal::Registry(error)
    }
}

/// The data of a body. After an error there is no more.
trait Chunks: Stream<Item = Result<Bytes, String>> + Send {}
impl<T: Stream<Item = Result<Bytes, String>> + Send> Chunks for T {}

fn chunks<B>(body: B, idle: Duration) -> impl Chunks
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let frames = Box::pin(BodyStream::new(body));
    futures::stream::unfold(Some(frames), move |frames| async move {
        let mut frames = frames?;
        loop {
            match tokio::time::timeout(idle, frames.next()).await {
                Err(_) => return Some((Err(format!("nothing came for {idle:?}")), None)),
                Ok(None) => return None,
                Ok(Some(Err(error))) => return Some((Err(error.to_string()), None)),
                Ok(Some(Ok(frame))) => {
                    // Trailers say nothing here.
                    if let Ok(data) = frame.into_data() {
                        return Some((Ok(data), Some(frames)));
                    }
                }
            }
        }
    })
    .fuse()
}

/// Reads and forgets what is left of a body, up to `limit`.
async fn drain(mut body: Pin<&mut impl Chunks>, limit: u64) {
    let mut left = limit;
    while let Some(Ok(chunk)) = body.next().await {
        match left.checked_sub(chunk.len() as u64) {
            Some(less) => left = less,
            None => return,
        }
    }
}

/// A DNS label, as Kubernetes names namespaces.
fn is_namespace(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63
        && ends.into_iter().all(|end| end.is_some_and(word))
        && text.bytes().all(|byte| word(byte) || byte == b'-')
}
