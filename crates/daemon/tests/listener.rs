//! A listener and clients that want nothing, too much, or do not read: over real sockets.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use daemon::listener::{Limits, Listener};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Long enough never to pass in a test.
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(50);

fn limits(connections: usize) -> Limits {
    Limits { connections, header_timeout: NEVER, idle: NEVER, stall: NEVER, drain: SOON }
}

/// Answers `/` at once, `/wait` when it may, and `/endless` for ever.
struct Server {
    address: SocketAddr,
    /// Permits for `/wait`.
    may: Arc<Semaphore>,
    /// Requests for `/wait` that have come.
    waiting: watch::Receiver<usize>,
    /// Endless answers that are open.
    endless: watch::Receiver<usize>,
    _stop: tokio_util::sync::DropGuard,
}

struct Endless(watch::Sender<usize>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 100_000])))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

async fn serve(limits: Limits, tls: Option<Arc<rustls::ServerConfig>>) -> Server {
    let listener = Listener::bind("127.0.0.1:0", "--listen").await.unwrap();
    let (address, stop, may) = (listener.address(), CancellationToken::new(), Arc::new(Semaphore::new(0)));
    let ((came, waiting), (opened, endless)) = (watch::channel(0), watch::channel(0));
    let handle = {
        let may = may.clone();
        move |request: Request<Incoming>| {
            let (may, came, opened) = (may.clone(), came.clone(), opened.clone());
            async move {
                Response::new(match request.uri().path() {
                    "/endless" => {
                        opened.send_modify(|open| *open += 1);
                        UnsyncBoxBody::new(Endless(opened))
                    }
                    path => {
                        if path == "/wait" {
                            came.send_modify(|waiting| *waiting += 1);
                            may.acquire().await.unwrap().forget();
                        }
                        UnsyncBoxBody::new(Full::new(Bytes::from_static(b"fine")))
                    }
                })
            }
        }
    };
    let serving = listener.serve(tls, limits, handle, stop.clone());
    tokio::spawn(serving);
    Server { address, may, waiting, endless, _stop: stop.drop_guard() }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A connection with that already said, whatever comes of it.
    async fn say(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn http1(&self) -> http1::SendRequest<Empty<Bytes>> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn http2(&self) -> http2::SendRequest<Empty<Bytes>> {
        let io = TokioIo::new(self.connect().await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://localhost{path}")).body(Empty::new()).unwrap()
}

async fn told(response: Response<Incoming>) -> (u16, Option<String>, String) {
    let (parts, body) = response.into_parts();
    let later = parts.headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), later, String::from_utf8_lossy(&body).into_owned())
}

/// Waits until the server has closed it; gives what it said before.
async fn closed(mut stream: TcpStream) -> String {
    let mut said = vec![];
    // A connection that is closed with something unread in it is reset.
    let _ = stream.read_to_end(&mut said).await;
    String::from_utf8_lossy(&said).into_owned()
}

fn fine() -> (u16, Option<String>, String) {
    (200, None, "fine".into())
}

#[tokio::test]
async fn those_who_want_nothing_keep_nobody_out() {
    let server = serve(limits(4), None).await;
    let mut crowd = vec![];
    for text in ["", "GET / HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\nhost: x\r\n"].repeat(10) {
        crowd.push(server.say(text).await);
    }
    assert_eq!(told(server.http1().await.send_request(request("/")).await.unwrap()).await, fine());
    assert_eq!(told(server.http2().await.send_request(request("/")).await.unwrap()).await, fine());
    // All but the last few, whose places nobody has needed.
    for stream in crowd.drain(..crowd.len() - 4) {
        closed(stream).await;
    }
}

#[tokio::test]
async fn when_all_are_busy_the_next_is_told() {
    let mut server = serve(limits(2), None).await;
    let (mut first, mut second) = (server.http1().await, server.http2().await);
    let busy = [
        tokio::spawn(async move { told(first.send_request(request("/wait")).await.unwrap()).await }),
        tokio::spawn(async move { told(second.send_request(request("/wait")).await.unwrap()).await }),
    ];
    server.waiting.wait_for(|waiting| *waiting == 2).await.unwrap();
    let refused = (429, Some("1".to_owned()), "Too many requests, please try again later.\n".to_owned());
    let (mut one, mut two) = (server.http1().await, server.http2().await);
    assert_eq!(told(one.send_request(request("/")).await.unwrap()).await, refused);
    assert_eq!(told(two.send_request(request("/")).await.unwrap()).await, refused);
    // They are not kept.
    while one.ready().await.is_ok() || two.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
    // There is an end to the room for those that are refused, too.
    let mut crowd = vec![];
    for _ in 0..100 {
        crowd.push(server.connect().await);
    }
    for stream in crowd.drain(64..) {
        assert_eq!(closed(stream).await, "");
    }
    server.may.add_permits(2);
    for busy in busy {
        assert_eq!(busy.await.unwrap(), fine(), "nobody is harmed who was there before");
    }
    assert_eq!(told(server.http1().await.send_request(request("/")).await.unwrap()).await, fine());
}

#[tokio::test]
async fn those_who_take_too_long_are_left() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
    let shaking = serve(Limits { header_timeout: SOON, ..limits(9) }, Some(Arc::new(tls))).await;
    for text in ["", "\u{16}\u{3}\u{1}"] {
        assert_eq!(closed(shaking.say(text).await).await, "");
    }
    let server = serve(Limits { header_timeout: SOON, ..limits(9) }, None).await;
    for text in ["", "G", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost: x\r\nx: ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let said = closed(server.say(text).await).await;
        assert!(!said.contains("200"), "{text:?}: {said:?}");
    }
    // Whoever has been of use may rest for longer, but not for ever.
    let server = serve(Limits { header_timeout: 4 * SOON, idle: SOON, ..limits(9) }, None).await;
    let (mut one, mut two) = (server.http1().await, server.http2().await);
    assert_eq!(told(one.send_request(request("/")).await.unwrap()).await, fine());
    assert_eq!(told(two.send_request(request("/")).await.unwrap()).await, fine());
    while one.ready().await.is_ok() || two.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_let_go() {
    let mut server = serve(Limits { stall: SOON, header_timeout: SOON, ..limits(9) }, None).await;
    let silent = server.say("GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.endless.wait_for(|open| *open == 1).await.unwrap();
    server.endless.wait_for(|open| *open == 0).await.unwrap();
    drop(silent);
    let mut client = server.http2().await;
    let stuck = client.send_request(request("/endless")).await.unwrap();
    server.endless.wait_for(|open| *open == 1).await.unwrap();
    server.endless.wait_for(|open| *open == 0).await.unwrap();
    let rest = stuck.into_body().collect().await;
    assert!(rest.is_err(), "a client that reads on learns that it was broken off");
    assert_eq!(told(client.send_request(request("/")).await.unwrap()).await, fine(), "its connection goes on");
    // Whoever reads, however much, is not taken for one of those.
    let mut reading = client.send_request(request("/endless")).await.unwrap().into_body();
    let (mut read, began) = (0, tokio::time::Instant::now());
    while read < 64 << 20 || began.elapsed() < 4 * SOON {
        read += reading.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
}
