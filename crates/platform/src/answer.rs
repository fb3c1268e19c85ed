//! What the API says: JSON, and an error always names the next step.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use registry::remote::RemoteError;
use registry::{Digest, RegistryError};
use serde::Serialize;

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a request is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    ForeignHost {
        host: String,
    },
    ForeignOrigin {
        origin: String,
    },
    NotFound {
        path: String,
    },
    Method {
        allowed: &'static str,
    },
    Unauthenticated,
    /// The empty namespace is all of the platform.
    Forbidden {
        namespace: String,
    },
    /// Whether the caller may cannot be found out now.
    Undecided,
    InvalidNamespace {
        namespace: String,
    },
    Busy {
        with: &'static str,
    },
    /// The copy could not be made.
    Backup(std::io::Error),
    Registry(RegistryError),
    /// The other registry's fault, or the operator's.
    Remote(RemoteError),
}

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
    message: String,
    next: &'a str,
}

#[derive(Serialize)]
struct Stored {
    digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

impl Refusal {
    /// Whoever is refused for what he is gets less patience than who may try again.
    pub fn is_strangers(&self) -> bool {
        !matches!(self, Refusal::Registry(_) | Refusal::Remote(_))
    }

    pub fn answer(&self) -> Response<Body> {
        let (status, error, next) = self.classify();
        let message = match self {
            Refusal::ForeignHost { host } => format!("this API is not served under the host {host:?}"),
            Refusal::ForeignOrigin { origin } => format!("pages from {origin:?} may not use this API"),
            Refusal::NotFound { path } => format!("there is nothing at {path:?}"),
            Refusal::Method { allowed } => format!("what is there takes {allowed}"),
            Refusal::Unauthenticated => "who are you? no valid bearer token came with the request".into(),
            Refusal::Forbidden { namespace } if namespace.is_empty() => {
                "you may not copy what the platform knows".into()
            }
            Refusal::Forbidden { namespace } => format!("you may not upload to the namespace {namespace:?}"),
            Refusal::Undecided => "the Kubernetes API does not say who you are".into(),
            Refusal::InvalidNamespace { namespace } => format!("{namespace:?} is not a namespace"),
            Refusal::Busy { with } => format!("too many {with} are in progress"),
            Refusal::Backup(_) => "the platform could not copy its data file".into(),
            // Paths of the machine are nobody's business outside.
            Refusal::Registry(RegistryError::Io { .. }) => "the platform could not store the blob".into(),
            Refusal::Registry(error) => error.to_string(),
            // Where it is and what it says to us is the operator's to know.
            Refusal::Remote(_) => "the platform's registry did not take the blob".into(),
        };
        let mut response = json(status, &Problem { error, message, next });
        let headers = response.headers_mut();
        match self {
            Refusal::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"dhow\""));
            }
            Refusal::Busy { .. } | Refusal::Undecided => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Refusal::Method { allowed } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        response
    }

    fn classify(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Refusal::ForeignHost { .. } => (
                StatusCode::MISDIRECTED_REQUEST,
                "ForeignHost",
                "use the address that `dhow up` printed, or allow this host in the platform's configuration",
            ),
            Refusal::ForeignOrigin { .. } => {
                (StatusCode::FORBIDDEN, "ForeignOrigin", "use the console at the platform's own address")
            }
            Refusal::NotFound { .. } => {
                (StatusCode::NOT_FOUND, "NotFound", "sources live at /v1/namespaces/<namespace>/blobs/sha256:<hex>")
            }
            Refusal::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "use one of these methods"),
            Refusal::Unauthenticated => {
                (StatusCode::UNAUTHORIZED, "Unauthenticated", "send the bearer token of the platform's kubeconfig")
            }
            Refusal::Forbidden { namespace } if namespace.is_empty() => {
                (StatusCode::FORBIDDEN, "Forbidden", "ask the platform's administrator")
            }
            Refusal::Forbidden { .. } => {
                (StatusCode::FORBIDDEN, "Forbidden", "use another namespace, or ask its owner for access")
            }
            Refusal::Undecided => (StatusCode::SERVICE_UNAVAILABLE, "Undecided", "try again in a second"),
            Refusal::InvalidNamespace { .. } => {
                (StatusCode::BAD_REQUEST, "InvalidNamespace", "use up to 63 lower-case letters, digits and '-'")
            }
            Refusal::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "Busy", "try again in a second"),
            Refusal::Backup(error) => {
                tracing::error!(%error, "a backup could not be made");
                (StatusCode::INTERNAL_SERVER_ERROR, "BackupFailed", "look into the platform's log; is its disk full?")
            }
            Refusal::Registry(error) => classify(error),
            Refusal::Remote(error) => {
                tracing::error!(%error, "a source could not be stored");
                (StatusCode::BAD_GATEWAY, "RegistryFailed", "try again; if it lasts, look into the platform's log")
            }
        }
    }
}

fn classify(error: &RegistryError) -> (StatusCode, &'static str, &'static str) {
    match error {
        RegistryError::TooLarge { .. } => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "SourceTooLarge",
            "leave files out with .dhowignore, or raise --max-source where the platform runs",
        ),
        RegistryError::InvalidDigest { .. } => {
            (StatusCode::BAD_REQUEST, "InvalidDigest", "name the blob by the SHA-256 of its bytes")
        }
        RegistryError::DigestMismatch { .. } => {
            (StatusCode::BAD_REQUEST, "DigestMismatch", "compute the digest of exactly the bytes sent, and send again")
        }
        RegistryError::BlobUnknown { .. } => (StatusCode::NOT_FOUND, "BlobUnknown", "upload it with PUT"),
        RegistryError::Body { .. } => (StatusCode::BAD_REQUEST, "BrokenOff", "send it again"),
        RegistryError::InvalidName { .. } => {
            (StatusCode::BAD_REQUEST, "InvalidNamespace", "use up to 63 lower-case letters, digits and '-'")
        }
        error => {
            tracing::error!(error = error as &(dyn std::error::Error + 'static), "a source could not be stored");
            (StatusCode::INTERNAL_SERVER_ERROR, "StorageFailed", "look into the platform's log; is its disk full?")
        }
    }
}

/// The blob is there: 201 when it was not before.
pub(crate) fn stored(status: StatusCode, digest: Digest, size: Option<u64>) -> Response<Body> {
    json(status, &Stored { digest, size })
}

pub(crate) fn healthy() -> Response<Body> {
    Response::new(whole("ok"))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(value).expect("strings and numbers always serialise");
    text.push(b'\n');
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
