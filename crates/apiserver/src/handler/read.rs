//! Get and list.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::json;
use store::{Entry, Range, Revision, StoreError};

use super::object::parse;
use super::scale::scale_of;
use super::{Call, json_bytes, object, partial_metadata, shown};
use crate::index::Index;
use crate::kinds::Kind;
use crate::listing::{As, Continuation, ListOptions};
use crate::request::Form;
use crate::selector::{Candidate, Selector};
use crate::status::{ApiError, Result};
use crate::table::{Rows, table};
use crate::{BoxError, Inner, ResponseBody};

/// One page.
struct Page {
    revision: Revision,
    items: Vec<Entry<Index>>,
    next: Option<String>,
    remaining: Option<usize>,
}

impl Inner {
    /// The object, and the revision that must be on disk before an outsider sees it.
    pub(super) fn get(&self, call: &Call<'_>) -> Result<(Response<ResponseBody>, Revision)> {
        self.check_reached(call.query.revision("resourceVersion")?.unwrap_or(0))?;
        let entry = self.store.get(&call.key()?).ok_or_else(|| call.not_found())?;
        if call.subresource == Some("scale") {
            return Ok((object(StatusCode::OK, &scale_of(call.kind, &parse(&entry.value)?)), entry.modified));
        }
        let body = self.in_form(call, call.form, &entry.value, entry.modified)?;
        Ok((json_bytes(StatusCode::OK, body), entry.modified))
    }

    /// One object's stored bytes as the client wants them.
    pub(super) fn in_form(&self, call: &Call<'_>, form: Form, bytes: &Bytes, written: Revision) -> Result<Bytes> {
        match form {
            Form::Object => return Ok(shown(call.kind, bytes.clone(), written)),
            Form::Partial => return metadata_only(bytes),
            Form::PartialList => {
                let is = format!("not a list ({})", call.kind.go_type());
                return Err(ApiError::OtherForm { wanted: "PartialObjectMetadataList", is });
            }
            Form::Table => {}
        }
        let mut object = parse(bytes)?;
        if object["kind"] != call.kind.kind {
            // A Status, a Scale or a list: tables are of this kind's objects.
            return Ok(bytes.clone());
        }
        if let (Some(conversion), None) = (call.kind.conversion(written), &call.kind.view) {
            conversion.apply(&mut object);
        }
        let revision = object["metadata"]["resourceVersion"].clone();
        let rows = Rows { objects: vec![object], include: call.query.get("includeObject"), now: (self.clock)() };
        Ok(table(call.kind, rows, json!({"resourceVersion": revision}), true).to_string().into())
    }

    /// The objects, and the revision that must be on disk before an outsider sees them.
    pub(super) fn list(&self, call: &Call<'_>) -> Result<(Response<ResponseBody>, Revision)> {
        if call.form == Form::Partial {
            let is = format!("a list ({}List)", call.kind.go_type());
            return Err(ApiError::OtherForm { wanted: "PartialObjectMetadata", is });
        }
        let selector = Selector::parse(call.query.get("labelSelector"), call.query.get("fieldSelector"), call.kind)?;
        let page = self.page(call, &selector, ListOptions::parse(call.query)?)?;
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let Some(next) = page.next {
            metadata["continue"] = next.into();
        }
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        if call.form == Form::Table {
            let objects = page.items.iter().map(|item| parse(&item.value)).collect::<Result<_>>()?;
            let rows = Rows { objects, include: call.query.get("includeObject"), now: (self.clock)() };
            return Ok((object(StatusCode::OK, &table(call.kind, rows, metadata, true)), page.revision));
        }
        if call.kind.is_custom() && call.form == Form::Object {
            // Lists of defined kinds always say whether they go on.
            let metadata = metadata.as_object_mut().into_iter();
            metadata.for_each(|metadata| _ = metadata.entry("continue").or_insert_with(|| "".into()));
        }
        let (kind, api_version) = match call.form {
            Form::PartialList => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
            _ => (format!("{}List", call.kind.kind), call.kind.api_version()),
        };
        let mut head = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata}).to_string().into_bytes();
        head.pop();
        head.extend_from_slice(b",\"items\":[");
        let (kind, items) = (call.kind.clone(), page.items.into_iter());
        let partial = call.form == Form::PartialList;
        let text = Text { kind, partial, head, items, first: true, ended: false };
        Ok((text.respond()?, page.revision))
    }

    fn page(&self, call: &Call<'_>, selector: &Selector, options: ListOptions) -> Result<Page> {
        let prefix = call.kind.prefix(call.namespace);
        if let As::Present { not_older } = options.revision {
            self.check_reached(not_older)?;
            // A name in one namespace is a look-up, not a search.
            if let (Some(name), true) = (selector.name(), call.namespace.is_some() || !call.kind.namespaced) {
                let revision = self.store.revision();
                let entry = self.store.get(&call.kind.key(call.namespace, name));
                let items = entry.into_iter().filter(|entry| matches(selector, entry)).collect();
                return Ok(Page { revision, items, next: None, remaining: None });
            }
        }
        let after = options.start.as_ref().map(|start| format!("{prefix}{}", start.after));
        let range = Range { prefix: &prefix, after: after.as_deref(), limit: options.limit };
        let wanted = |entry: &Entry<Index>| selector.is_everything() || matches(selector, entry);
        let listing = match options.revision {
            As::Present { .. } => self.store.select(range, wanted),
            As::Of(revision) => {
                self.store.select_at(revision, range, wanted).map_err(|error| too_old(error, options.start))?
            }
        };
        let last = listing.entries.last().filter(|_| listing.more);
        // All pages are of the first one's revision.
        let next = last.map(|last| Continuation {
            revision: Some(listing.revision),
            after: last.key.strip_prefix(&prefix).unwrap_or_default().to_owned(),
        });
        let remaining = (listing.more && selector.is_everything()).then_some(listing.remaining);
        let next = next.map(|next| next.text());
        Ok(Page { revision: listing.revision, items: listing.entries, next, remaining })
    }

    /// Nobody can be shown what is at least as new as what is to come.
    pub(crate) fn check_reached(&self, requested: Revision) -> Result<()> {
        let current = self.store.revision();
        match requested > current {
            true => Err(ApiError::Store(StoreError::Ahead { requested, current })),
            false => Ok(()),
        }
    }
}

/// Of a list, what is made at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A list as JSON, made piece by piece when it is asked for: a client that reads slowly holds no copy of everything.
struct Text {
    kind: Arc<Kind>,
    /// Metadata is all that is wanted of each object.
    partial: bool,
    /// What comes before the first item, until that has been said.
    head: Vec<u8>,
    items: std::vec::IntoIter<Entry<Index>>,
    first: bool,
    ended: bool,
}

impl Text {
    fn respond(mut self) -> Result<Response<ResponseBody>> {
        let piece = self.piece()?;
        if self.ended {
            return Ok(json_bytes(StatusCode::OK, piece));
        }
        let more = stream::try_unfold(self, |mut text| async move {
            Ok::<_, BoxError>(match text.ended {
                true => None,
                false => Some((text.piece()?, text)),
            })
        });
        let pieces = stream::once(std::future::ready(Ok(piece))).chain(more).map_ok(Frame::data);
        let mut response = json_bytes(StatusCode::OK, Bytes::new());
        *response.body_mut() = StreamBody::new(pieces).boxed_unsync();
        Ok(response)
    }

    fn piece(&mut self) -> Result<Bytes> {
        let mut piece = std::mem::take(&mut self.head);
        while piece.len() < PIECE_BYTES {
            let Some(item) = self.items.next() else {
                piece.extend_from_slice(b"]}");
                self.ended = true;
                break;
            };
            if !std::mem::replace(&mut self.first, false) {
                piece.push(b',');
            }
            piece.extend_from_slice(&match self.partial {
                true => metadata_only(&item.value)?,
                false => shown(&self.kind, item.value, item.modified),
            });
        }
        Ok(piece.into())
    }
}

fn metadata_only(bytes: &Bytes) -> Result<Bytes> {
    let mut object = parse(bytes)?;
    // What a deletion says has no metadata of its own.
    if object["kind"] == "Status" {
        return Ok(bytes.clone());
    }
    Ok(partial_metadata(&mut object).to_string().into())
}

/// Who pages through a list that is not kept any more may go on in the present.
fn too_old(error: StoreError, start: Option<Continuation>) -> ApiError {
    match (error, start) {
        (StoreError::Compacted { .. }, Some(start)) => {
            ApiError::ContinueExpired { inconsistent: Continuation { revision: None, ..start }.text() }
        }
        (StoreError::Compacted { .. }, None) => {
            ApiError::Expired("The resourceVersion for the provided list is too old.".into())
        }
        (error, _) => error.into(),
    }
}

fn matches(selector: &Selector, entry: &Entry<Index>) -> bool {
    selector.matches(Candidate::of(entry))
}
