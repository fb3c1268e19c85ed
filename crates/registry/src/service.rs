//! The OCI distribution API, `/v2/`, over the registry: what docker, skopeo and our own builders push to and pull from.
//!
//! Must not know who the caller is: reading is open, everything else asks `authorize`. `/v2/` itself asks too, because
//! clients only send credentials to a registry whose root demanded them.

use std::convert::Infallible;
use std::future::Future;
use std::io::SeekFrom;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::Frame;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::blobs::Ingest;
use crate::digest::Digest;
use crate::error::RegistryError;
use crate::image::read_chunks;
use crate::names::Repository;
use crate::registry::{MAX_BLOB_BYTES, MAX_MANIFEST_BYTES, Registry};

/// Whether the sender of a request may write.
pub type Authorize = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that says nothing for this long is given up.
const BODY_IDLE: Duration = Duration::from_secs(60);
/// As many tags as one answer lists.
const MAX_TAGS: usize = 1_000;
const UPLOAD_ID: &str = "docker-upload-uuid";
const CONTENT_DIGEST: &str = "docker-content-digest";

/// The API as a tower service; clones share the registry.
#[derive(Clone)]
pub struct Service {
    registry: Registry,
    authorize: Authorize,
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
    pub(crate) fn new(registry: Registry, authorize: Authorize) -> Self {
        Self { registry, authorize }
    }

    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let (parts, body) = request.into_parts();
        let reads = matches!(parts.method, Method::GET | Method::HEAD);
        let root = matches!(parts.uri.path(), "/v2" | "/v2/");
        if (!reads || root) && !(self.authorize)(&parts) {
            return refuse(Refusal::Unauthorized);
        }
        let body = std::pin::pin!(body);
        let mut response = match self.route(&parts, body).await {
            Ok(response) => response,
            Err(refusal) => refuse(refusal),
        };
        if parts.method == Method::HEAD {
            // The length says what GET would send.
            *response.body_mut() = empty();
        }
        response
    }

    async fn route<B>(&self, parts: &Parts, body: Pin<&mut B>) -> Result<Response<Body>, Refusal>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let path = percent_decode_str(parts.uri.path()).decode_utf8().map_err(|_| Refusal::NotFound)?;
        let Some(path) = path.strip_prefix("/v2") else { return Err(Refusal::NotFound) };
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let method = &parts.method;
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match segments.as_slice() {
            [""] if reads => Ok(ok(StatusCode::OK).body(full("{}")).expect("constant headers")),
            [name @ .., "blobs", "uploads", ""] | [name @ .., "blobs", "uploads"] if *method == Method::POST => {
                self.begin(&name.join("/"), parts, body).await
            }
            [name @ .., "blobs", "uploads", id] => self.upload(&name.join("/"), id, parts, body).await,
            [name @ .., "blobs", digest] if reads => self.blob(&name.join("/"), digest, &parts.headers).await,
            [name @ .., "manifests", reference] => self.manifest(&name.join("/"), reference, parts, body).await,
            [name @ .., "tags", "list"] if *method == Method::GET => self.tags(&name.join("/"), parts).await,
            [_, .., "blobs", _] => Err(Refusal::Unsupported),
            _ => Err(Refusal::NotFound),
        }
    }

    async fn blob(&self, name: &str, digest: &str, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let digest: Digest = digest.parse()?;
        let mut blob = self.registry.open_blob(name, &digest).await?;
        let range = match headers.get(header::RANGE) {
            Some(range) => byte_range(range.to_str().unwrap_or_default(), blob.size),
            None => ByteRange::All,
        };
        let response = ok(StatusCode::OK)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::ACCEPT_RANGES, "bytes")
            .header(CONTENT_DIGEST, digest.to_string());
        let (response, start, length) = match range {
            ByteRange::All => (response, 0, blob.size),
            ByteRange::Part { start, end } => {
                let content_range = format!("bytes {start}-{end}/{}", blob.size);
                let response =
                    response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content_range);
                (response, start, end - start + 1)
            }
            ByteRange::Beyond => return Err(Refusal::RangeBeyond { size: blob.size }),
        };
        blob.file.seek(SeekFrom::Start(start)).await.map_err(RegistryError::io(digest.to_string()))?;
        let chunks = read_chunks(blob.file.take(length)).map(|chunk| chunk.map(Frame::data));
        let body = BodyExt::boxed_unsync(StreamBody::new(chunks));
        Ok(response.header(header::CONTENT_LENGTH, length).body(body).expect("digits and constants"))
    }

    async fn manifest<B>(
        &self,
        name: &str,
        reference: &str,
        parts: &Parts,
        body: Pin<&mut B>,
    ) -> Result<Response<Body>, Refusal>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        match parts.method {
            Method::GET | Method::HEAD => {
                let manifest = self.registry.get_manifest(name, reference).await?;
                let response = ok(StatusCode::OK)
                    .header(header::CONTENT_TYPE, manifest.media_type)
                    .header(header::CONTENT_LENGTH, manifest.bytes.len())
                    .header(CONTENT_DIGEST, manifest.digest.to_string());
                response.body(full(manifest.bytes)).map_err(|_| Refusal::NotFound)
            }
            Method::PUT => {
                let bytes = read_all(body, MAX_MANIFEST_BYTES).await?;
                let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
                let digest = self.registry.put_manifest(name, reference, media_type, bytes).await?;
                Ok(created(&format!("/v2/{name}/manifests/{digest}"), &digest))
            }
            Method::DELETE => {
                self.registry.delete_manifest(name, reference).await?;
                Ok(ok(StatusCode::ACCEPTED).body(empty()).expect("constant headers"))
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    async fn tags(&self, name: &str, parts: &Parts) -> Result<Response<Body>, Refusal> {
        let last = query(parts, "last");
        let wanted = query(parts, "n").and_then(|n| n.parse().ok()).unwrap_or(MAX_TAGS).min(MAX_TAGS);
        let after = |tag: &String| last.as_ref().is_none_or(|last| tag > last);
        let mut tags: Vec<String> = self.registry.tags(name).await?.into_iter().filter(after).collect();
        let more = tags.len() > wanted;
        tags.truncate(wanted);
        let mut response = ok(StatusCode::OK).header(header::CONTENT_TYPE, "application/json");
        if let Some(last) = tags.last().filter(|_| more) {
            let next = format!("</v2/{name}/tags/list?n={wanted}&last={last}>; rel=\"next\"");
            response = response.header(header::LINK, next);
        }
        let body = serde_json::json!({"name": name, "tags": tags}).to_string();
        response.body(full(body)).map_err(|_| Refusal::NotFound)
    }

    /// POST: an empty upload, a whole blob at once, or one that another repository has.
    async fn begin<B>(&self, name: &str, parts: &Parts, body: Pin<&mut B>) -> Result<Response<Body>, Refusal>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let repository = Repository::parse(name)?;
        if let (Some(digest), Some(from)) = (query(parts, "mount"), query(parts, "from")) {
            let digest: Digest = digest.parse()?;
            if self.registry.mount_blob(&from, name, &digest).await? {
                return Ok(created(&format!("/v2/{name}/blobs/{digest}"), &digest));
            }
        }
        let mut ingest = self.registry.inner.blobs.begin(MAX_BLOB_BYTES).await?;
        if let Some(digest) = query(parts, "digest") {
            let digest: Digest = digest.parse()?;
            feed(&mut ingest, body).await?;
            self.registry.finish_blob(&repository, ingest, Some(&digest)).await?;
            return Ok(created(&format!("/v2/{name}/blobs/{digest}"), &digest));
        }
        let id = self.registry.inner.uploads.begin(name, ingest);
        Ok(progress(StatusCode::ACCEPTED, name, &id, 0))
    }

    async fn upload<B>(&self, name: &str, id: &str, parts: &Parts, body: Pin<&mut B>) -> Result<Response<Body>, Refusal>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let repository = Repository::parse(name)?;
        let uploads = &self.registry.inner.uploads;
        let take = || uploads.take(id, name).ok_or(Refusal::UploadUnknown);
        match parts.method {
            Method::GET => {
                let size = uploads.size(id, name).ok_or(Refusal::UploadUnknown)?;
                Ok(progress(StatusCode::NO_CONTENT, name, id, size))
            }
            Method::PATCH => {
                let mut ingest = take()?;
                let size = ingest.size();
                if !continues(&parts.headers, size) {
                    uploads.put_back(id.into(), name, ingest);
                    return Err(Refusal::OutOfOrder { size });
                }
                feed(&mut ingest, body).await?;
                let size = ingest.size();
                uploads.put_back(id.into(), name, ingest);
                Ok(progress(StatusCode::ACCEPTED, name, id, size))
            }
            Method::PUT => {
                let digest: Digest = query(parts, "digest").unwrap_or_default().parse()?;
                let mut ingest = take()?;
                feed(&mut ingest, body).await?;
                self.registry.finish_blob(&repository, ingest, Some(&digest)).await?;
                Ok(created(&format!("/v2/{name}/blobs/{digest}"), &digest))
            }
            Method::DELETE => {
                take()?;
                Ok(ok(StatusCode::NO_CONTENT).body(empty()).expect("constant headers"))
            }
            _ => Err(Refusal::Unsupported),
        }
    }
}

/// What a request gets instead of an answer.
enum Refusal {
    Unauthorized,
    NotFound,
    Unsupported,
    UploadUnknown,
    OutOfOrder { size: u64 },
    RangeBeyond { size: u64 },
    Registry(RegistryError),
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Refusal::Registry(error)
    }
}

/// The one place where errors become HTTP.
fn refuse(refusal: Refusal) -> Response<Body> {
    let (status, code, message) = match &refusal {
        Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "credentials are needed".into()),
        Refusal::NotFound => (StatusCode::NOT_FOUND, "NAME_UNKNOWN", "no such path".into()),
        Refusal::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "not supported here".into()),
        Refusal::UploadUnknown => {
            (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload, or a request works on it".into())
        }
        Refusal::OutOfOrder { size } => {
            let message = format!("the next chunk must begin at byte {size}");
            (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
        }
        Refusal::RangeBeyond { size } => {
            (StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", format!("the blob has {size} bytes"))
        }
        Refusal::Registry(error) => classify(error),
    };
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    let mut response = ok(status).header(header::CONTENT_TYPE, "application/json");
    if let Refusal::Unauthorized = refusal {
        response = response.header(header::WWW_AUTHENTICATE, "Basic realm=\"dhow\"");
    }
    if let Refusal::RangeBeyond { size } = refusal {
        response = response.header(header::CONTENT_RANGE, format!("bytes */{size}"));
    }
    response.body(full(body)).expect("digits and constants")
}

fn classify(error: &RegistryError) -> (StatusCode, &'static str, String) {
    use RegistryError as E;
    let (status, code) = match error {
        E::InvalidDigest { .. } | E::DigestMismatch { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        E::InvalidName { .. } => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        E::InvalidTag { .. } => (StatusCode::BAD_REQUEST, "TAG_INVALID"),
        E::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
        E::BlobUnknown { .. } => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        E::ManifestUnknown { .. } => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        E::ReferenceUnknown { .. } => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
        E::InvalidManifest { .. } => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        E::Body { .. } => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
        E::Io { .. } => {
            tracing::error!(error = error as &(dyn std::error::Error + 'static), "the registry's disk failed");
            // Paths of the machine are nobody's business outside.
            let message = "the registry could not read or write its files; its log says why";
            return (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message.into());
        }
    };
    (status, code, error.to_string())
}

fn ok(status: StatusCode) -> http::response::Builder {
    Response::builder().status(status).header("docker-distribution-api-version", "registry/2.0")
}

fn created(location: &str, digest: &Digest) -> Response<Body> {
    ok(StatusCode::CREATED)
        .header(header::LOCATION, location)
        .header(CONTENT_DIGEST, digest.to_string())
        .body(empty())
        .expect("a valid repository name is a valid header")
}

/// Where an upload is. The range is inclusive, and `0-0` before anything came, as the specification has it.
fn progress(status: StatusCode, name: &str, id: &str, size: u64) -> Response<Body> {
    ok(status)
        .header(header::LOCATION, format!("/v2/{name}/blobs/uploads/{id}"))
        .header(header::RANGE, format!("0-{}", size.saturating_sub(1)))
        .header(UPLOAD_ID, id)
        .body(empty())
        .expect("a valid repository name and an id of ours are valid headers")
}

/// Whether a chunk follows what is there; one that does not say where it belongs does.
fn continues(headers: &HeaderMap, size: u64) -> bool {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return true };
    let text = range.to_str().unwrap_or_default();
    let start = text.strip_prefix("bytes ").unwrap_or(text).split('-').next().unwrap_or_default();
    start.parse() == Ok(size)
}

#[derive(Debug, PartialEq, Eq)]
enum ByteRange {
    All,
    /// Inclusive.
    Part {
        start: u64,
        end: u64,
    },
    Beyond,
}

/// One range of bytes; what is not understood is ignored, as HTTP has it.
fn byte_range(text: &str, size: u64) -> ByteRange {
    let Some((start, end)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return ByteRange::All;
    };
    let range = match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, end.min(size.saturating_sub(1))),
        (Ok(start), Err(_)) if end.is_empty() => (start, size.saturating_sub(1)),
        (Err(_), Ok(last)) if start.is_empty() && last > 0 => (size.saturating_sub(last), size.saturating_sub(1)),
        (Err(_), Ok(0)) if start.is_empty() => return ByteRange::Beyond,
        _ => return ByteRange::All,
    };
    if range.0 >= size { ByteRange::Beyond } else { ByteRange::Part { start: range.0, end: range.1 } }
}

fn query(parts: &Parts, name: &str) -> Option<String> {
    let pairs = parts.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find(|(key, _)| *key == name)?.1;
    percent_decode_str(value).decode_utf8().ok().map(Into::into)
}

async fn feed<B>(ingest: &mut Ingest, body: Pin<&mut B>) -> Result<(), RegistryError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut frames = BodyStream::new(body);
    while let Some(frame) = next_frame(&mut frames).await? {
        ingest.write(&frame).await?;
    }
    Ok(())
}

async fn read_all<B>(body: Pin<&mut B>, limit: u64) -> Result<Bytes, RegistryError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut frames = BodyStream::new(body);
    let mut bytes = vec![];
    while let Some(frame) = next_frame(&mut frames).await? {
        if (bytes.len() + frame.len()) as u64 > limit {
            return Err(RegistryError::TooLarge { limit });
        }
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes.into())
}

/// The next data of a body; trailers are skipped.
async fn next_frame<B>(frames: &mut BodyStream<Pin<&mut B>>) -> Result<Option<Bytes>, RegistryError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    loop {
        let broken = |reason: String| RegistryError::Body { reason };
        let next = tokio::time::timeout(BODY_IDLE, frames.next()).await;
        match next.map_err(|_| broken(format!("nothing came for {} s", BODY_IDLE.as_secs())))? {
            None => return Ok(None),
            Some(Err(error)) => return Err(broken(error.to_string())),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

fn empty() -> Body {
    full(Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use ByteRange::{All, Beyond, Part};
        for (text, want) in [
            ("bytes=0-3", Part { start: 0, end: 3 }),
            ("bytes=2-", Part { start: 2, end: 9 }),
            ("bytes=2-99", Part { start: 2, end: 9 }),
            ("bytes=-3", Part { start: 7, end: 9 }),
            ("bytes=-99", Part { start: 0, end: 9 }),
            ("bytes=10-", Beyond),
            ("bytes=-0", Beyond),
            ("bytes=3-2", All),
            ("bytes=0-1,3-4", All),
            ("lines=0-1", All),
            ("", All),
        ] {
            assert_eq!(byte_range(text, 10), want, "{text}");
        }
        assert_eq!(byte_range("bytes=0-", 0), Beyond);
    }
}
