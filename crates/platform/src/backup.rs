//! Backups: a copy of the platform's data file on its way to a client.
//!
//! Must not know: what is in the file, or how the copy is made. One at a time: each takes the space of the file itself.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::{Body, Refusal};

pub(crate) const PATH: &str = "/v1/backup";
/// What is read of the copy at a time.
const CHUNK: usize = 256 << 10;

/// Makes a copy that nobody else has a name for, opened for reading.
pub type Backup = Arc<dyn Fn() -> BoxFuture<'static, std::io::Result<std::fs::File>> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Backups {
    make: Backup,
    one: Arc<Semaphore>,
}

impl Backups {
    pub fn new(make: Backup) -> Self {
        Self { make, one: Arc::new(Semaphore::new(1)) }
    }

    pub async fn answer(&self) -> Result<Response<Body>, Refusal> {
        let permit = self.one.clone().try_acquire_owned().map_err(|_| Refusal::Busy { with: "backups" })?;
        let file = (self.make)().await.map_err(Refusal::Backup)?;
        let length = file.metadata().map_err(Refusal::Backup)?.len();
        let mut response = Response::new(streamed(tokio::fs::File::from_std(file), permit));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.sqlite3"));
        headers.insert(header::CONTENT_LENGTH, length.into());
        Ok(response)
    }
}

/// The file's space is free again, and the next backup may begin, when the client has all of it or is gone.
fn streamed(file: tokio::fs::File, permit: OwnedSemaphorePermit) -> Body {
    let chunks = futures::stream::try_unfold((file, permit), |(mut file, permit)| async move {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let count = file.read_buf(&mut chunk).await?;
        Ok::<_, std::io::Error>((count > 0).then(|| (chunk.freeze(), (file, permit))))
    });
    StreamBody::new(chunks.map_ok(|chunk: Bytes| Frame::data(chunk))).boxed_unsync()
}
