//! Visits to pods: exec, attach and port-forward.
//!
//! Owns the way from a client that wants its connection upgraded to the node's API, and the tasks that serve it there.
//! Must not know how a node does it. Everything that can be refused is refused before the upgrade, as a Status; what
//! is said afterwards is the matter of [`command`] and [`forward`]. The surprise: the node's side is never upgraded,
//! it is a request whose body and answer flow at the same time ([`api::frames`]).

mod command;
mod forward;
mod socket;
mod spdy;

use std::sync::atomic::Ordering;

use api::frames::{self, Decoder};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::upgrade::{OnUpgrade, Upgraded};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::sync::mpsc;
use tower::{Service, ServiceExt};

use self::command::{Protocol, Wants};
use self::socket::{Form, Wanted};
use crate::handler::{Call, not_allowed};
use crate::logs::{container, error_text};
use crate::request::pairs;
use crate::status::{ApiError, Result};
use crate::{Inner, NodeProxy, ResponseBody};

pub(crate) const KINDS: [&str; 3] = ["attach", "exec", "portforward"];
/// Pieces of input on their way to the node; a client that sends more is not read from until there is room.
const PIECES: usize = 4;
/// Ports of one plain WebSocket: their channels must fit in a byte, and few clients want more than one.
const MOST_PORTS: usize = 64;

/// What the node is told, and what it answers.
struct Visit {
    to: To,
    from: Answers,
}

struct To(mpsc::Sender<Bytes>);

/// The node takes nothing more.
struct Closed;

impl To {
    async fn say(&self, channel: u8, bytes: &[u8]) -> Result<(), Closed> {
        self.pass(frames::encode(channel, bytes).into()).await
    }

    async fn pass(&self, bytes: Bytes) -> Result<(), Closed> {
        self.0.send(bytes).await.map_err(|_| Closed)
    }
}

struct Answers {
    body: ResponseBody,
    decoder: Decoder,
}

impl Answers {
    /// The next frame; `None` when the node is done, or cannot be understood.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            match self.decoder.take() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {
                    let bytes = self.bytes().await?;
                    self.decoder.push(&bytes);
                }
                Err(error) => {
                    tracing::warn!(%error, "the node cannot be understood");
                    return None;
                }
            }
        }
    }

    /// The next bytes, where an answer is nothing but bytes.
    async fn bytes(&mut self) -> Option<Bytes> {
        loop {
            if let Ok(bytes) = self.body.frame().await?.ok()?.into_data() {
                return Some(bytes);
            }
        }
    }
}

/// Connects to ports of one pod.
struct Dial {
    proxy: NodeProxy,
    namespace: String,
    pod: String,
}

impl Dial {
    /// `Err` says why not, as clients show it.
    async fn port(&self, port: u16) -> Result<Visit, String> {
        let uri = format!("/portForward/{}/{}?port={port}", self.namespace, self.pod);
        let said = |why: String| format!("error forwarding port {port} to pod {}: {why}", self.pod);
        match visit(self.proxy.clone(), uri).await {
            Ok(Ok(visit)) => Ok(visit),
            Ok(Err((_, text))) => Err(said(text)),
            Err(error) => Err(said(error.to_string())),
        }
    }
}

/// Asks the node; what it refuses comes back as its status and its words.
async fn visit(mut proxy: NodeProxy, uri: String) -> Result<Result<Visit, (StatusCode, String)>> {
    let (to, from) = mpsc::channel::<Bytes>(PIECES);
    let body = stream::unfold(from, |mut from| async move { Some((from.recv().await?, from)) });
    let body = StreamBody::new(futures::StreamExt::map(body, |bytes| Ok(Frame::data(bytes)))).boxed_unsync();
    let request = Request::post(uri).body(body).map_err(|e| ApiError::Internal(e.to_string()))?;
    let unreachable = |error| ApiError::Unavailable(format!("the node's API could not be reached: {error}"));
    let response = proxy.ready().await.map_err(unreachable)?.call(request).await.map_err(unreachable)?;
    let (parts, body) = response.into_parts();
    if parts.status != StatusCode::OK {
        return Ok(Err((parts.status, error_text(body).await)));
    }
    Ok(Ok(Visit { to: To(to), from: Answers { body, decoder: Decoder::default() } }))
}

/// Serves an upgraded connection to its end.
type Serve = Box<dyn FnOnce(Upgraded) -> BoxFuture<'static, ()> + Send>;

/// What a client asks for in the query.
struct Asked {
    command: Vec<String>,
    ports: Vec<u16>,
    wants: Wants,
}

impl Inner {
    /// Answers a request for a visit with an upgrade, or says why there is none.
    pub(crate) async fn visit(&self, call: &Call<'_>, subresource: &str) -> Result<Response<ResponseBody>> {
        if !matches!(call.parts.method, Method::GET | Method::POST) {
            return Err(not_allowed());
        }
        let name = call.name.unwrap_or_default();
        let missing = || ApiError::NotFound { resource: call.kind.resource(), name: name.to_owned() };
        let entry = self.store.get(&call.kind.key(call.namespace, name)).ok_or_else(missing)?;
        let pod: Value = serde_json::from_slice(&entry.value).map_err(|e| ApiError::Internal(e.to_string()))?;
        let asked = Asked::of(call, subresource)?;
        let container = match subresource {
            "portforward" => None,
            _ => Some(container(&pod, name, call.query.get("container"))?),
        };
        reachable(&pod, name, subresource)?;
        let proxy = self.node_proxy.clone();
        let proxy = proxy.ok_or_else(|| ApiError::Unavailable("no node's API can be reached from here".into()))?;
        let wanted = Wanted::of(&call.parts.headers).map_err(|why| ApiError::BadRequest(why.into()))?;
        // Neither a client in the same process nor one over HTTP/2 has a connection of its own to upgrade.
        let upgrade = call.parts.extensions.get::<OnUpgrade>().cloned();
        let upgrade = upgrade.ok_or_else(|| ApiError::BadRequest("Upgrade request required".into()))?;
        let full = |_| ApiError::TooManyRequests("too many visits to pods are open, please try again later".into());
        let permit = self.visits.clone().try_acquire_owned().map_err(full)?;
        let place = Dial { proxy, namespace: call.namespace.unwrap_or_default().to_owned(), pod: name.to_owned() };
        let (protocol, serve) = match container {
            None => forwarding(&wanted, asked, place, call)?,
            Some(container) => {
                let protocol = negotiate_command(&wanted, call)?;
                let uri = uri(subresource, &place, &container, &asked);
                let visit = match visit(place.proxy, uri).await? {
                    Ok(visit) => visit,
                    Err((StatusCode::NOT_FOUND, _)) => return Err(missing()),
                    Err((StatusCode::TOO_MANY_REQUESTS, text)) => return Err(ApiError::TooManyRequests(text)),
                    Err((status, text)) if status.is_client_error() => return Err(ApiError::BadRequest(text)),
                    Err((_, text)) => return Err(ApiError::Internal(format!("error executing command: {text}"))),
                };
                (protocol.name, commanding(&wanted, protocol, asked.wants, visit))
            }
        };
        if let Some(kind) = KINDS.iter().position(|kind| *kind == subresource) {
            self.visits_begun[kind].fetch_add(1, Ordering::Relaxed);
        }
        let response = wanted.switch(Some(protocol).filter(|protocol| !protocol.is_empty()));
        let stop = self.stop.clone();
        self.visitors.spawn(async move {
            let served = stop.run_until_cancelled(async {
                match upgrade.await {
                    Ok(upgraded) => serve(upgraded).await,
                    Err(error) => tracing::debug!(%error, "a client left before its connection was upgraded"),
                }
            });
            // Whether it ended or was stopped, it has let go of the client and the node.
            let _ = served.await;
            drop(permit);
        });
        Ok(response)
    }
}

impl Asked {
    fn of(call: &Call<'_>, subresource: &str) -> Result<Self> {
        let mut asked = Self { command: vec![], ports: vec![], wants: Wants::default() };
        for (name, value) in pairs(call.parts.uri.query()) {
            match name.as_str() {
                "command" => asked.command.push(value),
                "ports" => {
                    let port = |text: &str| {
                        let wrong = || ApiError::BadRequest(format!("unable to parse {text:?} as a port"));
                        text.trim().parse().ok().filter(|port| *port > 0).ok_or_else(wrong)
                    };
                    asked.ports.extend(value.split(',').map(port).collect::<Result<Vec<u16>>>()?);
                }
                _ => {}
            }
        }
        let flag = |name: &str| call.query.flag(name);
        asked.wants = Wants { stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr"), tty: flag("tty") };
        let Wants { stdin, stdout, stderr, .. } = asked.wants;
        if subresource == "exec" && asked.command.is_empty() {
            return Err(ApiError::BadRequest("you must specify at least one command for the container".into()));
        }
        if subresource != "portforward" && !(stdin || stdout || stderr) {
            return Err(ApiError::BadRequest("you must specify at least 1 of stdin, stdout, stderr".into()));
        }
        Ok(asked)
    }
}

/// Whether there can be anything to visit.
fn reachable(pod: &Value, name: &str, subresource: &str) -> Result<()> {
    let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
    if pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        return Err(ApiError::BadRequest(format!("pod {name} does not have a host assigned")));
    }
    let text = match (subresource, phase) {
        ("portforward", "Running") => return Ok(()),
        ("portforward", _) => format!("unable to forward port because pod is not running. Current status={phase}"),
        (_, "Succeeded" | "Failed") => {
            format!("cannot exec or attach into a container in a completed pod; current phase is {phase}")
        }
        _ => return Ok(()),
    };
    Err(ApiError::BadRequest(text))
}

fn uri(subresource: &str, place: &Dial, container: &str, asked: &Asked) -> String {
    let Wants { stdin, stdout, stderr, tty } = asked.wants;
    let mut uri = format!("/{subresource}/{}/{}/{container}", place.namespace, place.pod);
    uri += &format!("?stdin={stdin}&stdout={stdout}&stderr={stderr}&tty={tty}");
    for argument in &asked.command {
        uri += &format!("&command={}", utf8_percent_encode(argument, NON_ALPHANUMERIC));
    }
    uri
}

/// The first protocol of the client that is served.
fn negotiate<'a, T>(wanted: &Wanted, served: &'a [T], name: impl Fn(&T) -> &str, call: &Call<'_>) -> Result<&'a T> {
    let of = |asked: &String| served.iter().find(|protocol| name(protocol) == asked);
    wanted.protocols().iter().find_map(of).ok_or_else(|| {
        let client = wanted.protocols().join(" ");
        let server: Vec<&str> = served.iter().map(&name).collect();
        ApiError::Forbidden {
            resource: call.kind.resource(),
            name: call.name.unwrap_or_default().to_owned(),
            why: format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{client}], server accepts [{}]",
                server.join(" ")
            ),
            cause: None,
        }
    })
}

fn negotiate_command(wanted: &Wanted, call: &Call<'_>) -> Result<Protocol> {
    match wanted {
        Wanted::WebSocket { protocols, .. } if protocols.is_empty() => Ok(command::OLDEST),
        Wanted::WebSocket { .. } => negotiate(wanted, command::SOCKETS, |p| p.name, call).copied(),
        Wanted::Spdy { .. } => negotiate(wanted, command::STREAMS, |p| p.name, call).copied(),
    }
}

fn commanding(wanted: &Wanted, protocol: Protocol, wants: Wants, visit: Visit) -> Serve {
    match wanted {
        Wanted::WebSocket { .. } => Box::new(move |up| command::over_socket(up, protocol, wants, visit).boxed()),
        Wanted::Spdy { .. } => Box::new(move |up| command::over_spdy(up, protocol, wants, visit).boxed()),
    }
}

fn forwarding(wanted: &Wanted, asked: Asked, dial: Dial, call: &Call<'_>) -> Result<(&'static str, Serve)> {
    let ports = asked.ports;
    match wanted {
        Wanted::Spdy { .. } => {
            let protocol = negotiate(wanted, forward::STREAMS, |p| p, call)?;
            Ok((*protocol, Box::new(move |up| forward::over_spdy(up, dial).boxed())))
        }
        Wanted::WebSocket { protocols, .. } if protocols.iter().any(|p| p == forward::TUNNEL) => {
            Ok((forward::TUNNEL, Box::new(move |up| forward::over_tunnel(up, dial).boxed())))
        }
        Wanted::WebSocket { protocols, .. } => {
            let (protocol, form) = match protocols.is_empty() {
                true => ("", Form::Binary),
                false => *negotiate(wanted, forward::SOCKETS, |(name, _)| name, call)?,
            };
            match ports.len() {
                0 => return Err(ApiError::BadRequest("query parameter \"ports\" is required".into())),
                count if count > MOST_PORTS => {
                    return Err(ApiError::BadRequest(format!("at most {MOST_PORTS} ports can be forwarded at once")));
                }
                _ => {}
            }
            Ok((protocol, Box::new(move |up| forward::over_socket(up, form, ports, dial).boxed())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(pieces: impl Iterator<Item = impl AsRef<[u8]>>) -> (Vec<(u8, Vec<u8>)>, bool) {
        let (mut decoder, mut decoded) = (Decoder::default(), vec![]);
        for piece in pieces {
            decoder.push(piece.as_ref());
            loop {
                match decoder.take() {
                    Ok(Some(frame)) => decoded.push(frame),
                    Ok(None) => break,
                    Err(_) => return (decoded, false),
                }
            }
        }
        (decoded, true)
    }

    #[test]
    fn frames_of_any_bytes() {
        crate::fuzz::try_all("frames", |bytes| {
            let whole = decoded(std::iter::once(bytes));
            assert!(whole.0.iter().map(|(_, payload)| payload.len() + 5).sum::<usize>() <= bytes.len());
            for piece in [1, 3, 7] {
                assert_eq!(decoded(bytes.chunks(piece)), whole, "in pieces of {piece}");
            }
            for (channel, payload) in &whole.0 {
                assert_eq!(
                    decoded(std::iter::once(frames::encode(*channel, payload))).0,
                    [(*channel, payload.clone())]
                );
            }
        });
    }
}
