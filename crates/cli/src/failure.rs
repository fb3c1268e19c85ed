//! What failed, where to look, and what to do next.

use std::fmt;

/// The exit codes. 2 is also what a wrong flag gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    Interrupted = 130,
}

/// An error as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub what: String,
    /// Such as `build/hello-1a2b3c`.
    pub object: Option<String>,
    /// The last lines of what it printed, or what else there is to see.
    pub lines: Vec<String>,
    /// The next command, or what to change.
    pub next: Option<String>,
}

impl Failure {
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), object: None, lines: vec![], next: None }
    }

    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Code::Failed, what)
    }

    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Code::Usage, what)
    }

    pub fn unreachable(what: impl Into<String>) -> Self {
        Self::new(Code::Unreachable, what)
    }

    pub fn interrupted() -> Self {
        Self::new(Code::Interrupted, "")
    }

    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }

    pub fn lines(mut self, lines: Vec<String>) -> Self {
        self.lines = lines;
        self
    }

    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// What an error of the Kubernetes API means for somebody who was `doing` something.
    pub fn api(doing: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 401 => {
                Self::failed(format!("{doing}: the platform does not know this kubeconfig's token"))
                    .next("use the kubeconfig that this `dhow up` wrote, with --kubeconfig or DHOW_KUBECONFIG")
            }
            kube::Error::Api(status) => Self::failed(format!("{doing}: {}", status.message)),
            kube::Error::HyperError(_) | kube::Error::Service(_) => {
                Self::unreachable(format!("{doing}: the platform does not answer: {}", innermost(error)))
                    .next("is it running? start it with: dhow up")
            }
            error => Self::failed(format!("{doing}: {error}")),
        }
    }
}

/// The outer errors only say that an inner one happened.
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.what.is_empty() {
            return f.write_str("interrupted");
        }
        write!(f, "error: {}", self.what)?;
        if let Some(object) = &self.object {
            write!(f, "\n  object: {object}")?;
        }
        if !self.lines.is_empty() {
            for line in &self.lines {
                write!(f, "\n    | {line}")?;
            }
        }
        match &self.next {
            Some(next) => write!(f, "\n  next: {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_top_down() {
        let full = Failure::failed("it broke").object("build/x").lines(vec!["a".into(), "b".into()]).next("dhow x");
        let want = "error: it broke\n  object: build/x\n    | a\n    | b\n  next: dhow x";
        assert_eq!(full.to_string(), want);
        assert_eq!(Failure::usage("no").to_string(), "error: no");
    }
}
