//! Who is asking: bearer tokens of external clients.
//!
//! Tokens are kept and looked up as digests, so that the time of a comparison tells nothing about a token.

use std::collections::HashMap;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

pub(crate) struct Tokens {
    by_digest: HashMap<[u8; 32], User>,
}

impl Tokens {
    pub fn new(tokens: Vec<(String, User)>) -> Self {
        Self { by_digest: tokens.into_iter().map(|(token, user)| (digest(&token), user)).collect() }
    }

    pub fn user(&self, headers: &HeaderMap) -> Option<&User> {
        let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        self.by_digest.get(&digest(token.trim()))
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let admin = User { name: "admin".into(), groups: vec![] };
        let tokens = Tokens::new(vec![("s3cret".into(), admin)]);
        for (header, want) in [
            (Some("Bearer s3cret"), true),
            (Some("bearer  s3cret"), true),
            (Some("Bearer s3cre"), false),
            (Some("Basic s3cret"), false),
            (Some("s3cret"), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, header.parse().unwrap());
            }
            assert_eq!(tokens.user(&headers).is_some(), want, "{header:?}");
        }
    }
}
