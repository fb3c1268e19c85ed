//! The rules of `metadata`: names, labels, what the server alone writes.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::kinds::Kind;
use crate::status::{ApiError, FieldError, Result};

const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;
/// All annotations of an object together, as in Kubernetes.
const MOST_ANNOTATIONS: usize = 256 << 10;
/// Letters of generated names: no vowels, so that no words come out.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED: usize = 5;

/// A random version 4 UUID.
pub fn new_uid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

/// `prefix` with a random ending, as `generateName` asks for.
pub fn generate_name(prefix: &str) -> String {
    let most = LONGEST_LABEL - GENERATED;
    let prefix: String = prefix.chars().take(most).collect();
    let ending = random::<GENERATED>().map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()]));
    prefix + &ending.iter().collect::<String>()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes once it has booted");
    bytes
}

/// Kubernetes' times are whole seconds.
pub fn time(now: Timestamp) -> String {
    api::condition::whole_seconds(now).to_string()
}

/// The object's metadata, made when it is missing.
pub fn of(object: &mut Value) -> Result<&mut Map<String, Value>> {
    let bad = || ApiError::BadRequest("metadata must be an object".into());
    let object = object.as_object_mut().ok_or_else(bad)?;
    object.entry("metadata").or_insert_with(|| Value::Object(Map::new())).as_object_mut().ok_or_else(bad)
}

/// Checks that the object is what its path says, and completes it.
pub fn identify(object: &mut Value, kind: &Kind, namespace: Option<&str>, name: Option<&str>) -> Result<()> {
    let stored = kind.stored();
    for (field, wanted, what) in
        [("apiVersion", stored.api_version(), "API version"), ("kind", stored.kind.to_owned(), "kind")]
    {
        match object[field].as_str() {
            None | Some("") => object[field] = wanted.into(),
            Some(given) if given != wanted => {
                return Err(ApiError::BadRequest(format!(
                    "the {what} in the data ({given}) does not match the expected {what} ({wanted})"
                )));
            }
            Some(_) => {}
        }
    }
    let metadata = of(object)?;
    match (metadata.get("namespace").and_then(Value::as_str).filter(|n| !n.is_empty()), namespace) {
        (Some(given), Some(wanted)) if given != wanted => {
            return Err(ApiError::BadRequest(
                "the namespace of the provided object does not match the namespace sent on the request".into(),
            ));
        }
        (_, Some(wanted)) => {
            metadata.insert("namespace".into(), wanted.into());
        }
        (_, None) => {
            metadata.shift_remove("namespace");
        }
    }
    let given = metadata.get("name").and_then(Value::as_str).filter(|n| !n.is_empty());
    match (given, name) {
        (Some(given), Some(wanted)) if given != wanted => Err(ApiError::BadRequest(format!(
            "the name of the object ({given}) does not match the name on the URL ({wanted})"
        ))),
        (None, Some(wanted)) => {
            metadata.insert("name".into(), wanted.into());
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What is wrong with the metadata of an object that is complete.
pub fn validate(object: &Value, kind: &Kind) -> Vec<FieldError> {
    let metadata = &object["metadata"];
    let mut errors = vec![];
    match metadata["name"].as_str() {
        None | Some("") => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        Some(name) => errors.extend(validate_name(name, kind)),
    }
    let texts = |field: &str| metadata[field].as_object().into_iter().flatten();
    for (key, value) in texts("labels") {
        if !is_qualified(key) {
            errors.push(FieldError::invalid("metadata.labels", key.as_str(), QUALIFIED));
        }
        match value.as_str() {
            Some(value) if is_label_value(value) => {}
            _ => errors.push(FieldError::invalid("metadata.labels", value.clone(), LABEL_VALUE)),
        }
    }
    let mut size = 0;
    for (key, value) in texts("annotations") {
        if !is_qualified(&key.to_ascii_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", key.as_str(), QUALIFIED));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MOST_ANNOTATIONS {
        let detail = format!("may not be more than {MOST_ANNOTATIONS} bytes");
        errors.push(FieldError::invalid("metadata.annotations", size, detail));
    }
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten() {
        if !finalizer.as_str().is_some_and(is_qualified) {
            errors.push(FieldError::invalid("metadata.finalizers", finalizer.clone(), QUALIFIED));
        }
    }
    for (i, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::required(format!("metadata.ownerReferences[{i}].{field}"), ""));
            }
        }
    }
    errors
}

const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                         with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                           '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                           'my_value',  or '12345', regex used for validation is \
                           '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                         '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used \
                         for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

fn validate_name(name: &str, kind: &Kind) -> Option<FieldError> {
    // These become host names.
    let label = matches!(kind.plural, "namespaces" | "services");
    let fits = if label { is_dns_label(name) } else { is_subdomain(name) };
    (!fits).then(|| FieldError::invalid("metadata.name", name, if label { LABEL } else { SUBDOMAIN }))
}

fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=LONGEST_LABEL).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    // Only the whole name is bounded.
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= LONGEST_NAME && text.split('.').all(part)
}

fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name_part(text)
}

fn is_name_part(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    (1..=LONGEST_LABEL).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && end(text.chars().next())
        && end(text.chars().last())
}

fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, label, subdomain, qualified) in [
            ("abc", true, true, true),
            ("a-b.c", false, true, true),
            ("-a", false, false, false),
            ("A", false, false, true),
            ("", false, false, false),
            ("a.example/B_c", false, false, true),
            ("a/b/c", false, false, false),
            (&"x".repeat(64), false, true, false),
        ] {
            assert_eq!(
                (is_dns_label(text), is_subdomain(text), is_qualified(text)),
                (label, subdomain, qualified),
                "{text}"
            );
        }
    }

    #[test]
    fn generated() {
        let name = generate_name("abc-");
        assert!(name.starts_with("abc-") && name.len() == 9 && is_dns_label(&name), "{name}");
        assert_eq!(generate_name(&"x".repeat(100)).len(), 63);
        let uid = new_uid();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
    }
}
