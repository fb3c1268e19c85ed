//! Field validation: members that no schema names, and members that are written twice.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Form, Schema};

/// The paths of members that the schema does not know.
pub fn unknown_fields(value: &Value, schema: &Schema) -> Vec<String> {
    let mut found = vec![];
    walk(value, schema, &mut String::new(), &mut found);
    found
}

fn walk(value: &Value, schema: &Schema, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                match schema.member(name) {
                    Some(member) => walk(value, member, path, found),
                    None if schema.preserve_unknown || schema.form == Form::Any => {}
                    None => found.push(path.clone()),
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            schema.visit_items(items, path, |value, schema, path| walk(value, schema, path, found));
        }
        _ => {}
    }
}

/// The paths of members that the same object has twice. Text that is no JSON has none.
pub fn duplicate_fields(text: &[u8]) -> Vec<String> {
    let mut found = vec![];
    let mut decoder = serde_json::Deserializer::from_slice(text);
    let seed = Duplicates { path: String::new(), found: &mut found };
    // A syntax error was already reported by whoever parsed the text for its value.
    let _ = seed.deserialize(&mut decoder);
    found
}

struct Duplicates<'a> {
    path: String,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Duplicates<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, decoder: D) -> Result<(), D::Error> {
        decoder.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Duplicates<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            if !seen.insert(name) {
                self.found.push(path.clone());
            }
            map.next_value_seed(Duplicates { path, found: self.found })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut i = 0;
        while items.next_element_seed(Duplicates { path: format!("{}[{i}]", self.path), found: self.found })?.is_some()
        {
            i += 1;
        }
        Ok(())
    }

    fn visit_newtype_struct<D: serde::Deserializer<'de>>(self, decoder: D) -> Result<(), D::Error> {
        IgnoredAny.visit_newtype_struct(decoder).map(drop)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown() {
        let pod = crate::schema::builtin("io.k8s.api.core.v1.Pod");
        for (object, want) in [
            (json!({"spec": {"containers": [{"name": "a", "imagee": "b"}]}}), vec!["spec.containers[0].imagee"]),
            (json!({"spec": {"nodeSelector": {"anything": "goes"}}, "foo": 1}), vec!["foo"]),
            (json!({"metadata": {"labels": {"a": "b"}, "managedFields": [{"fieldsV1": {"f:x": {}}}]}}), vec![]),
            (json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 1}}}]}}), vec![]),
        ] {
            assert_eq!(unknown_fields(&object, &pod), want, "{object}");
        }
    }

    #[test]
    fn duplicates() {
        for (text, want) in [
            (r#"{"a": 1, "b": {"c": 1, "c": 2}, "d": [{"e": null, "e": "x"}]}"#, vec!["b.c", "d[0].e"]),
            (r#"{"a": 1}"#, vec![]),
            ("no json", vec![]),
        ] {
            assert_eq!(duplicate_fields(text.as_bytes()), want, "{text}");
        }
    }
}
