//! What the gateway answers: an instance's answer passing through, or its own words.
//!
//! Owns: the response body type, and the wording of every error. Must not know: how an answer was come by. The
//! surprise: the request's slot is free as soon as the instance has sent its last byte, however slowly the client reads.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::backend::{Backend, Visit};
use crate::headers::Malformed;
use crate::io::Pulse;
use crate::slots::{Failure, Instance, Refusal};
use crate::upstream::Upstream;
use crate::worker::{Deadline, Worker};

/// A body for the client.
pub(crate) struct Answer {
    body: Kind,
    /// The connection is busy until the answer is gone.
    _busy: Busy,
}

enum Kind {
    Own(Option<Bytes>),
    Passing(Passing),
}

/// An instance's body on its way to the client.
struct Passing {
    incoming: Incoming,
    /// The connection it comes on, unless that has a task of its own.
    upstream: Option<Upstream>,
    visit: Option<Visit>,
    worker: Rc<Worker>,
    idle: Option<Idle>,
}

/// How long an instance may be silent in the middle of its answer.
struct Idle {
    micros: u64,
    deadline: Deadline,
}

/// Keeps a client connection from being taken for idle.
pub(crate) struct Busy(Arc<Pulse>);

/// Why an answer broke off. It ends the client's connection, since its head has been sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the instance broke off")]
    Instance(#[source] hyper::Error),
    #[error("the instance was silent for too long")]
    Silent,
}

impl Busy {
    pub fn new(pulse: Arc<Pulse>) -> Self {
        pulse.begin();
        Self(pulse)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Answer {
    pub fn passing(
        incoming: Incoming,
        mut upstream: Option<Upstream>,
        visit: Visit,
        worker: Rc<Worker>,
        idle_micros: Option<u64>,
        busy: Busy,
    ) -> Self {
        if incoming.is_end_stream() {
            if let Some(upstream) = upstream.take() {
                let now = worker.millis();
                worker.pool.borrow_mut().put(upstream, now);
            }
            return Self { body: Kind::Own(None), _busy: busy };
        }
        let idle = idle_micros.map(|micros| Idle { micros, deadline: worker.deadline_in(micros) });
        let passing = Passing { incoming, upstream, visit: Some(visit), worker, idle };
        Self { body: Kind::Passing(passing), _busy: busy }
    }

    pub fn empty(busy: Busy) -> Self {
        Self { body: Kind::Own(None), _busy: busy }
    }
}

impl Passing {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut driven = false;
        loop {
            let polled = match &mut self.upstream {
                Some(upstream) => upstream.poll_body(&mut self.incoming),
                None => Pin::new(&mut self.incoming).poll_frame(cx),
            };
            match polled {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(idle) = &mut self.idle {
                        idle.deadline = self.worker.deadline_in(idle.micros);
                    }
                    if self.incoming.is_end_stream() {
                        self.finish();
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.upstream = None;
                    self.visit = None;
                    return Poll::Ready(Some(Err(Broken::Instance(error))));
                }
                Poll::Ready(None) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Poll::Pending => match &mut self.upstream {
                    Some(upstream) if !driven || upstream.missed() => {
                        upstream.drive(cx);
                        driven = true;
                    }
                    _ => break,
                },
            }
        }
        if self.idle.as_mut().is_some_and(|idle| idle.deadline.passed(cx)) {
            self.upstream = None;
            self.visit = None;
            return Poll::Ready(Some(Err(Broken::Silent)));
        }
        Poll::Pending
    }

    /// The instance is done: its connection and its slot are free.
    fn finish(&mut self) {
        self.idle = None;
        if let Some(upstream) = self.upstream.take() {
            let now = self.worker.millis();
            self.worker.pool.borrow_mut().put(upstream, now);
        }
        self.visit = None;
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.body {
            Kind::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Passing(passing) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Kind::Own(bytes) => bytes.is_none(),
            Kind::Passing(passing) => passing.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Kind::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Passing(passing) => passing.incoming.size_hint(),
        }
    }
}

/// Why the gateway answers by itself.
pub(crate) enum Problem<'a> {
    Malformed(Malformed),
    NoSuchHost(&'a str),
    /// Not a problem to most: where to go instead, and with which method.
    TlsOnly(String, Method),
    Starting,
    NoRoute,
    Refused(&'a Backend, Refusal, u64),
    /// The instance could not be reached, or went away before it answered.
    Died(&'a Backend, Option<&'a Instance>, String),
    Late(&'a Backend, u64),
}

struct Wording {
    status: StatusCode,
    error: &'static str,
    message: String,
    pod: Option<String>,
    service: Option<String>,
    retry_after: Option<&'static str>,
    location: Option<String>,
}

impl Problem<'_> {
    /// The answer, in JSON for clients that prefer it.
    pub fn answer(self, wants_json: bool, busy: Busy) -> Response<Answer> {
        let wording = self.wording();
        let (content_type, body) = if wants_json { wording.json() } else { wording.text() };
        let mut response = Response::new(Answer { body: Kind::Own(Some(body)), _busy: busy });
        *response.status_mut() = wording.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(seconds) = wording.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if let Some(location) = wording.location.and_then(|location| HeaderValue::try_from(location).ok()) {
            headers.insert(header::LOCATION, location);
        }
        response
    }

    fn wording(self) -> Wording {
        match self {
            Self::Malformed(Malformed::Connect) => {
                Wording::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", Malformed::Connect.to_string())
            }
            Self::Malformed(why) => Wording::new(StatusCode::BAD_REQUEST, "BadRequest", why.to_string()),
            Self::NoSuchHost(host) => Wording::new(
                StatusCode::NOT_FOUND,
                "UnknownHost",
                format!("nothing is served at {host}; `dhow list` shows what there is"),
            ),
            Self::TlsOnly(location, method) => {
                // What is older than 308 makes a GET of everything.
                let plain = method == Method::GET || method == Method::HEAD;
                let status = if plain { StatusCode::MOVED_PERMANENTLY } else { StatusCode::PERMANENT_REDIRECT };
                let mut wording = Wording::new(status, "TlsOnly", format!("this is served at {location}"));
                wording.location = Some(location);
                wording
            }
            Self::Starting => {
                let text = "the gateway has just started and does not know its routes yet".to_owned();
                Wording::new(StatusCode::SERVICE_UNAVAILABLE, "Starting", text).retry("1")
            }
            Self::NoRoute => {
                Wording::new(StatusCode::SERVICE_UNAVAILABLE, "NoTraffic", "the route sends no traffic anywhere".into())
            }
            Self::Refused(backend, refusal, timeout) => refused(backend, refusal, timeout),
            Self::Died(backend, instance, why) => died(backend, instance, &why),
            Self::Late(backend, timeout) => late(backend, timeout),
        }
    }
}

fn refused(backend: &Backend, refusal: Refusal, timeout: u64) -> Wording {
    match refusal {
        Refusal::QueueFull => {
            let text = format!("the queue of revision {} is full", backend.key.revision);
            Wording::new(StatusCode::SERVICE_UNAVAILABLE, "QueueFull", text).of(backend).retry("1")
        }
        Refusal::TimedOut => late(backend, timeout),
        Refusal::Failed(failure) => {
            let Failure { reason, message } = &*failure;
            let text = format!(
                "revision {} cannot start: {reason}: {message}; `dhow logs {}` shows what it printed",
                backend.key.revision, backend.service
            );
            Wording::new(StatusCode::SERVICE_UNAVAILABLE, "RevisionFailed", text).of(backend).retry("5")
        }
    }
}

fn died(backend: &Backend, instance: Option<&Instance>, why: &str) -> Wording {
    let pod = instance.map(|instance| instance.ready.pod.clone());
    let on = pod.as_deref().map(|pod| format!(" (pod {pod})")).unwrap_or_default();
    let service = &backend.service;
    let text = format!("{service}{on} {why}; `dhow logs {service}` shows what it printed");
    let mut wording = Wording::new(StatusCode::BAD_GATEWAY, "InstanceDied", text).of(backend);
    wording.pod = pod;
    wording
}

fn late(backend: &Backend, timeout: u64) -> Wording {
    let seconds = timeout / 1_000_000;
    let text = format!("request timeout: {} did not begin to answer within {seconds} s", backend.service);
    Wording::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", text).of(backend)
}

impl Wording {
    fn new(status: StatusCode, error: &'static str, message: String) -> Self {
        Self { status, error, message, pod: None, service: None, retry_after: None, location: None }
    }

    fn of(mut self, backend: &Backend) -> Self {
        self.service = Some(backend.service.clone());
        self
    }

    fn retry(mut self, seconds: &'static str) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    fn text(&self) -> (&'static str, Bytes) {
        ("text/plain; charset=utf-8", Bytes::from(format!("{}\n", self.message)))
    }

    fn json(&self) -> (&'static str, Bytes) {
        let mut body = serde_json::json!({"error": self.error, "message": self.message});
        for (name, value) in [("service", &self.service), ("pod", &self.pod)] {
            if let Some(value) = value {
                body[name] = value.as_str().into();
            }
        }
        ("application/json", Bytes::from(format!("{body}\n")))
    }
}
