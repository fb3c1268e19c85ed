//! Who may talk to the platform: one administrator's token, kept in the data directory, and the kubeconfig that holds it.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// The user behind the token of the kubeconfig.
pub const ADMINISTRATOR: &str = "dhow-admin";
const TOKEN_BYTES: usize = 32;

pub fn administrator() -> apiserver::User {
    apiserver::User { name: ADMINISTRATOR.to_owned(), groups: vec!["system:masters".to_owned()] }
}

/// The token is made once and kept, so that a kubeconfig that was copied elsewhere stays good after a restart.
pub fn token(data_dir: &Path) -> Result<String> {
    let path = data_dir.join("token");
    match std::fs::read_to_string(&path) {
        Ok(token) if token.trim().len() == 2 * TOKEN_BYTES => return Ok(token.trim().to_owned()),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
    }
    let mut bytes = [0; TOKEN_BYTES];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("reading /dev/urandom")?;
    let token: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    daemon::files::write_atomically(&path, 0o600, token.as_bytes())?;
    Ok(token)
}

/// JSON is YAML, and every client reads it.
pub fn kubeconfig(api: SocketAddr, authority_pem: &str, token: &str) -> String {
    let server = format!("https://{api}");
    let authority = base64(authority_pem.as_bytes());
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "dhow",
        "clusters": [{"name": "dhow", "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": ADMINISTRATOR, "user": {"token": token}}],
        "contexts": [{"name": "dhow", "context": {"cluster": "dhow", "user": ADMINISTRATOR, "namespace": "default"}}],
    });
    format!("{config:#}\n")
}

/// Whether a request carries the token, as a bearer or, as registries' clients do, as a password.
pub fn presents(parts: &http::request::Parts, token: &str) -> bool {
    if bearer(parts).is_some_and(|presented| same(presented, token)) {
        return true;
    }
    let header = parts.headers.get(http::header::AUTHORIZATION).and_then(|h| h.to_str().ok());
    let decoded = header.and_then(|h| h.strip_prefix("Basic ")).and_then(|h| STANDARD.decode(h).ok());
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    text.is_some_and(|t| t.split_once(':').is_some_and(|(_, password)| same(password, token)))
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Compares in constant time: how long a wrong token takes must not say how much of it was right.
pub fn same(left: &str, right: &str) -> bool {
    left.len() == right.len() && left.bytes().zip(right.bytes()).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0
}

/// The bearer token of a request.
pub fn bearer(parts: &http::request::Parts) -> Option<&str> {
    parts.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_kept() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = token(dir.path()).expect("made");
        assert_eq!(first, token(dir.path()).expect("read"));
        assert!(same(&first, &first.clone()) && !same(&first, &first.replace('0', "1").replace('a', "b")));
    }
}
