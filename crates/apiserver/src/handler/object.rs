//! Objects as bytes: how they are stored, and how they are shown.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use store::Revision;

use crate::kinds::Kind;
use crate::status::{ApiError, Result};

/// An object's JSON with a gap where its resourceVersion goes, since that is known only while it is written.
pub struct Encoded {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Encoded {
    pub fn new(object: &Value) -> Self {
        let mut head = Vec::with_capacity(128);
        // In the order of Go's types, which some clients' messages about the place of a mistake show.
        head.extend_from_slice(b"{\"kind\":");
        append(&mut head, &object["kind"]);
        head.extend_from_slice(b",\"apiVersion\":");
        append(&mut head, &object["apiVersion"]);
        head.extend_from_slice(b",\"metadata\":{\"resourceVersion\":\"");

        let mut tail = Vec::with_capacity(1024);
        tail.push(b'"');
        let metadata = object["metadata"].as_object().into_iter().flatten();
        members(&mut tail, metadata.filter(|(name, _)| *name != "resourceVersion"));
        tail.push(b'}');
        let rest = object.as_object().into_iter().flatten();
        members(&mut tail, rest.filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata")));
        tail.push(b'}');
        Self { head, tail }
    }

    pub fn at(&self, revision: Revision) -> Bytes {
        let revision = revision.to_string();
        let mut bytes = Vec::with_capacity(self.head.len() + revision.len() + self.tail.len());
        bytes.extend_from_slice(&self.head);
        bytes.extend_from_slice(revision.as_bytes());
        bytes.extend_from_slice(&self.tail);
        bytes.into()
    }
}

fn members<'a>(into: &mut Vec<u8>, members: impl Iterator<Item = (&'a String, &'a Value)>) {
    for (name, value) in members {
        into.push(b',');
        append(into, name);
        into.push(b':');
        append(into, value);
    }
}

fn append(into: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(into, value).expect("writing a JSON value into memory cannot fail");
}

/// An object as it was stored.
pub fn parse(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::Internal(format!("a stored object is damaged: {error}")))
}

/// The stored bytes of an object that was written at that revision, as this kind shows them.
pub(crate) fn shown(kind: &Kind, bytes: Bytes, written: Revision) -> Bytes {
    let Some(conversion) = kind.conversion(written) else { return bytes };
    match serde_json::from_slice::<Value>(&bytes) {
        // A Status is none of these objects.
        Ok(mut object) if object["kind"] == kind.kind => {
            conversion.apply(&mut object);
            object.to_string().into()
        }
        _ => bytes,
    }
}

/// `PartialObjectMetadata` of an object.
pub(crate) fn partial_metadata(object: &mut Value) -> Value {
    let metadata = object.get_mut("metadata").map_or_else(|| Value::Object(Map::new()), Value::take);
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes() {
        for (object, want) in [
            (
                json!({"kind": "A", "apiVersion": "v1", "spec": {"x": 1}, "metadata": {"name": "n", "resourceVersion": "1"}}),
                json!({"apiVersion": "v1", "kind": "A", "metadata": {"resourceVersion": "7", "name": "n"}, "spec": {"x": 1}}),
            ),
            (
                json!({"kind": "A", "apiVersion": "v1", "metadata": {}}),
                json!({"apiVersion": "v1", "kind": "A", "metadata": {"resourceVersion": "7"}}),
            ),
        ] {
            let bytes = Encoded::new(&object).at(7);
            assert_eq!(parse(&bytes).unwrap(), want);
            assert!(bytes.starts_with(br#"{"kind":"A","apiVersion":"v1","metadata":{"#));
        }
    }
}
