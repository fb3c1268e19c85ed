//! What is kept of an object beside its bytes: just enough to match selectors and to refuse writes early.
//!
//! Must stay small: there is one per object, and objects come by the million.

use serde_json::Value;

use crate::kinds::{self, Selectable};

/// Labels, field-selector values and the few facts that are asked without parsing the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub(crate) labels: Pairs,
    pub(crate) fields: Pairs,
    pub(crate) deleting: bool,
}

/// Names and values in one allocation: `name NUL value NUL ...`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pairs(Box<str>);

/// The store's indexer: what [`Index::of`] says about bytes read back from the disk.
pub fn index(key: &str, value: &[u8]) -> Index {
    // Bytes that are no JSON cannot come from this program; they get an index that only `metadata.name` matches.
    let object = serde_json::from_slice(value).unwrap_or(Value::Null);
    Index::of(kinds::fields_of_key(key), &object)
}

/// Whether stored bytes are an object, and the one that their key names. Says what is wrong otherwise.
pub fn examine(key: &str, value: &[u8]) -> Result<(), String> {
    let object: Value = serde_json::from_slice(value).map_err(|error| format!("is not JSON: {error}"))?;
    let metadata = &object["metadata"];
    for field in ["apiVersion", "kind"] {
        if !object[field].is_string() {
            return Err(format!("has no {field}"));
        }
    }
    let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str().unwrap_or_default());
    let own = namespace.map_or_else(|| format!("/{name}"), |namespace| format!("/{namespace}/{name}"));
    if !key.ends_with(&own) {
        return Err(format!("holds the object {:?}", &own[1..]));
    }
    match metadata["resourceVersion"].as_str().map(str::parse::<u64>) {
        Some(Ok(_)) => Ok(()),
        _ => Err("has no resourceVersion".into()),
    }
}

impl Index {
    pub(crate) fn of(fields: &[Selectable], object: &Value) -> Self {
        let labels = object["metadata"]["labels"].as_object();
        let labels = labels.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?.into())));
        let fields = fields.iter().map(|field| (field.name, text(object, field)));
        Self {
            labels: labels.collect(),
            fields: fields.collect(),
            deleting: !object["metadata"]["deletionTimestamp"].is_null(),
        }
    }
}

impl Pairs {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.0.split('\0');
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
    }
}

impl<'a> FromIterator<(&'a str, String)> for Pairs {
    fn from_iter<T: IntoIterator<Item = (&'a str, String)>>(pairs: T) -> Self {
        let mut text = String::new();
        for (name, value) in pairs {
            for part in [name, &value] {
                text.extend(part.chars().filter(|c| *c != '\0'));
                text.push('\0');
            }
        }
        Self(text.into())
    }
}

/// What a field selector sees at that place of a stored object.
pub(crate) fn field(value: &[u8], field: &Selectable) -> String {
    text(&serde_json::from_slice(value).unwrap_or_default(), field)
}

fn text(object: &Value, field: &Selectable) -> String {
    match object.pointer(field.pointer) {
        None | Some(Value::Null) => field.absent.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_objects() {
        let sound =
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"namespace":"n","name":"a","resourceVersion":"1"}}"#;
        for (key, value, want) in [
            ("core/configmaps/n/a", sound.to_owned(), Ok(())),
            ("core/configmaps/n/b", sound.to_owned(), Err("holds the object \"n/a\"")),
            ("core/configmaps/n/a", sound.replace("\"v1\"", "1"), Err("has no apiVersion")),
            ("core/configmaps/n/a", sound.replace("\"1\"", "\"x\""), Err("has no resourceVersion")),
            ("core/configmaps/n/a", sound[1..].to_owned(), Err("is not JSON: trailing characters at line 1 column 13")),
        ] {
            assert_eq!(examine(key, value.as_bytes()), want.map_err(str::to_owned), "{key} {value}");
        }
    }

    #[test]
    fn pairs() {
        let pairs: Pairs = [("a", "1".to_owned()), ("b", String::new())].into_iter().collect();
        for (name, want) in [("a", Some("1")), ("b", Some("")), ("c", None), ("1", None), ("", None)] {
            assert_eq!(pairs.get(name), want, "{name}");
        }
    }
}
