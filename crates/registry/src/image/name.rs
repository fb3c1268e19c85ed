//! Image names: `[registry/]repository[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use super::ImageError;
use crate::digest::Digest;
use crate::names::{Reference, is_path_component, is_tag};

/// A parsed image name. A digest wins over a tag beside it; without both, the tag is `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// `host[:port]`; `None` when the name has none.
    pub registry: Option<String>,
    pub repository: String,
    pub reference: Reference,
}

impl ImageRef {
    pub fn digest(&self) -> Option<&Digest> {
        match &self.reference {
            Reference::Digest(digest) => Some(digest),
            Reference::Tag(_) => None,
        }
    }

    /// Whether it is in the registry of this host and port, or in one of this machine: the built-in one listens on loopback
    /// unless told otherwise, and perhaps on another port since the image was named.
    pub fn is_built_in(&self, registry: &str) -> bool {
        let Some(host) = self.registry.as_deref() else { return false };
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
        let loopback = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        host == registry || loopback
    }

    /// The first component of the repository: the tenant, in the built-in registry.
    pub fn namespace(&self) -> Option<&str> {
        self.repository.split_once('/').map(|(namespace, _)| namespace)
    }

    /// Whether pods of a namespace may run it, in the built-in registry: its own images, and those whose first component is
    /// a host name, which no namespace can be. They are copies of other registries' images, and everybody's.
    pub fn is_for(&self, namespace: &str) -> bool {
        self.namespace().is_some_and(|first| first == namespace || first.contains('.'))
    }
}

impl FromStr for ImageRef {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let invalid = |reason| ImageError::InvalidName { text: text.chars().take(300).collect(), reason };
        if text.len() > 1024 {
            return Err(invalid("it is too long"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = digest.parse::<Digest>().map_err(|_| invalid("its digest is not sha256:<64 hex>"))?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (Some(first), rest),
            _ => (None, name),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if registry.is_some_and(|host| !is_host(host)) {
            return Err(invalid("its registry is not host[:port]"));
        }
        if !repository.split('/').all(is_path_component) {
            return Err(invalid("its repository is not lower-case words joined by '/'"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("its tag has characters that are not allowed"));
        }
        let reference = match digest {
            Some(digest) => Reference::Digest(digest),
            None => Reference::Tag(tag.unwrap_or("latest").into()),
        };
        Ok(Self { registry: registry.map(Into::into), repository: repository.into(), reference })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => (host, Some(port)),
        _ => (text, None),
    };
    let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '[' | ']' | ':');
    !host.is_empty() && host.chars().all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        let digest = Digest::of(b"");
        let by_digest = format!("127.0.0.1:5000/default/hello@{digest}");
        let tag_and_digest = format!("localhost/default/hello:1@{digest}");
        for (text, registry, repository, shown) in [
            ("hello", None, "hello", "hello:latest"),
            ("default/hello:1.0", None, "default/hello", "default/hello:1.0"),
            ("ghcr.io/a/b/c", Some("ghcr.io"), "a/b/c", "ghcr.io/a/b/c:latest"),
            ("[::1]:5000/a/b:x", Some("[::1]:5000"), "a/b", "[::1]:5000/a/b:x"),
            (&by_digest, Some("127.0.0.1:5000"), "default/hello", &by_digest),
            (&tag_and_digest, Some("localhost"), "default/hello", &tag_and_digest.replace(":1@", "@")),
        ] {
            let image: ImageRef = text.parse().unwrap();
            assert_eq!((image.registry.as_deref(), &*image.repository), (registry, repository), "{text}");
            assert_eq!(image.to_string(), shown);
            assert_eq!(shown.parse::<ImageRef>().unwrap(), image);
        }
        for bad in ["", "a//b", "Upper/case", "a/b:", "a/b:-x", "a/b@sha256:12", "host:port/a", "a/../b", "a/b@x@y"] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
