//! Visits through the node's API: exec, attach and port-forward.
//!
//! Owns what becomes of a request's body and of a visitor's output. Exec and attach speak [`api::frames`] both ways; a
//! forwarded connection is its bare bytes, one request for each. Must not know what a client outside speaks. Nothing
//! runs beside the answer's body: reading it is what moves everything, and dropping it ends the visit.

use std::pin::Pin;

use api::frames;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};
use percent_encoding::percent_decode_str;
use runtime::{Command, ErrorClass, Output, ProviderError, Session, Size};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::kubelet::{Body, answer};
use crate::logs::Entry;
use crate::{BoxError, RequestBody};

/// Read at once from a forwarded connection.
const CHUNK_BYTES: usize = 32 << 10;

type Frames = BoxStream<'static, Bytes>;

pub async fn exec(entry: &Entry, container: &str, query: &str, body: RequestBody) -> Response<Body> {
    let asked = match Asked::parse(query) {
        Ok(asked) => asked,
        Err(problem) => return answer(StatusCode::BAD_REQUEST, &problem),
    };
    let Some(provider) = &entry.provider else { return not_found(container) };
    let command = Command { argv: asked.command, input: asked.stdin, terminal: asked.tty };
    match provider.exec(&entry.uid, container, command).await {
        Ok(Session { input, output, resize }) => {
            let pump = pump(body, input, resize);
            let (stdout, stderr) = (asked.stdout, asked.stderr);
            body_of(output.filter_map(move |o| std::future::ready(framed(o, stdout, stderr))).boxed(), pump)
        }
        Err(error) => refused(container, &error),
    }
}

pub async fn attach(entry: &Entry, container: &str, query: &str, body: RequestBody) -> Response<Body> {
    let asked = match Asked::parse(query) {
        Ok(asked) if !asked.stdin && !asked.tty => asked,
        Ok(_) => {
            let text = format!(
                "container {container} has neither a standard input nor a terminal: what Dhow runs is not started with one. \
                 Attach without -i and -t to follow its output, or use exec for a shell beside it"
            );
            return answer(StatusCode::BAD_REQUEST, &text);
        }
        Err(problem) => return answer(StatusCode::BAD_REQUEST, &problem),
    };
    let Some(provider) = &entry.provider else { return not_found(container) };
    match provider.attach(&entry.uid, container).await {
        Ok(output) => {
            let (stdout, stderr) = (asked.stdout, asked.stderr);
            let output = output.filter_map(move |o| std::future::ready(framed(o, stdout, stderr)));
            let end = stream::once(std::future::ready(status_frame(&success())));
            body_of(output.chain(end).boxed(), pump(body, None, None))
        }
        Err(error) => refused(container, &error),
    }
}

pub async fn forward(entry: &Entry, query: &str, body: RequestBody) -> Response<Body> {
    let port = pairs(query).find(|(name, _)| name == "port").and_then(|(_, port)| port.parse().ok());
    let Some(port) = port.filter(|port| *port > 0) else {
        return answer(StatusCode::BAD_REQUEST, "port is not a number between 1 and 65535");
    };
    let first = entry.containers.first().map_or("", String::as_str);
    let Some(provider) = &entry.provider else { return not_found(first) };
    let connection = match provider.connect(&entry.uid, port).await {
        Ok(connection) => connection,
        Err(error) => return refused(first, &error),
    };
    let (read, mut write) = tokio::io::split(connection);
    let pump = async move {
        let mut body = body;
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(bytes) = frame.into_data() else { continue };
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // Only half: what comes back may still be on its way.
        let _ = write.shutdown().await;
    };
    let bytes = stream::unfold(read, |mut read| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = read.read(&mut chunk).await.ok().filter(|length| *length > 0)?;
        chunk.truncate(length);
        Some((Bytes::from(chunk), read))
    });
    body_of(bytes.boxed(), pump)
}

/// What the client asks for in a query.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Asked {
    fn parse(query: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        for (name, value) in pairs(query) {
            let truth = match value.as_str() {
                "true" | "1" => true,
                "false" | "0" | "" => false,
                _ if !matches!(name.as_str(), "stdin" | "stdout" | "stderr" | "tty") => false,
                _ => return Err(format!("{name}={value} is neither true nor false")),
            };
            match name.as_str() {
                "command" => asked.command.push(value),
                "stdin" => asked.stdin = truth,
                "stdout" => asked.stdout = truth,
                "stderr" => asked.stderr = truth,
                "tty" => asked.tty = truth,
                _ => {}
            }
        }
        Ok(asked)
    }
}

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(move |pair| pair.split_once('=').unwrap_or((pair, ""))).map(move |(n, v)| (decode(n), decode(v)))
}

/// As a frame, if it is wanted.
fn framed(output: Output, stdout: bool, stderr: bool) -> Option<Bytes> {
    match output {
        Output::Stdout(bytes) => stdout.then(|| frames::encode(frames::STDOUT, &bytes).into()),
        Output::Stderr(bytes) => stderr.then(|| frames::encode(frames::STDERR, &bytes).into()),
        Output::Exited(code) => Some(status_frame(&exited(code))),
    }
}

fn status_frame(status: &Status) -> Bytes {
    let json = serde_json::to_vec(status).expect("a status is JSON");
    frames::encode(frames::STATUS, &json).into()
}

fn success() -> Status {
    Status { status: Some("Success".into()), ..Status::default() }
}

/// An exit code as kubelets report it; clients end with the same.
fn exited(code: i32) -> Status {
    if code == 0 {
        return success();
    }
    let cause =
        StatusCause { reason: Some("ExitCode".into()), message: Some(code.to_string()), ..StatusCause::default() };
    Status {
        status: Some("Failure".into()),
        reason: Some("NonZeroExitCode".into()),
        message: Some(format!("command terminated with non-zero exit code: exit status {code}")),
        details: Some(StatusDetails { causes: Some(vec![cause]), ..StatusDetails::default() }),
        ..Status::default()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NewSize {
    width: u16,
    height: u16,
}

/// Does what the frames of a request's body say, until it ends.
async fn pump(
    mut body: RequestBody,
    mut input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<Box<dyn Fn(Size) + Send + Sync>>,
) {
    let mut decoder = frames::Decoder::default();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(bytes) = frame.into_data() else { continue };
        decoder.push(&bytes);
        loop {
            match decoder.take() {
                Ok(Some((frames::STDIN, bytes))) => {
                    if let Some(writer) = &mut input
                        && (writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err())
                    {
                        // It does not read any more. What else it is told still matters.
                        input = None;
                    }
                }
                Ok(Some((frames::CLOSE, channel))) if channel == [frames::STDIN] => input = None,
                Ok(Some((frames::RESIZE, json))) => {
                    if let (Some(resize), Ok(size)) = (&resize, serde_json::from_slice::<NewSize>(&json)) {
                        resize(Size { columns: size.width, rows: size.height });
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return tracing::debug!(%error, "the body of a visit is broken off"),
            }
        }
    }
}

/// An answer whose body is the output, and does what comes in as long as it is read. It ends with the output.
fn body_of(output: Frames, pump: impl Future<Output = ()> + Send + 'static) -> Response<Body> {
    let pump: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(pump);
    let body = stream::unfold((output, Some(pump)), |(mut output, mut pump)| async move {
        loop {
            let Some(pumping) = &mut pump else {
                let bytes = output.next().await?;
                return Some((bytes, (output, None)));
            };
            tokio::select! {
                bytes = output.next() => return Some((bytes?, (output, pump))),
                () = pumping => pump = None,
            }
        }
    });
    Response::new(StreamBody::new(body.map(|bytes| Ok::<_, BoxError>(Frame::data(bytes)))).boxed_unsync())
}

fn not_found(container: &str) -> Response<Body> {
    answer(StatusCode::BAD_REQUEST, &format!("container not found ({container:?})"))
}

fn refused(container: &str, error: &ProviderError) -> Response<Body> {
    match (error, error.class()) {
        (ProviderError::NotRunning { .. }, _) | (_, ErrorClass::NotFound) => not_found(container),
        (ProviderError::Exhausted { .. }, _) => answer(StatusCode::TOO_MANY_REQUESTS, &error.to_string()),
        (_, ErrorClass::Invalid) => answer(StatusCode::BAD_REQUEST, &error.to_string()),
        _ => answer(StatusCode::BAD_GATEWAY, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        for (query, want) in [
            ("", Ok(Asked::default())),
            (
                "command=sh&command=-c&command=echo%20a%26b&stdin=true&tty=1",
                Ok(Asked {
                    command: ["sh", "-c", "echo a&b"].map(str::to_owned).into(),
                    stdin: true,
                    tty: true,
                    ..Asked::default()
                }),
            ),
            (
                "stdout=true&stderr=false&command=true&container=x",
                Ok(Asked { command: vec!["true".to_owned()], stdout: true, ..Asked::default() }),
            ),
            ("stdin=maybe", Err("stdin=maybe is neither")),
        ] {
            match (Asked::parse(query), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{query}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{query}: {got}"),
                (got, want) => panic!("{query}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn exits() {
        assert_eq!(serde_json::to_value(exited(0)).unwrap()["status"], "Success");
        let status = serde_json::to_value(exited(3)).unwrap();
        assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"NonZeroExitCode".into()));
        assert_eq!(status["details"]["causes"][0], serde_json::json!({"reason": "ExitCode", "message": "3"}));
    }
}
