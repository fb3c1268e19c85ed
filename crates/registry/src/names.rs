//! Repository names, tags and references, as the distribution specification words them.

use crate::digest::Digest;
use crate::error::RegistryError;

/// `<namespace>/<name>`, valid, and therefore safe as a relative path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Repository(String);

impl Repository {
    pub fn parse(name: &str) -> Result<Self, RegistryError> {
        let valid = name.split('/').count() == 2 && name.split('/').all(is_path_component);
        if valid { Ok(Self(name.into())) } else { Err(RegistryError::InvalidName { name: shortened(name) }) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One component of a repository name: `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
pub(crate) fn is_path_component(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    let joints = text.split(|c: char| c.is_ascii() && word(c as u8)).filter(|joint| !joint.is_empty());
    text.len() <= 128
        && ends.into_iter().all(|end| end.is_some_and(|byte| word(*byte)))
        && joints.into_iter().all(|joint| matches!(joint, "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-'))
}

pub(crate) fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// A manifest, by tag or by digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    pub fn parse(text: &str) -> Result<Self, RegistryError> {
        if text.contains(':') {
            text.parse().map(Reference::Digest)
        } else if is_tag(text) {
            Ok(Reference::Tag(text.into()))
        } else {
            Err(RegistryError::InvalidTag { tag: shortened(text) })
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reference::Tag(tag) => f.write_str(tag),
            Reference::Digest(digest) => std::fmt::Display::fmt(digest, f),
        }
    }
}

/// Strangers' words in our errors stay short.
fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories() {
        let long = format!("a/{}", "b".repeat(129));
        for (name, want) in [
            ("default/hello", true),
            ("a/b.c_d__e---f0", true),
            ("hello", false),
            ("a/b/c", false),
            ("a/", false),
            ("/b", false),
            ("a/..", false),
            ("../a", false),
            ("a/B", false),
            ("a/-b", false),
            ("a/b-", false),
            ("a/b..c", false),
            ("a/b___c", false),
            ("a/é", false),
            ("a/_blobs", false),
            (&long, false),
        ] {
            assert_eq!(Repository::parse(name).is_ok(), want, "{name}");
        }
    }

    #[test]
    fn references() {
        let digest = Digest::of(b"").to_string();
        for (text, want) in [
            ("latest", true),
            ("1.0-rc_1", true),
            ("_x", true),
            (digest.as_str(), true),
            ("", false),
            (".hidden", false),
            ("-x", false),
            ("a/b", false),
            ("sha256:1", false),
        ] {
            assert_eq!(Reference::parse(text).is_ok(), want, "{text}");
        }
    }
}
