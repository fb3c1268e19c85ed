"""The request that `handle` receives, and what may be made of its answer.

Owns: the translation between ASGI messages and plain Python values. Must not know how the function was loaded or
which server runs.
"""

import asyncio
import inspect
import json
import re
import sys
from collections.abc import Mapping
from urllib.parse import parse_qs

import dhow_event

# A request's body is held in memory as a whole; more than this answers 413. An ASGI or WSGI application streams.
MAX_BODY = 32 << 20

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_BAD_IN_VALUE = re.compile(r"[\x00\r\n]")
_ANSWERS = "str, bytes, dict, list, None, or (body, status) or (body, status, headers)"


class Headers(Mapping):
    """Header fields by name in any case; a name that came several times reads as one list."""

    def __init__(self, pairs):
        self._fields = {}
        for name, value in pairs:
            self._fields.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def __getitem__(self, name):
        return ("; " if name.lower() == "cookie" else ", ").join(self._fields[name.lower()])

    def __contains__(self, name):
        return isinstance(name, str) and name.lower() in self._fields

    def __iter__(self):
        return iter(self._fields)

    def __len__(self):
        return len(self._fields)

    def get_all(self, name):
        return list(self._fields.get(name.lower(), ()))

    def __repr__(self):
        return f"Headers({dict(self)!r})"


class Request:
    """One HTTP request, its body read."""

    def __init__(self, scope, body):
        self.method = scope["method"]
        self.path = scope["path"]
        self.query_all = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        self.query = {name: values[-1] for name, values in self.query_all.items()}
        self.headers = Headers(scope["headers"])
        self.body = body

    @property
    def text(self):
        return self.body.decode("utf-8")

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"<Request {self.method} {self.path}>"


class _TooLarge(Exception):
    pass


class _CallerGone(Exception):
    pass


class Application:
    """The ASGI application around `handle` and `handle_event`; either may be absent, not both."""

    def __init__(self, handle, handle_event, stop, report):
        self._handle = handle
        self._handle_event = handle_event
        self._stop = stop
        self._report = report

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003, "reason": "handle() serves HTTP requests only"})
            return
        try:
            body = await _read(scope, receive)
        except _CallerGone:
            return
        except _TooLarge:
            # The connection stays open, and the server drops the rest: a caller that is still sending would take a
            # closing connection for a crash.
            status, headers, content = _text(413, f"the body is larger than {MAX_BODY >> 20} MiB")
        else:
            status, headers, content = await self._answer(scope, body)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope, body):
        request = Request(scope, body)
        is_event = self._handle_event is not None and (
            self._handle is None or dhow_event.is_event(request.headers)
        )
        try:
            if not is_event:
                return to_response(await _call(self._handle, request))
            try:
                event = dhow_event.parse(request.headers, body)
            except dhow_event.Malformed as error:
                return _text(400, f"not a CloudEvent: {error}")
            return dhow_event.to_response(await _call(self._handle_event, event))
        except SystemExit as error:
            print(f"dhow: the handler exited with {error.code!r}; the instance ends", file=sys.stderr)
            self._stop(error.code if isinstance(error.code, int) else int(error.code is not None))
        except Exception as error:
            self._report(error)
        return _text(500, "internal error")


async def _call(function, argument):
    """Calls a handler of either kind; a synchronous one must not block the loop that accepts connections."""
    target = function if inspect.isroutine(function) else getattr(function, "__call__", function)
    if inspect.iscoroutinefunction(target):
        return await function(argument)
    result = await asyncio.to_thread(function, argument)
    return await result if inspect.isawaitable(result) else result


async def _read(scope, receive):
    """The whole body."""
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > MAX_BODY:
            raise _TooLarge
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _CallerGone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY:
            raise _TooLarge
        more = message.get("more_body", False)
    return b"".join(chunks)


def to_response(result):
    """The status, headers and body for what a handler returned."""
    status, extra = None, ()
    if isinstance(result, tuple):
        if len(result) not in (2, 3):
            raise TypeError(f"handle returned a tuple of {len(result)}; return {_ANSWERS}")
        result, status, extra = result if len(result) == 3 else (*result, ())
    kind, content = _content(result)
    if status is None:
        status = 204 if result is None else 200
    elif isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise TypeError(f"handle returned the status {status!r}; it must be an int from 200 to 599")
    headers = _headers(extra)
    if status in (204, 304):
        content = b""
    else:
        if kind and not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", kind))
        # A length of our own, whatever the handler said: two that differ would split the stream.
        headers = [h for h in headers if h[0] not in (b"content-length", b"transfer-encoding")]
        headers.append((b"content-length", str(len(content)).encode()))
    return int(status), headers, content


def _content(result):
    if result is None:
        return None, b""
    if isinstance(result, str):
        return b"text/plain; charset=utf-8", result.encode("utf-8")
    if isinstance(result, (bytes, bytearray, memoryview)):
        return b"application/octet-stream", bytes(result)
    if isinstance(result, (dict, list)):
        return b"application/json", json.dumps(result, ensure_ascii=False).encode("utf-8")
    raise TypeError(f"handle returned a {type(result).__name__}; return {_ANSWERS}")


def _headers(extra):
    pairs = extra.items() if isinstance(extra, Mapping) else extra or ()
    headers = []
    for name, value in pairs:
        name, value = str(name), str(value)
        if not _HEADER_NAME.match(name):
            raise ValueError(f"handle returned a header named {name!r}")
        if _BAD_IN_VALUE.search(value):
            raise ValueError(f"handle returned a line break in the header {name}")
        headers.append((name.lower().encode("ascii"), value.strip().encode("latin-1")))
    return headers


def _text(status, text):
    content = (text + "\n").encode("utf-8")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(content)).encode())]
    return status, headers, content
