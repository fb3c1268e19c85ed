//! What a request asks for: its path as a resource, its query, its body's and its answer's form.

use std::collections::HashMap;

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::protobuf;
use crate::status::{ApiError, Result};

/// A path below `/api` or `/apis` that names a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub plural: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Path {
    /// `None`: not a resource's path.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| percent_decode_str(part).decode_utf8().ok().map(String::from))
            .collect::<Option<_>>()?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let path = |namespace: Option<&str>, plural: &str, rest: &[&str]| {
            let (name, subresource) = match rest {
                [] => (None, None),
                [name] => (Some(*name), None),
                [name, subresource] => (Some(*name), Some(*subresource)),
                _ => return None,
            };
            Some(Self {
                group: group.into(),
                version: version.into(),
                namespace: namespace.map(Into::into),
                plural: plural.into(),
                name: name.map(Into::into),
                subresource: subresource.map(Into::into),
            })
        };
        match rest {
            [] => None,
            ["namespaces", rest @ ..] if rest.len() < 2 || matches!(rest[1], "status" | "finalize") => {
                path(None, "namespaces", rest)
            }
            ["namespaces", namespace, plural, rest @ ..] => path(Some(namespace), plural, rest),
            [plural, rest @ ..] => path(None, plural, rest),
        }
    }
}

/// The decoded names and values of a query, as often as they are given.
pub fn pairs(query: Option<&str>) -> impl Iterator<Item = (String, String)> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// The decoded query.
#[derive(Clone, Debug, Default)]
pub struct Query(HashMap<String, String>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        Self(pairs(query).collect())
    }

    /// An empty value is none.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Anything but a clear no is a yes, as Kubernetes reads it.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|text| text != "0" && !text.eq_ignore_ascii_case("false"))
    }

    /// A negative number says nothing.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        let bad = |text: &str| ApiError::BadRequest(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
        let parse = |text: &str| text.parse::<i64>().map_err(|_| bad(text));
        Ok(self.get(name).map(parse).transpose()?.and_then(|number| u64::try_from(number).ok()))
    }

    pub fn revision(&self, name: &str) -> Result<Option<u64>> {
        let bad = |text: &str| {
            ApiError::BadRequest(format!(
                "invalid resource version: {name}: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: \
                 invalid syntax"
            ))
        };
        self.get(name).map(|text| text.parse().map_err(|_| bad(text))).transpose()
    }

    /// Whether nothing is to be stored.
    pub fn dry_run(&self) -> bool {
        self.get("dryRun").is_some()
    }
}

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    /// What else it may say was found before.
    pub fn of(query: &Query, default: Self) -> Self {
        match query.get("fieldValidation") {
            Some("Ignore") => Self::Ignore,
            Some("Warn") => Self::Warn,
            Some("Strict") => Self::Strict,
            _ => default,
        }
    }
}

/// Who a write is attributed to: who it says, the program that sent it, or `otherwise`.
pub fn field_manager(query: &Query, headers: &HeaderMap, otherwise: &str) -> String {
    const LONGEST: usize = 128;
    let agent = || {
        let agent = headers.get(USER_AGENT)?.to_str().ok()?;
        agent.split('/').next().filter(|name| !name.is_empty())
    };
    let name = query.get("fieldManager").or_else(agent).unwrap_or(otherwise);
    name.chars().take(LONGEST).collect()
}

/// How objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Object,
    Table,
    Partial,
    /// What a list of the above is; it is not an object's form.
    PartialList,
}

/// The first form of the Accept header that can be given.
pub fn accepted(headers: &HeaderMap) -> Result<Form> {
    let Some(accept) = headers.get(ACCEPT) else { return Ok(Form::Object) };
    let accept = accept.to_str().unwrap_or_default();
    for media in accept.split(',') {
        let mut parts = media.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "*/*" | "application/*" | "")) {
            continue;
        }
        match parts.find_map(|part| part.strip_prefix("as=")) {
            None => return Ok(Form::Object),
            Some("Table") => return Ok(Form::Table),
            Some("PartialObjectMetadata") => return Ok(Form::Partial),
            Some("PartialObjectMetadataList") => return Ok(Form::PartialList),
            Some(_) => {}
        }
    }
    Err(ApiError::NotAcceptable)
}

/// The media type of the body, without parameters.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    value.split(';').next().unwrap_or_default().trim()
}

/// A body that is one object, in JSON or YAML, or in protobuf when it can be that `message`.
pub fn decode(body: &[u8], media: &str, message: Option<&str>) -> Result<Value> {
    let value = match media {
        "application/json" => serde_json::from_slice(body)
            .map_err(|error| ApiError::BadRequest(format!("the object provided is not valid JSON: {error}")))?,
        "application/yaml" | "application/apply-patch+yaml" => decode_yaml(body)?,
        protobuf::MEDIA if let Some(message) = message => {
            protobuf::decode(body, message).map_err(|why| unrecognized(body, message, why))?
        }
        _ => return Err(ApiError::UnsupportedMediaType("application/json, application/yaml".into())),
    };
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(ApiError::BadRequest("the object provided is not an object".into())),
    }
}

fn unrecognized(body: &[u8], message: &str, why: &str) -> ApiError {
    const SHOWN: usize = 30;
    let kind = message.rsplit('.').next().unwrap_or(message);
    let start = hex::encode(&body[..body.len().min(SHOWN)]);
    let more = if body.len() > SHOWN { " ..." } else { "" };
    ApiError::BadRequest(format!("the object provided is unrecognized (must be of type {kind}): {why} ({start}{more})"))
}

/// JSON is YAML, and most who say YAML send JSON.
fn decode_yaml(body: &[u8]) -> Result<Value> {
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let failed = |error: String| ApiError::BadRequest(format!("the object provided is not valid YAML: {error}"));
    let text = std::str::from_utf8(body).map_err(|error| failed(error.to_string()))?;
    serde_yaml::from_str(text).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let path = |group: &str, namespace: Option<&str>, plural: &str, name: Option<&str>, sub: Option<&str>| {
            Some(Path {
                group: group.into(),
                version: "v1".into(),
                namespace: namespace.map(Into::into),
                plural: plural.into(),
                name: name.map(Into::into),
                subresource: sub.map(Into::into),
            })
        };
        for (text, want) in [
            ("/api/v1/pods", path("", None, "pods", None, None)),
            ("/api/v1/namespaces", path("", None, "namespaces", None, None)),
            ("/api/v1/namespaces/a", path("", None, "namespaces", Some("a"), None)),
            ("/api/v1/namespaces/a/status", path("", None, "namespaces", Some("a"), Some("status"))),
            ("/api/v1/namespaces/a/pods", path("", Some("a"), "pods", None, None)),
            ("/api/v1/namespaces/a/pods/p/log", path("", Some("a"), "pods", Some("p"), Some("log"))),
            ("/apis/apps/v1/namespaces/a/deployments/d", path("apps", Some("a"), "deployments", Some("d"), None)),
            ("/api/v1/nodes/n%2Fx", path("", None, "nodes", Some("n/x"), None)),
            ("/api/v1/nodes/a/b/c", None),
            ("/api/v1", None),
            ("/version", None),
        ] {
            assert_eq!(Path::parse(text), want, "{text}");
        }
    }

    #[test]
    fn forms() {
        for (accept, want) in [
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Form::Table)),
            ("application/json;as=Nothing;v=v1,application/json", Some(Form::Object)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Form::PartialList)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf", None),
            ("*/*", Some(Form::Object)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(accepted(&headers).ok(), want, "{accept}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse(Some("a=b%3Dc&d=e+f&watch=true&limit=5&empty="));
        assert_eq!((query.get("a"), query.get("d"), query.get("empty")), (Some("b=c"), Some("e f"), None));
        assert!(query.flag("watch"));
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert!(query.number("d").is_err());
        for (text, want) in
            [("", false), ("f=false", false), ("f=0", false), ("f=FALSE", false), ("f=odd", true), ("f=1", true)]
        {
            assert_eq!(Query::parse(Some(text)).flag("f"), want, "{text}");
        }
    }
}
