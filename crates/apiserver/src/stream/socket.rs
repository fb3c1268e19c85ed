//! The client's end of a visit: what it asks to be upgraded to, and WebSockets whose messages belong to channels.
//!
//! Owns the two handshakes and the form of a channel's message. Must not know what channels are for.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use crate::{ResponseBody, whole};

/// Larger messages end the connection. Clients send what they read at once, tens of kilobytes.
const MESSAGE_BYTES: usize = 1 << 20;
/// How often a client is asked whether it is still there: while it is not read from, nothing else would tell.
pub const PING_EVERY: Duration = Duration::from_secs(10);
/// How long a client may take to say that it has seen the end.
pub const GOODBYE: Duration = Duration::from_secs(5);
/// Where clients that speak SPDY list their protocols, and find the one that was chosen.
const PROTOCOLS: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What a client wants its connection to become, with the protocols it offers, in its order.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    WebSocket { key: String, protocols: Vec<String> },
    Spdy { protocols: Vec<String> },
}

impl Wanted {
    /// `Err` says what is missing, in the words of Kubernetes.
    pub fn of(headers: &HeaderMap) -> Result<Self, &'static str> {
        let has = |name: HeaderName, wanted: &str| {
            list(headers, &name).iter().any(|token| token.eq_ignore_ascii_case(wanted))
        };
        if !has(CONNECTION, "upgrade") {
            return Err("Upgrade request required");
        }
        if has(UPGRADE, "websocket") {
            let key = headers.get("sec-websocket-key").and_then(|key| key.to_str().ok());
            let version = headers.get("sec-websocket-version").and_then(|version| version.to_str().ok());
            return match (key, version) {
                (Some(key), Some("13")) => {
                    Ok(Self::WebSocket { key: key.to_owned(), protocols: list(headers, &SEC_WEBSOCKET_PROTOCOL) })
                }
                (None, _) => Err("missing or bad Sec-WebSocket-Key"),
                (Some(_), _) => Err("missing or bad WebSocket Version"),
            };
        }
        match has(UPGRADE, "spdy/3.1") {
            true => Ok(Self::Spdy { protocols: list(headers, &PROTOCOLS) }),
            false => Err("Upgrade request required"),
        }
    }

    pub fn protocols(&self) -> &[String] {
        match self {
            Self::WebSocket { protocols, .. } | Self::Spdy { protocols } => protocols,
        }
    }

    /// The answer that switches protocols.
    pub fn switch(&self, protocol: Option<&str>) -> Response<ResponseBody> {
        let mut response = Response::new(whole(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let chosen = match self {
            Self::WebSocket { key, .. } => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                let accept = derive_accept_key(key.as_bytes());
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept.parse().expect("base64 is a header's value"));
                SEC_WEBSOCKET_PROTOCOL
            }
            Self::Spdy { .. } => {
                headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                PROTOCOLS
            }
        };
        if let Some(protocol) = protocol.and_then(|protocol| protocol.parse().ok()) {
            headers.insert(chosen, protocol);
        }
        response
    }
}

/// The values of a header that may be given several times, or as a list.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|v| v.split(',')).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect()
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How a message names its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A byte before the bytes.
    Binary,
    /// A digit before the bytes in base64, for clients that have text only.
    Base64,
}

pub async fn open(upgraded: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES))
        .max_frame_size(Some(MESSAGE_BYTES))
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MESSAGE_BYTES);
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await
}

pub fn channels(socket: Socket, form: Form) -> (Listener, Speaker) {
    let (to, from) = socket.split();
    (Listener { from, form }, Speaker { to, form })
}

/// What the client says.
pub struct Listener {
    from: SplitStream<Socket>,
    form: Form,
}

impl Listener {
    /// The next message of a channel; `None` when the client is gone, or cannot be understood.
    pub async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let message = match self.from.next().await? {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Text(text)) => Bytes::from(text),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => continue,
            };
            let Some((channel, _)) = message.split_first() else { continue };
            let bytes = message.slice(1..);
            return match self.form {
                Form::Binary => Some((*channel, bytes)),
                Form::Base64 => Some((channel.checked_sub(b'0')?, BASE64_STANDARD.decode(bytes).ok()?.into())),
            };
        }
    }

    /// The next bytes, where a message is nothing but bytes.
    pub async fn bytes(&mut self) -> Option<Bytes> {
        loop {
            match self.from.next().await? {
                Ok(Message::Binary(bytes)) => return Some(bytes),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }

    /// Waits until the client has seen that it is over: what is closed too early is lost on its way.
    pub async fn goodbye(mut self) {
        let ended = async { while self.from.next().await.is_some_and(|message| message.is_ok()) {} };
        let _ = tokio::time::timeout(GOODBYE, ended).await;
    }
}

/// What the client is told.
pub struct Speaker {
    to: SplitSink<Socket, Message>,
    form: Form,
}

impl Speaker {
    pub async fn say(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        let message = match self.form {
            Form::Binary => Message::Binary([&[channel], bytes].concat().into()),
            Form::Base64 => {
                Message::Text(format!("{}{}", char::from(b'0' + channel), BASE64_STANDARD.encode(bytes)).into())
            }
        };
        self.send(message).await
    }

    pub async fn bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.send(Message::Binary(bytes)).await
    }

    pub async fn ping(&mut self) -> io::Result<()> {
        self.send(Message::Ping(Bytes::new())).await
    }

    pub async fn close(&mut self) {
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // A client that is gone needs no goodbye.
        let _ = self.send(Message::Close(Some(normal))).await;
    }

    async fn send(&mut self, message: Message) -> io::Result<()> {
        self.to.send(message).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes() {
        let socket = |protocols: &[&str]| {
            let protocols = protocols.iter().map(|p| (*p).to_owned()).collect();
            Ok(Wanted::WebSocket { key: "k".into(), protocols })
        };
        let spdy = |protocols: &[&str]| Ok(Wanted::Spdy { protocols: protocols.iter().map(|p| (*p).into()).collect() });
        let base = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
        let with = |more: &[(&'static str, &'static str)]| [&base, more].concat();
        for (headers, want) in [
            (vec![], Err("Upgrade request required")),
            (vec![("upgrade", "websocket")], Err("Upgrade request required")),
            (vec![("connection", "upgrade"), ("upgrade", "h2c")], Err("Upgrade request required")),
            (with(&[]), Err("missing or bad Sec-WebSocket-Key")),
            (
                vec![("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")],
                Err("missing or bad WebSocket Version"),
            ),
            (with(&[("sec-websocket-key", "k")]), socket(&[])),
            (
                with(&[
                    ("sec-websocket-key", "k"),
                    ("sec-websocket-protocol", "a, b"),
                    ("sec-websocket-protocol", "c"),
                ]),
                socket(&["a", "b", "c"]),
            ),
            (
                vec![
                    ("connection", "Upgrade"),
                    ("upgrade", "SPDY/3.1"),
                    ("x-stream-protocol-version", "a"),
                    ("x-stream-protocol-version", "b"),
                ],
                spdy(&["a", "b"]),
            ),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(Wanted::of(&map), want, "{headers:?}");
        }
    }
}
