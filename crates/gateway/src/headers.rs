//! What the gateway takes from, and adds to, the headers of a message that passes through.
//!
//! Owns: hop-by-hop headers, forwarding headers, trace context, which host a request is for. Must not know: routing
//! or connections. The surprise: all names are looked at in one pass, since most requests carry few headers and
//! nothing that must go.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri, Version};

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Headers the gateway may add to a request; making room for all of them at once is one allocation at most.
const ADDED: usize = 8;

/// What is wrong with a request that is the client's fault: each is answered 400, or 501 for [`Malformed::Connect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the request names no host")]
    NoHost,
    #[error("the request has more than one Host header")]
    TwoHosts,
    #[error("the Host header is not a host name")]
    InvalidHost,
    #[error("the Host header differs from the authority")]
    HostMismatch,
    #[error("the request's body is damaged or incomplete")]
    Body,
    #[error("CONNECT is not supported")]
    Connect,
}

/// What one pass over a request's headers found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    hop_by_hop: bool,
    pub upgrade: bool,
    forwarded_for: bool,
    forwarded: bool,
    forwarded_proto: bool,
    forwarded_host: bool,
    traceparent: bool,
    request_id: bool,
    cookies: u8,
    /// The client would rather read JSON.
    pub json: bool,
}

/// Per connection: what every request on it is given.
#[derive(Debug)]
pub(crate) struct Peer {
    pub ip: IpAddr,
    /// Whether it speaks TLS.
    pub secure: bool,
    address: HeaderValue,
}

impl Peer {
    pub fn new(ip: IpAddr, secure: bool) -> Self {
        let ip = ip.to_canonical();
        let address = HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self { ip, secure, address }
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Where a client of plain HTTP finds the same over TLS, unless something in front of us speaks it already.
pub(crate) fn over_tls<B>(request: &Request<B>, host: &str, port: u16) -> Option<String> {
    if request.headers().get(X_FORWARDED_PROTO).is_some_and(|proto| proto == "https") {
        return None;
    }
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    Some(format!("https://{host}{port}{path}"))
}

/// The host a request is for, as the client wrote it, port included.
pub(crate) fn host<B>(request: &Request<B>) -> Result<HeaderValue, Malformed> {
    if request.method() == Method::CONNECT {
        return Err(Malformed::Connect);
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Malformed::TwoHosts);
    }
    let host = match (request.uri().authority(), first) {
        (Some(authority), host) => {
            // In HTTP/1.1 the target's authority wins by the standard; in HTTP/2 the two must agree.
            let differs = host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
            if differs && request.version() == Version::HTTP_2 {
                return Err(Malformed::HostMismatch);
            }
            HeaderValue::from_str(authority.as_str()).map_err(|_| Malformed::InvalidHost)?
        }
        (None, Some(host)) => host.clone(),
        (None, None) => return Err(Malformed::NoHost),
    };
    if host.is_empty() { Err(Malformed::NoHost) } else { Ok(host) }
}

/// The name to look up: without port, in lower case. `buffer` is used only when the client wrote capitals.
pub(crate) fn host_name<'a>(host: &'a HeaderValue, buffer: &'a mut String) -> Result<&'a str, Malformed> {
    let bytes = host.as_bytes();
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::InvalidHost)?;
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (v6, port) = rest.split_once(']').ok_or(Malformed::InvalidHost)?;
            (&text[..v6.len() + 2], port.strip_prefix(':').or(port.is_empty().then_some("")))
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, Some("")),
        },
    };
    let port_is_number = port.is_some_and(|port| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()));
    let v6 = name.starts_with('[');
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_') || (v6 && matches!(b, b'[' | b']' | b':'));
    if name.is_empty() || !port_is_number || !name.bytes().all(allowed) {
        return Err(Malformed::InvalidHost);
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        buffer.push_str(name);
        buffer.make_ascii_lowercase();
        return Ok(buffer);
    }
    Ok(name)
}

pub(crate) fn survey(headers: &HeaderMap) -> Seen {
    let mut seen = Seen::default();
    for (name, value) in headers {
        match *name {
            header::CONNECTION | header::TE | header::TRANSFER_ENCODING | header::EXPECT => seen.hop_by_hop = true,
            header::PROXY_AUTHORIZATION | header::PROXY_AUTHENTICATE => seen.hop_by_hop = true,
            header::UPGRADE => {
                seen.hop_by_hop = true;
                seen.upgrade = true;
            }
            header::FORWARDED => seen.forwarded = true,
            header::ACCEPT => seen.json |= value.as_bytes().starts_with(b"application/json"),
            header::COOKIE => seen.cookies = seen.cookies.saturating_add(1),
            _ => match name.as_str() {
                "keep-alive" | "proxy-connection" | "http2-settings" => seen.hop_by_hop = true,
                "x-forwarded-for" => seen.forwarded_for = true,
                "x-forwarded-proto" => seen.forwarded_proto = true,
                "x-forwarded-host" => seen.forwarded_host = true,
                "x-request-id" => seen.request_id = true,
                "traceparent" => seen.traceparent = is_traceparent(value.as_bytes()),
                _ => {}
            },
        }
    }
    seen
}

/// Which protocol a request wants to change to; only HTTP/1.1 can, and never to HTTP/2, since what follows such an
/// upgrade would pass by every rule of this gateway.
pub(crate) fn wanted_upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let wanted = request.headers().get(header::UPGRADE)?;
    let asked = has_token(request.headers(), header::CONNECTION, "upgrade");
    let http2 = wanted.as_bytes().len() >= 2 && wanted.as_bytes()[..2].eq_ignore_ascii_case(b"h2");
    (request.version() == Version::HTTP_11 && asked && !http2).then(|| wanted.clone())
}

fn has_token(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Removes what concerns only the connection a message came on. The Connection header may name more, but not what the
/// next hop needs to read the message or to know who sent it.
fn strip(headers: &mut HeaderMap) {
    const KEPT: [&str; 7] = [
        "host",
        "content-length",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "authorization",
    ];
    let usual = |token: &str| ["keep-alive", "close", "upgrade", "te"].iter().any(|t| t.eq_ignore_ascii_case(token));
    let named: Vec<HeaderName> = tokens(headers, header::CONNECTION)
        .filter(|token| !usual(token) && !KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(token)))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
}

/// Takes out of a request's headers what was for us alone.
pub(crate) fn clean(headers: &mut HeaderMap, seen: Seen) {
    headers.reserve(ADDED);
    if seen.hop_by_hop {
        let trailers = has_token(headers, header::TE, "trailers");
        strip(headers);
        for name in
            [header::TE, header::EXPECT, header::PROXY_AUTHORIZATION, header::PROXY_AUTHENTICATE, HTTP2_SETTINGS]
        {
            headers.remove(name);
        }
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    if seen.cookies > 1 {
        join_cookies(headers);
    }
}

/// Tells the instance about the client.
pub(crate) fn introduce(
    headers: &mut HeaderMap,
    seen: Seen,
    peer: &Peer,
    host: &HeaderValue,
    forwarded: impl FnOnce() -> HeaderValue,
    random: impl FnMut() -> u64,
) {
    append(headers, seen.forwarded_for, X_FORWARDED_FOR, peer.address.clone());
    append(headers, seen.forwarded, header::FORWARDED, forwarded());
    if !seen.forwarded_proto {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(peer.scheme()));
    }
    if !seen.forwarded_host {
        headers.insert(X_FORWARDED_HOST, host.clone());
    }
    if !seen.traceparent || !seen.request_id {
        trace(headers, seen, random);
    }
}

/// HTTP/2 may split cookies over several fields; HTTP/1 allows one.
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// A list header grows at its end; several lines of it become one, so that nobody reads only the first.
fn append(headers: &mut HeaderMap, present: bool, name: HeaderName, value: HeaderValue) {
    if !present {
        headers.insert(name, value);
        return;
    }
    let mut all: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    all.push(value.as_bytes());
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b", "[..])) {
        headers.insert(name, joined);
    }
}

/// Starts a trace where the client did not, and names the request after it.
fn trace(headers: &mut HeaderMap, seen: Seen, mut random: impl FnMut() -> u64) {
    let mut text = BytesMut::with_capacity(55);
    text.put_slice(b"00-");
    put_hex(&mut text, random() | 1);
    put_hex(&mut text, random());
    text.put_u8(b'-');
    put_hex(&mut text, random() | 1);
    text.put_slice(b"-00");
    let text = text.freeze();
    let value = |bytes: Bytes| HeaderValue::from_maybe_shared(bytes).expect("hexadecimal digits are header text");
    if !seen.request_id {
        let continued =
            headers.get(TRACEPARENT).filter(|_| seen.traceparent).map(|v| Bytes::copy_from_slice(v.as_bytes()));
        headers.insert(X_REQUEST_ID, value(continued.as_ref().unwrap_or(&text).slice(3..35)));
    }
    if !seen.traceparent {
        // An invalid one was no context, and the state that came with it means nothing.
        headers.remove(TRACESTATE);
        headers.insert(TRACEPARENT, value(text));
    }
}

fn put_hex(text: &mut BytesMut, number: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in number.to_be_bytes() {
        text.put_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// `version-traceid-parentid-flags` of W3C Trace Context: lower-case hexadecimal, no id all zero, version not ff.
fn is_traceparent(value: &[u8]) -> bool {
    let hex = |range: std::ops::Range<usize>| value[range].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |range: std::ops::Range<usize>| value[range].iter().all(|b| *b == b'0');
    value.len() >= 55
        && (value.len() == 55 || (value[55] == b'-' && &value[..2] != b"00"))
        && [2, 35, 52].iter().all(|at| value[*at] == b'-')
        && hex(0..2)
        && hex(3..35)
        && hex(36..52)
        && hex(53..55)
        && &value[..2] != b"ff"
        && !zero(3..35)
        && !zero(36..52)
}

/// One element of the Forwarded header (RFC 7239): a name with a port, and an IPv6 address, must be quoted.
pub(crate) fn forwarded(peer: &Peer, host: &HeaderValue) -> HeaderValue {
    let mut text = BytesMut::with_capacity(64);
    match peer.ip {
        IpAddr::V4(_) => {
            text.put_slice(b"for=");
            text.put_slice(peer.address.as_bytes());
        }
        IpAddr::V6(_) => {
            text.put_slice(b"for=\"[");
            text.put_slice(peer.address.as_bytes());
            text.put_slice(b"]\"");
        }
    }
    text.put_slice(b";host=\"");
    text.put_slice(host.as_bytes());
    text.put_slice(b"\";proto=");
    text.put_slice(peer.scheme().as_bytes());
    HeaderValue::from_maybe_shared(text.freeze()).expect("an address and a checked host are header text")
}

/// Turns an instance's answer into one for the client. Most servers send `Connection: keep-alive` with every answer,
/// so that case removes one header and looks no further.
pub(crate) fn to_client(headers: &mut HeaderMap) {
    let (mut connection, mut more) = (false, false);
    for (name, value) in &*headers {
        match *name {
            header::CONNECTION if value == "keep-alive" || value == "close" => connection = true,
            header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => more = true,
            _ => more |= matches!(name.as_str(), "keep-alive" | "proxy-connection"),
        }
    }
    if more {
        strip(headers);
    } else if connection {
        headers.remove(header::CONNECTION);
    }
}

/// What is asked of the instance: path and query only.
pub(crate) fn origin_form(uri: &mut Uri) {
    if uri.authority().is_some() || uri.scheme().is_some() {
        let target = uri.path_and_query().cloned();
        *uri = target.map(Uri::from).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    fn request(version: Version, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn the_host_is_the_authority_or_the_header() {
        use Malformed::*;
        let (h1, h2) = (Version::HTTP_11, Version::HTTP_2);
        type Row = (Version, &'static str, Pairs, Result<&'static str, Malformed>);
        let rows: &[Row] = &[
            (h1, "/", &[("host", "a.test")], Ok("a.test")),
            (h1, "/", &[("host", "A.Test:8080")], Ok("a.test")),
            (h1, "/", &[("host", "[::1]:80")], Ok("[::1]")),
            (h1, "/", &[("host", "[::1]")], Ok("[::1]")),
            (h1, "http://b.test/", &[("host", "a.test")], Ok("b.test")),
            (h2, "http://a.test/", &[], Ok("a.test")),
            (h2, "http://a.test/", &[("host", "a.test")], Ok("a.test")),
            (h2, "http://a.test/", &[("host", "b.test")], Err(HostMismatch)),
            (h1, "/", &[], Err(NoHost)),
            (h1, "/", &[("host", "")], Err(NoHost)),
            (h1, "/", &[("host", "a"), ("host", "b")], Err(TwoHosts)),
            (h1, "/", &[("host", "a b")], Err(InvalidHost)),
            (h1, "/", &[("host", "a/b")], Err(InvalidHost)),
            (h1, "/", &[("host", "a@b")], Err(InvalidHost)),
            (h1, "/", &[("host", "a\"b")], Err(InvalidHost)),
            (h1, "/", &[("host", "a:port")], Err(InvalidHost)),
            (h1, "/", &[("host", "a:80:90")], Err(InvalidHost)),
            (h1, "/", &[("host", "[::1")], Err(InvalidHost)),
            (h1, "/", &[("host", "[::1]x")], Err(InvalidHost)),
            (h1, "/", &[("host", "a]b")], Err(InvalidHost)),
            (h1, "/", &[("host", ":80")], Err(InvalidHost)),
        ];
        for (version, uri, headers, want) in rows {
            let mut buffer = String::new();
            let got = host(&request(*version, uri, headers))
                .and_then(|host| host_name(&host, &mut buffer).map(str::to_owned));
            assert_eq!(got, want.map(str::to_owned), "{version:?} {uri} {headers:?}");
        }
    }

    /// The request's headers as the instance sees them, random numbers being 0, 1, 2...
    fn check(given: &[(&str, &str)]) -> Vec<String> {
        let mut headers = request(Version::HTTP_11, "/", given).headers().clone();
        let (peer, host) = (Peer::new("10.1.2.3".parse().unwrap(), false), HeaderValue::from_static("a.test:80"));
        let mut next = 0;
        let random = || {
            next += 1;
            next
        };
        let seen = survey(&headers);
        clean(&mut headers, seen);
        introduce(&mut headers, seen, &peer, &host, || forwarded(&peer, &host), random);
        let mut all: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        all.sort();
        all
    }

    const TRACE: &str = "traceparent: 00-00000000000000010000000000000002-0000000000000003-00";
    const REQUEST_ID: &str = "x-request-id: 00000000000000010000000000000002";

    fn added() -> Vec<&'static str> {
        vec![
            "forwarded: for=10.1.2.3;host=\"a.test:80\";proto=http",
            TRACE,
            "x-forwarded-for: 10.1.2.3",
            "x-forwarded-host: a.test:80",
            "x-forwarded-proto: http",
            REQUEST_ID,
        ]
    }

    #[test]
    fn every_header_rule() {
        const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let rows: &[(Pairs, Pairs)] = &[
            (&[], &[]),
            (&[("accept", "x")], &[("", "accept: x")]),
            (&[("host", "a.test:80")], &[("", "host: a.test:80")]),
            (&[("x-forwarded-for", "1.1.1.1")], &[("x-forwarded-for", "x-forwarded-for: 1.1.1.1, 10.1.2.3")]),
            (
                &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")],
                &[("x-forwarded-for", "x-forwarded-for: 1.1.1.1, 2.2.2.2, 10.1.2.3")],
            ),
            (
                &[("forwarded", "for=1.1.1.1")],
                &[("forwarded", "forwarded: for=1.1.1.1, for=10.1.2.3;host=\"a.test:80\";proto=http")],
            ),
            (&[("x-forwarded-proto", "https")], &[("x-forwarded-proto", "x-forwarded-proto: https")]),
            (&[("x-forwarded-host", "front")], &[("x-forwarded-host", "x-forwarded-host: front")]),
            (&[("x-request-id", "mine")], &[("x-request-id", "x-request-id: mine")]),
            (
                &[("traceparent", VALID), ("tracestate", "a=b")],
                &[
                    ("traceparent", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                    ("x-request-id", "x-request-id: 0af7651916cd43dd8448eb211c80319c"),
                    ("", "tracestate: a=b"),
                ],
            ),
            (&[("traceparent", "00-bad"), ("tracestate", "a=b")], &[]),
            (&[("connection", "close")], &[]),
            (&[("connection", "x-hop, keep-alive"), ("x-hop", "1"), ("keep-alive", "5")], &[]),
            (&[("connection", "host, authorization"), ("authorization", "x")], &[("", "authorization: x")]),
            (
                &[("connection", "x-forwarded-for"), ("x-forwarded-for", "1.1.1.1")],
                &[("x-forwarded-for", "x-forwarded-for: 1.1.1.1, 10.1.2.3")],
            ),
            (&[("proxy-connection", "keep-alive")], &[]),
            (&[("proxy-authorization", "secret")], &[]),
            (&[("transfer-encoding", "chunked")], &[]),
            (&[("expect", "100-continue")], &[]),
            (&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "x")], &[]),
            (&[("te", "gzip")], &[]),
            (&[("te", "trailers, gzip")], &[("", "te: trailers")]),
            (&[("trailer", "x-sum")], &[("", "trailer: x-sum")]),
            (&[("cookie", "a=1"), ("cookie", "b=2")], &[("", "cookie: a=1; b=2")]),
        ];
        for (given, changes) in rows {
            let mut want: Vec<String> = added().into_iter().map(str::to_owned).collect();
            for (replaced, line) in *changes {
                want.retain(|have| replaced.is_empty() || !have.starts_with(&format!("{replaced}:")));
                want.push((*line).to_owned());
            }
            want.sort();
            assert_eq!(check(given), want, "{given:?}");
        }
    }

    #[test]
    fn only_valid_trace_contexts_are_continued() {
        let rows: &[(&str, bool)] = &[
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
            ("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("", false),
        ];
        for (value, want) in rows {
            assert_eq!(is_traceparent(value.as_bytes()), *want, "{value}");
        }
    }

    #[test]
    fn upgrades_are_asked_for_and_never_to_http2() {
        let rows: &[(Version, Pairs, Option<&str>)] = &[
            (Version::HTTP_11, &[("connection", "Upgrade"), ("upgrade", "websocket")], Some("websocket")),
            (Version::HTTP_11, &[("connection", "keep-alive, upgrade"), ("upgrade", "echo")], Some("echo")),
            (Version::HTTP_11, &[("upgrade", "websocket")], None),
            (Version::HTTP_11, &[("connection", "upgrade"), ("upgrade", "h2c")], None),
            (Version::HTTP_10, &[("connection", "upgrade"), ("upgrade", "websocket")], None),
            (Version::HTTP_11, &[("connection", "upgrade")], None),
        ];
        for (version, headers, want) in rows {
            let got = wanted_upgrade(&request(*version, "/", headers));
            assert_eq!(got.as_ref().map(|v| v.to_str().unwrap()), *want, "{headers:?}");
        }
    }
}
