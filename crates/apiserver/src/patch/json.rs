//! JSON patch (RFC 6902), bounded.

use serde_json::Value;

use crate::status::{ApiError, Result};

/// As many as Kubernetes takes.
const MOST_OPERATIONS: usize = 10_000;

pub fn decode(body: &[u8]) -> Result<json_patch::Patch> {
    let patch: json_patch::Patch =
        serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(format!("error decoding patch: {error}")))?;
    match patch.0.len() {
        n if n > MOST_OPERATIONS => Err(ApiError::BadRequest(format!(
            "The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {n}"
        ))),
        _ => Ok(patch),
    }
}

pub fn apply(object: &mut Value, patch: &json_patch::Patch) -> Result<()> {
    json_patch::patch(object, patch).map_err(|error| ApiError::Unprocessable(error.to_string()))
}
