//! The rules of `metadata`: names, labels, what the server alone writes.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::forms::{label_faults, label_value_faults, qualified_faults, subdomain_faults};
use crate::kinds::Kind;
use crate::status::{ApiError, Fault, FieldError, Result};

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
    for (field, wanted, what) in
        [("apiVersion", kind.stored().api_version(), "API version"), ("kind", kind.stored().kind.to_owned(), "kind")]
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
    let Some(wanted) = name else { return Ok(()) };
    if metadata.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        metadata.insert("name".into(), wanted.into());
    }
    bears_its_name(object, wanted)
}

/// Refuses an object of another name than its path has.
pub fn bears_its_name(object: &Value, wanted: &str) -> Result<()> {
    match object["metadata"]["name"].as_str().filter(|name| !name.is_empty()) {
        Some(given) if given != wanted => Err(ApiError::BadRequest(format!(
            "the name of the object ({given}) does not match the name on the URL ({wanted})"
        ))),
        _ => Ok(()),
    }
}

/// Refuses an applied object that is not of this kind, or does not say of which.
pub fn says_what_it_is(config: &Value, kind: &Kind) -> Result<()> {
    let text = |field: &str| config[field].as_str().unwrap_or_default();
    let (api_version, given) = (text("apiVersion"), text("kind"));
    if api_version == kind.api_version() && given == kind.kind {
        return Ok(());
    }
    let group = if api_version.contains('/') { "" } else { "/" };
    Err(ApiError::BadRequest(format!("invalid object type: {group}{api_version}, Kind={given}")))
}

/// Refuses an object without a name, where its path has one.
pub fn says_its_name(object: &Value, name: &str) -> Result<()> {
    match object["metadata"]["name"].as_str() {
        Some(given) if !given.is_empty() => Ok(()),
        _ => Err(ApiError::BadRequest(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
    }
}

/// Refuses a patch that gives an object another identity; a uid that is taken away is the same.
pub fn keeps_its_uid(new: &Value, old: &Value, kind: &Kind) -> Result<()> {
    let (given, is) = (new["metadata"]["uid"].as_str().unwrap_or_default(), &old["metadata"]["uid"]);
    if given.is_empty() || is == given {
        return Ok(());
    }
    let errors = vec![FieldError::invalid("metadata.uid", given, "field is immutable")];
    let name = old["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Err(ApiError::Invalid { resource: kind.resource(), name, errors })
}

/// What is wrong with the metadata of an object that is complete.
pub fn validate(object: &Value, kind: &Kind) -> Vec<FieldError> {
    let metadata = &object["metadata"];
    let mut errors = vec![];
    match metadata["name"].as_str() {
        None | Some("") => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        Some(name) => {
            if let Some(prefix) = metadata["generateName"].as_str().filter(|prefix| !prefix.is_empty()) {
                // What is added ends with a letter or a number, so that it may end with neither.
                let whole = prefix.strip_suffix('-').map_or(prefix.to_owned(), |start| format!("{start}a"));
                let faults = name_faults(&whole, kind).into_iter();
                errors.extend(faults.map(|why| FieldError::invalid("metadata.generateName", prefix, why)));
            }
            let faults = name_faults(name, kind).into_iter();
            errors.extend(faults.map(|why| FieldError::invalid("metadata.name", name, why)));
        }
    }
    let texts = |field: &str| metadata[field].as_object().into_iter().flatten();
    for (key, value) in texts("labels") {
        let faults = qualified_faults(key);
        errors.extend(faults.into_iter().map(|why| FieldError::invalid("metadata.labels", key.as_str(), why)));
        let faults = label_value_faults(value.as_str().unwrap_or_default());
        errors.extend(faults.into_iter().map(|why| FieldError::invalid("metadata.labels", value.clone(), why)));
    }
    let mut size = 0;
    for (key, value) in texts("annotations") {
        let faults = qualified_faults(&key.to_ascii_lowercase());
        errors.extend(faults.into_iter().map(|why| FieldError::invalid("metadata.annotations", key.as_str(), why)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MOST_ANNOTATIONS {
        let fault = Fault::TooLong { most: MOST_ANNOTATIONS };
        errors.push(FieldError { field: "metadata.annotations".into(), fault });
    }
    errors.extend(owners(&metadata["ownerReferences"]));
    errors.extend(finalizers(&metadata["finalizers"], kind));
    errors
}

fn owners(list: &Value) -> Vec<FieldError> {
    const FIELD: &str = "metadata.ownerReferences";
    let mut errors = vec![];
    let owners = list.as_array().map(Vec::as_slice).unwrap_or_default();
    for owner in owners {
        for (field, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::invalid(format!("{FIELD}.{field}"), "", why));
            }
        }
        if owner["apiVersion"] == "v1" && owner["kind"] == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(FIELD, owner.clone(), why));
        }
    }
    let controllers: Vec<&str> =
        owners.iter().filter(|owner| owner["controller"] == true).filter_map(|owner| owner["name"].as_str()).collect();
    if let [first, second, ..] = controllers[..] {
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        errors.push(FieldError::invalid(FIELD, list.clone(), why));
    }
    errors
}

/// The finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

fn finalizers(list: &Value, kind: &Kind) -> Vec<FieldError> {
    let mut errors = vec![];
    for (i, finalizer) in list.as_array().into_iter().flatten().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        let faults = qualified_faults(name);
        if faults.is_empty() && !kind.is_custom() && !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(format!("metadata.finalizers[{i}]"), name, why));
        }
        errors.extend(faults.into_iter().map(|why| FieldError::invalid("metadata.finalizers", name, why)));
    }
    errors
}

/// What is wrong with the metadata of an object that takes the place of `old`.
pub fn validate_change(object: &Value, old: &Value) -> Vec<FieldError> {
    let (new, old) = (&object["metadata"], &old["metadata"]);
    let had = |name: &Value| old["finalizers"].as_array().is_some_and(|list| list.contains(name));
    let added = new["finalizers"].as_array().into_iter().flatten().filter(|name| !had(name));
    let added: Vec<String> = added.map(Value::to_string).collect();
    if added.is_empty() || old["deletionTimestamp"].is_null() {
        return vec![];
    }
    let added = added.join(", ");
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{added}}}"
    );
    vec![FieldError::forbidden("metadata.finalizers", &why)]
}

fn name_faults(name: &str, kind: &Kind) -> Vec<String> {
    // These become host names.
    if matches!(kind.plural, "namespaces" | "services") { label_faults(name) } else { subdomain_faults(name) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_checked() {
        let kinds = crate::kinds::Kinds::new();
        let map = kinds.find("", "v1", "configmaps").unwrap();
        let owner = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true});
        for (metadata, want) in [
            (json!({"name": "a", "labels": {"a.b/c": "v", "d": ""}, "finalizers": ["a.b/c", "orphan"]}), ""),
            (json!({}), "metadata.name: Required value: name or generateName is required"),
            (
                json!({"name": "a", "finalizers": ["odd"]}),
                "metadata.finalizers[0]: Invalid value: \"odd\": name is neither a standard finalizer name nor is it fully qualified",
            ),
            (
                json!({"name": "a", "ownerReferences": [{"kind": "A", "name": "b", "uid": "u"}]}),
                "metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty",
            ),
            (
                json!({"name": "a", "ownerReferences": [owner("Event", "b")]}),
                "/v1, Kind=Event is disallowed from being an owner",
            ),
            (
                json!({"name": "a", "ownerReferences": [owner("A", "b"), owner("A", "c")]}),
                "Only one reference can have Controller set to true. Found \"true\" in references for b and c",
            ),
            (
                json!({"name": "a", "annotations": {"a": "x".repeat(MOST_ANNOTATIONS)}}),
                "metadata.annotations: Too long: may not be more than 262144 bytes",
            ),
        ] {
            let errors = validate(&json!({"metadata": metadata}), map);
            let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert!(said.join("").ends_with(want) && said.is_empty() == want.is_empty(), "{metadata}: {said:?}");
        }
        let dying = json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a/b"]}});
        for (finalizers, want) in [(json!([]), 0), (json!(["a/b"]), 0), (json!(["a/b", "a/c"]), 1)] {
            let new = json!({"metadata": {"finalizers": finalizers}});
            assert_eq!(validate_change(&new, &dying).len(), want, "{new}");
            assert_eq!(validate_change(&new, &json!({"metadata": {}})).len(), 0, "{new}");
        }
    }

    #[test]
    fn generated() {
        let name = generate_name("abc-");
        assert!(name.starts_with("abc-") && name.len() == 9 && label_faults(&name).is_empty(), "{name}");
        assert_eq!(generate_name(&"x".repeat(100)).len(), 63);
        let uid = new_uid();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
    }
}
