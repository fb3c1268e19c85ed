//! One HTTP exchange with a registry: TLS, credentials, redirects, patience.
//!
//! The surprise: credentials are for one host. A registry that redirects to the store of its blobs, as most do, must
//! not hand them over.

use std::collections::HashMap;
use std::io::BufReader;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::auth::{self, Challenge, Credentials};
use super::error::chain;
use super::{RemoteConfig, RemoteError};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;

const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take to begin. A registry checks a whole layer before it answers.
const ANSWER: Duration = Duration::from_secs(120);
/// A body that says nothing for this long is given up.
const IDLE: Duration = Duration::from_secs(60);
/// The answer to an upload comes after its last byte.
const UPLOAD: Duration = Duration::from_secs(900);
const ATTEMPTS: u32 = 3;
pub(super) const PAUSE: Duration = Duration::from_millis(300);
const REDIRECTS: usize = 5;
/// Tokens remembered; all are forgotten for one more.
const TOKENS: usize = 256;
/// Of an error or a token.
const SMALL: u64 = 64 << 10;

pub(super) struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    credentials: Credentials,
    plain: Vec<String>,
    tls: Vec<String>,
    /// By registry and scope: the header that was accepted there.
    tokens: Mutex<HashMap<(String, String), HeaderValue>>,
}

/// A request that can be made again; a body in it is small.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub method: Method,
    /// Below the registry, such as `/v2/a/b/tags/list`.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Ask {
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }
}

impl Transport {
    pub fn new(config: &RemoteConfig) -> Result<Self, RemoteError> {
        let credentials = config.credentials.as_deref().map(Credentials::read).transpose()?.unwrap_or_default();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        let https = HttpsConnectorBuilder::new().with_tls_config(tls(config)?).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(https.wrap_connector(tcp));
        let (plain, tls) = (config.insecure.clone(), config.secure.clone());
        Ok(Self { client, credentials, plain, tls, tokens: Mutex::default() })
    }

    /// Asks until there is an answer that is neither a challenge, a redirect nor a passing weakness. Refusals are
    /// errors, named by `what`.
    pub async fn ask(
        &self,
        registry: &str,
        scope: &str,
        ask: &Ask,
        what: &str,
    ) -> Result<Response<Incoming>, RemoteError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let ended = self.exchange(registry, scope, ask, what).await;
            match ended {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "asking the registry again");
                    tokio::time::sleep(PAUSE * attempt * attempt).await;
                }
                ended => return ended,
            }
        }
    }

    async fn exchange(
        &self,
        registry: &str,
        scope: &str,
        ask: &Ask,
        what: &str,
    ) -> Result<Response<Incoming>, RemoteError> {
        let mut uri = self.uri(registry, &ask.path)?;
        let mut challenged = false;
        for _ in 0..REDIRECTS {
            let mut request = Request::builder()
                .method(&ask.method)
                .uri(&uri)
                .body(small(ask.body.clone()))
                .map_err(invalid(what))?;
            request.headers_mut().extend(ask.headers.clone());
            let response = self.send(registry, scope, request, ANSWER).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !challenged && self.is_ours(registry, &uri) {
                challenged = true;
                let header = self.answer(registry, scope, response.headers(), what).await?;
                self.remember(registry, scope, header);
                continue;
            }
            // A new upload's place also comes in this header, but with another status.
            let redirect = status.is_redirection() && matches!(ask.method, Method::GET | Method::HEAD);
            if redirect && let Some(to) = response.headers().get(LOCATION) {
                let to = to.to_str().map_err(invalid(what))?;
                uri = join(&uri, to)
                    .filter(|next| next.scheme() == Some(&Scheme::HTTPS) || uri.scheme() != Some(&Scheme::HTTPS))
                    .ok_or_else(|| invalid(what)("it redirects from https to something else"))?;
                continue;
            }
            return accepted(registry, response, what).await;
        }
        Err(invalid(what)("too many redirects"))
    }

    /// One request whose body cannot be made again, with the credentials that an earlier one was accepted with.
    pub async fn send_once(
        &self,
        registry: &str,
        scope: &str,
        request: Request<Body>,
        what: &str,
    ) -> Result<Response<Incoming>, RemoteError> {
        accepted(registry, self.send(registry, scope, request, UPLOAD).await?, what).await
    }

    async fn send(
        &self,
        registry: &str,
        scope: &str,
        mut request: Request<Body>,
        patience: Duration,
    ) -> Result<Response<Incoming>, RemoteError> {
        let known = self.tokens().get(&(registry.to_owned(), scope.to_owned())).cloned();
        if let Some(header) = known.filter(|_| self.is_ours(registry, request.uri())) {
            request.headers_mut().insert(AUTHORIZATION, header);
        }
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("dhow"));
        let unreachable = |reason: String| RemoteError::Unreachable { registry: registry.into(), reason };
        let sent = tokio::time::timeout(patience, self.client.request(request));
        let late = |_| unreachable(format!("no answer within {} s", patience.as_secs()));
        sent.await.map_err(late)?.map_err(|error| unreachable(chain(&error)))
    }

    /// The header that answers a challenge.
    async fn answer(
        &self,
        registry: &str,
        scope: &str,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<HeaderValue, RemoteError> {
        let denied =
            |reason: &str| RemoteError::Denied { registry: registry.into(), what: what.into(), reason: reason.into() };
        let headers: Vec<&str> = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|h| h.to_str().ok()).collect();
        let basic = self.credentials.basic(registry);
        let header = match auth::challenge(&headers) {
            None => return Err(denied("it asks for credentials in a way that is not known here")),
            Some(Challenge::Basic) => basic.ok_or_else(|| denied("it wants credentials and there are none"))?,
            Some(Challenge::Bearer { realm, service }) => {
                self.token(registry, scope, &realm, service.as_deref(), basic, what).await?
            }
        };
        let mut header = HeaderValue::try_from(header).map_err(|_| denied("the credentials are no header"))?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn token(
        &self,
        registry: &str,
        scope: &str,
        realm: &str,
        service: Option<&str>,
        basic: Option<String>,
        what: &str,
    ) -> Result<String, RemoteError> {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut url = format!("{realm}{}", if realm.contains('?') { "&" } else { "?" });
        if let Some(service) = service {
            url.push_str(&format!("service={}&", encode(service)));
        }
        let scopes: Vec<String> = scope.split(' ').map(|one| format!("scope={}", encode(one))).collect();
        url.push_str(&scopes.join("&"));
        let uri: Uri = url.parse().map_err(|_| invalid(what)("its token service is no address"))?;
        // A registry over TLS must not talk us into sending a password in the clear.
        if uri.scheme() != Some(&Scheme::HTTPS) && !self.is_plain(registry) {
            return Err(invalid(what)("its token service is not https"));
        }
        let mut request = Request::builder().uri(uri).header(USER_AGENT, "dhow");
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let request = request.body(small(Bytes::new())).map_err(invalid(what))?;
        let unreachable = |reason: String| RemoteError::Unreachable { registry: realm.into(), reason };
        let sent = tokio::time::timeout(ANSWER, self.client.request(request)).await;
        let response =
            sent.map_err(|_| unreachable("no token in time".into()))?.map_err(|error| unreachable(chain(&error)))?;
        let response = accepted(registry, response, what).await?;
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let bytes = read(response.into_body(), SMALL).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| invalid(what)("its token is not JSON"))?;
        let token = token.token.or(token.access_token).ok_or_else(|| invalid(what)("its token is missing"))?;
        Ok(format!("Bearer {token}"))
    }

    pub fn uri(&self, registry: &str, path: &str) -> Result<Uri, RemoteError> {
        let scheme = if self.is_plain(registry) { Scheme::HTTP } else { Scheme::HTTPS };
        let built = Uri::builder().scheme(scheme).authority(registry).path_and_query(path).build();
        built.map_err(invalid(registry))
    }

    fn is_plain(&self, registry: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|host| host.eq_ignore_ascii_case(registry));
        listed(&self.plain) || is_loopback(registry) && !listed(&self.tls)
    }

    /// Whether credentials for the registry may go there.
    fn is_ours(&self, registry: &str, uri: &Uri) -> bool {
        let scheme = if self.is_plain(registry) { Scheme::HTTP } else { Scheme::HTTPS };
        uri.authority().is_some_and(|authority| authority.as_str().eq_ignore_ascii_case(registry))
            && uri.scheme() == Some(&scheme)
    }

    fn remember(&self, registry: &str, scope: &str, header: HeaderValue) {
        let mut tokens = self.tokens();
        if tokens.len() >= TOKENS {
            tokens.clear();
        }
        tokens.insert((registry.to_owned(), scope.to_owned()), header);
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), HeaderValue>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tls(config: &RemoteConfig) -> Result<rustls::ClientConfig, RemoteError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        // A container image with nothing in it: the public ones, as browsers know them.
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = &config.ca_file {
        let bytes = std::fs::read(path).map_err(RemoteError::io(path))?;
        let wrong = |reason: String| RemoteError::Config { path: path.clone(), reason };
        let mut found = 0;
        for certificate in CertificateDer::pem_reader_iter(BufReader::new(bytes.as_slice())) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(wrong("there is no certificate in it".into()));
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(versions.expect("ring speaks the default versions").with_root_certificates(roots).with_no_client_auth())
}

/// Where another address leads, seen from this one.
pub(super) fn join(from: &Uri, to: &str) -> Option<Uri> {
    if to.starts_with('/') && !to.starts_with("//") {
        let (scheme, authority) = (from.scheme()?.clone(), from.authority()?.clone());
        return Uri::builder().scheme(scheme).authority(authority).path_and_query(to).build().ok();
    }
    let uri: Uri = to.parse().ok()?;
    let web = uri.scheme() == Some(&Scheme::HTTP) || uri.scheme() == Some(&Scheme::HTTPS);
    web.then_some(uri)
}

fn is_loopback(registry: &str) -> bool {
    let Ok(authority) = registry.parse::<Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn small(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn invalid<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> RemoteError {
    let what = what.to_owned();
    move |reason| RemoteError::Invalid { what, reason: reason.to_string() }
}

/// The answer, or the error that its status stands for.
async fn accepted(registry: &str, response: Response<Incoming>, what: &str) -> Result<Response<Incoming>, RemoteError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let (registry, what) = (registry.to_owned(), what.to_owned());
    if status == StatusCode::NOT_FOUND {
        return Err(RemoteError::NotFound { registry, what });
    }
    let reason = reason(response).await;
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(RemoteError::Denied { registry, what, reason });
    }
    Err(RemoteError::Answer { registry, what, status: status.as_u16(), reason })
}

/// The registry's own words, shortened: they come from a stranger and climb into conditions.
async fn reason(response: Response<Incoming>) -> String {
    let status = response.status();
    let bytes = read(response.into_body(), SMALL).await.unwrap_or_default();
    let parsed: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let said = parsed["errors"][0]["message"].as_str().or(parsed["errors"][0]["code"].as_str());
    let words = said.unwrap_or(status.canonical_reason().unwrap_or("no reason given"));
    words.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// A whole body, bounded in size and silence.
pub(super) async fn read(mut body: Incoming, limit: u64) -> Result<Bytes, RemoteError> {
    let mut bytes = vec![];
    while let Some(chunk) = next(&mut body).await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(RemoteError::TooLarge { limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// The next data of a body.
pub(super) async fn next(body: &mut Incoming) -> Result<Option<Bytes>, RemoteError> {
    let broken = |reason: String| RemoteError::Unreachable { registry: "that was read from".into(), reason };
    loop {
        let frame = tokio::time::timeout(IDLE, body.frame()).await;
        match frame.map_err(|_| broken(format!("nothing came for {} s", IDLE.as_secs())))? {
            None => return Ok(None),
            Some(Err(error)) => return Err(broken(chain(&error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let from: Uri = "https://r.example/v2/a/b/blobs/uploads/".parse().unwrap();
        for (to, want) in [
            ("/v2/x?y=1", Some("https://r.example/v2/x?y=1")),
            ("https://store.example/x", Some("https://store.example/x")),
            ("http://r.example:80/x", Some("http://r.example:80/x")),
            ("//evil.example/x", None),
            ("ftp://x/y", None),
            ("x", None),
        ] {
            assert_eq!(join(&from, to).map(|uri| uri.to_string()).as_deref(), want, "{to}");
        }
    }

    #[test]
    fn who_is_spoken_to_in_the_clear() {
        let config = RemoteConfig {
            insecure: vec!["registry.local:5000".into()],
            secure: vec!["localhost:5443".into()],
            ..RemoteConfig::default()
        };
        let transport = Transport::new(&config).unwrap();
        for (registry, want) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("registry.local:5000", true),
            ("localhost:5443", false),
            ("registry.local", false),
            ("127.0.0.1.evil.example", false),
            ("ghcr.io", false),
        ] {
            assert_eq!(transport.is_plain(registry), want, "{registry}");
        }
    }
}
