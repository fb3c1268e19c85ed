//! Errors as clients of Kubernetes know them: a Status object with a code, a reason and the customary words.

use http::StatusCode;
use serde_json::{Value, json};
use store::StoreError;

/// A kind as error messages name it.
#[derive(Clone, Copy)]
pub struct Resource {
    pub group: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("Unauthorized")]
    Unauthorized,
    #[error("{resource} {name:?} not found")]
    NotFound { resource: Resource, name: String },
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    #[error("{resource} {name:?} already exists")]
    AlreadyExists { resource: Resource, name: String },
    #[error("object is being deleted: {resource} {name:?} already exists")]
    BeingDeleted { resource: Resource, name: String },
    #[error("Operation cannot be fulfilled on {resource} {name:?}: {why}")]
    Conflict { resource: Resource, name: String, why: String },
    #[error("{}", apply_conflict(.causes))]
    ApplyConflict { causes: Vec<FieldConflict> },
    #[error("{} {name:?} is invalid: {}", .resource.kind_and_group(), aggregate(.errors))]
    Invalid { resource: Resource, name: String, errors: Vec<FieldError> },
    #[error("{options}.meta.k8s.io \"\" is invalid: {}", aggregate(.errors))]
    InvalidOptions { options: &'static str, errors: Vec<FieldError> },
    /// What a patch made is no object of the kind.
    #[error(" \"\" is invalid: {}", aggregate(std::slice::from_ref(.0)))]
    InvalidPatch(Box<FieldError>),
    #[error("{resource} {name:?} is forbidden: {why}")]
    Forbidden { resource: Resource, name: String, why: String, cause: Option<Box<(&'static str, String)>> },
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    MethodNotAllowed(String),
    #[error("only the following media types are accepted: application/json")]
    NotAcceptable,
    #[error("you requested {wanted}, but the requested object is {is}")]
    OtherForm { wanted: &'static str, is: String },
    #[error("the body of the request was in an unknown format - accepted media types include: {0}")]
    UnsupportedMediaType(String),
    #[error("Request entity too large: {0}")]
    TooLarge(String),
    #[error("the server rejected our request due to an error in our request: {0}")]
    Unprocessable(String),
    #[error("{0}")]
    Expired(String),
    #[error(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list."
    )]
    ContinueExpired { inconsistent: String },
    #[error("{0}")]
    TooManyRequests(String),
    #[error("Timeout: request did not complete within the allotted timeout")]
    Timeout,
    #[error("{0}")]
    Unavailable(String),
    #[error("Internal error occurred: {0}")]
    Internal(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub field: String,
    pub fault: Fault,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Required(String),
    /// Of an object or a list the value may be left out.
    Invalid {
        value: Option<Value>,
        detail: String,
    },
    TypeInvalid {
        value: Value,
        detail: String,
    },
    NotSupported {
        value: Value,
        supported: Vec<String>,
    },
    Duplicate(Option<Value>),
    NotFound(Value),
    Forbidden(String),
    /// In the words of a kind's first maker, who names the field behind what is wrong with it.
    Said {
        message: String,
        details: String,
    },
    TooLong {
        most: usize,
    },
    TooMany {
        is: usize,
        most: usize,
    },
}

/// A field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldConflict {
    pub manager: String,
    pub field: String,
}

impl Fault {
    /// Of an object with such a fault rules in CEL may say anything.
    pub fn hides_others(&self) -> bool {
        matches!(
            self,
            Self::NotSupported { .. }
                | Self::Required(_)
                | Self::TooLong { .. }
                | Self::TooMany { .. }
                | Self::TypeInvalid { .. }
        )
    }
}

impl Resource {
    /// `functions.dhow.dev`, or `pods`.
    fn plural_and_group(&self) -> String {
        let Self { group, plural, .. } = self;
        if group.is_empty() { (*plural).into() } else { format!("{plural}.{group}") }
    }

    fn kind_and_group(&self) -> String {
        let Self { group, kind, .. } = self;
        if group.is_empty() { (*kind).into() } else { format!("{kind}.{group}") }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.plural_and_group())
    }
}

impl FieldError {
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self { field: field.into(), fault: Fault::Required(detail.into()) }
    }

    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), fault: Fault::Invalid { value: Some(value.into()), detail: detail.into() } }
    }

    /// What is wrong is said without the value that it is wrong with.
    pub fn unvalued(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), fault: Fault::Invalid { value: None, detail: detail.into() } }
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { field: field.into(), fault: Fault::Duplicate(Some(value.into())) }
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { field: field.into(), fault: Fault::Forbidden(detail.into()) }
    }

    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let supported = supported.iter().map(|s| s.to_string()).collect();
        Self { field: field.into(), fault: Fault::NotSupported { value: value.into(), supported } }
    }

    fn reason(&self) -> &'static str {
        match self.fault {
            Fault::Required(_) => "FieldValueRequired",
            Fault::Invalid { .. } => "FieldValueInvalid",
            Fault::TypeInvalid { .. } => "FieldValueTypeInvalid",
            Fault::NotSupported { .. } => "FieldValueNotSupported",
            Fault::Duplicate(_) => "FieldValueDuplicate",
            Fault::NotFound(_) => "FieldValueNotFound",
            Fault::Forbidden(_) => "FieldValueForbidden",
            Fault::Said { .. } => "FieldValueInvalid",
            Fault::TooLong { .. } => "FieldValueTooLong",
            Fault::TooMany { .. } => "FieldValueTooMany",
        }
    }

    fn message(&self) -> String {
        let detailed = |title: &str, detail: &str| match detail {
            "" => title.to_owned(),
            detail => format!("{title}: {detail}"),
        };
        match &self.fault {
            Fault::Required(detail) => detailed("Required value", detail),
            Fault::Invalid { value: None, detail } => detailed("Invalid value", detail),
            Fault::Invalid { value: Some(value), detail } | Fault::TypeInvalid { value, detail } => {
                detailed(&format!("Invalid value: {}", shown(value)), detail)
            }
            Fault::NotSupported { value, supported } => {
                let supported: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
                format!("Unsupported value: {}: supported values: {}", shown(value), supported.join(", "))
            }
            Fault::NotFound(value) => format!("Not found: {}", shown(value)),
            Fault::Duplicate(None) => "Duplicate value".to_owned(),
            Fault::Duplicate(Some(value)) => format!("Duplicate value: {}", shown(value)),
            Fault::Forbidden(detail) => detailed("Forbidden", detail),
            Fault::Said { message, details } if details.is_empty() => message.clone(),
            Fault::Said { message, details } => format!("{message}\n{details}"),
            Fault::TooLong { most } => format!("Too long: may not be more than {most} bytes"),
            Fault::TooMany { is, most } => format!("Too many: {is}: must have at most {most} items"),
        }
    }
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.fault {
            Fault::Said { message, details } if details.is_empty() => write!(f, "{message}: {}", self.field),
            Fault::Said { message, details } => write!(f, "{message}: {}\n{details}", self.field),
            _ => write!(f, "{}: {}", self.field, self.message()),
        }
    }
}

impl ApiError {
    pub fn code(&self) -> StatusCode {
        self.code_and_reason().0
    }

    fn code_and_reason(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::NotFound { .. } | Self::NoSuchPath => (StatusCode::NOT_FOUND, "NotFound"),
            Self::AlreadyExists { .. } | Self::BeingDeleted { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
            Self::Conflict { .. } | Self::ApplyConflict { .. } => (StatusCode::CONFLICT, "Conflict"),
            Self::Invalid { .. } | Self::InvalidOptions { .. } | Self::InvalidPatch(_) | Self::Unprocessable(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "Invalid")
            }
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::NotAcceptable | Self::OtherForm { .. } => (StatusCode::NOT_ACCEPTABLE, "NotAcceptable"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
            Self::Expired(_) | Self::ContinueExpired { .. } => (StatusCode::GONE, "Expired"),
            Self::TooManyRequests(_) => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            Self::Store(error) => match error {
                StoreError::Conflict { .. } => (StatusCode::CONFLICT, "Conflict"),
                StoreError::Compacted { .. } | StoreError::Overflowed { .. } => (StatusCode::GONE, "Expired"),
                StoreError::Ahead { .. } => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
                StoreError::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
                StoreError::Closed => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
                _ => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            },
        }
    }

    /// The Status object that says it.
    pub fn status(&self) -> Value {
        let (code, reason) = self.code_and_reason();
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message(),
            "reason": reason,
            "code": code.as_u16(),
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        if let Self::ContinueExpired { inconsistent } = self {
            status["metadata"]["continue"] = inconsistent.as_str().into();
        }
        status
    }

    fn message(&self) -> String {
        match self {
            Self::Store(StoreError::Compacted { requested, oldest }) => {
                format!("too old resource version: {requested} ({oldest})")
            }
            Self::Store(StoreError::Ahead { requested, current }) => {
                format!("Timeout: Too large resource version: {requested}, current: {current}")
            }
            _ => self.to_string(),
        }
    }

    fn details(&self) -> Option<Value> {
        let named = |resource: &Resource, name: &str, kind: &str| {
            let mut details = json!({});
            for (key, value) in [("name", name), ("group", resource.group), ("kind", kind)] {
                if !value.is_empty() {
                    details[key] = value.into();
                }
            }
            details
        };
        match self {
            Self::NotFound { resource, name }
            | Self::AlreadyExists { resource, name }
            | Self::BeingDeleted { resource, name }
            | Self::Conflict { resource, name, .. } => Some(named(resource, name, resource.plural)),
            Self::Forbidden { resource, name, cause, .. } => {
                let mut details = named(resource, name, resource.plural);
                if let Some((reason, message)) = cause.as_deref() {
                    details["causes"] = json!([{"reason": reason, "message": message}]);
                }
                Some(details)
            }
            Self::Invalid { resource, name, errors } => {
                let mut details = named(resource, name, resource.kind);
                details["causes"] = causes(errors);
                Some(details)
            }
            Self::InvalidPatch(error) => Some(json!({"causes": causes(std::slice::from_ref(error.as_ref()))})),
            Self::InvalidOptions { options, errors } => {
                Some(json!({"group": "meta.k8s.io", "kind": options, "causes": causes(errors)}))
            }
            Self::ApplyConflict { causes } => {
                let causes = causes
                    .iter()
                    .map(|c| {
                        let message = format!("conflict with {}", c.manager);
                        json!({"reason": "FieldManagerConflict", "message": message, "field": c.field})
                    })
                    .collect();
                Some(json!({"causes": Value::Array(causes)}))
            }
            Self::Store(StoreError::Ahead { .. }) => Some(json!({
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            })),
            Self::TooManyRequests(_) | Self::Store(StoreError::Overloaded) => Some(json!({"retryAfterSeconds": 1})),
            // Said by what answers before any resource does.
            Self::MethodNotAllowed(_) | Self::NoSuchPath | Self::Unprocessable(_) | Self::Timeout => Some(json!({})),
            _ => None,
        }
    }
}

/// The answer to a deletion that left nothing behind.
pub fn deleted(resource: Resource, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": resource.plural, "uid": uid});
    if !resource.group.is_empty() {
        details["group"] = resource.group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

fn causes(errors: &[FieldError]) -> Value {
    errors.iter().map(|e| json!({"reason": e.reason(), "message": e.message(), "field": e.field})).collect()
}

fn aggregate(errors: &[FieldError]) -> String {
    match errors {
        [only] => only.to_string(),
        many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn apply_conflict(causes: &[FieldConflict]) -> String {
    if let [only] = causes {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.field);
    }
    let mut text = format!("Apply failed with {} conflicts:", causes.len());
    let mut last = None;
    for cause in causes {
        if last != Some(&cause.manager) {
            let before = if last.is_none() { " " } else { "\n" };
            text += &format!("{before}conflicts with {}:", cause.manager);
            last = Some(&cause.manager);
        }
        text += &format!("\n- {}", cause.field);
    }
    text
}

/// A value inside a message: scalars as they are, anything larger cut short.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 200;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording() {
        let kinds = crate::kinds::Kinds::new();
        let resource =
            |group: &str, version: &str, plural: &str| kinds.find(group, version, plural).unwrap().resource();
        let (functions, pods) = (resource("dhow.dev", "v1alpha1", "functions"), resource("", "v1", "pods"));
        let one = vec![FieldError::required("spec.source", "")];
        let two = vec![
            FieldError::invalid("spec.timeoutSeconds", 0, "must be greater than 0"),
            FieldError::not_supported("spec.runtime", "perl", &["node", "python"]),
        ];
        for (error, code, message) in [
            (ApiError::NotFound { resource: functions, name: "x".into() }, 404, r#"functions.dhow.dev "x" not found"#),
            (ApiError::NotFound { resource: pods, name: "x".into() }, 404, r#"pods "x" not found"#),
            (ApiError::AlreadyExists { resource: pods, name: "x".into() }, 409, r#"pods "x" already exists"#),
            (
                ApiError::Invalid { resource: functions, name: "x".into(), errors: one },
                422,
                r#"Function.dhow.dev "x" is invalid: spec.source: Required value"#,
            ),
            (
                ApiError::Invalid { resource: pods, name: "x".into(), errors: two },
                422,
                concat!(
                    r#"Pod "x" is invalid: [spec.timeoutSeconds: Invalid value: 0: must be greater than 0, "#,
                    r#"spec.runtime: Unsupported value: "perl": supported values: "node", "python"]"#
                ),
            ),
            (
                ApiError::ApplyConflict {
                    causes: vec![FieldConflict { manager: r#""a" using v1"#.into(), field: ".spec.x".into() }],
                },
                409,
                r#"Apply failed with 1 conflict: conflict with "a" using v1: .spec.x"#,
            ),
            (
                ApiError::ApplyConflict {
                    causes: [("a", ".x"), ("a", ".y"), ("b", ".z")]
                        .map(|(manager, field)| FieldConflict { manager: manager.into(), field: field.into() })
                        .to_vec(),
                },
                409,
                "Apply failed with 3 conflicts: conflicts with a:\n- .x\n- .y\nconflicts with b:\n- .z",
            ),
            (
                ApiError::Store(StoreError::Compacted { requested: 3, oldest: 9 }),
                410,
                "too old resource version: 3 (9)",
            ),
        ] {
            let status = error.status();
            assert_eq!((status["code"].as_u64(), status["message"].as_str()), (Some(code), Some(message)));
        }
    }
}
