//! The equality gate: is what we want already there?
//!
//! Wanted fields must be present and equal; fields the server or others added do not matter. Removal of a field
//! we once wanted is seen by the hash of the last applied object, kept in one annotation.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// On every object that Dhow applies: the hash of what was applied.
pub const APPLIED: &str = "dhow.dev/applied";

/// Puts the hash of `wanted` into its annotations.
pub fn stamp(wanted: &mut Value) {
    let hash = hex::encode(&Sha256::digest(wanted.to_string().as_bytes())[..8]);
    wanted["metadata"]["annotations"][APPLIED] = Value::String(hash);
}

/// Whether every wanted field is already in the observed object.
pub fn satisfied(observed: &Value, wanted: &Value) -> bool {
    let (Some(observed), Some(wanted)) = (observed.as_object(), wanted.as_object()) else { return observed == wanted };
    wanted.iter().all(|(key, want)| {
        let have = observed.get(key);
        if key == "metadata" { metadata_satisfied(have, want) } else { field_satisfied(have, want) }
    })
}

/// Owner references and finalizers are sets with several writers: ours must be among them.
fn metadata_satisfied(have: Option<&Value>, want: &Value) -> bool {
    let empty = Value::Null;
    let have = have.unwrap_or(&empty);
    want.as_object().into_iter().flatten().all(|(key, want)| match (key.as_str(), want) {
        ("ownerReferences" | "finalizers", Value::Array(wanted)) => {
            let present = have.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            wanted.iter().all(|w| present.iter().any(|p| field_satisfied(Some(p), w)))
        }
        _ => field_satisfied(have.get(key), want),
    })
}

fn field_satisfied(have: Option<&Value>, want: &Value) -> bool {
    match (have, want) {
        (None, Value::Null) => true,
        (None, Value::Object(o)) => o.is_empty(),
        (None, Value::Array(a)) => a.is_empty(),
        (None, _) => false,
        (Some(Value::Object(have)), Value::Object(want)) => want.iter().all(|(k, w)| field_satisfied(have.get(k), w)),
        (Some(Value::Array(have)), Value::Array(want)) => {
            have.len() == want.len() && have.iter().zip(want).all(|(h, w)| field_satisfied(Some(h), w))
        }
        (Some(have), want) => have == want,
    }
}

/// Whether a JSON merge patch would change nothing.
pub fn patch_is_noop(observed: &Value, patch: &Value) -> bool {
    match patch {
        Value::Object(fields) => {
            observed.is_object()
                && fields.iter().all(|(key, want)| match (observed.get(key), want) {
                    (None, Value::Null) => true,
                    (None, Value::Object(_)) => patch_is_noop(&Value::Object(Default::default()), want),
                    (None, _) => false,
                    (Some(have), want) => patch_is_noop(have, want),
                })
        }
        other => observed == other,
    }
}

/// Applies a JSON merge patch (RFC 7386).
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    let Value::Object(object) = target else { return };
    for (key, want) in fields {
        if want.is_null() {
            object.shift_remove(key);
        } else {
            merge_patch(object.entry(key.clone()).or_insert(Value::Null), want);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wanted_fields_decide() {
        for (name, observed, wanted, want) in [
            ("equal", json!({"spec": {"a": 1}}), json!({"spec": {"a": 1}}), true),
            ("server default", json!({"spec": {"a": 1, "b": 2}}), json!({"spec": {"a": 1}}), true),
            ("changed", json!({"spec": {"a": 1}}), json!({"spec": {"a": 2}}), false),
            ("missing", json!({"spec": {}}), json!({"spec": {"a": 2}}), false),
            ("empty is absent", json!({"spec": {}}), json!({"spec": {"a": {}, "b": []}}), true),
            ("list grew", json!({"spec": {"a": [1, 2]}}), json!({"spec": {"a": [1]}}), false),
            ("list defaults", json!({"s": [{"n": 1, "d": 2}]}), json!({"s": [{"n": 1}]}), true),
            (
                "other owner",
                json!({"metadata": {"ownerReferences": [{"uid": "x"}, {"uid": "y"}]}}),
                json!({"metadata": {"ownerReferences": [{"uid": "y"}]}}),
                true,
            ),
        ] {
            assert_eq!(satisfied(&observed, &wanted), want, "{name}");
        }
    }

    #[test]
    fn patches() {
        for (name, observed, patch, noop, after) in [
            ("same", json!({"a": 1}), json!({"a": 1}), true, json!({"a": 1})),
            ("set", json!({"a": 1}), json!({"b": {"c": 2}}), false, json!({"a": 1, "b": {"c": 2}})),
            ("remove", json!({"a": 1}), json!({"a": null}), false, json!({})),
            ("already removed", json!({}), json!({"a": null}), true, json!({})),
            ("nothing to remove from", json!({}), json!({"a": {"b": null}}), true, json!({"a": {}})),
            ("list is atomic", json!({"a": [1]}), json!({"a": [2]}), false, json!({"a": [2]})),
        ] {
            assert_eq!(patch_is_noop(&observed, &patch), noop, "{name}");
            let mut target = observed;
            merge_patch(&mut target, &patch);
            assert_eq!(target, after, "{name}");
        }
    }

    #[test]
    fn hash_tells_removal() {
        let mut one = json!({"spec": {"a": 1, "b": 2}});
        let mut two = json!({"spec": {"a": 1}});
        stamp(&mut one);
        stamp(&mut two);
        assert!(!satisfied(&one, &two));
    }
}
