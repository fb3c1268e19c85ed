//! Programs that a client starts or follows: Kubernetes' remote command protocols, over WebSockets and over SPDY.
//!
//! Owns the versions of the protocol. Must not know pods. What a version can and cannot say is a property of
//! [`Protocol`]; between here and the node it is always [`api::frames`].

use std::collections::HashMap;
use std::io;

use api::frames::{CLOSE, RESIZE, STATUS, STDERR, STDIN, STDOUT};
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::AsyncRead;

use super::Visit;
use super::socket::{Form, GOODBYE, Listener, PING_EVERY, channels, open};
use super::spdy::{self, Event, Reader, Sender};

/// A version of the remote command protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: &'static str,
    pub form: Form,
    /// Whether the end is told as a Status; otherwise as a sentence, and only when it is a failure.
    status: bool,
    /// Whether the client can say that its input is at its end and go on listening.
    close: bool,
}

const fn protocol(name: &'static str, form: Form, status: bool, close: bool) -> Protocol {
    Protocol { name, form, status, close }
}

/// What a client that names none speaks.
pub const OLDEST: Protocol = protocol("", Form::Binary, false, false);
pub const SOCKETS: &[Protocol] = &[
    protocol("v5.channel.k8s.io", Form::Binary, true, true),
    protocol("v4.channel.k8s.io", Form::Binary, true, false),
    protocol("v4.base64.channel.k8s.io", Form::Base64, true, false),
    protocol("v3.channel.k8s.io", Form::Binary, false, false),
    protocol("v2.channel.k8s.io", Form::Binary, false, false),
    protocol("channel.k8s.io", Form::Binary, false, false),
    protocol("base64.channel.k8s.io", Form::Base64, false, false),
];
/// A stream of SPDY can be half closed in every version.
pub const STREAMS: &[Protocol] = &[
    protocol("v4.channel.k8s.io", Form::Binary, true, true),
    protocol("v3.channel.k8s.io", Form::Binary, false, true),
    protocol("v2.channel.k8s.io", Form::Binary, false, true),
    protocol("channel.k8s.io", Form::Binary, false, true),
];

/// What the client wants to have of the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Protocol {
    /// What the end is told as, if it is told.
    fn told(self, status: &[u8]) -> Option<Vec<u8>> {
        if self.status {
            return Some(status.to_vec());
        }
        let status: Value = serde_json::from_slice(status).unwrap_or_default();
        (status["status"] != "Success").then(|| status["message"].as_str().unwrap_or("failed").as_bytes().to_vec())
    }
}

/// Serves a client over a WebSocket, until either end is done.
pub async fn over_socket(upgraded: Upgraded, protocol: Protocol, wants: Wants, visit: Visit) {
    let (mut listener, mut speaker) = channels(open(upgraded).await, protocol.form);
    let Visit { to, mut from } = visit;
    let listening = async {
        let to = to;
        while let Some((channel, bytes)) = listener.next().await {
            let passed = match channel {
                STDIN | RESIZE => to.say(channel, &bytes).await,
                CLOSE if protocol.close => to.say(CLOSE, &bytes).await,
                _ => Ok(()),
            };
            if passed.is_err() {
                // The node takes nothing more; it still may have something to say.
                drain(&mut listener).await;
            }
        }
    };
    let speaking = async {
        // An empty message is how clients learn that the program has been started.
        let first = [(wants.stdout, STDOUT), (wants.stderr, STDERR), (true, STATUS)].into_iter().find(|(is, _)| *is);
        speaker.say(first.map_or(STATUS, |(_, channel)| channel), b"").await?;
        let mut asks = tokio::time::interval(PING_EVERY);
        loop {
            let frame = tokio::select! {
                frame = from.next() => frame,
                _ = asks.tick() => {
                    speaker.ping().await?;
                    continue;
                }
            };
            match frame {
                Some((STATUS, status)) => {
                    if let Some(told) = protocol.told(&status) {
                        speaker.say(STATUS, &told).await?;
                    }
                }
                Some((channel, bytes)) => speaker.say(channel, &bytes).await?,
                None => break,
            }
        }
        speaker.close().await;
        io::Result::Ok(())
    };
    let over = tokio::select! {
        () = listening => false,
        spoken = speaking => spoken.is_ok(),
    };
    if over {
        listener.goodbye().await;
    }
}

async fn drain(listener: &mut Listener) {
    while listener.next().await.is_some() {}
}

/// Serves a client over SPDY: each channel is a stream that it opens.
pub async fn over_spdy(upgraded: Upgraded, protocol: Protocol, wants: Wants, visit: Visit) {
    let (read, write) = tokio::io::split(TokioIo::new(upgraded));
    let (reader, sender, outgoing) = spdy::connection(read);
    let serving = over_streams(reader, sender, protocol, wants, visit);
    if let (Err(error), _) | (_, Err(error)) = tokio::join!(serving, spdy::write(write, outgoing)) {
        tracing::debug!(%error, "a visit over SPDY ended");
    }
}

async fn over_streams<R: AsyncRead + Unpin>(
    mut reader: Reader<R>,
    sender: Sender,
    protocol: Protocol,
    wants: Wants,
    visit: Visit,
) -> io::Result<()> {
    let streams = opened(&mut reader, &sender, wants, protocol).await?;
    let Visit { to, mut from } = visit;
    let speaking = async {
        while let Some((channel, bytes)) = from.next().await {
            let told = if channel == STATUS { protocol.told(&bytes) } else { Some(bytes) };
            if let (Some(told), Some(stream)) = (told, streams.of(channel)) {
                sender.data(stream, &told).await?;
            }
        }
        for stream in streams.0.values() {
            sender.finish(*stream).await?;
        }
        io::Result::Ok(())
    };
    let listening = async {
        while let Some(event) = reader.next().await? {
            let (channel, bytes) = match event {
                Event::Data { stream, bytes } if Some(stream) == streams.of(STDIN) => (STDIN, bytes),
                Event::Data { stream, bytes } if Some(stream) == streams.of(RESIZE) => (RESIZE, bytes),
                Event::Finished { stream } | Event::Reset { stream } if Some(stream) == streams.of(STDIN) => {
                    (CLOSE, Bytes::from_static(&[STDIN]))
                }
                Event::Opened { stream, .. } => {
                    sender.refuse(stream).await?;
                    continue;
                }
                Event::Away => break,
                _ => continue,
            };
            // What the node does not take any more is not for anybody.
            let _ = to.say(channel, &bytes).await;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        spoken = speaking => spoken?,
        listened = listening => return listened,
    }
    // The client leaves once it has seen the end; what is closed earlier is lost on its way.
    let leaving = async { while !matches!(reader.next().await, Ok(None | Some(Event::Away)) | Err(_)) {} };
    let _ = tokio::time::timeout(GOODBYE, leaving).await;
    Ok(())
}

/// The streams of the channels.
struct Streams(HashMap<u8, u32>);

impl Streams {
    fn of(&self, channel: u8) -> Option<u32> {
        self.0.get(&channel).copied()
    }
}

/// Waits until the client has opened a stream for each channel that it must have.
async fn opened<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    sender: &Sender,
    wants: Wants,
    protocol: Protocol,
) -> io::Result<Streams> {
    // The first two versions had no way to tell a size.
    let resizes = wants.tty && !matches!(protocol.name, "v2.channel.k8s.io" | "channel.k8s.io");
    let channels = [
        (true, STATUS, "error"),
        (wants.stdin, STDIN, "stdin"),
        (wants.stdout, STDOUT, "stdout"),
        (wants.stderr && !wants.tty, STDERR, "stderr"),
        (resizes, RESIZE, "resize"),
    ];
    let expected: Vec<_> = channels.into_iter().filter(|(wanted, ..)| *wanted).collect();
    let mut streams = HashMap::new();
    while streams.len() < expected.len() {
        match reader.next().await? {
            Some(Event::Opened { stream, headers }) => {
                let kind = headers.iter().find(|(name, _)| name == "streamtype").map(|(_, value)| value.as_str());
                let channel = expected.iter().find(|(.., name)| Some(*name) == kind).map(|(_, channel, _)| *channel);
                match channel.filter(|channel| !streams.contains_key(channel)) {
                    Some(channel) => {
                        sender.accept(stream).await?;
                        streams.insert(channel, stream);
                    }
                    None => sender.refuse(stream).await?,
                }
            }
            // Bytes that come before their time would be the end of somebody's input.
            Some(Event::Data { .. }) => return Err(io::Error::other("data came before all streams were there")),
            Some(Event::Away) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) => {}
        }
    }
    Ok(Streams(streams))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        let success = br#"{"status":"Success"}"#;
        let failure = br#"{"status":"Failure","message":"exit status 3"}"#;
        let (new, old) = (SOCKETS[0], OLDEST);
        for (protocol, status, want) in [
            (new, &success[..], Some(&success[..])),
            (new, failure, Some(failure)),
            (old, success, None),
            (old, failure, Some(b"exit status 3")),
        ] {
            assert_eq!(protocol.told(status).as_deref(), want);
        }
    }
}
