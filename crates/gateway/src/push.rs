//! Messages to the autoscaler of another process, over HTTP.
//!
//! Owns: finding the autoscaler by its Lease, one kept connection to it, what becomes of messages that cannot be sent.
//! Must not know: what messages mean. The surprise: nothing waits for anything here. What gathers while one POST is
//! out goes with the next, and what cannot be sent is dropped and counted: the next report says the same with newer
//! numbers, and a poke is repeated for as long as requests wait.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use api::wire::{GatewayMessage, MESSAGES_BYTES, MESSAGES_PATH, RevisionKey};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::feed::Feed;
use crate::watch::patience;

/// For a connection and an answer together: one report later the numbers are old.
const PATIENCE: Duration = Duration::from_secs(1);
/// Messages of one POST at most.
const BATCH: usize = 1024;

/// Sends what comes through `messages` to the holder of the Lease `lease`, until `shutdown` or until no more can come.
/// The holder's identity says where it listens: `<pod>@<ip>:<port>`. `feed` counts what is lost.
pub async fn push(
    feed: &Feed,
    client: Client,
    lease: &str,
    namespace: &str,
    messages: mpsc::Receiver<GatewayMessage>,
    shutdown: CancellationToken,
) {
    let (found, holder) = watch::channel(None);
    let following = follow(Api::namespaced(client, namespace), lease, &found);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = following => {}
        () = send_all(feed, messages, holder) => {}
    }
}

/// Keeps the address of the Lease's holder. The last known one stays while the API server cannot be asked.
async fn follow(api: Api<Lease>, name: &str, found: &watch::Sender<Option<SocketAddr>>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api, config).backoff(patience()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(lease) | watcher::Event::InitApply(lease)) => {
                let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).and_then(address);
                found.send_if_modified(|known| std::mem::replace(known, holder) != holder);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, name, "cannot watch the autoscaler's lease, trying again"),
        }
    }
}

fn address(identity: &str) -> Option<SocketAddr> {
    identity.split_once('@')?.1.parse().ok()
}

async fn send_all(
    feed: &Feed,
    mut messages: mpsc::Receiver<GatewayMessage>,
    holder: watch::Receiver<Option<SocketAddr>>,
) {
    let dropped = &feed.hub().metrics.messages_dropped;
    let mut line = Line::default();
    let mut batch = Vec::with_capacity(16);
    while messages.recv_many(&mut batch, BATCH).await > 0 {
        let (bodies, lost) = bodies(coalesce(std::mem::take(&mut batch)));
        dropped.inc_by(lost);
        for (body, count) in bodies {
            let Some(to) = *holder.borrow() else {
                dropped.inc_by(count);
                continue;
            };
            if let Err(error) =
                timeout(PATIENCE, line.post(to, body)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            {
                tracing::debug!(%error, %to, "the autoscaler did not take messages");
                line = Line::default();
                dropped.inc_by(count);
            }
        }
    }
}

/// Of a revision's pokes the last says all; what was reported is kept, each second for itself.
fn coalesce(batch: Vec<GatewayMessage>) -> Vec<GatewayMessage> {
    let mut poked: HashSet<RevisionKey> = HashSet::new();
    let mut kept: Vec<GatewayMessage> = batch
        .into_iter()
        .rev()
        .filter(|message| match message {
            GatewayMessage::Poke(poke) => poked.insert(poke.key.clone()),
            GatewayMessage::Report(_) => true,
        })
        .collect();
    kept.reverse();
    kept
}

/// As few bodies as the bound allows, pokes first, each with its number of messages; and how many fit in none. A
/// report of too many revisions is cut in pieces.
fn bodies(messages: Vec<GatewayMessage>) -> (Vec<(Bytes, u64)>, u64) {
    let (pokes, reports): (Vec<_>, Vec<_>) = messages.into_iter().partition(|m| matches!(m, GatewayMessage::Poke(_)));
    let (mut done, mut lost) = (vec![], 0);
    let (mut body, mut count) = (vec![b'['], 0);
    let mut rest: Vec<GatewayMessage> = pokes.into_iter().chain(reports).rev().collect();
    while let Some(message) = rest.pop() {
        let text = serde_json::to_vec(&message).expect("a message is JSON: it has only strings for keys");
        if text.len() + 2 > MESSAGES_BYTES {
            match message {
                GatewayMessage::Report(mut stats) if stats.len() > 1 => {
                    rest.push(GatewayMessage::Report(stats.split_off(stats.len() / 2)));
                    rest.push(GatewayMessage::Report(stats));
                }
                _ => lost += 1,
            }
            continue;
        }
        if count > 0 && body.len() + text.len() + 2 > MESSAGES_BYTES {
            done.push((finish(&mut body), std::mem::take(&mut count)));
        }
        if count > 0 {
            body.push(b',');
        }
        body.extend(text);
        count += 1;
    }
    if count > 0 {
        done.push((finish(&mut body), count));
    }
    (done, lost)
}

fn finish(body: &mut Vec<u8>) -> Bytes {
    body.push(b']');
    std::mem::replace(body, vec![b'[']).into()
}

/// The kept connection.
#[derive(Default)]
struct Line {
    open: Option<(SocketAddr, http1::SendRequest<Whole>)>,
    /// The connection's own work. Ends with the line.
    driver: JoinSet<()>,
}

impl Line {
    /// The other side may have closed a kept connection at this very moment; messages may be sent twice, so a new one
    /// is tried once.
    async fn post(&mut self, to: SocketAddr, body: Bytes) -> io::Result<()> {
        if let Some((at, sender)) = self.open.as_mut().filter(|(at, sender)| *at == to && !sender.is_closed())
            && let Ok(status) = send(sender, *at, body.clone()).await
        {
            return accepted(status);
        }
        self.driver = JoinSet::new();
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        self.driver.spawn(async move {
            // Whoever waits for an answer is told how it ended.
            let _ = connection.await;
        });
        let status = send(&mut sender, to, body).await?;
        self.open = Some((to, sender));
        accepted(status)
    }
}

async fn send(sender: &mut http1::SendRequest<Whole>, to: SocketAddr, body: Bytes) -> io::Result<StatusCode> {
    let request = Request::post(MESSAGES_PATH)
        .header(header::HOST, to.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Whole(Some(body)))
        .map_err(io::Error::other)?;
    sender.ready().await.map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    Ok(answer.status())
}

fn accepted(status: StatusCode) -> io::Result<()> {
    if status.is_success() { Ok(()) } else { Err(io::Error::other(format!("it answered {status}"))) }
}

/// A body in one piece.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::wire::{ConcurrencyStat, Poke};

    fn key(revision: &str) -> RevisionKey {
        RevisionKey { namespace: "n".into(), revision: revision.into() }
    }

    fn poke(revision: &str, queued: u32) -> GatewayMessage {
        GatewayMessage::Poke(Poke { key: key(revision), gateway: "g".into(), queued, in_flight: 0 })
    }

    fn report(revisions: usize, name: usize) -> GatewayMessage {
        let stat = |_| ConcurrencyStat {
            key: key(&"r".repeat(name)),
            gateway: "g".into(),
            average_concurrency: 1.0,
            requests_per_second: 1.0,
            in_flight: 1,
            instances: vec![],
        };
        GatewayMessage::Report((0..revisions).map(stat).collect())
    }

    /// Pokes as `revision=queued`, reports as their number of revisions; bodies apart by `|`.
    fn check(messages: Vec<GatewayMessage>) -> (String, u64) {
        let (bodies, lost) = bodies(coalesce(messages));
        let one = |(body, count): &(Bytes, u64)| {
            assert!(body.len() <= MESSAGES_BYTES);
            let messages: Vec<GatewayMessage> = serde_json::from_slice(body).unwrap();
            assert_eq!(messages.len() as u64, *count);
            let line = messages.iter().map(|message| match message {
                GatewayMessage::Poke(poke) => format!("{}={}", poke.key.revision, poke.queued),
                GatewayMessage::Report(stats) => stats.len().to_string(),
            });
            line.collect::<Vec<_>>().join(" ")
        };
        (bodies.iter().map(one).collect::<Vec<_>>().join(" | "), lost)
    }

    #[test]
    fn what_gathers_goes_together() {
        for (messages, want, lost) in [
            (vec![], "", 0),
            (vec![poke("a", 1)], "a=1", 0),
            (vec![poke("a", 1), report(2, 1), poke("b", 1), poke("a", 7), report(1, 1)], "b=1 a=7 2 1", 0),
            (vec![report(1, MESSAGES_BYTES), poke("a", 1)], "a=1", 1),
            (vec![report(4, MESSAGES_BYTES / 2), poke("a", 1)], "a=1 1 | 1 | 1 | 1", 0),
            (vec![report(8, MESSAGES_BYTES / 4)], "2 | 2 | 2 | 2", 0),
        ] {
            assert_eq!(check(messages), (want.to_owned(), lost));
        }
    }

    #[test]
    fn the_holder_says_where_it_listens() {
        for (identity, want) in [
            ("dhow-autoscaler-1@10.0.0.7:9000", Some("10.0.0.7:9000")),
            ("a@[fd00::1]:9000", Some("[fd00::1]:9000")),
            ("a@host:9000", None),
            ("dhow-autoscaler-1", None),
            ("", None),
        ] {
            assert_eq!(address(identity).map(|a| a.to_string()).as_deref(), want, "{identity}");
        }
    }
}
