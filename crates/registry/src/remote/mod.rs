//! A client of other registries' distribution API: manifests and blobs, pulled and pushed.
//!
//! Owns the way there: TLS, credentials, tokens, retries. Must not know what the bytes are for. The surprise: nothing
//! that comes back is believed; a manifest or blob is hashed as it is read, and what does not match its name is an error.

mod auth;
mod error;
mod push;
mod transport;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use self::transport::{Ask, Body, BoxError, Transport, join, small};
use crate::digest::Digest;
use crate::image::{ImageError, ImageRef, media, read_chunks};
use crate::names::Reference;
use crate::registry::{MAX_MANIFEST_BYTES, Manifest};

pub use error::RemoteError;
pub use push::{Base, LayerSource, cached_layers, keep_blob, keep_layers, pull_base, push_image_on};

/// The host that serves what is named without one.
pub(crate) const DOCKER_HUB: &str = "registry-1.docker.io";
const ATTEMPTS: u32 = 3;
const CONTENT_DIGEST: &str = "docker-content-digest";

#[derive(Clone, Debug, Default)]
pub struct RemoteConfig {
    /// Authorities in PEM, trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Registries, `host[:port]`, that speak plain HTTP. Those on loopback do unless they are in `secure`.
    pub insecure: Vec<String>,
    /// Registries on loopback that speak TLS.
    pub secure: Vec<String>,
    /// A docker `config.json`; its `auths` are read, helpers are not run.
    pub credentials: Option<PathBuf>,
}

/// The client; clones share connections and tokens.
#[derive(Clone)]
pub struct Remote {
    transport: Arc<Transport>,
}

/// One repository of one registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// `host[:port]`
    pub registry: String,
    /// Any number of components.
    pub repository: String,
}

impl Location {
    /// Where an image lies. Names without a registry are Docker Hub's.
    pub fn of(image: &ImageRef) -> Self {
        let library = |name: &str| if name.contains('/') { name.to_owned() } else { format!("library/{name}") };
        match image.registry.as_deref() {
            None | Some("docker.io" | "index.docker.io") => {
                Self { registry: DOCKER_HUB.into(), repository: library(&image.repository) }
            }
            Some(registry) => Self { registry: registry.into(), repository: image.repository.clone() },
        }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// A registry and a path in it, below which repositories lie: `host[:port][/path]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    registry: String,
    path: Option<String>,
}

impl Prefix {
    pub fn location(&self, repository: &str) -> Location {
        let repository = match &self.path {
            Some(path) => format!("{path}/{repository}"),
            None => repository.to_owned(),
        };
        Location { registry: self.registry.clone(), repository }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}/{path}", self.registry),
            None => f.write_str(&self.registry),
        }
    }
}

impl FromStr for Prefix {
    type Err = RemoteError;

    fn from_str(text: &str) -> Result<Self, RemoteError> {
        let invalid =
            |reason: &str| RemoteError::Invalid { what: format!("the registry {text:?}"), reason: reason.into() };
        // An image below it must be one: that checks the host, the port and the path.
        let image: ImageRef = format!("{text}/x").parse().map_err(|error: ImageError| invalid(&error.to_string()))?;
        let registry = image.registry.ok_or_else(|| invalid("host[:port][/path] is expected"))?;
        let path = image.repository.strip_suffix("/x").map(str::to_owned);
        Ok(Self { registry, path })
    }
}

impl Remote {
    pub fn new(config: &RemoteConfig) -> Result<Self, RemoteError> {
        Ok(Self { transport: Arc::new(Transport::new(config)?) })
    }

    pub async fn manifest(&self, at: &Location, reference: &Reference) -> Result<Manifest, RemoteError> {
        let what = match reference {
            Reference::Tag(tag) => format!("{at}:{tag}"),
            Reference::Digest(digest) => format!("{at}@{digest}"),
        };
        let mut ask = Ask::new(Method::GET, format!("/v2/{}/manifests/{reference}", at.repository));
        ask.headers.insert(ACCEPT, HeaderValue::from_static(media::ANY_MANIFEST));
        let response = self.transport.ask(&at.registry, &pulls(at), &ask, &what).await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let media_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let told = header(CONTENT_DIGEST).and_then(|text| text.parse().ok());
        let bytes = transport::read(response.into_body(), MAX_MANIFEST_BYTES).await?;
        let digest = Digest::of(&bytes);
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => told,
        };
        matches(expected, digest)?;
        Ok(Manifest { media_type, digest, bytes })
    }

    /// Stores a manifest under its digest or under a tag.
    pub async fn put_manifest(
        &self,
        at: &Location,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RemoteError> {
        let digest = Digest::of(&bytes);
        let mut ask = Ask::new(Method::PUT, format!("/v2/{}/manifests/{reference}", at.repository));
        let media_type = HeaderValue::try_from(media_type);
        let invalid = |_| RemoteError::Invalid { what: "a media type".into(), reason: "it is no header".into() };
        ask.headers.insert(CONTENT_TYPE, media_type.map_err(invalid)?);
        ask.body = bytes;
        self.transport.ask(&at.registry, &pushes(at), &ask, &format!("the manifest {at}@{digest}")).await?;
        Ok(digest)
    }

    /// The size of a blob; `None` where it is not there.
    pub async fn has_blob(&self, at: &Location, digest: &Digest) -> Result<Option<u64>, RemoteError> {
        self.head_blob(at, digest, &pulls(at)).await
    }

    /// Before a push the same is asked with a pusher's rights: some registries deny a reader what is not there.
    async fn head_blob(&self, at: &Location, digest: &Digest, scope: &str) -> Result<Option<u64>, RemoteError> {
        let ask = Ask::new(Method::HEAD, blob_path(at, digest));
        match self.transport.ask(&at.registry, scope, &ask, &blob_name(at, digest)).await {
            Ok(response) => {
                let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
                Ok(Some(length.unwrap_or_default()))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The whole blob, if it is no larger than `max_bytes`.
    pub async fn read_blob(&self, at: &Location, digest: &Digest, max_bytes: u64) -> Result<Bytes, RemoteError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let read = async { transport::read(self.blob(at, digest).await?, max_bytes).await };
            match read.await {
                Ok(bytes) => return matches(Some(*digest), Digest::of(&bytes)).map(|()| bytes),
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes a blob of at most `max_bytes` into a new file. After an error the file holds a part.
    pub async fn pull_blob(
        &self,
        at: &Location,
        digest: &Digest,
        max_bytes: u64,
        path: &Path,
    ) -> Result<u64, RemoteError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.pull_once(at, digest, max_bytes, path).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {}
                ended => return ended,
            }
        }
    }

    async fn pull_once(&self, at: &Location, digest: &Digest, max_bytes: u64, path: &Path) -> Result<u64, RemoteError> {
        let mut body = self.blob(at, digest).await?;
        let mut file = tokio::fs::File::create(path).await.map_err(RemoteError::io(path))?;
        let (mut hasher, mut size) = (Sha256::new(), 0);
        while let Some(chunk) = transport::next(&mut body).await? {
            size += chunk.len() as u64;
            if size > max_bytes {
                return Err(RemoteError::TooLarge { limit: max_bytes });
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(RemoteError::io(path))?;
        }
        file.flush().await.map_err(RemoteError::io(path))?;
        matches(Some(*digest), Digest::finish(hasher)).map(|()| size)
    }

    async fn blob(&self, at: &Location, digest: &Digest) -> Result<Incoming, RemoteError> {
        let ask = Ask::new(Method::GET, blob_path(at, digest));
        Ok(self.transport.ask(&at.registry, &pulls(at), &ask, &blob_name(at, digest)).await?.into_body())
    }

    /// Makes one repository hold what another of the same registry holds; `false` when the registry does not want to.
    pub async fn mount_blob(&self, from: &Location, into: &Location, digest: &Digest) -> Result<bool, RemoteError> {
        if from.registry != into.registry {
            return Ok(false);
        }
        let path = format!("/v2/{}/blobs/uploads/?mount={digest}&from={}", into.repository, from.repository);
        let scope = format!("{} {}", pushes(into), pulls(from));
        let asked =
            self.transport.ask(&into.registry, &scope, &Ask::new(Method::POST, path), &blob_name(into, digest)).await;
        let response = match asked {
            // Whoever may not read the other repository is told so by some, and given an upload by others.
            Err(RemoteError::Denied { .. } | RemoteError::NotFound { .. }) => return Ok(false),
            other => other?,
        };
        if response.status() == StatusCode::CREATED {
            return Ok(true);
        }
        if let Some(upload) = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()?.parse().ok()) {
            let upload: http::Uri = upload;
            let path = upload.path_and_query().map(ToString::to_string).unwrap_or_default();
            // The registry forgets it sooner or later without being told.
            let _ = self.transport.ask(&into.registry, &scope, &Ask::new(Method::DELETE, path), "an upload").await;
        }
        Ok(false)
    }

    pub async fn push_bytes(&self, at: &Location, bytes: Bytes) -> Result<Digest, RemoteError> {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        if self.head_blob(at, &digest, &pushes(at)).await?.is_none() {
            self.again(|| self.upload(at, &digest, Some(size), small(bytes.clone()))).await?;
        }
        Ok(digest)
    }

    /// Pushes a file unless the blob is there already.
    pub async fn push_file(&self, at: &Location, digest: &Digest, size: u64, path: &Path) -> Result<(), RemoteError> {
        if self.head_blob(at, digest, &pushes(at)).await?.is_some() {
            return Ok(());
        }
        self.again(async || {
            let file = tokio::fs::File::open(path).await.map_err(RemoteError::io(path))?;
            let chunks = read_chunks(file).map(|chunk| chunk.map(Frame::data).map_err(BoxError::from));
            let body = BodyExt::boxed_unsync(StreamBody::new(chunks));
            self.upload(at, digest, Some(size), body).await
        })
        .await
    }

    /// Pushes what comes, straight through: nothing is kept, so nothing is tried again. What is not `expected`, or
    /// more than `limit`, is cut off before the registry has all of it.
    pub async fn push_stream<E: std::fmt::Display + 'static>(
        &self,
        at: &Location,
        expected: &Digest,
        limit: u64,
        body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Result<u64, RemoteError> {
        let seen = Arc::new(std::sync::Mutex::new(Seen::default()));
        let checked = checked(body, *expected, limit, seen.clone());
        let ended = self.upload(at, expected, None, BodyExt::boxed_unsync(StreamBody::new(checked))).await;
        let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match (seen.failure.take(), ended) {
            // Ours is the cause, the connection's error its effect.
            (Some(failure), _) => Err(failure),
            (None, ended) => ended.map(|()| seen.size),
        }
    }

    /// One upload: a place for it, then all of it.
    async fn upload(&self, at: &Location, digest: &Digest, size: Option<u64>, body: Body) -> Result<(), RemoteError> {
        let (scope, what) = (pushes(at), blob_name(at, digest));
        let path = format!("/v2/{}/blobs/uploads/", at.repository);
        let begun = self.transport.ask(&at.registry, &scope, &Ask::new(Method::POST, path.clone()), &what).await?;
        let invalid =
            || RemoteError::Invalid { what: what.clone(), reason: "the registry gives no place for it".into() };
        let place = begun.headers().get(LOCATION).and_then(|to| to.to_str().ok()).ok_or_else(invalid)?;
        let joint = if place.contains('?') { '&' } else { '?' };
        let place = format!("{place}{joint}digest={digest}");
        let place = join(&self.transport.uri(&at.registry, &path)?, &place).ok_or_else(invalid)?;
        let mut request = Request::put(&place).header(CONTENT_TYPE, "application/octet-stream");
        if let Some(size) = size {
            request = request.header(CONTENT_LENGTH, size);
        }
        let request = request.body(body).map_err(|_| invalid())?;
        let ended = self.transport.send_once(&at.registry, &scope, request, &what).await.map(drop);
        if ended.is_err()
            && let Ok(request) = Request::delete(&place).body(small(Bytes::new()))
        {
            // A registry would keep the half of it for a while.
            let gone = self.transport.send_once(&at.registry, &scope, request, &what).await;
            tracing::debug!(gone = gone.is_ok(), "an upload was given up");
        }
        ended
    }

    async fn again<F: Future<Output = Result<(), RemoteError>>>(
        &self,
        upload: impl Fn() -> F,
    ) -> Result<(), RemoteError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match upload().await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "uploading again");
                    tokio::time::sleep(transport::PAUSE * attempt).await;
                }
                ended => return ended,
            }
        }
    }
}

/// What a checked stream has let through.
#[derive(Default)]
struct Seen {
    size: u64,
    failure: Option<RemoteError>,
}

/// The stream, ending in an error where it is too long or not what it should be.
fn checked<E: std::fmt::Display + 'static>(
    body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    expected: Digest,
    limit: u64,
    seen: Arc<std::sync::Mutex<Seen>>,
) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static {
    let start = (Box::pin(body), Some(Sha256::new()));
    futures::stream::unfold(start, move |(mut body, hasher)| {
        let seen = seen.clone();
        async move {
            let mut hasher = hasher?;
            let next = body.next().await;
            let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let failure = match next {
                Some(Ok(chunk)) if seen.size + chunk.len() as u64 <= limit => {
                    seen.size += chunk.len() as u64;
                    hasher.update(&chunk);
                    return Some((Ok(Frame::data(chunk)), (body, Some(hasher))));
                }
                Some(Ok(_)) => RemoteError::TooLarge { limit },
                Some(Err(error)) => RemoteError::Body { reason: error.to_string() },
                None => matches(Some(expected), Digest::finish(hasher)).err()?,
            };
            let words = failure.to_string();
            seen.failure = Some(failure);
            Some((Err(words.into()), (body, None)))
        }
    })
}

fn matches(expected: Option<Digest>, actual: Digest) -> Result<(), RemoteError> {
    match expected.filter(|expected| *expected != actual) {
        Some(expected) => Err(RemoteError::DigestMismatch { expected, actual }),
        None => Ok(()),
    }
}

fn blob_path(at: &Location, digest: &Digest) -> String {
    format!("/v2/{}/blobs/{digest}", at.repository)
}

fn blob_name(at: &Location, digest: &Digest) -> String {
    format!("the blob {at}@{digest}")
}

fn pulls(at: &Location) -> String {
    format!("repository:{}:pull", at.repository)
}

fn pushes(at: &Location) -> String {
    format!("repository:{}:pull,push", at.repository)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (text, want) in [
            ("registry.example", Some("registry.example/default/hello")),
            ("127.0.0.1:5000", Some("127.0.0.1:5000/default/hello")),
            ("ghcr.io/acme/functions", Some("ghcr.io/acme/functions/default/hello")),
            ("localhost", Some("localhost/default/hello")),
            ("acme", None),
            ("ghcr.io/Acme", None),
            ("https://ghcr.io", None),
            ("", None),
        ] {
            let prefix = text.parse::<Prefix>().ok();
            assert_eq!(prefix.map(|p| p.location("default/hello").to_string()).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn locations() {
        for (image, want) in [
            ("python:3.12", "registry-1.docker.io/library/python"),
            ("docker.io/acme/x", "registry-1.docker.io/acme/x"),
            ("ghcr.io/a/b/c:1", "ghcr.io/a/b/c"),
        ] {
            assert_eq!(Location::of(&image.parse().unwrap()).to_string(), want);
        }
    }
}
