//! One request's way through the gateway: route it, seat it, send it, pass its answer on.
//!
//! Owns: the order of those steps, and what may be tried again. Must not know: how slots, connections or headers work.
//! The surprise: the warm way is one future without an allocation of its own; whatever is rare is boxed, so that the
//! common case stays small.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout;

use crate::answer::{Answer, Busy, Problem};
use crate::backend::{Arrival, Backend, Origin, Visit};
use crate::feed::Tables;
use crate::headers::{self, Malformed, Seen};
use crate::peers::PASSED_ON;
use crate::slots::{Instance, Refusal};
use crate::table::{PathRule, Route, Side};
use crate::upstream::{Failed, Outbound, Upstream};
use crate::worker::{Front, Worker};
use crate::{h2c, upgrade};

/// Instances tried for one request, the same one counted again when it is the only one.
const ATTEMPTS: u32 = 4;
/// How long an instance rests after it refused a connection, doubled with each attempt.
const REST_MICROS: u64 = 100_000;
/// How often a request is sent again that an instance has had and not answered. One that kills whoever has it must not
/// take every instance with it.
const RESENDS: u32 = 2;
/// An instance that does not even accept within this time is treated like one that refuses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

type Routed = (Arc<PathRule<Arc<Backend>>>, Arc<Route<Arc<Backend>>>, Origin);

/// From whom a request comes, and whether it goes to another gateway.
struct Way {
    origin: Origin,
    away: bool,
}

/// A request that has its slot.
pub(crate) struct Exchange<'a> {
    pub worker: &'a Rc<Worker>,
    pub visit: &'a mut Visit,
    /// Microseconds on the hub's clock by which the answer must have begun.
    pub deadline: u64,
    attempts: u32,
    resends: u32,
}

/// Why there is no answer to pass on.
pub(crate) enum Failure {
    Refused(Refusal),
    /// What the client sent as the request's body was not HTTP, or ended too early.
    BadBody,
    Died(String),
    Late,
}

/// Answers one request, always.
pub(crate) async fn serve(front: Rc<Front>, mut request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let front = &*front;
    let busy = Busy::new(front.pulse.clone());
    let worker = &front.worker;
    let seen = headers::survey(request.headers());
    let host = match headers::host(&request) {
        Ok(host) => host,
        Err(why) => return Ok(reject(worker, Problem::Malformed(why), seen, busy)),
    };
    let (rule, route, origin) = match find(front, &host, &request) {
        Ok(found) => found,
        Err(problem) => return Ok(reject(worker, problem, seen, busy)),
    };
    let allowed = allowed_micros(&route);
    let started = worker.hub.micros();
    let (mut visit, arrival) = route.backend.arrive(started, allowed, origin, |n| worker.below(n));
    let seated = match arrival {
        Arrival::Serve => Ok(()),
        Arrival::Refused(refusal) => Err(refusal),
        Arrival::Wait(ticket) => Box::pin(visit.wait(ticket)).await,
    };
    if let Err(refusal) = seated {
        return Ok(fail(visit, Failure::Refused(refusal), allowed, seen, busy));
    }
    let wanted = if seen.upgrade { headers::wanted_upgrade(&request) } else { None };
    let upgrade = wanted.is_some().then(|| hyper::upgrade::on(&mut request));
    let way = Way { origin, away: visit.is_away() };
    let request = prepare(front, request, seen, &host, &rule, &route, wanted, way);
    let mut exchange = Exchange { worker, visit: &mut visit, deadline: started + allowed, attempts: 0, resends: 0 };
    let answered = match exchange.is_h2c() {
        false => exchange.run(request).await.map(|(response, upstream)| (response, Some(upstream))),
        true => Box::pin(h2c::run(&mut exchange, request, &host)).await.map(|response| (response, None)),
    };
    Ok(match answered {
        Ok((response, upstream)) => pass(front, visit, response, upstream, upgrade, &route, seen, busy),
        Err(failure) => fail(visit, failure, allowed, seen, busy),
    })
}

/// Looks the request up in the table of its listener.
fn find<'a>(front: &Front, host: &'a HeaderValue, request: &Request<Incoming>) -> Result<Routed, Problem<'a>> {
    let mut lower = String::new();
    let name = headers::host_name(host, &mut lower).map_err(Problem::Malformed)?;
    let tables = front.worker.feed.tables();
    let table = match front.side {
        Side::Public => &tables.public,
        Side::Internal => &tables.internal,
    };
    match table.find(name, request.uri().path(), request.headers()) {
        Some(rule) => {
            if rule.https_only
                && front.side == Side::Public
                && !front.peer.secure
                && let Some(port) = front.worker.https_port
                && let Some(location) = headers::over_tls(request, name, port)
            {
                return Err(Problem::TlsOnly(location, request.method().clone()));
            }
            let passed_on = passed_on(front, &tables, request);
            let chosen = passed_on.and_then(|revision| rule.to(|backend| backend.key.revision == revision));
            let origin = match passed_on {
                Some(_) => Origin::Gateway,
                None => Origin::Client { http2: request.version() == Version::HTTP_2 },
            };
            let route = match chosen {
                Some(route) => route,
                None => rule.pick(|| front.worker.below(100) as u32).ok_or(Problem::NoRoute)?,
            };
            Ok((rule.clone(), route.clone(), origin))
        }
        None if tables.complete => Err(Problem::NoSuchHost(host.to_str().unwrap_or("that host"))),
        None => Err(Problem::Starting),
    }
}

/// The revision that another gateway chose. Only a gateway is believed.
fn passed_on<'a>(front: &Front, tables: &Tables, request: &'a Request<Incoming>) -> Option<&'a str> {
    if front.side == Side::Public || tables.gateways.is_empty() {
        return None;
    }
    let revision = request.headers().get(PASSED_ON)?.to_str().ok()?;
    tables.gateways.iter().any(|gateway| gateway.ip() == front.peer.ip).then_some(revision)
}

/// Time for the queue and the instance together, until the answer begins.
fn allowed_micros(route: &Route<Arc<Backend>>) -> u64 {
    let policy = &route.policy;
    let seconds = match policy.response_start_timeout_seconds {
        Some(start) if start > 0 => start.min(policy.timeout_seconds),
        _ => policy.timeout_seconds,
    };
    let default = api::serving::RevisionSpec::DEFAULT_TIMEOUT_SECONDS;
    u64::try_from(if seconds > 0 { seconds } else { default }).unwrap_or(u64::MAX) * 1_000_000
}

/// Turns the client's request into the one for the instance, or for the gateway that knows a free one.
#[expect(clippy::too_many_arguments, reason = "this step needs what all the earlier ones found")]
fn prepare(
    front: &Front,
    mut request: Request<Incoming>,
    seen: Seen,
    host: &HeaderValue,
    rule: &PathRule<Arc<Backend>>,
    route: &Route<Arc<Backend>>,
    wanted: Option<HeaderValue>,
    way: Way,
) -> Request<Outbound> {
    let worker = &front.worker;
    let absolute = request.uri().authority().is_some();
    headers::origin_form(request.uri_mut());
    *request.version_mut() = Version::HTTP_11;
    let known_length = request.body().size_hint().exact().is_some();
    let all = request.headers_mut();
    headers::clean(all, seen);
    match way.origin {
        Origin::Client { .. } => {
            headers::introduce(all, seen, &front.peer, host, || front.forwarded(host), || worker.random());
        }
        Origin::Gateway => {
            all.remove(PASSED_ON);
        }
    }
    if way.away
        && let Ok(revision) = HeaderValue::from_str(&route.backend.key.revision)
    {
        all.insert(PASSED_ON, revision);
    }
    if absolute {
        all.insert(header::HOST, host.clone());
    }
    for (name, value) in &route.append {
        all.insert(name, value.clone());
    }
    if let Some(host) = rule.rewrite_host.as_ref().filter(|_| !way.away) {
        all.insert(header::HOST, host.clone());
    }
    if let Some(protocol) = wanted {
        all.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        all.insert(header::UPGRADE, protocol);
    }
    if !known_length {
        // hyper would leave out the body of a GET whose length it does not know.
        all.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    request.map(Outbound::from)
}

impl Front {
    fn forwarded(&self, host: &HeaderValue) -> HeaderValue {
        let mut last = self.forwarded.borrow_mut();
        match &*last {
            Some((known, made)) if known == host => made.clone(),
            _ => {
                let made = headers::forwarded(&self.peer, host);
                *last = Some((host.clone(), made.clone()));
                made
            }
        }
    }
}

impl Exchange<'_> {
    fn instance(&self) -> &Arc<Instance> {
        self.visit.instance().expect("a request is sent only while it holds a slot")
    }

    fn is_h2c(&self) -> bool {
        self.instance().ready.h2c
    }

    async fn run(&mut self, mut request: Request<Outbound>) -> Result<(Response<Incoming>, Upstream), Failure> {
        let worker = self.worker;
        let mut deadline = worker.deadline(self.deadline);
        loop {
            let pooled = worker.pool.borrow_mut().take(self.instance());
            let mut upstream = match pooled {
                Some(upstream) => upstream,
                None => Box::pin(self.connect(Upstream::connect)).await?,
            };
            // The instance may die, or close a kept connection, at this very moment. What has no body and may be repeated
            // is kept for that case.
            let spare = copy(&request);
            let reused = upstream.reused;
            let answer = upstream.send(request);
            match upstream.answer(answer, |cx| deadline.passed(cx)).await {
                Ok(response) => return Ok((response, upstream)),
                Err(Failed::Unsent(intact)) if reused => request = *intact,
                Err(Failed::Unsent(intact)) => {
                    request = *intact;
                    Box::pin(self.elsewhere("closed the connection")).await?;
                }
                // The one part of an exchange that is not the instance's.
                Err(Failed::Reset(error)) if error.is_user() => return Err(Failure::BadBody),
                Err(Failed::Reset(error)) => match spare {
                    Some(again) if reused => request = again,
                    spare => request = Box::pin(self.resend(spare, &error)).await?,
                },
                Err(Failed::Garbled(error)) => {
                    return Err(Failure::Died(format!("gave an answer that is not HTTP ({error})")));
                }
                Err(Failed::TimedOut) => return Err(Failure::Late),
            }
            worker.hub.metrics.retries.inc();
        }
    }

    /// Connects to the instance, or to another one that accepts: nothing has been sent, so that is always safe.
    pub async fn connect<T>(&mut self, dial: impl AsyncFn(&Arc<Instance>) -> std::io::Result<T>) -> Result<T, Failure> {
        loop {
            let instance = self.instance().clone();
            let why = match timeout(CONNECT_TIMEOUT, dial(&instance)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => format!("refused the connection ({error})"),
                Err(_) => "did not accept the connection".to_owned(),
            };
            self.elsewhere(&why).await?;
            self.worker.hub.metrics.retries.inc();
        }
    }

    /// Takes the next slot there is for a request that an instance has had, if it may be sent twice. The instance does not
    /// rest: if it is dead its next connection says so, and if it lives the others' requests are not to suffer from this one.
    pub async fn resend<R>(&mut self, spare: Option<R>, error: &hyper::Error) -> Result<R, Failure> {
        let died = || Failure::Died(format!("ended before it answered ({error})"));
        let again = spare.filter(|_| self.resends < RESENDS && self.visit.backend().may_resend()).ok_or_else(died)?;
        self.resends += 1;
        let worker = self.worker;
        let now = worker.hub.micros();
        match self.visit.again(now, self.deadline, None, |n| worker.below(n)) {
            Arrival::Serve => {}
            Arrival::Refused(refusal) => return Err(Failure::Refused(refusal)),
            Arrival::Wait(ticket) => self.visit.wait(ticket).await.map_err(Failure::Refused)?,
        }
        Ok(again)
    }

    /// Lets the instance rest and takes the next slot there is.
    pub async fn elsewhere(&mut self, why: &str) -> Result<(), Failure> {
        self.attempts += 1;
        let worker = self.worker;
        let now = worker.hub.micros();
        if self.attempts >= ATTEMPTS {
            return Err(Failure::Died(why.to_owned()));
        }
        let rest = REST_MICROS << self.attempts;
        match self.visit.again(now, self.deadline, Some(rest), |n| worker.below(n)) {
            Arrival::Serve => Ok(()),
            Arrival::Refused(refusal) => Err(Failure::Refused(refusal)),
            Arrival::Wait(ticket) => self.visit.wait(ticket).await.map_err(Failure::Refused),
        }
    }
}

/// A copy of a request that may be sent twice: idempotent by its method, and without a body.
pub(crate) fn copy(request: &Request<Outbound>) -> Option<Request<Outbound>> {
    let repeatable = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    );
    if !repeatable || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Outbound::Empty);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// Passes an instance's answer on.
#[expect(clippy::too_many_arguments, reason = "the last step needs what all the earlier ones found")]
fn pass(
    front: &Front,
    mut visit: Visit,
    mut response: Response<Incoming>,
    upstream: Option<Upstream>,
    upgrade: Option<OnUpgrade>,
    route: &Route<Arc<Backend>>,
    seen: Seen,
    busy: Busy,
) -> Response<Answer> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(client), Some(upstream)) = (upgrade, upstream) else {
            return fail(visit, Failure::Died("changed the protocol unasked".into()), 0, seen, busy);
        };
        visit.first_byte(response.status().as_u16());
        return upgrade::tunnel(&front.worker, visit, response, upstream, client, busy);
    }
    headers::to_client(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    visit.first_byte(response.status().as_u16());
    let idle = route.policy.idle_timeout_seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    let idle = idle.map(|seconds| seconds * 1_000_000);
    response.map(|body| Answer::passing(body, upstream, visit, front.worker.clone(), idle, busy))
}

/// Answers a request that no back end was found for.
fn reject(worker: &Worker, problem: Problem<'_>, seen: Seen, busy: Busy) -> Response<Answer> {
    let response = problem.answer(seen.json, busy);
    worker.hub.metrics.reject(response.status().as_u16());
    response
}

/// Answers a request that its back end did not.
fn fail(mut visit: Visit, failure: Failure, allowed: u64, seen: Seen, busy: Busy) -> Response<Answer> {
    let backend = visit.backend().clone();
    let problem = match failure {
        Failure::Refused(refusal) => Problem::Refused(&backend, refusal, allowed),
        Failure::Died(why) => Problem::Died(&backend, visit.instance().map(Arc::as_ref), why),
        Failure::BadBody => Problem::Malformed(Malformed::Body),
        Failure::Late => Problem::Late(&backend, allowed),
    };
    let response = problem.answer(seen.json, busy);
    visit.code = response.status().as_u16();
    response
}
