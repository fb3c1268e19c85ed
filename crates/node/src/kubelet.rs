//! The node's own API, as the API server calls it: the logs of its pods, and visits to them.
//!
//! `GET /containerLogs/{namespace}/{pod}/{container}`, `POST /exec/…` and `POST /attach/…` of the same form, and
//! `POST /portForward/{namespace}/{pod}?port=…`; 404 for a pod that is not here, 400 with a sentence for what there is
//! not. What the bodies of visits hold is in [`crate::visit`].

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use jiff::{SignedDuration, Timestamp};
use percent_encoding::percent_decode_str;
use runtime::{ErrorClass, LogOptions};
use tower::service_fn;

use crate::logs::{self, Directory, Entry};
use crate::{BoxError, KubeletService, RequestBody, visit};

pub fn service(directory: Arc<Directory>, clock: api::Clock) -> KubeletService {
    KubeletService::new(service_fn(move |request: Request<RequestBody>| {
        let (directory, clock) = (directory.clone(), clock.clone());
        async move { Ok(serve(&directory, clock(), request).await) }
    }))
}

async fn serve(directory: &Directory, now: Timestamp, request: Request<RequestBody>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path: Vec<&str> = parts.uri.path().trim_start_matches('/').split('/').collect();
    let (verb, namespace, pod, container) = match path.as_slice() {
        [verb @ ("containerLogs" | "exec" | "attach"), namespace, pod, container] => {
            (*verb, *namespace, *pod, Some(*container))
        }
        ["portForward", namespace, pod] => ("portForward", *namespace, *pod, None),
        _ => {
            let text = "this node serves /containerLogs, /exec and /attach/{namespace}/{pod}/{container}, and \
                        /portForward/{namespace}/{pod}";
            return answer(StatusCode::NOT_FOUND, text);
        }
    };
    let (method, only) = match verb {
        "containerLogs" => (Method::GET, "only GET is served"),
        _ => (Method::POST, "only POST is served"),
    };
    if parts.method != method {
        return answer(StatusCode::METHOD_NOT_ALLOWED, only);
    }
    let Some(entry) = directory.get(namespace, pod) else {
        return answer(StatusCode::NOT_FOUND, &format!("pod {namespace}/{pod} is not on this node"));
    };
    if let Some(container) = container.filter(|container| !entry.containers.iter().any(|known| known == container)) {
        let text = format!("container {container} is not valid for pod {pod}; it has {}", entry.containers.join(", "));
        return answer(StatusCode::BAD_REQUEST, &text);
    }
    let container = container.unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default();
    match verb {
        "exec" => visit::exec(&entry, container, query, body).await,
        "attach" => visit::attach(&entry, container, query, body).await,
        "portForward" => visit::forward(&entry, query, body).await,
        _ => match Query::parse(query, now) {
            Ok(query) if query.previous => previous(&entry, pod, container, &query.options),
            Ok(query) => present(&entry, pod, container, query.options).await,
            Err(problem) => answer(StatusCode::BAD_REQUEST, &problem),
        },
    }
}

fn previous(entry: &Entry, pod: &str, container: &str, options: &LogOptions) -> Response<Body> {
    match entry.previous.as_ref().or(entry.ended.as_ref()).and_then(|logs| logs.get(container)) {
        Some(log) => whole(logs::select(log, options)),
        None => {
            let text = format!("previous terminated container {container:?} in pod {pod:?} not found");
            answer(StatusCode::BAD_REQUEST, &text)
        }
    }
}

async fn present(entry: &Entry, pod: &str, container: &str, options: LogOptions) -> Response<Body> {
    if let Some(provider) = &entry.provider {
        match provider.logs(&entry.uid, container, options.clone()).await {
            Ok(stream) => {
                let frames = stream.map(|chunk| chunk.map(Frame::data).map_err(BoxError::from));
                return Response::new(StreamBody::new(frames).boxed_unsync());
            }
            Err(error) if error.class() == ErrorClass::NotFound => {}
            Err(error) => return answer(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
    match entry.ended.as_ref().and_then(|logs| logs.get(container)) {
        Some(log) => whole(logs::select(log, &options)),
        None => {
            let text = format!("container {container:?} in pod {pod:?} is waiting to start: {}", entry.waiting);
            answer(StatusCode::BAD_REQUEST, &text)
        }
    }
}

pub type Body = UnsyncBoxBody<Bytes, BoxError>;

fn whole(bytes: Bytes) -> Response<Body> {
    Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
}

pub fn answer(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = whole(Bytes::copy_from_slice(text.as_bytes()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

#[derive(Debug, PartialEq, Eq)]
struct Query {
    options: LogOptions,
    previous: bool,
}

impl Query {
    fn parse(query: &str, now: Timestamp) -> Result<Self, String> {
        let mut parsed = Self { options: LogOptions::default(), previous: false };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        for (name, value) in pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))) {
            let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("{name} is not text"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{name}={value} is not a number from 0 on"));
            let truth = || match &*value {
                "true" | "1" => Ok(true),
                "false" | "0" | "" => Ok(false),
                _ => Err(format!("{name}={value} is neither true nor false")),
            };
            let options = &mut parsed.options;
            match name {
                "follow" => options.follow = truth()?,
                "timestamps" => options.timestamps = truth()?,
                "previous" => parsed.previous = truth()?,
                "tailLines" => options.tail_lines = Some(usize::try_from(number()?).unwrap_or(usize::MAX)),
                "limitBytes" => options.limit_bytes = Some(number()?).filter(|n| *n > 0),
                "sinceSeconds" | "sinceTime" if options.since.is_some() => {
                    return Err("at most one of sinceTime or sinceSeconds may be specified".into());
                }
                "sinceSeconds" => {
                    let seconds = i64::try_from(number()?).unwrap_or(i64::MAX);
                    let since = now.saturating_sub(SignedDuration::from_secs(seconds));
                    options.since = Some(since.unwrap_or(Timestamp::MIN));
                }
                "sinceTime" => {
                    let since = value.parse().map_err(|_| format!("sinceTime={value} is not an RFC 3339 time"))?;
                    options.since = Some(since);
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let now = Timestamp::from_second(100).unwrap();
        let all = LogOptions::default;
        let at = |second| Timestamp::from_second(second).ok();
        for (query, want) in [
            ("", Ok((all(), false))),
            ("follow=true&previous=1&foo=x", Ok((LogOptions { follow: true, ..all() }, true))),
            ("tailLines=5&timestamps=true", Ok((LogOptions { tail_lines: Some(5), timestamps: true, ..all() }, false))),
            ("limitBytes=9&sinceSeconds=60", Ok((LogOptions { limit_bytes: Some(9), since: at(40), ..all() }, false))),
            ("sinceTime=1970%2D01%2D01T00%3A00%3A07Z", Ok((LogOptions { since: at(7), ..all() }, false))),
            ("tailLines=-1", Err("tailLines=-1 is not a number")),
            ("follow=maybe", Err("neither true nor false")),
            ("sinceTime=x", Err("not an RFC 3339 time")),
            ("sinceSeconds=1&sinceTime=1970-01-01T00:00:07Z", Err("at most one")),
        ] {
            match (Query::parse(query, now), want) {
                (Ok(got), Ok((options, previous))) => assert_eq!(got, Query { options, previous }, "{query}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{query}: {got}"),
                (got, want) => panic!("{query}: {got:?}, not {want:?}"),
            }
        }
    }
}
