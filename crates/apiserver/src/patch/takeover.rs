//! From client-side to server-side apply: what kubectl wrote into an annotation, and how it goes on with it.
//!
//! The surprise: only the manager `kubectl` is treated so. Its earlier self had another name, and would be in its way.

use serde_json::Value;

/// The manager of `kubectl apply --server-side`.
pub const KUBECTL: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// A longer one is not kept: it is the limit of all annotations together.
const LONGEST: usize = 256 << 10;

/// What was applied last from the client's side.
pub fn last_applied(live: &Value) -> Option<Value> {
    serde_json::from_str(live["metadata"]["annotations"][ANNOTATION].as_str()?).ok()
}

/// Says in `object` what is applied now, so that a client-side apply can go on from there.
pub fn record(object: &mut Value, config: &Value) {
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.shift_remove(ANNOTATION);
        }
    }
    config.sort_all_objects();
    let text = format!("{config}\n");
    let annotations = object.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations"));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut).filter(|_| text.len() <= LONGEST) {
        annotations.insert(ANNOTATION.into(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn goes_on_from_the_annotation() {
        let mut live = json!({"metadata": {"annotations": {ANNOTATION: r#"{"data":{"k":"v"}}"#, "a": "b"}}});
        assert_eq!(last_applied(&live), Some(json!({"data": {"k": "v"}})));
        record(&mut live, &json!({"kind": "A", "data": {"k": "w"}, "metadata": {"managedFields": []}}));
        let text = "{\"data\":{\"k\":\"w\"},\"kind\":\"A\",\"metadata\":{}}\n";
        assert_eq!(live["metadata"]["annotations"], json!({ANNOTATION: text, "a": "b"}));
        for none in [json!({}), json!({"metadata": {"annotations": {ANNOTATION: "no json"}}})] {
            assert_eq!(last_applied(&none), None, "{none}");
        }
    }
}
