//! Get and list.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use store::{Entry, Revision};

use super::object::parse;
use super::scale::scale_of;
use super::{Call, json_bytes, object, partial_metadata, shown};
use crate::index::Index;
use crate::request::Form;
use crate::selector::{Candidate, Selector};
use crate::status::{ApiError, Result};
use crate::table::{Rows, table};
use crate::{Inner, ResponseBody};

/// Where a list goes on: after this key, as of that revision.
struct Continuation {
    revision: Revision,
    after: String,
}

/// One page.
struct Page {
    revision: Revision,
    items: Vec<Entry<Index>>,
    next: Option<String>,
    remaining: Option<usize>,
}

impl Inner {
    pub(super) fn get(&self, call: &Call<'_>) -> Result<Response<ResponseBody>> {
        let entry = self.store.get(&call.key()?).ok_or_else(|| call.not_found())?;
        if call.subresource == Some("scale") {
            return Ok(object(StatusCode::OK, &scale_of(call.kind, &parse(&entry.value)?)));
        }
        Ok(json_bytes(StatusCode::OK, self.in_form(call, call.form, &entry.value, entry.modified)?))
    }

    /// One object's stored bytes as the client wants them.
    pub(super) fn in_form(&self, call: &Call<'_>, form: Form, bytes: &Bytes, written: Revision) -> Result<Bytes> {
        Ok(match form {
            Form::Object => shown(call.kind, bytes.clone(), written),
            Form::Partial => {
                let mut object = parse(bytes)?;
                // What a deletion says has no metadata of its own.
                if object["kind"] == "Status" {
                    return Ok(bytes.clone());
                }
                partial_metadata(&mut object).to_string().into()
            }
            Form::Table => {
                let mut object = parse(bytes)?;
                if object["kind"] != call.kind.kind {
                    // A Status, a Scale or a list: tables are of this kind's objects.
                    return Ok(bytes.clone());
                }
                if let (Some(conversion), None) = (call.kind.conversion(written), &call.kind.view) {
                    conversion.apply(&mut object);
                }
                let revision = object["metadata"]["resourceVersion"].clone();
                let rows =
                    Rows { objects: vec![object], include: call.query.get("includeObject"), now: (self.clock)() };
                table(call.kind, rows, json!({"resourceVersion": revision}), true).to_string().into()
            }
        })
    }

    pub(super) fn list(&self, call: &Call<'_>) -> Result<Response<ResponseBody>> {
        let selector = Selector::parse(call.query.get("labelSelector"), call.query.get("fieldSelector"), call.kind)?;
        let page = self.page(call, &selector)?;
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
            return Ok(object(StatusCode::OK, &table(call.kind, rows, metadata, true)));
        }
        let (kind, api_version) = match call.form {
            Form::Partial => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
            _ => (format!("{}List", call.kind.kind), call.kind.api_version()),
        };
        let head = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata}).to_string();
        let mut text =
            Vec::with_capacity(head.len() + page.items.iter().map(|item| item.value.len() + 1).sum::<usize>() + 16);
        text.extend_from_slice(&head.as_bytes()[..head.len() - 1]);
        text.extend_from_slice(b",\"items\":[");
        for (i, item) in page.items.iter().enumerate() {
            if i > 0 {
                text.push(b',');
            }
            text.extend_from_slice(&self.in_form(call, call.form, &item.value, item.modified)?);
        }
        text.extend_from_slice(b"]}");
        Ok(json_bytes(StatusCode::OK, text))
    }

    fn page(&self, call: &Call<'_>, selector: &Selector) -> Result<Page> {
        let prefix = call.kind.prefix(call.namespace);
        let limit = call.query.number("limit")?.unwrap_or(0) as usize;
        let start = call.query.get("continue").map(Continuation::parse).transpose()?;
        self.check_revision(call, start.as_ref())?;
        // A name in one namespace is a look-up, not a search.
        if let (Some(name), true) = (selector.name(), call.namespace.is_some() || !call.kind.namespaced) {
            let revision = self.store.revision();
            let entry = self.store.get(&call.kind.key(call.namespace, name));
            let items = entry.into_iter().filter(|entry| matches(selector, entry)).collect();
            return Ok(Page { revision, items, next: None, remaining: None });
        }
        let mut after = start.as_ref().map(|start| format!("{prefix}{}", start.after));
        let mut first = None;
        let mut items = vec![];
        loop {
            let wanted = if limit == 0 { 0 } else { limit - items.len() };
            let listing = self.store.list(&prefix, after.as_deref(), wanted);
            let revision = *first.get_or_insert(listing.revision);
            let last = listing.entries.last().map(|entry| entry.key.clone());
            let found =
                listing.entries.into_iter().filter(|entry| selector.is_everything() || matches(selector, entry));
            items.extend(found);
            // All pages carry the first one's revision: whoever watches from there misses nothing.
            let revision = start.as_ref().map_or(revision, |start| start.revision);
            let (true, Some(last)) = (listing.more, last) else {
                return Ok(Page { revision, items, next: None, remaining: None });
            };
            if limit > 0 && items.len() >= limit {
                let rest = last.strip_prefix(&prefix).unwrap_or_default().to_owned();
                let next = Continuation { revision, after: rest }.text();
                let remaining = selector.is_everything().then_some(listing.remaining);
                return Ok(Page { revision, items, next: Some(next), remaining });
            }
            after = Some(last.to_string());
        }
    }

    /// Only the present can be listed: a client that insists on another revision is told.
    fn check_revision(&self, call: &Call<'_>, start: Option<&Continuation>) -> Result<()> {
        if let Some(start) = start {
            if start.revision < self.store.oldest_revision() {
                return Err(ApiError::Expired(
                    "The provided continue parameter is too old to display a consistent list result. You must start \
                     a new list without the continue parameter."
                        .into(),
                ));
            }
            return Ok(());
        }
        let Some(requested) = call.query.revision("resourceVersion")? else { return Ok(()) };
        let current = self.store.revision();
        if requested > current {
            return Err(ApiError::TooLargeResourceVersion { requested, current });
        }
        if call.query.get("resourceVersionMatch") == Some("Exact") && requested != current {
            return Err(ApiError::Expired(format!(
                "The resourceVersion for the provided list is too old: {requested}"
            )));
        }
        Ok(())
    }
}

fn matches(selector: &Selector, entry: &Entry<Index>) -> bool {
    selector.matches(Candidate::of(entry))
}

impl Continuation {
    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!({"rv": self.revision, "after": self.after}).to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let bad = || ApiError::BadRequest("continue key is not valid".into());
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let (Some(revision), Some(after)) = (value["rv"].as_u64(), value["after"].as_str()) else { return Err(bad()) };
        Ok(Self { revision, after: after.to_owned() })
    }
}
