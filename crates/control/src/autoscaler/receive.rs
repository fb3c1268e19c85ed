//! The door for gateways of other processes: messages as JSON over HTTP, into the channel.
//!
//! Owns: bounds and answers. Must not know: what a message means. The surprise: a body is taken in whole or not at
//! all, and a full channel is said so at once, since the next report says the same with newer numbers.

use std::pin::Pin;

use api::wire::{GatewayMessage, MESSAGES_BYTES, MESSAGES_PATH};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use tokio::sync::mpsc;

pub type Answer = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

/// Serves a POST of a JSON array of [`GatewayMessage`] to [`MESSAGES_PATH`]: 202 once all are in the channel, 400 for what
/// is no such array, 413 for too many bytes, 503 while the channel has no room or nobody reads from it.
pub fn receive<B>(
    messages: mpsc::Sender<GatewayMessage>,
) -> impl Fn(Request<B>) -> Answer + Clone + Send + Sync + 'static
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |request| {
        let messages = messages.clone();
        Box::pin(async move {
            let (status, words) = match take(request, &messages).await {
                Ok(()) => (StatusCode::ACCEPTED, String::new()),
                Err(refused) => refused,
            };
            let mut response = Response::new(Full::from(words));
            *response.status_mut() = status;
            response
        })
    }
}

type Refused = (StatusCode, String);

async fn take<B>(request: Request<B>, messages: &mpsc::Sender<GatewayMessage>) -> Result<(), Refused>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let refuse = |status, words: &str| Err((status, format!("{words}\n")));
    if request.uri().path() != MESSAGES_PATH {
        return refuse(StatusCode::NOT_FOUND, "gateways post to another path");
    }
    if request.method() != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "messages are posted");
    }
    let body = match Limited::new(request.into_body(), MESSAGES_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "too many messages at once");
        }
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &format!("the body broke off: {error}")),
    };
    let batch: Vec<GatewayMessage> = match serde_json::from_slice(&body) {
        Ok(batch) => batch,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &format!("not an array of messages: {error}")),
    };
    let Ok(room) = messages.try_reserve_many(batch.len()) else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the autoscaler is behind");
    };
    room.zip(batch).for_each(|(permit, message)| permit.send(message));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A body that breaks off.
    type Broken = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

    fn whole(text: impl Into<Bytes>) -> Broken {
        Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
    }

    fn broken() -> Broken {
        let frames = [Ok(http_body::Frame::data(Bytes::from("["))), Err(std::io::Error::other("gone"))];
        http_body_util::StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
    }

    #[tokio::test]
    async fn whole_bodies_or_nothing() {
        let poke = r#"{"poke":{"namespace":"n","revision":"r","queued":1,"inFlight":0}}"#;
        let (sender, mut received) = mpsc::channel(2);
        let serve = receive(sender);
        for (case, method, path, body, status, taken) in [
            ("one", "POST", MESSAGES_PATH, whole(format!("[{poke}]")), 202, 1),
            ("none", "POST", MESSAGES_PATH, whole("[]"), 202, 0),
            ("as many as there is room for", "POST", MESSAGES_PATH, whole(format!("[{poke},{poke}]")), 202, 2),
            ("one too many", "POST", MESSAGES_PATH, whole(format!("[{poke},{poke},{poke}]")), 503, 0),
            ("not JSON", "POST", MESSAGES_PATH, whole("poke"), 400, 0),
            ("not a message", "POST", MESSAGES_PATH, whole("[{}]"), 400, 0),
            ("broken off", "POST", MESSAGES_PATH, broken(), 400, 0),
            ("at the bound", "POST", MESSAGES_PATH, whole(" ".repeat(MESSAGES_BYTES)), 400, 0),
            ("over the bound", "POST", MESSAGES_PATH, whole(" ".repeat(MESSAGES_BYTES + 1)), 413, 0),
            ("elsewhere", "POST", "/", whole("[]"), 404, 0),
            ("read", "GET", MESSAGES_PATH, whole("[]"), 405, 0),
        ] {
            let request = Request::builder().method(method).uri(path).body(body).unwrap();
            assert_eq!(serve(request).await.status(), status, "{case}");
            let mut count = 0;
            while received.try_recv().is_ok() {
                count += 1;
            }
            assert_eq!(count, taken, "{case}");
        }
        drop(received);
        let request = Request::post(MESSAGES_PATH).body(whole(format!("[{poke}]"))).unwrap();
        assert_eq!(serve(request).await.status(), 503, "nobody reads any more");
    }
}
