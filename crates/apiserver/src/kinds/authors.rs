//! Who made an object of Knative's and who changed what it says, as Knative's webhook notes it in annotations. What another
//! object owns carries its owner's.

use serde_json::{Map, Value};

use crate::status::FieldError;

const CREATOR: &str = "serving.knative.dev/creator";
const LAST_MODIFIER: &str = "serving.knative.dev/lastModifier";

/// Notes that `user` wrote the object; with the object as it was, on updates.
pub fn sign(object: &mut Value, old: Option<&Value>, user: &str) {
    let is_owned = object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    if is_owned {
        return;
    }
    let noted = |object: &Value, name: &str| object["metadata"]["annotations"].get(name).cloned();
    let before = |name: &str| old.and_then(|old| noted(old, name));
    let creator = match old {
        None => Some(user.into()),
        // Whoever replaces the object need not know who made it.
        Some(_) => noted(object, CREATOR).or_else(|| before(CREATOR)),
    };
    let is_changed = old.is_none_or(|old| old["spec"] != object["spec"]);
    let modifier = if is_changed { Some(user.into()) } else { before(LAST_MODIFIER) };
    for (name, value) in [(CREATOR, creator), (LAST_MODIFIER, modifier)] {
        let Some(value) = value else { continue };
        let annotations = &mut object["metadata"]["annotations"];
        if annotations.is_null() {
            *annotations = Value::Object(Map::new());
        }
        // What is of another type is refused later.
        let Some(annotations) = annotations.as_object_mut() else { return };
        annotations.insert(name.to_owned(), value);
    }
}

/// Nobody else becomes the maker of what is there.
pub fn changed_creator(object: &Value, old: Option<&Value>) -> Option<FieldError> {
    let creator = |object: &Value| object["metadata"]["annotations"].get(CREATOR).cloned();
    let (now, before) = (creator(object)?, creator(old?)?);
    let field = format!("metadata.annotations.{CREATOR}");
    (now != before).then(|| FieldError::invalid(field, now, "annotation value is immutable"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn signs() {
        let noted = |annotations: Value, spec: i64| json!({"metadata": {"annotations": annotations}, "spec": spec});
        let by = |creator: &str, modifier: &str| json!({CREATOR: creator, LAST_MODIFIER: modifier});
        let old = noted(by("a", "b"), 1);
        for (case, given, old, want) in [
            ("new", json!({"metadata": {}, "spec": 1}), None, by("me", "me")),
            ("new, of another", noted(by("a", "b"), 1), None, by("me", "me")),
            ("changed", noted(by("a", "b"), 2), Some(&old), by("a", "me")),
            ("replaced", json!({"metadata": {"annotations": null}, "spec": 2}), Some(&old), by("a", "me")),
            ("unchanged", noted(json!({}), 1), Some(&old), by("a", "b")),
        ] {
            let mut object = given;
            sign(&mut object, old, "me");
            assert_eq!(object["metadata"]["annotations"], want, "{case}");
            assert!(changed_creator(&object, old).is_none(), "{case}");
        }
        let mut owned = json!({"metadata": {"ownerReferences": [{}]}, "spec": 1});
        sign(&mut owned, None, "me");
        assert_eq!(owned["metadata"].get("annotations"), None);
        assert!(changed_creator(&noted(by("c", "b"), 1), Some(&old)).is_some());
    }
}
