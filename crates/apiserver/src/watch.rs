//! Watches: changes as frames, one JSON document per line.
//!
//! The bytes of a frame are the stored bytes; nothing is parsed unless a client wants tables or metadata only, or the
//! kind is a view. An object that begins to match a selector is ADDED, one that ceases to is DELETED.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::unfold;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use store::{Change, Entry, Revision, StoreError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::handler::{Call, json_bytes, partial_metadata, shown};
use crate::index::Index;
use crate::kinds::Kind;
use crate::listing::Start;
use crate::request::Form;
use crate::selector::{Candidate, Selector};
use crate::status::{ApiError, Result};
use crate::table::{Rows, table};
use crate::{BoxError, Inner, ObjectStore, ResponseBody};

/// As often as Kubernetes does.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// A watch that names no end gets one, so that clients spread over a restarted server again.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// How the objects of one watch are shown.
struct Showing {
    kind: Arc<Kind>,
    form: Form,
    include: Option<String>,
    clock: api::Clock,
    /// Only the first table says what its columns are.
    columns_sent: bool,
}

struct State {
    showing: Showing,
    selector: Selector,
    /// What was there when it began. Frames are made of it when they are asked for: a client that does not read holds no
    /// copy of everything.
    initial: VecDeque<Entry<Index>>,
    /// Said after that.
    then: Option<Bytes>,
    source: Option<store::Watch<Index>>,
    bookmarks: Option<Interval>,
    deadline: Instant,
    stop: CancellationToken,
    ended: bool,
    /// Where an outsider's watch finds out what is on disk: it is shown nothing else. It begins with that revision.
    durable_in: Option<ObjectStore>,
    begun: Revision,
    _room: Option<OwnedSemaphorePermit>,
}

impl Inner {
    pub(crate) fn watch(&self, call: &Call<'_>) -> Result<Response<ResponseBody>> {
        let selector = watch_selector(call)?;
        let room = match call.caller.trusted {
            true => None,
            false => Some(self.watches.clone().try_acquire_owned().map_err(|_| {
                ApiError::TooManyRequests("too many watches are open; end some or try again later".into())
            })?),
        };
        let bookmarks = call.query.flag("allowWatchBookmarks").then(|| {
            let mut ticks = interval(BOOKMARKS);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.reset();
            ticks
        });
        let seconds = call.query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let mut state = State {
            showing: Showing {
                kind: call.kind.clone(),
                form: call.form,
                include: call.query.get("includeObject").map(str::to_owned),
                clock: self.clock.clone(),
                columns_sent: false,
            },
            selector,
            initial: VecDeque::new(),
            then: None,
            source: None,
            bookmarks,
            deadline: Instant::now() + seconds.unwrap_or(LONGEST),
            stop: self.stop.clone(),
            ended: false,
            durable_in: (self.external_durable && !call.caller.trusted).then(|| self.store.clone()),
            begun: 0,
            _room: room,
        };
        if let Err(error) = self.begin(call, &mut state) {
            return match error {
                // Clients expect this as an event of a watch that began well.
                ApiError::Store(StoreError::Compacted { .. }) => Ok(stream(error_only(state, &error))),
                error => Err(error),
            };
        }
        Ok(stream(state))
    }

    fn begin(&self, call: &Call<'_>, state: &mut State) -> Result<()> {
        let prefix = call.kind.prefix(call.namespace);
        let (not_older, marked) = match Start::parse(call.query)? {
            Start::Present { not_older, marked } => (not_older, marked),
            other => {
                let from = if let Start::After(revision) = other { Some(revision) } else { None };
                state.source = Some(self.store.watch(&prefix, from)?);
                return Ok(());
            }
        };
        self.check_reached(not_older)?;
        let listing = self.store.list(&prefix);
        state.source = Some(self.store.watch(&prefix, Some(listing.revision))?);
        state.begun = listing.revision;
        let wanted = listing.entries.into_iter().filter(|entry| state.selector.matches(Candidate::of(entry)));
        state.initial = wanted.collect();
        state.then = marked.then(|| state.showing.bookmark(listing.revision, true));
        Ok(())
    }
}

/// A watch of one named object is a watch with a field selector.
fn watch_selector(call: &Call<'_>) -> Result<Selector> {
    let named = call.name.map(|name| format!("metadata.name={name}"));
    let fields = [call.query.get("fieldSelector"), named.as_deref()];
    let fields: Vec<&str> = fields.into_iter().flatten().collect();
    Selector::parse(call.query.get("labelSelector"), Some(&fields.join(",")), call.kind)
}

fn error_only(mut state: State, error: &ApiError) -> State {
    state.then = Some(error_frame(error));
    state.ended = true;
    state
}

fn error_frame(error: &ApiError) -> Bytes {
    let mut text = json!({"type": "ERROR", "object": error.status()}).to_string();
    text.push('\n');
    text.into()
}

fn stream(state: State) -> Response<ResponseBody> {
    let frames = unfold(state, |mut state| async move {
        let frame = state.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(frame)), state))
    });
    let mut response = json_bytes(StatusCode::OK, Bytes::new());
    *response.body_mut() = StreamBody::new(frames.fuse()).boxed_unsync();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl State {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(entry) = self.initial.pop_front() {
                let frame = self.showing.frame("ADDED", entry.value, entry.modified);
                return self.on_disk(self.begun, frame).await;
            }
            if let Some(frame) = self.then.take() {
                return self.on_disk(self.begun, frame).await;
            }
            if self.ended {
                return None;
            }
            let change = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                change = next_change(self.source.as_mut()) => change,
                () = self.showing.kind.replaced.cancelled() => return None,
                () = tick(self.bookmarks.as_mut()) => {
                    if let Some(revision) = self.caught_up() {
                        return Some(self.showing.bookmark(revision, false));
                    }
                    continue;
                }
                () = sleep_until(self.deadline) => return self.last_bookmark(),
            };
            match change {
                Some(Ok(change)) => {
                    if let Some(frame) = self.frame(&change) {
                        return self.on_disk(change.revision, frame).await;
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(error_frame(&ApiError::from(error)));
                }
                None => return None,
            }
        }
    }

    /// `None`: the disk failed, and with it everything that was not on it.
    async fn on_disk(&self, revision: Revision, frame: Bytes) -> Option<Bytes> {
        if let Some(store) = &self.durable_in {
            store.durable(revision).await.ok()?;
        }
        Some(frame)
    }

    fn caught_up(&self) -> Option<Revision> {
        self.source.as_ref().and_then(store::Watch::caught_up)
    }

    /// At its end a watch says how far it came, so that the next one need not start over.
    fn last_bookmark(&mut self) -> Option<Bytes> {
        self.ended = true;
        let revision = self.caught_up().filter(|_| self.bookmarks.is_some())?;
        Some(self.showing.bookmark(revision, false))
    }

    /// `None`: the change is none of this watch's business.
    fn frame(&mut self, change: &Arc<Change<Index>>) -> Option<Bytes> {
        let matches = |entry: &Entry<Index>| self.selector.matches(Candidate::of(entry));
        let now = change.current.as_ref().filter(|entry| matches(entry));
        let before = change.previous.as_ref().filter(|entry| matches(entry));
        let (kind, bytes, written) = match (before, now) {
            (None, Some(now)) => ("ADDED", now.value.clone(), now.modified),
            (Some(_), Some(now)) => ("MODIFIED", now.value.clone(), now.modified),
            // What ceased to match is shown as it was, at the revision that ended it.
            (Some(before), None) if change.current.is_some() => {
                ("DELETED", at(&before.value, change.revision), before.modified)
            }
            (Some(before), None) => ("DELETED", change.last.as_ref().unwrap_or(&before.value).clone(), before.modified),
            (None, None) => return None,
        };
        Some(self.showing.frame(kind, bytes, written))
    }
}

async fn next_change(source: Option<&mut store::Watch<Index>>) -> Option<Result<Arc<Change<Index>>, StoreError>> {
    match source {
        Some(source) => source.next().await,
        None => pending().await,
    }
}

async fn tick(bookmarks: Option<&mut Interval>) {
    match bookmarks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => pending().await,
    }
}

/// Stored bytes with another resourceVersion. Its place is known: all objects are encoded alike.
fn at(bytes: &Bytes, revision: Revision) -> Bytes {
    const BEFORE: &[u8] = b"\"metadata\":{\"resourceVersion\":\"";
    let Some(start) = bytes.windows(BEFORE.len()).position(|window| window == BEFORE) else { return bytes.clone() };
    let start = start + BEFORE.len();
    let Some(length) = bytes[start..].iter().position(|byte| *byte == b'"') else { return bytes.clone() };
    [&bytes[..start], revision.to_string().as_bytes(), &bytes[start + length..]].concat().into()
}

impl Showing {
    fn frame(&mut self, kind: &str, bytes: Bytes, written: Revision) -> Bytes {
        let object = match self.form {
            Form::Object => shown(&self.kind, bytes, written),
            form => self.translated(form, bytes, written),
        };
        let mut frame = Vec::with_capacity(object.len() + 40);
        frame.extend_from_slice(b"{\"type\":\"");
        frame.extend_from_slice(kind.as_bytes());
        frame.extend_from_slice(b"\",\"object\":");
        frame.extend_from_slice(&object);
        frame.extend_from_slice(b"}\n");
        frame.into()
    }

    fn translated(&mut self, form: Form, bytes: Bytes, written: Revision) -> Bytes {
        let Ok(mut object) = serde_json::from_slice::<Value>(&bytes) else { return bytes };
        let shown = match form {
            Form::Object => object,
            Form::Partial | Form::PartialList => partial_metadata(&mut object),
            Form::Table => {
                // Tables are made of what is stored, views or not.
                if let (Some(conversion), None) = (self.kind.conversion(written), &self.kind.view) {
                    conversion.apply(&mut object);
                }
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let rows = Rows { objects: vec![object], include: self.include.as_deref(), now: (self.clock)() };
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                table(&self.kind, rows, metadata, columns)
            }
        };
        shown.to_string().into()
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Object => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Form::Partial | Form::PartialList => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Table => json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                                  "columnDefinitions": null, "rows": []}),
        };
        let mut text = json!({"type": "BOOKMARK", "object": object}).to_string();
        text.push('\n');
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_revision() {
        for (bytes, want) in [
            (
                r#"{"apiVersion":"v1","kind":"A","metadata":{"resourceVersion":"12","name":"n"}}"#,
                r#"{"apiVersion":"v1","kind":"A","metadata":{"resourceVersion":"345","name":"n"}}"#,
            ),
            ("{}", "{}"),
        ] {
            assert_eq!(at(&Bytes::from_static(bytes.as_bytes()), 345), want.as_bytes());
        }
    }
}
