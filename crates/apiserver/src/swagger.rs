//! `/openapi/v2`: the older form, with no schema in it.
//!
//! kubectl falls back to it for what no version 3 document describes, such as a `List`, and then checks what it finds
//! there and nothing else; the server itself checks every object. Go's clients read it in protobuf only, which is why the
//! few bytes are written here.

use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::json;

use crate::ResponseBody;
use crate::handler::{json_bytes, object};

const TITLE: &str = "Dhow";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

pub fn answer(parts: &Parts) -> Response<ResponseBody> {
    let wanted = parts.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if !wanted.contains("protobuf") {
        let info = json!({"title": TITLE, "version": VERSION});
        return object(StatusCode::OK, &json!({"swagger": "2.0", "info": info, "paths": {}, "definitions": {}}));
    }
    let mut response = json_bytes(StatusCode::OK, document());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    response
}

/// The same document as a message of gnostic's `Document`: version, information, and no path or definition.
fn document() -> Vec<u8> {
    let info = [field(1, TITLE.as_bytes()), field(2, VERSION.as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info), field(8, b""), field(9, b"")].concat()
}

/// A field of bytes. Every length here is below 128, so that it takes one byte.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    const BYTES: u8 = 2;
    let length = u8::try_from(value.len()).ok().filter(|length| *length < 128).expect("the names are short");
    [&[(number << 3) | BYTES, length], value].concat()
}
