//! Bodies of writes: decoded, and searched for what no schema knows.

use http::{Response, StatusCode};
use serde_json::Value;

use super::{Call, object};
use crate::ResponseBody;
use crate::auth::User;
use crate::kinds::Shape;
use crate::protobuf;
use crate::request::{FieldValidation, content_type, decode};
use crate::schema;
use crate::status::{ApiError, FieldError, Result};

pub const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The body of a POST or PUT, or an applied configuration.
pub fn body(call: &Call<'_>, body: &[u8]) -> Result<Value> {
    let media = content_type(&call.parts.headers);
    let message = match &call.kind.shape {
        Shape::Builtin(name) if call.subresource != Some("scale") => Some(*name),
        Shape::Builtin(_) => Some(SCALE),
        Shape::Custom(_) | Shape::Defined(_) => None,
    };
    let object = decode(body, media, message)?;
    if call.subresource != Some("scale") {
        let misfit = match call.kind.is_custom() {
            false => schema::misfit(&object, call.kind.schema(), call.kind.kind),
            true => {
                // Of an applied object it is asked in other words.
                if call.parts.method != http::Method::PATCH {
                    says_its_kind(call, &object, body)?;
                }
                schema::misfit(&object["metadata"], &schema::builtin(schema::OBJECT_META), "ObjectMeta")
            }
        };
        misfit.map_or(Ok(()), |why| Err(unfit(call, &why)))?;
    }
    let duplicates = match validation(call) {
        FieldValidation::Ignore => vec![],
        _ if media == protobuf::MEDIA => vec![],
        _ => schema::duplicate_fields(body),
    };
    call.say(screen(call, &object, duplicates)?);
    Ok(object)
}

/// Nobody guesses what an object of a defined kind is.
fn says_its_kind(call: &Call<'_>, object: &Value, body: &[u8]) -> Result<()> {
    const SHOWN: usize = 30;
    let is_missing = |field: &str| object[field].as_str().is_none_or(str::is_empty);
    let missing = [("kind", "Kind"), ("apiVersion", "apiVersion")].into_iter().find(|(field, _)| is_missing(field));
    let Some((_, name)) = missing.filter(|_| matches!(call.kind.shape, Shape::Defined(_))) else { return Ok(()) };
    let (kind, body) = (call.kind.kind, String::from_utf8_lossy(body));
    let start: String = body.chars().take(SHOWN).collect();
    Err(ApiError::BadRequest(format!(
        "the object provided is unrecognized (must be of type {kind}): Object '{name}' is missing in '{body}' ({start} ...)"
    )))
}

/// What a patch made unknown. What was unknown before is not this client's fault.
pub fn screen_patched(call: &Call<'_>, old: &Value, new: &Value) -> Result<Vec<String>> {
    if validation(call) == FieldValidation::Ignore || call.subresource == Some("scale") {
        return Ok(vec![]);
    }
    let before = schema::unknown_fields(old, call.kind.schema());
    let mut unknown = schema::unknown_fields(new, call.kind.schema());
    unknown.retain(|field| !before.contains(field));
    report(call, unknown, vec![])
        .map_err(|why| ApiError::InvalidPatch(Box::new(FieldError::invalid("patch", new.to_string(), why))))
}

fn screen(call: &Call<'_>, object: &Value, duplicates: Vec<String>) -> Result<Vec<String>> {
    if validation(call) == FieldValidation::Ignore || call.subresource == Some("scale") {
        return Ok(vec![]);
    }
    report(call, schema::unknown_fields(object, call.kind.schema()), duplicates).map_err(|why| unfit(call, &why))
}

/// The warnings, or why it is refused.
fn report(call: &Call<'_>, unknown: Vec<String>, duplicates: Vec<String>) -> Result<Vec<String>, String> {
    let unknown = unknown.into_iter().map(|f| format!("unknown field {f:?}"));
    let duplicate = duplicates.into_iter().map(|f| format!("duplicate field {f:?}"));
    // Of defined kinds what is there twice comes first, and what is unknown in the order of its names.
    let mut unknown: Vec<String> = unknown.collect();
    if call.kind.is_custom() {
        unknown.sort();
    }
    let found: Vec<String> = match call.kind.is_custom() {
        true => duplicate.chain(unknown).collect(),
        false => unknown.into_iter().chain(duplicate).collect(),
    };
    if validation(call) == FieldValidation::Strict && !found.is_empty() {
        return Err(format!("strict decoding error: {}", found.join(", ")));
    }
    Ok(found)
}

/// The body is no object of the kind.
fn unfit(call: &Call<'_>, why: &str) -> ApiError {
    let (kind, version) = (call.kind.kind, call.kind.version);
    ApiError::BadRequest(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

/// The program's own components are compiled against the types: they get no warnings that nobody would read.
fn validation(call: &Call<'_>) -> FieldValidation {
    let default = if call.caller.trusted { FieldValidation::Ignore } else { FieldValidation::Warn };
    FieldValidation::of(call.query, default)
}

/// Answers a question: the body with its status filled in.
pub fn ask(call: &Call<'_>, bytes: &[u8], answer: fn(&mut Value, &User)) -> Result<Response<ResponseBody>> {
    let mut review = body(call, bytes)?;
    review["apiVersion"] = call.kind.api_version().into();
    review["kind"] = call.kind.kind.into();
    answer(&mut review, &call.caller.user);
    Ok(object(StatusCode::CREATED, &review))
}
