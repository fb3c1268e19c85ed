//! Logs on stderr, metrics over HTTP.

use std::io::IsTerminal;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use prometheus_client::registry::Registry;

use crate::readiness::Readiness;

/// Sends logs to stderr; `filter` as in `RUST_LOG`. A second call changes nothing.
pub fn init_logs(filter: &str) {
    let filter =
        tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Answers `/metrics`, `/healthz` and `/readyz`.
pub fn answer<B>(registry: &Arc<Registry>, readiness: &Readiness, request: &Request<B>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/metrics" => {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, registry) {
                Ok(()) => respond(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
                Err(e) => respond(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("cannot encode metrics: {e}\n")),
            }
        }
        "/healthz" => respond(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/readyz" => match readiness.waiting_for() {
            waiting if waiting.is_empty() => respond(StatusCode::OK, PLAIN, "ok\n".to_owned()),
            waiting => respond(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("waiting for {}\n", waiting.join(", "))),
        },
        _ => respond(StatusCode::NOT_FOUND, PLAIN, "try /metrics, /healthz or /readyz\n".to_owned()),
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn respond(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
