//! Connections that stop speaking HTTP: WebSocket, and any other protocol both sides agree on.
//!
//! Owns: the tunnel between client and instance. Must not know: what flows through it. The surprise: the request goes
//! on for as long as the tunnel does, so it holds its slot and counts as in flight.

use std::rc::Rc;

use http::header::{self, HeaderValue};
use http::{Response, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;

use crate::answer::{Answer, Busy};
use crate::backend::Visit;
use crate::headers;
use crate::upstream::Upstream;
use crate::worker::Worker;

/// Bytes held for each direction.
const BUFFER: usize = 16 * 1024;

/// Answers 101 and joins both sides.
pub(crate) fn tunnel(
    worker: &Rc<Worker>,
    visit: Visit,
    mut response: Response<Incoming>,
    mut upstream: Upstream,
    client: OnUpgrade,
    busy: Busy,
) -> Response<Answer> {
    let instance = hyper::upgrade::on(&mut response);
    let protocol = response.headers().get(header::UPGRADE).cloned();
    let all = response.headers_mut();
    headers::to_client(all);
    all.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        all.insert(header::UPGRADE, protocol);
    }
    *response.version_mut() = Version::HTTP_11;
    let held = worker.hold();
    worker.tasks.spawn_local(async move {
        let _held = (held, visit);
        upstream.finish().await;
        let (Ok(client), Ok(instance)) = (client.await, instance.await) else { return };
        let (mut client, mut instance) = (TokioIo::new(client), TokioIo::new(instance));
        // Either side may vanish at any time; the other then sees the end.
        let _ = copy_bidirectional_with_sizes(&mut client, &mut instance, BUFFER, BUFFER).await;
    });
    response.map(|_| Answer::empty(busy))
}
