//! What can go wrong between a plan and the API server, and what the caller may do about it.

use crate::plan::Target;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {target}: {source}")]
    Api {
        action: &'static str,
        target: Box<Target>,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{action} {target}: {reason}")]
    Invalid { action: &'static str, target: Box<Target>, reason: String },
    /// A controller's own reason to try again.
    #[error("{0}")]
    Retry(String),
    #[error("controller {0} panicked")]
    Panicked(&'static str),
}

/// What a caller may do with an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The server or the network had a bad moment: the same again, later.
    Retry,
    /// What we saw was old: plan again.
    Conflict,
    NotFound,
    /// The same request will fail again; only another plan helps.
    Invalid,
    /// The program is broken.
    Fatal,
}

impl Error {
    pub fn class(&self) -> Class {
        match self {
            Error::Api { source, .. } => match source.as_ref() {
                // Everything in it goes, and so will what we wanted to change.
                kube::Error::Api(status) if is_terminating(status) => Class::NotFound,
                kube::Error::Api(status) => class_of_code(status.code),
                _ => Class::Retry,
            },
            Error::Invalid { .. } => Class::Invalid,
            Error::Retry(_) => Class::Retry,
            Error::Panicked(_) => Class::Fatal,
        }
    }
}

fn is_terminating(status: &kube::core::Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "NamespaceTerminating")
}

fn class_of_code(code: u16) -> Class {
    match code {
        404 | 410 => Class::NotFound,
        409 => Class::Conflict,
        400 | 401 | 403 | 405 | 413 | 415 | 422 => Class::Invalid,
        _ => Class::Retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (code, want) in [
            (404, Class::NotFound),
            (409, Class::Conflict),
            (422, Class::Invalid),
            (403, Class::Invalid),
            (429, Class::Retry),
            (500, Class::Retry),
            (503, Class::Retry),
        ] {
            assert_eq!(class_of_code(code), want, "{code}");
        }
    }
}
