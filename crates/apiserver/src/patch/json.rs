//! JSON patch (RFC 6902), bounded.

use json_patch::{AddOperation, PatchOperation, ReplaceOperation, TestOperation};
use serde_json::Value;

use crate::status::{ApiError, Result};

/// As many as Kubernetes takes.
const MOST_OPERATIONS: usize = 10_000;
/// As much as there the copies of a patch may add, in bytes of JSON: each copy of a copy doubles it.
const MOST_COPIED: usize = 3 << 20;
/// What operations may shift in lists and copy or move elsewhere, in values.
const MOST_WORK: usize = 100_000_000;
/// How deep values may come to lie: bodies are read to a depth of 128, but operations put one below the other.
const MOST_DEEP: usize = 512;

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
    let mut bounds = Bounds::default();
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
        bounds.hold(&lenient, object)?;
        json_patch::patch(object, std::slice::from_ref(&lenient)).map_err(refused)?;
    }
    Ok(())
}

/// What the operations so far have come to.
#[derive(Default)]
struct Bounds {
    copied: usize,
    work: usize,
}

impl Bounds {
    /// Refuses an operation that would go too far.
    fn hold(&mut self, operation: &PatchOperation, object: &Value) -> Result<()> {
        let (path, value) = match operation {
            PatchOperation::Add(add) => (add.path.as_str(), Some(&add.value)),
            PatchOperation::Replace(replace) => (replace.path.as_str(), Some(&replace.value)),
            PatchOperation::Copy(copy) => (copy.path.as_str(), object.pointer(copy.from.as_str())),
            PatchOperation::Move(moved) => {
                self.work += list_around(object, moved.from.as_str());
                (moved.path.as_str(), object.pointer(moved.from.as_str()))
            }
            PatchOperation::Remove(remove) => (remove.path.as_str(), None),
            PatchOperation::Test(_) => return Ok(()),
        };
        let (depth, values) = value.map_or((0, 0), extent);
        self.work += values + list_around(object, path);
        if self.work > MOST_WORK {
            return Err(ApiError::TooLarge("the patch changes long lists too often; replace them as a whole".into()));
        }
        if depth + path.matches('/').count() > MOST_DEEP {
            return Err(ApiError::Unprocessable(format!("the patch puts a value more than {MOST_DEEP} levels deep")));
        }
        if let (PatchOperation::Copy(_), Some(value)) = (operation, value) {
            self.copied += value.to_string().len();
        }
        if self.copied > MOST_COPIED {
            return Err(ApiError::Unprocessable(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit \
                 {MOST_COPIED}",
                self.copied
            )));
        }
        Ok(())
    }
}

/// How deep a value is, and how many it holds.
fn extent(value: &Value) -> (usize, usize) {
    let (mut deepest, mut values) = (0, 0);
    let mut left = vec![(value, 1)];
    while let Some((value, depth)) = left.pop() {
        values += 1;
        deepest = deepest.max(depth);
        match value {
            Value::Object(object) => left.extend(object.values().map(|value| (value, depth + 1))),
            Value::Array(items) => left.extend(items.iter().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    (deepest, values)
}

/// The length of the list that a path leads into.
fn list_around(object: &Value, path: &str) -> usize {
    let parent = path.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent));
    parent.and_then(Value::as_array).map_or(0, Vec::len)
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
        let refused = |object: &Value, patch: Vec<Value>| {
            let patch = decode(Value::from(patch).to_string().as_bytes()).unwrap();
            apply(&mut object.clone(), &patch).unwrap_err().to_string()
        };
        let list = json!({"list": [1]});
        let doubling = vec![json!({"op": "copy", "from": "/list", "path": "/list/-"}); 60];
        let error = refused(&list, doubling);
        assert!(error.contains("Unable to complete the copy, the accumulated size increase of copy is"), "{error}");
        let shifting = vec![json!({"op": "add", "path": "/list/0", "value": 1}); 10_000];
        let error = refused(&json!({"list": vec![0; 100_000]}), shifting);
        assert!(error.contains("the patch changes long lists too often"), "{error}");
        let value = (0..100).fold(json!(1), |value, _| json!({"a": value}));
        let digging = (0..100).map(|i| json!({"op": "add", "path": "/a".repeat(i * 100 + 1), "value": value}));
        let error = refused(&json!({}), digging.collect());
        assert!(error.contains("more than 512 levels deep"), "{error}");
        let nesting = vec![json!({"op": "copy", "from": "/list", "path": format!("/list/0{}", "/0".repeat(99))}); 90];
        let lists = (0..100).fold(json!([1]), |value, _| json!([value]));
        assert!(refused(&json!({"list": lists}), nesting).contains("levels deep"));
    }
}
