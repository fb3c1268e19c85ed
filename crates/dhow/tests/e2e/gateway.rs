//! The request path from outside: protocols, streaming, headers, drain.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_tungstenite::tungstenite::Message;

use crate::function::HELLO;
use crate::harness::{Platform, able, eventually};

const ECHO_ASGI: &str = r#"
async def app(scope, receive, send):
    if scope['type'] == 'websocket':
        await receive()
        await send({'type': 'websocket.accept'})
        while True:
            event = await receive()
            if event['type'] == 'websocket.disconnect':
                return
            await send({'type': 'websocket.send', 'text': 'echo ' + (event.get('text') or '')})
    assert scope['type'] == 'http'
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'application/octet-stream')]})
    while True:
        event = await receive()
        await send({'type': 'http.response.body', 'body': event.get('body', b''), 'more_body': event.get('more_body', False)})
        if not event.get('more_body', False):
            return
"#;

#[tokio::test]
async fn http2_with_prior_knowledge_from_zero() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    platform.scale_to_zero("hello");
    let stream = tokio::net::TcpStream::connect(platform.endpoint("gateway")).await.expect("connected");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("h2");
    let connection = tokio::spawn(connection);
    for _ in 0..3 {
        let uri = format!("http://{}/?name=h2", platform.host("hello"));
        let request = Request::get(uri).body(Full::<Bytes>::default()).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(body.windows(2).any(|w| w == b"h2"));
    }
    connection.abort();
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("echo", &[("main.py", ECHO_ASGI)]);
    platform.scale_to_zero("echo");
    let stream = tokio::net::TcpStream::connect(platform.endpoint("gateway")).await.expect("connected");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("h1");
    let connection = tokio::spawn(connection);
    let (mut feed, chunks) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
    let request =
        Request::post("/").header("host", platform.host("echo")).body(StreamBody::new(chunks)).expect("a request");
    feed.send(Ok(Frame::data(Bytes::from_static(b"chunk 0")))).await.expect("sent");
    let mut response = sender.send_request(request).await.expect("the answer begins before the request ends");
    assert_eq!(response.status().as_u16(), 200);
    for i in 0..5 {
        let mut seen = Vec::new();
        let want = format!("chunk {i}");
        while seen.len() < want.len() {
            let frame = response.body_mut().frame().await.expect("more").expect("a frame");
            seen.extend_from_slice(frame.data_ref().expect("data"));
        }
        assert_eq!(String::from_utf8_lossy(&seen), want, "each chunk comes back before the next is sent");
        if i < 4 {
            feed.send(Ok(Frame::data(Bytes::from(format!("chunk {}", i + 1))))).await.expect("sent");
        }
    }
    drop(feed);
    assert!(response.into_body().collect().await.expect("an end").to_bytes().is_empty());
    connection.abort();
}

#[tokio::test]
async fn websockets_pass_through() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("echo", &[("main.py", ECHO_ASGI)]);
    platform.scale_to_zero("echo");
    let stream = tokio::net::TcpStream::connect(platform.endpoint("gateway")).await.expect("connected");
    let url = format!("ws://{}/chat", platform.host("echo"));
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("upgraded");
    for word in ["one", "two"] {
        socket.send(Message::text(word)).await.expect("sent");
        let answer = socket.next().await.expect("an answer").expect("a message");
        assert_eq!(answer.into_text().expect("text").as_str(), format!("echo {word}"));
    }
    socket.close(None).await.expect("closed");
}

#[tokio::test]
async fn forwarding_and_trace_headers() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let mirror = "def handle(request):\n    return {k.lower(): v for k, v in request.headers.items()}\n";
    platform.deploy("mirror", &[("main.py", mirror)]);
    let plain = platform.get("mirror", "/").await.json();
    // A cluster's node stands between us and the gateway.
    let client = plain["x-forwarded-for"].as_str().unwrap_or_default().to_owned();
    assert!(client == "127.0.0.1" || platform.is_cluster() && client.starts_with("10.213."), "{plain}");
    assert_eq!(plain["x-forwarded-proto"], "http", "{plain}");
    assert!(
        plain["forwarded"].as_str().is_some_and(|f| f.contains(&format!("for={client}")) && f.contains("proto=http")),
        "{plain}"
    );
    assert!(plain["traceparent"].as_str().is_some_and(|t| t.len() == 55 && t.starts_with("00-")), "{plain}");
    assert!(plain["host"].as_str().is_some_and(|h| h.starts_with(&platform.host("mirror"))), "{plain}");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = Request::get("/").header("traceparent", trace).header("connection", "x-hop").header("x-hop", "1");
    let continued = platform.send("mirror", request, Bytes::new()).await.json();
    assert!(
        continued["traceparent"].as_str().is_some_and(|t| t.contains("0af7651916cd43dd8448eb211c80319c")),
        "{continued}"
    );
    assert!(continued["x-hop"].is_null(), "hop-by-hop headers stay behind: {continued}");
}

#[tokio::test]
async fn unknown_hosts_are_not_found() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let reply = platform.get("nobody", "/").await;
    assert_eq!(reply.status.as_u16(), 404, "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_survive_scale_down() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let slow = "import time\n\ndef handle(request):\n    print('begun')\n    time.sleep(2)\n    return 'finished'\n";
    platform.deploy("slow", &[("main.py", slow)]);
    let (gateway, host) = (platform.endpoint("gateway"), platform.host("slow"));
    let call = tokio::spawn(async move {
        let request = Request::get("/").header("host", host).body(Default::default()).expect("a request");
        crate::harness::send(&gateway, request).await.map(|r| (r.status.as_u16(), r.text())).map_err(|e| e.to_string())
    });
    eventually("the request is being handled", || async {
        let logs = platform.dhow_ok(&["logs", "slow"]);
        if logs.contains("begun") { Ok(()) } else { Err(logs) }
    })
    .await;
    let pod = platform.pods("slow").pop().expect("a pod");
    platform.kubectl_ok(&["delete", "pod", &pod, "--wait=false"]);
    assert_eq!(
        call.await.expect("the call ends"),
        Ok((200, "finished".to_owned())),
        "a stopped instance finishes its request"
    );
}

#[tokio::test]
async fn the_promised_metrics_are_there() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    platform.scale_to_zero("hello");
    platform.get("hello", "/").await;
    let mut wanted = vec![
        "dhow_requests_total",
        "dhow_request_seconds",
        "dhow_cold_starts_total",
        "dhow_cold_start_seconds",
        "dhow_queue_depth",
        "dhow_instances",
        "phase=\"queued\"",
        "phase=\"first_byte\"",
        "revision=\"hello-00001\"",
    ];
    if !platform.is_cluster() {
        // What a kubelet does between the two, and what an API server keeps, they tell themselves.
        wanted.extend(["phase=\"scheduled\"", "phase=\"sandbox\"", "phase=\"runtime\""]);
        wanted.extend(["dhow_store_writes_total", "dhow_store_commits_total"]);
        wanted.extend([
            "dhow_visits_total{kind=\"exec\"}",
            "dhow_visits_open",
            "dhow_listener_refused_total{listener=\"api\"}",
        ]);
    }
    eventually("the metrics show the cold start", || async {
        let metrics = platform.metrics().await;
        let missing: Vec<_> = wanted.iter().filter(|w| !metrics.contains(**w)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("missing {missing:?} in\n{metrics}")) }
    })
    .await;
}
