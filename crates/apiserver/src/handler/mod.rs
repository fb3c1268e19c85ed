//! The one handler: from a request to a verb on a kind.

mod admit;
mod collection;
mod decode;
mod definitions;
mod delete;
mod metadata;
mod object;
mod read;
mod scale;
mod write;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use store::Revision;
use tokio::sync::SemaphorePermit;

use crate::auth::User;
use crate::kinds::{Kind, Shape, Verbs};
use crate::options;
use crate::patch::APPLY;
use crate::request::{Form, Path, Query, accepted, content_type, field_manager};
use crate::status::{ApiError, Result};
use crate::{Inner, RequestBody, ResponseBody, whole};

pub(crate) use definitions::Definitions;
pub(crate) use object::{partial_metadata, shown};

/// Who asks, and what that entitles them to.
#[derive(Clone)]
pub(crate) struct Caller {
    pub user: Arc<User>,
    /// In process: no fsync to wait for, no bound on watches, unknown fields are not looked for.
    pub trusted: bool,
}

/// A request for a resource, as far as all verbs need it.
pub(crate) struct Call<'a> {
    pub kind: &'a Arc<Kind>,
    pub namespace: Option<&'a str>,
    pub name: Option<&'a str>,
    pub subresource: Option<&'a str>,
    pub query: &'a Query,
    pub parts: &'a Parts,
    pub form: Form,
    pub caller: &'a Caller,
    /// What to warn of, whatever comes of the request.
    pub said: Mutex<Vec<String>>,
}

/// What a write answers.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    /// An external client is answered once this is on disk.
    pub revision: Option<Revision>,
}

/// Warnings kept for one answer.
const MOST_WARNINGS: usize = 256;

impl Call<'_> {
    fn required_name(&self) -> Result<&str> {
        self.name.ok_or_else(not_allowed)
    }

    fn key(&self) -> Result<String> {
        Ok(self.kind.key(self.namespace, self.required_name()?))
    }

    fn manager(&self) -> String {
        field_manager(self.query, &self.parts.headers, if self.caller.trusted { "dhow" } else { "unknown" })
    }

    /// Warns the client, in the answer's headers; of the same thing once, and of no more than it could be told.
    fn say(&self, warnings: Vec<String>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings {
            if said.len() < MOST_WARNINGS && !said.contains(&warning) {
                said.push(warning);
            }
        }
    }

    /// The answer with all warnings. Of a deprecated version is warned first, and whatever comes of the request; of
    /// what else was sent only where a real server has read it before it refuses.
    fn warned(&self, answered: Result<Response<ResponseBody>>) -> Result<Response<ResponseBody>> {
        let mut said = std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner));
        match &answered {
            Ok(_) | Err(ApiError::AlreadyExists { .. } | ApiError::BeingDeleted { .. }) => {}
            Err(ApiError::Invalid { .. }) if self.kind.is_custom() => {}
            Err(_) => said.clear(),
        }
        let deprecation = self.kind.defined().and_then(|version| version.deprecation.clone());
        said.splice(..0, deprecation);
        let mut response = match answered {
            Err(error) if said.is_empty() || error.code() == StatusCode::INTERNAL_SERVER_ERROR => return Err(error),
            answered => answered.unwrap_or_else(|error| failure(&error)),
        };
        fitting(said).iter().for_each(|said| warn(&mut response, said));
        Ok(response)
    }

    fn not_found(&self) -> ApiError {
        ApiError::NotFound { resource: self.kind.resource(), name: self.name.unwrap_or_default().to_owned() }
    }
}

impl Inner {
    /// Answers one request; every error becomes a Status.
    pub async fn serve(&self, caller: Option<Caller>, parts: Parts, body: RequestBody) -> Response<ResponseBody> {
        match self.dispatch(caller, &parts, body).await {
            Ok(response) => response,
            Err(error) => {
                if error.code() == StatusCode::INTERNAL_SERVER_ERROR {
                    tracing::warn!(method = %parts.method, path = parts.uri.path(), %error, "request failed");
                }
                failure(&error)
            }
        }
    }

    async fn dispatch(
        &self,
        caller: Option<Caller>,
        parts: &Parts,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>> {
        let url = parts.uri.path();
        match url {
            "/healthz" | "/livez" | "/readyz" => return Ok(text("ok")),
            "/version" | "/version/" => return Ok(object(StatusCode::OK, &version())),
            _ => {}
        }
        let caller = match caller {
            Some(caller) => caller,
            None => {
                let user = self.tokens.user(&parts.headers).ok_or(ApiError::Unauthorized)?;
                Caller { user: Arc::new(user.clone()), trusted: false }
            }
        };
        let Some(path) = Path::parse(url) else { return self.document(parts) };
        let kinds = self.kinds.load_full();
        let kind = kinds.find(&path.group, &path.version, &path.plural).ok_or(ApiError::NoSuchPath)?;
        if path.namespace.is_some() && !kind.namespaced {
            return Err(ApiError::NoSuchPath);
        }
        let makes = parts.method == Method::POST && matches!(kind.shape, Shape::Defined(_));
        if path.namespace.is_none() && kind.namespaced && (path.name.is_some() || makes) {
            return Err(ApiError::NoSuchPath);
        }
        let query = Query::parse(parts.uri.query());
        let call = Call {
            kind,
            namespace: path.namespace.as_deref(),
            name: path.name.as_deref(),
            subresource: path.subresource.as_deref(),
            query: &query,
            parts,
            form: accepted(&parts.headers)?,
            caller: &caller,
            said: Mutex::default(),
        };
        let answered = self.verb(&call, body).await;
        if answered.is_err() {
            // That something is there, or is not, is said as well.
            self.on_disk(&caller, self.store.revision()).await?;
        }
        call.warned(answered)
    }

    /// What an outsider is shown must not be undone by a crash: it waits until all of it is on disk.
    async fn on_disk(&self, caller: &Caller, revision: Revision) -> Result<()> {
        if self.external_durable && !caller.trusted {
            self.store.durable(revision).await?;
        }
        Ok(())
    }

    async fn verb(&self, call: &Call<'_>, body: RequestBody) -> Result<Response<ResponseBody>> {
        if let Some(subresource) = call.subresource {
            let known = call.kind.subresources().iter().any(|(name, ..)| *name == subresource);
            if !known {
                return Err(if call.kind.is_custom() { call.not_found() } else { ApiError::NoSuchPath });
            }
            match subresource {
                "log" => return self.pod_log(call).await,
                "attach" | "exec" | "portforward" => return self.visit(call, subresource).await,
                _ => {}
            }
        }
        let method = call.parts.method.clone();
        options::check(&method, call.query, content_type(&call.parts.headers) == APPLY)?;
        if call.form == Form::Table {
            options::table(call.query)?;
        }
        match (&call.kind.verbs, &method) {
            (Verbs::All, _) | (Verbs::Ask(_), &Method::POST) => {}
            _ => return Err(not_allowed()),
        }
        match (method, call.name) {
            (Method::GET, Some(_)) => {
                let (response, revision) = self.get(call)?;
                self.on_disk(call.caller, revision).await?;
                Ok(response)
            }
            (Method::GET, None) if call.query.flag("watch") => self.watch(call),
            (Method::GET, None) => {
                let (response, revision) = self.list(call)?;
                self.on_disk(call.caller, revision).await?;
                Ok(response)
            }
            (Method::POST, None) => {
                let body = self.body(call.caller, body).await?;
                if let Verbs::Ask(answer) = call.kind.verbs {
                    return decode::ask(call, &body, answer);
                }
                let answer = self.create(call, &body)?;
                self.respond(call, answer).await
            }
            (Method::PUT, Some(_)) => {
                let answer = self.replace(call, &self.body(call.caller, body).await?)?;
                self.respond(call, answer).await
            }
            (Method::PATCH, Some(_)) => {
                let answer = self.patch(call, &self.body(call.caller, body).await?)?;
                self.respond(call, answer).await
            }
            (Method::DELETE, Some(_)) if call.subresource.is_none() => {
                let answer = self.delete(call, &self.body(call.caller, body).await?)?;
                self.respond(call, answer).await
            }
            (Method::DELETE, None) => {
                let answer = self.delete_collection(call, &self.body(call.caller, body).await?)?;
                self.respond(call, answer).await
            }
            _ => Err(not_allowed()),
        }
    }

    /// The whole body, bounded in size and time.
    async fn body(&self, caller: &Caller, body: RequestBody) -> Result<Bytes> {
        let collected = tokio::time::timeout(self.body_timeout, self.collect(caller, body));
        collected.await.unwrap_or(Err(ApiError::Timeout))
    }

    /// A body that comes in one piece is not copied.
    async fn collect(&self, caller: &Caller, mut body: RequestBody) -> Result<Bytes> {
        let mut whole = Bytes::new();
        let mut pending: Option<SemaphorePermit<'_>> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ApiError::BadRequest(format!("the body could not be read: {error}")))?;
            let Ok(piece) = frame.into_data() else { continue };
            if whole.len() + piece.len() > self.max_body_bytes {
                return Err(ApiError::TooLarge(format!("limit is {}", self.max_body_bytes)));
            }
            if !caller.trusted {
                let full = |_| ApiError::TooManyRequests("too many requests, please try again later".into());
                let more = self.pending.try_acquire_many(piece.len() as u32).map_err(full)?;
                match &mut pending {
                    Some(pending) => pending.merge(more),
                    None => pending = Some(more),
                }
            }
            whole = if whole.is_empty() { piece } else { joined(whole, &piece) };
        }
        Ok(whole)
    }

    /// Answers a write, and one that changed nothing with what is there.
    async fn respond(&self, call: &Call<'_>, answer: Answer) -> Result<Response<ResponseBody>> {
        self.on_disk(call.caller, answer.revision.unwrap_or_else(|| self.store.revision())).await?;
        let written = answer.revision.unwrap_or(Revision::MAX);
        let body = match call.form {
            Form::Object => shown(call.kind, answer.body, written),
            form => self.in_form(call, form, &answer.body, written)?,
        };
        Ok(json_bytes(answer.status, body))
    }
}

/// As Kubernetes bounds them: when all of them are too long together, each is cut, and what comes after enough is left out.
fn fitting(said: Vec<String>) -> Vec<String> {
    const MOST: usize = 4096;
    const MOST_EACH: usize = 256;
    let length = |text: &String| text.chars().count();
    if said.iter().map(length).sum::<usize>() <= MOST {
        return said;
    }
    let mut total = 0;
    let cut = said.into_iter().map(|text| text.chars().take(MOST_EACH).collect::<String>());
    cut.take_while(|text| {
        let fits = total < MOST;
        total += length(text);
        fits
    })
    .collect()
}

fn warn(response: &mut Response<ResponseBody>, said: &str) {
    if let Ok(value) = HeaderValue::from_str(&format!("299 - {said:?}")) {
        response.headers_mut().append(WARNING, value);
    }
}

fn joined(whole: Bytes, piece: &Bytes) -> Bytes {
    let mut whole = BytesMut::from(whole);
    whole.extend_from_slice(piece);
    whole.freeze()
}

pub(crate) fn not_allowed() -> ApiError {
    ApiError::MethodNotAllowed("the server does not allow this method on the requested resource".into())
}

pub(crate) fn json_bytes(status: StatusCode, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(crate) fn object(status: StatusCode, body: &Value) -> Response<ResponseBody> {
    json_bytes(status, body.to_string())
}

fn failure(error: &ApiError) -> Response<ResponseBody> {
    let status = error.status();
    let mut response = object(error.code(), &status);
    if let Some(seconds) = status["details"]["retryAfterSeconds"].as_u64() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn text(body: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(whole(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The version of the Kubernetes API that the built-in kinds follow.
fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "gitVersion": concat!("v1.36.3+dhow-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" },
    })
}
