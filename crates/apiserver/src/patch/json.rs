//! JSON patch (RFC 6902), bounded.

use json_patch::{AddOperation, PatchOperation, ReplaceOperation, TestOperation};
use serde_json::Value;

use crate::status::{ApiError, Result};

/// As many as Kubernetes takes.
const MOST_OPERATIONS: usize = 10_000;
/// As much as there the copies of a patch may add, in bytes of JSON: each copy of a copy doubles it.
const MOST_COPIED: usize = 3 << 20;
/// What operations at the head of long lists may shift, in items.
const MOST_SHIFTED: usize = 100_000_000;

pub fn decode(body: &[u8]) -> Result<json_patch::Patch> {
    let patch: json_patch::Patch =
        serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(format!("error decoding patch: {error}")))?;
    match patch.0.len() {
        n if n > MOST_OPERATIONS => Err(ApiError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {n}"
        ))),
        _ => Ok(patch),
    }
}

pub fn apply(object: &mut Value, patch: &json_patch::Patch) -> Result<()> {
    let refused = |error: json_patch::PatchError| ApiError::Unprocessable(error.to_string());
    let (mut copied, mut shifted) = (0, 0);
    for operation in &patch.0 {
        let lenient = match operation {
            // Kubernetes' library replaces members that are not there.
            PatchOperation::Replace(ReplaceOperation { path, value }) if is_new_member(object, path.as_str()) => {
                PatchOperation::Add(AddOperation { path: path.clone(), value: value.clone() })
            }
            // What is absent is null to it: kube-rs asks so whether nobody has set a finalizer.
            PatchOperation::Test(TestOperation { path, value: Value::Null })
                if is_new_member(object, path.as_str()) =>
            {
                continue;
            }
            other => other.clone(),
        };
        copied += copied_by(&lenient, object);
        if copied > MOST_COPIED {
            return Err(ApiError::Unprocessable(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit \
                 {MOST_COPIED}"
            )));
        }
        shifted += shifted_by(&lenient, object);
        if shifted > MOST_SHIFTED {
            return Err(ApiError::TooLarge("the patch changes long lists too often; replace them as a whole".into()));
        }
        json_patch::patch(object, std::slice::from_ref(&lenient)).map_err(refused)?;
    }
    Ok(())
}

fn copied_by(operation: &PatchOperation, object: &Value) -> usize {
    let PatchOperation::Copy(copy) = operation else { return 0 };
    object.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len())
}

fn shifted_by(operation: &PatchOperation, object: &Value) -> usize {
    let list = |path: &str| {
        let parent = path.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent));
        parent.and_then(Value::as_array).map_or(0, Vec::len)
    };
    match operation {
        PatchOperation::Add(add) => list(add.path.as_str()),
        PatchOperation::Remove(remove) => list(remove.path.as_str()),
        PatchOperation::Copy(copy) => list(copy.path.as_str()),
        PatchOperation::Move(moved) => list(moved.from.as_str()) + list(moved.path.as_str()),
        PatchOperation::Replace(_) | PatchOperation::Test(_) => 0,
    }
}

fn is_new_member(object: &Value, path: &str) -> bool {
    let parent = path.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent));
    parent.is_some_and(Value::is_object) && object.pointer(path).is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn applies() {
        let object = json!({"data": {"k": "v"}, "list": [1]});
        for (patch, want) in [
            (json!([]), Some(object.clone())),
            (
                json!([{"op": "replace", "path": "/data/new", "value": 1}]),
                Some(json!({"data": {"k": "v", "new": 1}, "list": [1]})),
            ),
            (json!([{"op": "replace", "path": "/list/3", "value": 1}]), None),
            (json!([{"op": "replace", "path": "/no/where", "value": 1}]), None),
            (json!([{"op": "remove", "path": "/data/absent"}]), None),
            (json!([{"op": "test", "path": "/data/k", "value": "w"}]), None),
            (json!([{"op": "test", "path": "/data/k", "value": null}]), None),
            (json!([{"op": "test", "path": "/data/absent", "value": null}]), Some(object.clone())),
            (json!([{"op": "test", "path": "/absent", "value": null}]), Some(object.clone())),
            (json!([{"op": "test", "path": "/absent/too", "value": null}]), None),
            (json!([{"op": "test", "path": "/list/3", "value": null}]), None),
        ] {
            let mut patched = object.clone();
            let decoded = decode(patch.to_string().as_bytes()).unwrap();
            let done = apply(&mut patched, &decoded).ok().map(|()| patched);
            assert_eq!(done, want, "{patch}");
        }
    }

    #[test]
    fn is_bounded() {
        let doubling = json!(vec![json!({"op": "copy", "from": "/data", "path": "/data/again"}); 60]);
        let refused = |object: &Value, patch: &Value| {
            apply(&mut object.clone(), &decode(patch.to_string().as_bytes()).unwrap()).unwrap_err().to_string()
        };
        let error = refused(&json!({"data": {"k": "v"}}), &doubling);
        assert!(error.starts_with("Unable to complete the copy, the accumulated size increase of copy is"), "{error}");
        let shifting = json!(vec![json!({"op": "add", "path": "/list/0", "value": 1}); 10_000]);
        let error = refused(&json!({"list": vec![0; 100_000]}), &shifting);
        assert!(error.contains("the patch changes long lists too often"), "{error}");
    }
}
