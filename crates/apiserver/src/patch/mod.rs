//! The four kinds of patches. All are pure: an object and a patch give an object.

mod apply;
mod json;
mod merge;
mod strategic;
mod takeover;

use serde_json::Value;

use crate::schema::Schema;
use crate::status::{ApiError, Result};

pub use apply::{applied_config, merge_applied, remove_given_up};
pub use takeover::{KUBECTL, last_applied, record};

/// The media type of an applied configuration.
pub const APPLY: &str = "application/apply-patch+yaml";

/// Which kind of patch a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Format {
    /// By the body's media type; strategic merge is only for Kubernetes' own kinds.
    pub fn of(media: &str, custom: bool) -> Result<Self> {
        match media {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" if !custom => Ok(Self::Strategic),
            APPLY => Ok(Self::Apply),
            _ => {
                let strategic = if custom { "" } else { ", application/strategic-merge-patch+json" };
                Err(ApiError::UnsupportedMediaType(format!(
                    "application/json-patch+json, application/merge-patch+json{strategic}, application/apply-patch+yaml"
                )))
            }
        }
    }
}

/// A decoded patch that needs no more than the object it is for.
#[derive(Clone, Debug)]
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// `Format::Apply` is no patch of this sort: it also needs to know who owns what.
    pub fn decode(format: Format, body: &[u8]) -> Result<Self> {
        let object = || -> Result<Value> {
            let value: Value = serde_json::from_slice(body)
                .map_err(|error| ApiError::BadRequest(format!("error decoding patch: {error}")))?;
            if value.is_object() { Ok(value) } else { Err(ApiError::BadRequest("the patch is not an object".into())) }
        };
        match format {
            Format::Json => json::decode(body).map(Self::Json),
            Format::Strategic => object().map(Self::Strategic),
            Format::Merge | Format::Apply => object().map(Self::Merge),
        }
    }

    /// Only these address parts of an object that they do not name.
    pub fn is_json(&self) -> bool {
        matches!(self, Self::Json(_))
    }

    pub fn apply(&self, object: &Value, schema: &Schema) -> Result<Value> {
        let mut patched = object.clone();
        match self {
            Self::Json(patch) => json::apply(&mut patched, patch)?,
            Self::Merge(patch) => merge::apply(&mut patched, patch),
            Self::Strategic(patch) => strategic::apply(&mut patched, patch, schema)?,
        }
        if patched.is_object() {
            Ok(patched)
        } else {
            Err(ApiError::BadRequest("the patched object is no object".into()))
        }
    }
}
