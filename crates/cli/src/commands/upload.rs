//! A packed source on its way to the platform, under the name of its content.

use http::{Method, Request, StatusCode, header};

use crate::Failure;
use crate::connect::{Endpoints, Platform};
use crate::http as wire;
use crate::packing::Packed;

/// An error's text is not worth more.
const PROBLEM_BYTES: usize = 64 << 10;

/// Why the source is not there.
pub struct NotUploaded {
    pub failure: Failure,
    pub is_too_large: bool,
}

/// Whether it had to be sent. What the platform would refuse is not sent: its refusal could be lost in the upload.
pub async fn upload(
    platform: &Platform,
    endpoints: &Endpoints,
    packed: Packed,
) -> std::result::Result<bool, NotUploaded> {
    let door = platform.uploads(endpoints)?;
    if let Some(limit) = endpoints.max_source.filter(|limit| packed.bytes > *limit) {
        let what = format!("the packed source has {} bytes, and the platform takes {limit} bytes", packed.bytes);
        let failure = Failure::failed(what)
            .next("leave files out with .dhowignore, or raise --max-source where the platform runs");
        return Err(NotUploaded { failure, is_too_large: true });
    }
    let token = platform.upload_token(endpoints).await?;
    let path = format!("/v1/namespaces/{}/blobs/{}", platform.namespace, packed.digest);
    let request = |method, bytes, body| {
        let mut request = Request::builder().method(method).uri(&path).header(header::HOST, door.host());
        if bytes > 0 {
            request = request.header(header::CONTENT_LENGTH, bytes);
            request = request.header(header::CONTENT_TYPE, "application/gzip");
        }
        if let Some(token) = &token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(body).map_err(|e| Failure::failed(format!("the upload cannot be asked for: {e}")))
    };
    let there = wire::send(WHAT, &door, request(Method::HEAD, 0, wire::whole(""))?).await?;
    match there.response.status() {
        StatusCode::OK => return Ok(false),
        StatusCode::NOT_FOUND => {}
        status => return Err(refused(status, "").into()),
    }
    let body = wire::streamed(tokio::fs::File::from_std(packed.file));
    let stored = wire::send(WHAT, &door, request(Method::PUT, packed.bytes, body)?).await?;
    let status = stored.response.status();
    if status.is_success() {
        return Ok(true);
    }
    let failure = refused(status, &stored.text(PROBLEM_BYTES).await);
    Err(NotUploaded { failure, is_too_large: status == StatusCode::PAYLOAD_TOO_LARGE })
}

impl From<Failure> for NotUploaded {
    fn from(failure: Failure) -> Self {
        Self { failure, is_too_large: false }
    }
}

const WHAT: &str = "the platform API";

fn refused(status: StatusCode, text: &str) -> Failure {
    wire::refused("the platform did not take the source", status, text)
}
