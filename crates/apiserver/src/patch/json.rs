//! JSON patch (RFC 6902), bounded.

use json_patch::{AddOperation, PatchOperation, ReplaceOperation, TestOperation};
use serde_json::Value;

use crate::status::{ApiError, Result};

/// As many as Kubernetes takes.
const MOST_OPERATIONS: usize = 10_000;

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
        json_patch::patch(object, std::slice::from_ref(&lenient)).map_err(refused)?;
    }
    Ok(())
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
}
