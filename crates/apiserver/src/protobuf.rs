//! Bodies in Kubernetes' protobuf form, which Go's typed clients send for Kubernetes' own kinds.
//!
//! They are only read: every client that sends protobuf takes JSON as the answer. The numbers and names of fields come
//! from a data file made by `data/extract_protobuf.py`, so no kind has code of its own here.

use std::collections::HashMap;
use std::io::Read;
use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

pub const MEDIA: &str = "application/vnd.kubernetes.protobuf";
pub const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const MAGIC: &[u8] = b"k8s\0";
/// No kind nests half as deep.
const DEEPEST: usize = 32;

/// Fields by number, of each message.
static MESSAGES: LazyLock<HashMap<String, HashMap<u64, Field>>> = LazyLock::new(|| {
    let packed = include_bytes!("../data/protobuf.json.gz");
    let mut text = vec![];
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_end(&mut text)
        .expect("the embedded messages are a gzip file made by data/extract_protobuf.py");
    let messages: HashMap<String, Vec<(u64, String, String, bool)>> =
        serde_json::from_slice(&text).expect("the embedded messages are JSON of this form");
    let field = |(number, name, form, keep): (u64, String, String, bool)| (number, Field { name, form, keep });
    messages.into_iter().map(|(name, fields)| (name, fields.into_iter().map(field).collect())).collect()
});

struct Field {
    /// Empty: the message's own fields stand here.
    name: String,
    form: String,
    /// Whether a zero means something.
    keep: bool,
}

const NO_MAGIC: &str = "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]";

/// The object in a body, or why there is none. `message`: the definition's name of what is expected.
pub fn decode(body: &[u8], message: &str) -> Result<Value, &'static str> {
    match body.strip_prefix(MAGIC) {
        None => Err(NO_MAGIC),
        Some([]) => Err("empty body"),
        Some(content) => envelope(content, message).ok_or("unexpected EOF"),
    }
}

/// `None`: damaged, or something else.
fn envelope(content: &[u8], message: &str) -> Option<Value> {
    let mut wire = Wire(content);
    let (mut kind, mut raw) = (Map::new(), &[][..]);
    while let Some((number, value)) = wire.field()? {
        match (number, value) {
            (1, Raw::Bytes(meta)) => kind = type_meta(meta)?,
            (2, Raw::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut object = kind;
    object.extend(read_message(raw, message, 0)?);
    Some(Value::Object(object))
}

fn type_meta(bytes: &[u8]) -> Option<Map<String, Value>> {
    let mut wire = Wire(bytes);
    let mut kind = Map::new();
    while let Some((number, value)) = wire.field()? {
        if let (Some(name), Raw::Bytes(text)) = ([None, Some("apiVersion"), Some("kind")].get(number as usize)?, value)
        {
            kind.insert((*name).to_owned(), std::str::from_utf8(text).ok()?.into());
        }
    }
    Some(kind)
}

fn read_message(bytes: &[u8], message: &str, depth: usize) -> Option<Map<String, Value>> {
    let fields = MESSAGES.get(message)?;
    if depth > DEEPEST {
        return None;
    }
    let mut wire = Wire(bytes);
    let mut object = Map::new();
    while let Some((number, raw)) = wire.field()? {
        // A field of a newer client is left out, as a server that does not know it would.
        let Some(field) = fields.get(&number) else { continue };
        if field.name.is_empty() {
            let Raw::Bytes(bytes) = raw else { return None };
            object.extend(read_message(bytes, &field.form, depth + 1)?);
        } else if let Some(form) = field.form.strip_prefix("[]") {
            let value = read(raw, form, depth)?;
            push(&mut object, &field.name, value);
        } else if let Some(form) = field.form.strip_prefix("{}") {
            let (key, value) = entry(raw, form, depth)?;
            let map = object.entry(field.name.clone()).or_insert_with(|| Value::Object(Map::new()));
            map.as_object_mut()?.insert(key, value);
        } else {
            let value = read(raw, &field.form, depth)?;
            if field.keep && !value.is_null() || !is_zero(&value) {
                object.insert(field.name.clone(), value);
            }
        }
    }
    Some(object)
}

fn push(object: &mut Map<String, Value>, name: &str, value: Value) {
    let list = object.entry(name).or_insert_with(|| Value::Array(vec![]));
    if let Some(list) = list.as_array_mut() {
        list.push(value);
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(truth) => !truth,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

fn entry(raw: Raw<'_>, form: &str, depth: usize) -> Option<(String, Value)> {
    let Raw::Bytes(bytes) = raw else { return None };
    let mut wire = Wire(bytes);
    let (mut key, mut value) = (String::new(), None);
    while let Some((number, raw)) = wire.field()? {
        match (number, raw) {
            (1, Raw::Bytes(text)) => key = std::str::from_utf8(text).ok()?.to_owned(),
            (2, raw) => value = Some(read(raw, form, depth)?),
            _ => {}
        }
    }
    Some((key, value.unwrap_or_else(|| "".into())))
}

fn read(raw: Raw<'_>, form: &str, depth: usize) -> Option<Value> {
    use base64::Engine;
    let bytes = match (raw, form) {
        (Raw::Number(number), "i") => return Some((number as i64).into()),
        (Raw::Number(number), "b") => return Some((number != 0).into()),
        (Raw::Number(_), _) => return None,
        (Raw::Bytes(bytes), _) => bytes,
    };
    Some(match form {
        "s" => std::str::from_utf8(bytes).ok()?.into(),
        "y" => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        "t" => time(bytes, "%Y-%m-%dT%H:%M:%SZ")?,
        "u" => time(bytes, "%Y-%m-%dT%H:%M:%S%.6fZ")?,
        "q" => text_in(bytes, 1)?,
        "x" => int_or_string(bytes)?,
        "r" => raw_json(bytes)?,
        "i" | "b" => return None,
        form => match form.strip_prefix('V') {
            Some(form) => values(bytes, form, depth)?,
            None => Value::Object(read_message(bytes, form, depth + 1)?),
        },
    })
}

/// A message that is nothing but a list.
fn values(bytes: &[u8], form: &str, depth: usize) -> Option<Value> {
    let mut wire = Wire(bytes);
    let mut values = vec![];
    while let Some((_, raw)) = wire.field()? {
        values.push(read(raw, form, depth)?);
    }
    Some(values.into())
}

/// No time at all is null.
fn time(bytes: &[u8], format: &str) -> Option<Value> {
    let mut wire = Wire(bytes);
    let (mut seconds, mut nanos) = (None, 0);
    while let Some((number, raw)) = wire.field()? {
        match (number, raw) {
            (1, Raw::Number(number)) => seconds = Some(number as i64),
            (2, Raw::Number(number)) => nanos = number as i32,
            _ => return None,
        }
    }
    let Some(seconds) = seconds else { return Some(Value::Null) };
    let time = Timestamp::new(seconds, nanos).ok()?.to_zoned(TimeZone::UTC);
    Some(time.strftime(format).to_string().into())
}

fn text_in(bytes: &[u8], wanted: u64) -> Option<Value> {
    let mut wire = Wire(bytes);
    let mut text = "";
    while let Some((number, raw)) = wire.field()? {
        if let (true, Raw::Bytes(bytes)) = (number == wanted, raw) {
            text = std::str::from_utf8(bytes).ok()?;
        }
    }
    Some(text.into())
}

fn int_or_string(bytes: &[u8]) -> Option<Value> {
    let mut wire = Wire(bytes);
    let (mut is_text, mut number, mut text) = (false, 0, "");
    while let Some((field, raw)) = wire.field()? {
        match (field, raw) {
            (1, Raw::Number(kind)) => is_text = kind == 1,
            (2, Raw::Number(value)) => number = value as i64,
            (3, Raw::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok()?,
            _ => {}
        }
    }
    Some(if is_text { text.into() } else { number.into() })
}

fn raw_json(bytes: &[u8]) -> Option<Value> {
    let mut wire = Wire(bytes);
    let mut value = Value::Null;
    while let Some((number, raw)) = wire.field()? {
        if let (1, Raw::Bytes(bytes)) = (number, raw) {
            value = serde_json::from_slice(bytes).ok()?;
        }
    }
    Some(value)
}

/// What is left of a message.
struct Wire<'a>(&'a [u8]);

enum Raw<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    /// The outer `None`: damaged. The inner: at the end.
    fn field(&mut self) -> Option<Option<(u64, Raw<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.number()?;
        let raw = match tag & 7 {
            0 => Raw::Number(self.number()?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Raw::Bytes(bytes)
            }
            _ => return None,
        };
        Some(Some((tag >> 3, raw)))
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// One length-delimited field.
    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    fn body(content: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, b"v1"), bytes(2, b"X")].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, content)].concat()
    }

    #[test]
    fn decodes() {
        let metadata =
            [bytes(1, b"n"), bytes(2, b""), bytes(8, &[]), bytes(11, &[bytes(1, b"k"), bytes(2, b"v")].concat())];
        let namespace = bytes(1, &metadata.concat());
        for (message, content, want) in [
            (
                "Namespace",
                namespace,
                json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "n", "labels": {"k": "v"}}}),
            ),
            (
                "ConfigMap",
                bytes(3, &[bytes(1, b"k"), bytes(2, b"\xff")].concat()),
                json!({"apiVersion": "v1", "kind": "X", "binaryData": {"k": "/w=="}}),
            ),
            (
                "Event",
                bytes(6, &[1 << 3, 60]),
                json!({"apiVersion": "v1", "kind": "X", "firstTimestamp": "1970-01-01T00:01:00Z"}),
            ),
        ] {
            let decoded = decode(&body(&content), &format!("io.k8s.api.core.v1.{message}"));
            assert_eq!(decoded.unwrap_or_default(), want, "{message}");
        }
        let emptydir = bytes(1, &[bytes(1, b"v"), bytes(2, &bytes(2, &[]))].concat());
        let spec = bytes(2, &[emptydir, vec![4 << 3, 0], vec![11 << 3, 0]].concat());
        let want = json!({"apiVersion": "v1", "kind": "X", "spec": {
            "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0}});
        assert_eq!(decode(&body(&spec), "io.k8s.api.core.v1.Pod"), Ok(want));
        assert_eq!(decode(b"{}", "io.k8s.api.core.v1.Pod"), Err(NO_MAGIC));
    }

    #[test]
    fn any_bytes() {
        let mut messages: Vec<&String> = MESSAGES.keys().collect();
        messages.sort();
        crate::fuzz::try_all("protobuf", |bytes| {
            // Each byte string is of every kind that it could be taken for, a few at a time.
            let first = bytes.len() % messages.len();
            for message in messages.iter().cycle().skip(first).take(8) {
                if let Ok(object) = decode(bytes, message) {
                    assert!(object.to_string().len() <= 64 << 20, "{message} grew out of {} bytes", bytes.len());
                }
            }
            let pod = decode(bytes, "io.k8s.api.core.v1.Pod");
            assert!(pod.is_err() || pod.is_ok_and(|pod| pod.is_object()));
        });
    }
}
