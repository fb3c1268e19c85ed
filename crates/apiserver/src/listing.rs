//! What lists and watches ask for of the past: which revision, and from where on.
//!
//! Must not know: how objects are shown. What contradicts itself was refused before.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use store::Revision;

use crate::request::Query;
use crate::status::{ApiError, Result};

/// As of when a list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// Of now, or of any time that is at least as new as this revision.
    Present {
        not_older: Revision,
    },
    Of(Revision),
}

/// Which page of which list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ListOptions {
    pub revision: As,
    /// Objects on a page; 0: all.
    pub limit: usize,
    pub start: Option<Continuation>,
}

/// Where a list goes on: after this key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Continuation {
    /// The first page's. `None`: that is not kept any more, and the client goes on in the present all the same.
    pub revision: Option<Revision>,
    pub after: String,
}

/// Where a watch begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With what is there, as ADDED; `marked`: then a bookmark that says so.
    Present {
        not_older: Revision,
        marked: bool,
    },
    After(Revision),
    Now,
}

impl ListOptions {
    pub fn parse(query: &Query) -> Result<Self> {
        let limit = usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX);
        let bad = |error: String| ApiError::BadRequest(format!("invalid continue token: {error}"));
        let start = query.get("continue").map(Continuation::parse).transpose().map_err(bad)?;
        let requested = query.revision("resourceVersion")?.unwrap_or(0);
        if let Some(start) = start {
            let revision = start.revision.map_or(As::Present { not_older: 0 }, As::Of);
            return Ok(Self { revision, limit, start: Some(start) });
        }
        let exact = match query.get("resourceVersionMatch") {
            Some(matching) => matching == "Exact",
            // What a page is of was never said to be anything else.
            None => requested > 0 && limit > 0,
        };
        let revision = if exact { As::Of(requested) } else { As::Present { not_older: requested } };
        Ok(Self { revision, limit, start: None })
    }
}

impl Start {
    pub fn parse(query: &Query) -> Result<Self> {
        let initial = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let revision = query.revision("resourceVersion")?.unwrap_or(0);
        Ok(match (initial, revision) {
            // Without bookmarks nothing can mark the end; some clients do without.
            (Some(true), _) => Self::Present { not_older: revision, marked: query.flag("allowWatchBookmarks") },
            (Some(false), 0) => Self::Now,
            (None, 0) => Self::Present { not_older: 0, marked: false },
            (_, revision) => Self::After(revision),
        })
    }
}

impl Continuation {
    /// Where the next page starts: right after a key, which is at that key and the least character.
    const RIGHT_AFTER: char = '\0';

    /// Opaque to clients, and of the form that Kubernetes' own have.
    pub fn text(&self) -> String {
        let revision = self.revision.and_then(|revision| i64::try_from(revision).ok()).unwrap_or(-1);
        let start = format!("{}{}", self.after, Self::RIGHT_AFTER);
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let invalid = |error: &dyn std::fmt::Display| format!("continue key is not valid: {error}");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|error| invalid(&error))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| invalid(&error))?;
        if value["v"] != "meta.k8s.io/v1" {
            return Err(invalid(&"server does not recognize this encoded version"));
        }
        let revision = match value["rv"].as_i64() {
            Some(revision) if revision < 0 => None,
            Some(revision) if revision > 0 => Some(revision.unsigned_abs()),
            _ => return Err(invalid(&"incorrect encoded start resourceVersion (version meta.k8s.io/v1)")),
        };
        let start = value["start"].as_str().unwrap_or_default();
        match start.strip_suffix(Self::RIGHT_AFTER) {
            Some(after) => Ok(Self { revision, after: after.to_owned() }),
            None if start.is_empty() => Err(invalid(&"encoded start key empty (version meta.k8s.io/v1)")),
            None => Err(invalid(&format!("{start:?} is not a place between two objects"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(revision: i64, start: &str) -> String {
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
    }

    #[test]
    fn lists() {
        let present = |not_older| As::Present { not_older };
        let go_on = |revision| Some(Continuation { revision, after: "ns/a".into() });
        let (seven, latest) = (token(7, "ns/a\0"), token(-1, "ns/a\0"));
        for (query, revision, limit, start) in [
            (String::new(), present(0), 0, None),
            ("resourceVersion=0".into(), present(0), 0, None),
            ("resourceVersion=0&limit=5".into(), present(0), 5, None),
            ("resourceVersion=7".into(), present(7), 0, None),
            ("resourceVersion=7&resourceVersionMatch=NotOlderThan&limit=5".into(), present(7), 5, None),
            ("resourceVersion=7&limit=5".into(), As::Of(7), 5, None),
            ("resourceVersion=7&resourceVersionMatch=Exact".into(), As::Of(7), 0, None),
            (format!("continue={seven}"), As::Of(7), 0, go_on(Some(7))),
            (format!("continue={seven}&resourceVersion=0&limit=2"), As::Of(7), 2, go_on(Some(7))),
            (format!("continue={latest}"), present(0), 0, go_on(None)),
        ] {
            let options = ListOptions::parse(&Query::parse(Some(&query))).unwrap();
            assert_eq!(options, ListOptions { revision, limit, start: start.clone() }, "{query}");
            if let Some(start) = start {
                assert_eq!(Continuation::parse(&start.text()).unwrap(), start);
            }
        }
    }

    #[test]
    fn tokens_that_are_none() {
        let version = "(version meta.k8s.io/v1)";
        for (token, want) in [
            (token(0, "a\0"), format!("incorrect encoded start resourceVersion {version}")),
            (token(7, ""), format!("encoded start key empty {version}")),
            (token(7, "a"), "\"a\" is not a place between two objects".into()),
            ("e30".into(), "server does not recognize this encoded version".into()),
        ] {
            let error = ListOptions::parse(&Query::parse(Some(&format!("continue={token}")))).unwrap_err();
            assert_eq!(error.to_string(), format!("invalid continue token: continue key is not valid: {want}"));
        }
    }

    #[test]
    fn tokens_of_any_bytes() {
        crate::fuzz::try_all("continue", |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            // What is inside comes from clients as well, so it is damaged apart from its coat.
            for text in [text.to_owned(), URL_SAFE_NO_PAD.encode(text)] {
                if let Ok(token) = Continuation::parse(&text) {
                    assert_eq!(Continuation::parse(&token.text()).as_ref(), Ok(&token));
                }
            }
        });
    }

    #[test]
    fn watches() {
        let present = |not_older, marked| Some(Start::Present { not_older, marked });
        let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        for (query, want) in [
            (String::new(), present(0, false)),
            ("resourceVersion=0".into(), present(0, false)),
            ("resourceVersion=7".into(), Some(Start::After(7))),
            (initial.into(), present(0, false)),
            (format!("{initial}&allowWatchBookmarks=true&resourceVersion=7"), present(7, true)),
            ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan".into(), Some(Start::Now)),
            (
                "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=7".into(),
                Some(Start::After(7)),
            ),
            ("resourceVersion=x".into(), None),
        ] {
            assert_eq!(Start::parse(&Query::parse(Some(&query))).ok(), want, "{query}");
        }
    }
}
