//! `config-network`: host names and plain HTTP.

use super::{Data, Reader, Template};
use crate::networking::HttpOption;

#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Whether a DomainMapping may claim a host that nobody has; absent: only where there is one user, on one machine.
    pub claims: Option<bool>,
    pub http: HttpOption,
    pub host: Template,
    pub tag: Template,
}

impl Network {
    pub const NAME: &str = "config-network";
    /// The same as `http-protocol`, on one object.
    pub const HTTP_PROTOCOL: [&str; 2] =
        ["networking.knative.dev/http-protocol", "networking.knative.dev/httpProtocol"];

    pub fn of(data: &Data) -> Self {
        Self::read(&mut Reader::new(data))
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let claims = "autocreate-cluster-domain-claims";
        Self {
            claims: reader.data.contains_key(claims).then(|| reader.flag(claims, false)),
            http: reader.get("http-protocol", HttpOption::Enabled, http_option),
            host: reader.get("domain-template", Template::host(), Template::parse_host),
            tag: reader.get("tag-template", Template::tag(), Template::parse_tag),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::of(&Data::new())
    }
}

/// What the words of `http-protocol` mean. Knative's Disabled has long been the same as Redirected to its gateways.
pub fn http_option(text: &str) -> Result<HttpOption, String> {
    match text.to_ascii_lowercase().as_str() {
        "enabled" => Ok(HttpOption::Enabled),
        "redirected" => Ok(HttpOption::Redirected),
        _ => Err("is neither Enabled nor Redirected".into()),
    }
}
