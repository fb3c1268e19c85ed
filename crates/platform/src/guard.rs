//! Which hosts the API answers to, and which pages may use it. Pure.

use std::net::IpAddr;

use http::request::Parts;
use http::{HeaderMap, header};

use crate::answer::Refusal;

/// Accepts requests to loopback or to one of `hosts`, from no page or from one of the same host and port.
pub(crate) fn check(parts: &Parts, hosts: &[String]) -> Result<(), Refusal> {
    let authority = authority(parts).unwrap_or_default();
    if !is_ours(host_of(authority), hosts) {
        return Err(Refusal::ForeignHost { host: shortened(authority) });
    }
    let Some(origin) = only(&parts.headers, header::ORIGIN) else { return Ok(()) };
    let page = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    match page {
        Some(page) if page.eq_ignore_ascii_case(authority) => Ok(()),
        _ => Err(Refusal::ForeignOrigin { origin: shortened(origin) }),
    }
}

/// Whom the request is for: HTTP/2 says it in the address, HTTP/1.1 in a header.
fn authority(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => only(&parts.headers, header::HOST),
    }
}

/// A header's value; one that is not text, or comes twice, is as bad as any foreign one.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    Some(if values.next().is_some() { "" } else { value.to_str().unwrap_or_default() })
}

/// Without the port, and an IPv6 address without its brackets.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

fn is_ours(host: &str, hosts: &[String]) -> bool {
    let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    loopback || host.eq_ignore_ascii_case("localhost") || hosts.iter().any(|ours| host.eq_ignore_ascii_case(ours))
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_origins() {
        let hosts = ["dhow.example".to_owned()];
        // URI, headers, "" = accepted or the kind of refusal
        type Row = (&'static str, &'static [(&'static str, &'static str)], &'static str);
        let rows: [Row; 20] = [
            ("/", &[("host", "localhost:8081")], ""),
            ("/", &[("host", "LocalHost")], ""),
            ("/", &[("host", "127.0.0.1:8081")], ""),
            ("/", &[("host", "127.8.9.1")], ""),
            ("/", &[("host", "[::1]:8081")], ""),
            ("/", &[("host", "dhow.example:443")], ""),
            ("http://localhost:8081/", &[], ""),
            ("http://evil.example/", &[("host", "localhost")], "host"),
            ("/", &[("host", "evil.example")], "host"),
            ("/", &[("host", "localhost.evil.example")], "host"),
            ("/", &[("host", "127.0.0.1.evil.example")], "host"),
            ("/", &[("host", "10.0.0.1")], "host"),
            ("/", &[("host", "localhost"), ("host", "evil.example")], "host"),
            ("/", &[], "host"),
            ("/", &[("host", "localhost:8081"), ("origin", "http://localhost:8081")], ""),
            ("/", &[("host", "localhost:8081"), ("origin", "http://localhost:9999")], "origin"),
            ("/", &[("host", "localhost:8081"), ("origin", "https://evil.example")], "origin"),
            ("/", &[("host", "localhost:8081"), ("origin", "null")], "origin"),
            ("/", &[("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://x")], "origin"),
            ("/", &[("host", "localhost"), ("origin", "file://localhost")], "origin"),
        ];
        for (uri, headers, want) in rows {
            let mut request = http::Request::builder().uri(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let parts = request.body(()).unwrap().into_parts().0;
            let got = match check(&parts, &hosts) {
                Ok(()) => "",
                Err(Refusal::ForeignHost { .. }) => "host",
                Err(_) => "origin",
            };
            assert_eq!(got, want, "{uri} {headers:?}");
        }
    }
}
