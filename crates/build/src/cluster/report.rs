//! What a step of a build pod says at its end: a few lines of JSON where the kubelet finds them. Pure, but for the file.
//!
//! Only what our own image wrote is read this way. The container that runs the author's code has such a file too, and
//! may write anything into it.

use std::path::Path;

use api::build::reason;
use registry::Digest;
use serde::{Deserialize, Serialize};

use crate::plan::Refusal;

/// Where the kubelet looks, unless it is told otherwise.
pub const PATH: &str = "/dev/termination-log";
/// The kubelet keeps 4096 bytes; quotes and escapes take some of them.
const MESSAGE: usize = 2_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    Image {
        digest: Digest,
    },
    /// The author's to mend.
    Refused {
        reason: String,
        message: String,
    },
    /// Ours, or the registry's: worth another try.
    Failed {
        message: String,
    },
}

impl Report {
    pub fn refused(refusal: &Refusal) -> Self {
        Self::Refused { reason: refusal.reason.to_owned(), message: shortened(&refusal.message) }
    }

    pub fn failed(message: &str) -> Self {
        Self::Failed { message: shortened(message) }
    }

    pub fn parse(message: &str) -> Option<Self> {
        serde_json::from_str(message).ok()
    }

    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, serde_json::to_vec(self).expect("a report is JSON"))
    }
}

/// The constant of a reason that went through JSON.
pub fn reason_named(text: &str) -> &'static str {
    let known = [
        reason::SOURCE_MISSING,
        reason::SOURCE_INVALID,
        reason::RUNTIME_UNKNOWN,
        reason::HANDLER_MISSING,
        reason::DEPENDENCIES_FAILED,
        reason::TIMED_OUT,
    ];
    known.into_iter().find(|reason| *reason == text).unwrap_or(reason::SOURCE_INVALID)
}

fn shortened(text: &str) -> String {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MESSAGE).last();
    text[..end.unwrap_or_default()].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let long = "ü".repeat(3_000);
        for report in [
            Report::Image { digest: Digest::of(b"x") },
            Report::refused(&Refusal::new(reason::SOURCE_INVALID, long.clone())),
            Report::failed(&long),
        ] {
            let text = serde_json::to_string(&report).expect("JSON");
            assert!(text.len() < 4096, "{}", text.len());
            assert_eq!(Report::parse(&text), Some(report));
        }
        for nothing in ["", "Traceback", "{\"image\": {\"digest\": \"x\"}}", "null"] {
            assert_eq!(Report::parse(nothing), None, "{nothing}");
        }
        assert_eq!(reason_named("TimedOut"), reason::TIMED_OUT);
        assert_eq!(reason_named("Invented"), reason::SOURCE_INVALID);
    }
}
