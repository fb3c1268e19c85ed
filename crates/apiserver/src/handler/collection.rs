//! Deletion of everything that a selector matches.

use http::{Method, StatusCode};
use serde_json::json;

use super::delete::Options;
use super::{Answer, Call, not_allowed, shown};
use crate::Inner;
use crate::options;
use crate::selector::{Candidate, Selector};
use crate::status::Result;

impl Inner {
    pub(super) fn delete_collection(&self, call: &Call<'_>, body: &[u8]) -> Result<Answer> {
        if call.kind.namespaced && call.namespace.is_none() || call.kind.plural == "namespaces" {
            return Err(not_allowed());
        }
        // What it deletes is listed, as lists are.
        options::check(&Method::GET, call.query, false)?;
        let options = Options::parse(call, body)?;
        let selector = Selector::parse(call.query.get("labelSelector"), call.query.get("fieldSelector"), call.kind)?;
        let listing = self.store.list(&call.kind.prefix(call.namespace));
        let mut items = vec![];
        let mut revision = None;
        for entry in listing.entries {
            if !selector.matches(Candidate::of(&entry)) {
                continue;
            }
            // Gone meanwhile is as good as deleted.
            if let Some(deleted) = self.delete_one(call.kind, &entry.key, &options)? {
                revision = revision.max(deleted.revision);
                items.push(shown(call.kind, entry.value, entry.modified));
            }
        }
        let mut text = json!({
            "kind": format!("{}List", call.kind.kind),
            "apiVersion": call.kind.api_version(),
            "metadata": {"resourceVersion": listing.revision.to_string()},
        })
        .to_string()
        .into_bytes();
        text.pop();
        text.extend_from_slice(b",\"items\":[");
        text.extend_from_slice(&items.join(&b','));
        text.extend_from_slice(b"]}");
        Ok(Answer { status: StatusCode::OK, body: text.into(), revision })
    }
}
