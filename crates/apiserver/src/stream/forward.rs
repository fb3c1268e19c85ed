//! Ports that a client forwards: over a WebSocket with two channels for each port, or over SPDY, whether bare or inside a
//! WebSocket, with two streams for each connection.
//!
//! Owns which bytes belong to which connection. Must not know pods. Of a slow reader no more is held than a few pieces.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{AbortHandle, BoxFuture, abortable, join_all};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::socket::{Form, PING_EVERY, channels, open};
use super::spdy::{self, Event, Headers, Reader, Sender};
use super::{Dial, PIECES, To, Visit};

/// The protocols of plain WebSockets; a client that names none speaks the first.
pub const SOCKETS: &[(&str, Form)] = &[
    ("v4.channel.k8s.io", Form::Binary),
    ("v4.base64.channel.k8s.io", Form::Base64),
    ("portforward.k8s.io", Form::Binary),
];
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
pub const STREAMS: &[&str] = &["portforward.k8s.io"];
/// Connections that one client may have open over SPDY; a sandbox has no room for more.
const MOST_PAIRS: usize = 128;
/// Between the WebSocket and SPDY inside it.
const TUNNEL_BYTES: usize = 64 << 10;
const CHUNK_BYTES: usize = 32 << 10;
/// How long a connection whose pod does not read may hold up the others of the same client over SPDY, which has no other
/// way to hold back one of them. It is broken off then; one that is alone may take its time.
const STUCK: Duration = Duration::from_secs(60);

/// Serves the ports, each of them one connection, over the channels of a WebSocket.
pub async fn over_socket(upgraded: Upgraded, form: Form, ports: Vec<u16>, dial: Dial) {
    let (mut listener, mut speaker) = channels(open(upgraded).await, form);
    let (out, mut outgoing) = mpsc::channel::<(u8, Bytes)>(PIECES);
    let (inputs, connections): (Vec<_>, Vec<_>) = ports
        .iter()
        .enumerate()
        .map(|(place, port)| {
            let (to, from) = mpsc::channel(PIECES);
            (to, one_port(*port, place as u8 * 2, from, out.clone(), &dial))
        })
        .unzip();
    drop(out);
    let listening = async {
        let inputs = inputs;
        while let Some((channel, bytes)) = listener.next().await {
            let input = inputs.get(usize::from(channel / 2)).filter(|_| channel.is_multiple_of(2));
            if let Some(input) = input {
                // The pod has closed that one; there may be others.
                let _ = input.send(bytes).await;
            }
        }
    };
    let speaking = async {
        let mut asks = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                message = outgoing.recv() => match message {
                    Some((channel, bytes)) => speaker.say(channel, &bytes).await?,
                    None => break,
                },
                _ = asks.tick() => speaker.ping().await?,
            }
        }
        speaker.close().await;
        io::Result::Ok(())
    };
    let over = tokio::select! {
        () = listening => false,
        (_, spoken) = async { tokio::join!(join_all(connections), speaking) } => spoken.is_ok(),
    };
    if over {
        listener.goodbye().await;
    }
}

/// One port: says its number on both of its channels, then what comes from it, or why nothing does.
async fn one_port(port: u16, channel: u8, from: mpsc::Receiver<Bytes>, out: mpsc::Sender<(u8, Bytes)>, dial: &Dial) {
    let number = Bytes::copy_from_slice(&port.to_le_bytes());
    for channel in [channel, channel + 1] {
        if out.send((channel, number.clone())).await.is_err() {
            return;
        }
    }
    let Visit { to, from: mut answers } = match dial.port(port).await {
        Ok(visit) => visit,
        Err(error) => return drop(out.send((channel + 1, error.into())).await),
    };
    let outward = async {
        while let Some(bytes) = answers.bytes().await {
            if out.send((channel, bytes)).await.is_err() {
                break;
            }
        }
    };
    until_second(pass_on(from, to), outward).await;
}

/// Passes a client's bytes on to the pod; that there will be no more is passed on as well.
async fn pass_on(mut from: mpsc::Receiver<Bytes>, to: To) {
    while let Some(bytes) = from.recv().await {
        if to.pass(bytes).await.is_err() {
            break;
        }
    }
}

/// Runs both until the second has ended.
async fn until_second(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let mut second = std::pin::pin!(second);
    tokio::select! {
        () = &mut second => return,
        () = first => {}
    }
    second.await;
}

/// Serves SPDY inside the messages of a WebSocket.
pub async fn over_tunnel(upgraded: Upgraded, dial: Dial) {
    let (mut listener, mut speaker) = channels(open(upgraded).await, Form::Binary);
    let (ours, theirs) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut read, mut write) = tokio::io::split(ours);
    let listening = async {
        while let Some(bytes) = listener.bytes().await {
            write.write_all(&bytes).await?;
        }
        write.shutdown().await
    };
    let speaking = async {
        let mut asks = tokio::time::interval(PING_EVERY);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            tokio::select! {
                length = read.read(&mut chunk) => match length? {
                    0 => break,
                    length => speaker.bytes(Bytes::copy_from_slice(&chunk[..length])).await?,
                },
                _ = asks.tick() => speaker.ping().await?,
            }
        }
        speaker.close().await;
        io::Result::Ok(())
    };
    let carrying = async {
        tokio::select! {
            spoken = speaking => spoken.is_ok(),
            // What the other side still has to say has nobody to hear it.
            _ = listening => false,
        }
    };
    let over = tokio::select! {
        over = carrying => over,
        () = over_streams(theirs, dial) => false,
    };
    if over {
        listener.goodbye().await;
    }
}

pub async fn over_spdy(upgraded: Upgraded, dial: Dial) {
    over_streams(TokioIo::new(upgraded), dial).await;
}

/// A connection that the client is about to have, or has.
#[derive(Default)]
struct Pair {
    port: Option<u16>,
    error: Option<u32>,
    data: Option<u32>,
    to: Option<mpsc::Sender<Bytes>>,
    from: Option<mpsc::Receiver<Bytes>>,
    abort: Option<AbortHandle>,
}

/// The connections of one client, by the number that the client gives to each.
#[derive(Default)]
struct Pairs {
    pairs: HashMap<String, Pair>,
    /// The data stream of each.
    by_stream: HashMap<u32, String>,
}

impl Pairs {
    /// Takes a stream that the client has opened; gives the connection's name if it is complete now.
    fn add(&mut self, stream: u32, headers: &Headers) -> Option<Option<String>> {
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let (kind, port) = (header("streamtype")?, header("port")?.parse().ok().filter(|port| *port > 0)?);
        // Clients older than this header give two streams numbers in a row.
        let id = header("requestid")
            .map_or_else(|| (stream.saturating_sub(if kind == "data" { 2 } else { 0 })).to_string(), str::to_owned);
        if !self.pairs.contains_key(&id) && self.pairs.len() >= MOST_PAIRS {
            return None;
        }
        let pair = self.pairs.entry(id.clone()).or_default();
        if *pair.port.get_or_insert(port) != port {
            return None;
        }
        match kind {
            "error" if pair.error.is_none() => pair.error = Some(stream),
            "data" if pair.data.is_none() => {
                let (to, from) = mpsc::channel(PIECES);
                (pair.data, pair.to, pair.from) = (Some(stream), Some(to), Some(from));
                self.by_stream.insert(stream, id.clone());
            }
            _ => return None,
        }
        Some((pair.error.is_some() && pair.data.is_some()).then_some(id))
    }

    fn of(&mut self, stream: u32) -> Option<&mut Pair> {
        self.pairs.get_mut(self.by_stream.get(&stream)?)
    }

    fn remove(&mut self, id: &str) {
        if let Some(stream) = self.pairs.remove(id).and_then(|pair| pair.data) {
            self.by_stream.remove(&stream);
        }
    }
}

async fn over_streams(io: impl AsyncRead + AsyncWrite, dial: Dial) {
    let (read, write) = tokio::io::split(io);
    let read = std::pin::pin!(read);
    let write = std::pin::pin!(write);
    let (reader, sender, outgoing) = spdy::connection(read);
    let serving = serve(reader, sender, &dial);
    if let (Err(error), _) | (_, Err(error)) = tokio::join!(serving, spdy::write(write, outgoing)) {
        tracing::debug!(%error, "a connection with forwarded ports ended");
    }
}

async fn serve<R: AsyncRead + Unpin>(mut reader: Reader<R>, sender: Sender, dial: &Dial) -> io::Result<()> {
    let mut pairs = Pairs::default();
    let mut running: FuturesUnordered<BoxFuture<'_, String>> = FuturesUnordered::new();
    loop {
        // Held apart from the wait: a part of a frame that was read must not be lost when a connection ends.
        let event = {
            let mut next = std::pin::pin!(reader.next());
            loop {
                tokio::select! {
                    event = &mut next => break event?,
                    Some(ended) = running.next() => pairs.remove(&ended),
                }
            }
        };
        match event {
            Some(Event::Opened { stream, headers }) => match pairs.add(stream, &headers) {
                Some(complete) => {
                    sender.accept(stream).await?;
                    running.extend(complete.and_then(|id| begin(id, &mut pairs, &sender, dial)));
                }
                None => sender.refuse(stream).await?,
            },
            Some(Event::Data { stream, bytes }) => take(stream, bytes, &mut pairs, &mut running, &sender).await?,
            Some(Event::Finished { stream }) => drop(pairs.of(stream).and_then(|pair| pair.to.take())),
            Some(Event::Reset { stream }) => {
                if let Some(abort) = pairs.of(stream).and_then(|pair| pair.abort.take()) {
                    abort.abort();
                }
            }
            Some(Event::Away) | None => return Ok(()),
        }
    }
}

/// Passes on bytes for a connection; the others go on while it takes its time.
async fn take(
    stream: u32,
    bytes: Bytes,
    pairs: &mut Pairs,
    running: &mut FuturesUnordered<BoxFuture<'_, String>>,
    sender: &Sender,
) -> io::Result<()> {
    let Some(pair) = pairs.of(stream) else { return Ok(()) };
    let Some(to) = pair.to.clone() else { return Ok(()) };
    if pair.abort.is_none() {
        // Nobody takes anything out yet, so there is only the room there is.
        if to.try_send(bytes).is_err() {
            pair.to = None;
            sender.fail(stream).await?;
        }
        return Ok(());
    }
    let (mut sending, mut stuck) = (std::pin::pin!(to.send(bytes)), std::pin::pin!(tokio::time::sleep(STUCK)));
    loop {
        tokio::select! {
            // An error means that the pod has closed it.
            _ = &mut sending => return Ok(()),
            Some(ended) = running.next() => pairs.remove(&ended),
            () = &mut stuck, if pairs.pairs.len() > 1 => break,
        }
    }
    if let Some(abort) = pairs.of(stream).and_then(|pair| pair.abort.take()) {
        abort.abort();
    }
    sender.fail(stream).await
}

/// A connection whose two streams are there, as something to be run; it gives its name when it has ended.
fn begin<'a>(id: String, pairs: &mut Pairs, sender: &'a Sender, dial: &'a Dial) -> Option<BoxFuture<'a, String>> {
    let pair = pairs.pairs.get_mut(&id)?;
    let (port, error, data, from) = (pair.port?, pair.error?, pair.data?, pair.from.take()?);
    let (connection, abort) = abortable(one_connection(port, error, data, from, sender, dial));
    pair.abort = Some(abort);
    Some(
        async move {
            // Broken off by the client, or over; a sender that is gone is noticed by whoever reads.
            let _ = connection.await;
            id
        }
        .boxed(),
    )
}

async fn one_connection(
    port: u16,
    error: u32,
    data: u32,
    from: mpsc::Receiver<Bytes>,
    sender: &Sender,
    dial: &Dial,
) -> io::Result<()> {
    let Visit { to, from: mut answers } = match dial.port(port).await {
        Ok(visit) => visit,
        Err(text) => {
            sender.data(error, text.as_bytes()).await?;
            sender.finish(error).await?;
            return sender.fail(data).await;
        }
    };
    let outward = async {
        while let Some(bytes) = answers.bytes().await {
            if sender.data(data, &bytes).await.is_err() {
                break;
            }
        }
    };
    until_second(pass_on(from, to), outward).await;
    sender.finish(data).await?;
    sender.finish(error).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairing() {
        let mut pairs = Pairs::default();
        let headers = |kind: &str, port: &str, id: Option<&str>| -> Headers {
            let all = [("streamtype", Some(kind)), ("port", Some(port)), ("requestid", id)];
            all.into_iter().filter_map(|(n, v)| Some((n.to_owned(), v?.to_owned()))).collect()
        };
        for (stream, headers, want) in [
            (1, headers("error", "80", Some("a")), Some(None)),
            (3, headers("error", "80", Some("a")), None),
            (3, headers("data", "81", Some("a")), None),
            (3, headers("data", "80", Some("a")), Some(Some("a"))),
            (5, headers("data", "80", Some("a")), None),
            (5, headers("data", "0", Some("b")), None),
            (5, headers("data", "70000", Some("b")), None),
            (5, headers("other", "80", Some("b")), None),
            (7, headers("error", "80", None), Some(None)),
            (9, headers("data", "80", None), Some(Some("7"))),
        ] {
            let want = want.map(|complete: Option<&str>| complete.map(str::to_owned));
            assert_eq!(pairs.add(stream, &headers), want, "{stream} {headers:?}");
        }
        pairs.remove("a");
        assert!(pairs.of(3).is_none() && pairs.of(9).is_some());
        for number in pairs.pairs.len()..MOST_PAIRS {
            let id = format!("n{number}");
            assert!(pairs.add(100, &headers("error", "80", Some(&id))).is_some());
        }
        assert_eq!(pairs.add(100, &headers("error", "80", Some("more"))), None, "there is a bound");
    }
}
