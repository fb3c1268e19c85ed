"""CloudEvents over HTTP: one event in, one event out, in binary or structured mode.

Owns: the model that `handle_event` sees and the HTTP binding of CloudEvents 1.0. Must not know a server.
"""

import base64
import json
import os
import re
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from urllib.parse import quote, unquote

_STRUCTURED = "application/cloudevents"
_BATCH = "application/cloudevents-batch"
_REQUIRED = ("id", "source", "type")
_KNOWN = ("specversion", *_REQUIRED, "subject", "time", "datacontenttype", "dataschema")
_NAME = re.compile(r"[a-z0-9]+\Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z")


class Malformed(ValueError):
    """The sender's fault; the message says what."""


class CloudEvent(Mapping):
    """An event: its attributes by name (`event.type`, `event["partitionkey"]`), and its data.

    `data` is the parsed value for JSON, `str` for text, `bytes` for anything else, `None` when there is none.
    """

    def __init__(self, attributes, data=None):
        self._attributes = dict(attributes)
        self.data = data

    def __getattr__(self, name):
        if not name.startswith("_"):
            if name in self._attributes:
                return self._attributes[name]
            if name in _KNOWN:
                return None
        raise AttributeError(f"the event has no attribute '{name}'")

    def __getitem__(self, name):
        return self._attributes[name]

    def __iter__(self):
        return iter(self._attributes)

    def __len__(self):
        return len(self._attributes)

    def __repr__(self):
        return f"CloudEvent({self._attributes!r}, data={self.data!r})"


def is_event(headers):
    return "ce-specversion" in headers or _media_type(headers.get("content-type")).startswith(_STRUCTURED)


def parse(headers, body):
    """The event in a request, in either mode."""
    media_type = _media_type(headers.get("content-type"))
    if media_type.startswith(_BATCH):
        raise Malformed("a batch of events is not supported; send them one by one")
    if media_type.startswith(_STRUCTURED):
        return _parse_structured(media_type, body)
    return _parse_binary(headers, body)


def _parse_binary(headers, body):
    if "ce-specversion" not in headers:
        raise Malformed(
            "this function receives CloudEvents: send the attributes as ce-* headers (ce-specversion is missing), "
            "or the whole event as application/cloudevents+json"
        )
    attributes = {}
    for name in headers:
        if name.startswith("ce-"):
            attributes[name[3:]] = _unescape(headers[name])
    if "content-type" in headers:
        attributes["datacontenttype"] = headers["content-type"]
    _check(attributes)
    return CloudEvent(attributes, _decode(attributes.get("datacontenttype"), body))


def _parse_structured(media_type, body):
    if media_type not in (_STRUCTURED, _STRUCTURED + "+json"):
        raise Malformed(f"the event format {media_type} is not supported; use application/cloudevents+json")
    try:
        members = json.loads(body)
    except ValueError as error:
        raise Malformed(f"the body is not JSON ({error})") from None
    if not isinstance(members, dict):
        raise Malformed("the body is not a JSON object")
    if "data" in members and "data_base64" in members:
        raise Malformed("both data and data_base64 are there")
    data, encoded = members.pop("data", None), members.pop("data_base64", None)
    attributes = {name: value for name, value in members.items() if value is not None}
    _check(attributes)
    if encoded is not None:
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (TypeError, ValueError):
            raise Malformed("data_base64 is not base64") from None
        data = _decode(attributes.get("datacontenttype"), raw)
    return CloudEvent(attributes, data)


def _check(attributes):
    version = attributes.get("specversion")
    if version is None:
        raise Malformed("specversion is missing")
    if version != "1.0":
        raise Malformed(f"specversion {version!r} is not supported; it must be 1.0")
    for name in _REQUIRED:
        if name not in attributes:
            raise Malformed(f"{name} is missing")
    for name, value in attributes.items():
        if not _NAME.match(name):
            raise Malformed(f"the attribute name {name!r} is not made of a-z and 0-9")
        if name in _KNOWN and (not isinstance(value, str) or not value):
            raise Malformed(f"{name} is not a non-empty string")
        if not isinstance(value, (str, bool, int)):
            raise Malformed(f"the attribute {name} is a {type(value).__name__}")
    if "time" in attributes and not _TIME.match(attributes["time"]):
        raise Malformed(f"time {attributes['time']!r} is not an RFC 3339 time")


def _decode(content_type, raw):
    media_type = _media_type(content_type)
    if not raw:
        return None
    try:
        if _is_json(media_type):
            return json.loads(raw)
        if media_type.startswith("text/"):
            return raw.decode(_charset(content_type))
    except (ValueError, LookupError) as error:
        raise Malformed(f"the data is not {media_type} ({error})") from None
    return bytes(raw)


def to_response(result):
    """The status, headers and body for what a handler returned: nothing, or one event in binary mode."""
    if result is None:
        return 204, [], b""
    if isinstance(result, CloudEvent):
        attributes, data = dict(result), result.data
    elif isinstance(result, dict):
        attributes = {name: value for name, value in result.items() if name != "data" and value is not None}
        data = result.get("data")
    else:
        raise TypeError(f"handle_event returned a {type(result).__name__}; return None or an event as a dict")
    if "type" not in attributes:
        raise ValueError("handle_event returned an event without a type")
    attributes["specversion"] = "1.0"
    attributes.setdefault("id", str(uuid.uuid4()))
    attributes.setdefault("source", "/functions/" + (os.environ.get("K_SERVICE") or "unnamed"))
    if isinstance(attributes.get("time"), datetime):
        attributes["time"] = attributes["time"].astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    attributes.setdefault("time", now)
    content_type, content = _encode(attributes.pop("datacontenttype", None), data)
    headers = []
    for name, value in attributes.items():
        if not isinstance(name, str) or not _NAME.match(name):
            raise ValueError(f"handle_event returned the attribute name {name!r}; use a-z and 0-9")
        headers.append((f"ce-{name}".encode("ascii"), _escape(value)))
    if content_type:
        headers.append((b"content-type", content_type.encode("latin-1")))
    headers.append((b"content-length", str(len(content)).encode()))
    return 200, headers, content


def _encode(content_type, data):
    media_type = _media_type(content_type)
    if data is None:
        return content_type, b""
    if isinstance(data, (bytes, bytearray, memoryview)):
        return content_type or "application/octet-stream", bytes(data)
    if isinstance(data, str) and not _is_json(media_type):
        return content_type or "text/plain; charset=utf-8", data.encode(_charset(content_type))
    return content_type or "application/json", json.dumps(data, ensure_ascii=False).encode("utf-8")


def _escape(value):
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # Printable ASCII but for the space, the quote and the per cent sign stands for itself.
    safe = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
    return quote(text, safe=safe).encode("ascii")


def _unescape(value):
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return unquote(value)


def _media_type(content_type):
    return (content_type or "").split(";", 1)[0].strip().lower()


def _charset(content_type):
    found = re.search(r"charset=\"?([\w-]+)", content_type or "", re.IGNORECASE)
    return found.group(1) if found else "utf-8"


def _is_json(media_type):
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")
