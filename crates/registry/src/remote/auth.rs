//! Credentials: where they come from, and what a registry's challenge asks for. No connection is made here.
//!
//! The surprise: `https://index.docker.io/v1/` is how docker's own file names Docker Hub, whatever host serves it.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::RemoteError;

/// The `auths` of a docker `config.json`, by `host[:port]`, each `user:password` in base64 as the header has it.
#[derive(Clone, Default)]
pub(super) struct Credentials(HashMap<String, String>);

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// A file of credentials is small.
const MAX_FILE: usize = 1 << 20;

impl Credentials {
    pub fn read(path: &Path) -> Result<Self, RemoteError> {
        let bytes = std::fs::read(path).map_err(RemoteError::io(path))?;
        let invalid = |reason: String| RemoteError::Config { path: path.to_owned(), reason };
        if bytes.len() > MAX_FILE {
            return Err(invalid("it is no docker config.json: too large".into()));
        }
        // The parser's own words could repeat a password.
        Self::parse(&bytes).ok_or_else(|| invalid("it is no docker config.json with `auths`".into()))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(bytes).ok()?;
        let mut known = HashMap::new();
        for (registry, entry) in file.auths {
            let pair = match (entry.auth.filter(|auth| !auth.is_empty()), entry.username, entry.password) {
                (Some(auth), ..) => STANDARD.decode(auth.trim()).ok().map(|_| auth.trim().to_owned()),
                (None, Some(user), Some(password)) => Some(STANDARD.encode(format!("{user}:{password}"))),
                _ => None,
            };
            known.extend(pair.map(|pair| (host_of(&registry), pair)));
        }
        Some(Self(known))
    }

    /// The value of a `Basic` header for this registry.
    pub fn basic(&self, registry: &str) -> Option<String> {
        self.0.get(registry).map(|pair| format!("Basic {pair}"))
    }
}

/// Keys may be hosts or addresses of old API versions.
fn host_of(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "docker.io" => super::DOCKER_HUB.into(),
        host => host.into(),
    }
}

/// How a registry wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// A token is to be fetched from `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// The challenge of a `WWW-Authenticate` header; the stronger one where there are several.
pub(super) fn challenge(headers: &[&str]) -> Option<Challenge> {
    let found: Vec<Challenge> = headers.iter().filter_map(|header| one(header)).collect();
    found.iter().find(|c| matches!(c, Challenge::Bearer { .. })).or(found.first()).cloned()
}

fn one(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameters = parameters(rest);
    let realm = parameters.get("realm")?.clone();
    Some(Challenge::Bearer { realm, service: parameters.get("service").cloned() })
}

/// `name="value", ...`; a value may hold commas.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(name.trim_matches([',', ' ']).to_ascii_lowercase(), value.trim().to_owned());
        rest = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
        };
        for (headers, want) in [
            (vec!["Basic realm=\"x\""], Some(Challenge::Basic)),
            (vec!["basic"], Some(Challenge::Basic)),
            (
                vec![r#"Bearer realm="https://auth.x/token",service="x",scope="repository:a/b:pull,push""#],
                bearer("https://auth.x/token", Some("x")),
            ),
            (vec!["Bearer realm=https://a, service=b"], bearer("https://a", Some("b"))),
            (vec!["Basic realm=\"x\"", "Bearer realm=\"https://a\""], bearer("https://a", None)),
            (vec!["Bearer service=\"x\""], None),
            (vec!["Negotiate"], None),
            (vec![], None),
        ] {
            assert_eq!(challenge(&headers), want, "{headers:?}");
        }
    }

    #[test]
    fn credentials() {
        let pair = STANDARD.encode("u:p");
        let file = serde_json::json!({"auths": {
            "ghcr.io": {"auth": pair},
            "https://index.docker.io/v1/": {"auth": pair},
            "localhost:5000": {"username": "u", "password": "p"},
            "empty.example": {},
            "broken.example": {"auth": "%%"},
        }, "credsStore": "desktop"});
        let credentials = Credentials::parse(file.to_string().as_bytes()).unwrap();
        let header = format!("Basic {pair}");
        for (registry, want) in [
            ("ghcr.io", true),
            (super::super::DOCKER_HUB, true),
            ("localhost:5000", true),
            ("empty.example", false),
            ("broken.example", false),
            ("evil.example", false),
        ] {
            assert_eq!(credentials.basic(registry).as_deref(), want.then_some(header.as_str()), "{registry}");
        }
        assert!(Credentials::parse(b"nonsense").is_none());
    }
}
