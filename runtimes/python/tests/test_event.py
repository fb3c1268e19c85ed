"""`handle_event(event)`: CloudEvents in both HTTP modes."""

import base64
import json
import unittest

from instance import Instance

SHOW = """
    def handle_event(event):
        data = event.data
        if isinstance(data, bytes):
            data = {"bytes": data.hex()}
        return {"type": "seen", "data": {
            "id": event.id, "source": event.source, "type": event["type"], "subject": event.subject,
            "time": event.time, "schema": event.dataschema, "content": event.datacontenttype,
            "key": event.get("partitionkey"), "data": data, "kind": type(event.data).__name__,
        }}
"""
BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
STRUCTURED = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
JSON = "application/cloudevents+json"


def seen(**more):
    nothing = dict.fromkeys(("subject", "time", "schema", "content", "key", "data"))
    return {"id": "1", "source": "/s", "type": "t", **nothing, "kind": "NoneType", **more}


class Events(unittest.TestCase):
    def test_both_modes(self):
        def binary(headers, body):
            return {**BINARY, **headers}, body

        def structured(**members):
            return {"Content-Type": JSON + "; charset=utf-8"}, json.dumps({**STRUCTURED, **members}).encode()

        encoded = base64.b64encode(b"\x00\xff").decode()
        rows = [
            (binary({}, b""), seen()),
            (binary({"content-type": "application/json"}, b'{"a": 1}'),
             seen(content="application/json", data={"a": 1}, kind="dict")),
            (binary({"content-type": "text/plain"}, b"hi"), seen(content="text/plain", data="hi", kind="str")),
            (binary({"content-type": "image/png"}, b"\x00"),
             seen(content="image/png", data={"bytes": "00"}, kind="bytes")),
            (binary({"ce-subject": "gr%C3%BC%20n", "ce-time": "2026-01-02T03:04:05Z", "ce-partitionkey": "k",
                     "ce-dataschema": "http://x/y"}, b""),
             seen(subject="grü n", time="2026-01-02T03:04:05Z", key="k", schema="http://x/y")),
            (structured(), seen()),
            (structured(data={"a": 1}), seen(data={"a": 1}, kind="dict")),
            (structured(data="hi", datacontenttype="text/plain"), seen(content="text/plain", data="hi", kind="str")),
            (structured(data_base64=encoded, datacontenttype="image/png", partitionkey="k"),
             seen(content="image/png", data={"bytes": "00ff"}, kind="bytes", key="k")),
        ]  # fmt: skip
        with Instance({"main.py": SHOW}, env={"K_SERVICE": "shop"}) as instance:
            for (headers, body), want in rows:
                with self.subTest(want):
                    status, fields, content = instance.request("POST", body=body, headers=headers)
                    self.assertEqual((200, want), (status, json.loads(content)))
                    self.assertEqual(("1.0", "seen"), (fields["ce-specversion"], fields["ce-type"]))
                    self.assertEqual("/functions/shop", fields["ce-source"])
                    self.assertTrue(fields["ce-id"] and fields["ce-time"])

    def test_malformed(self):
        rows = [
            ({}, b"", "ce-specversion is missing"),
            ({**BINARY, "ce-specversion": "0.3"}, b"", "specversion '0.3' is not supported"),
            ({k: v for k, v in BINARY.items() if k != "ce-id"}, b"", "id is missing"),
            ({**BINARY, "ce-source": ""}, b"", "source is not a non-empty string"),
            ({**BINARY, "ce-time": "yesterday"}, b"", "is not an RFC 3339 time"),
            ({**BINARY, "content-type": "application/json"}, b"{", "the data is not application/json"),
            ({**BINARY, "content-type": "text/plain"}, b"\xff", "the data is not text/plain"),
            ({"content-type": JSON}, b"{", "the body is not JSON"),
            ({"content-type": JSON}, b"[]", "the body is not a JSON object"),
            ({"content-type": JSON}, json.dumps({**STRUCTURED, "type": 3}).encode(), "type is not a non-empty string"),
            ({"content-type": JSON}, json.dumps({**STRUCTURED, "data": 1, "data_base64": ""}).encode(), "both data"),
            ({"content-type": JSON}, json.dumps({**STRUCTURED, "data_base64": "*"}).encode(), "is not base64"),
            ({"content-type": JSON}, json.dumps({**STRUCTURED, "Not-ok": 1}).encode(), "'Not-ok'"),
            ({"content-type": "application/cloudevents-batch+json"}, b"[]", "a batch of events"),
            ({"content-type": "application/cloudevents+avro"}, b"", "application/cloudevents+avro is not supported"),
        ]
        with Instance({"main.py": SHOW}) as instance:
            for headers, body, want in rows:
                with self.subTest(want):
                    status, _, content = instance.request("POST", body=body, headers=headers)
                    self.assertEqual(400, status)
                    self.assertIn(want, content.decode())
                    self.assertTrue(content.startswith(b"not a CloudEvent: "))

    def test_answers(self):
        code = """
            async def handle_event(event):
                if event.type == "back":
                    event.data = None
                    return event
                return eval(event.data)
        """
        rows = [
            ("None", 204, None, b"", {}),
            ("{'type': 'x', 'id': '5', 'source': 'a b', 'key': 'ü', 'data': 'hi'}", 200, "text/plain; charset=utf-8",
             b"hi", {"ce-id": "5", "ce-source": "a%20b", "ce-key": "%C3%BC"}),
            ("{'type': 'x', 'data': b'1', 'flag': True}", 200, "application/octet-stream", b"1", {"ce-flag": "true"}),
            ("{'type': 'x', 'data': [1]}", 200, "application/json", b"[1]", {}),
            ("{'type': 'x', 'data': 'a', 'datacontenttype': 'application/json'}", 200, "application/json", b'"a"', {}),
            ("{'data': 1}", 500, "text/plain; charset=utf-8", b"internal error\n", {}),
            ("'text'", 500, "text/plain; charset=utf-8", b"internal error\n", {}),
            ("{'type': 'x', 'Bad-Name': 1}", 500, "text/plain; charset=utf-8", b"internal error\n", {}),
        ]  # fmt: skip
        with Instance({"main.py": code}) as instance:
            for text, status, content_type, body, fields in rows:
                with self.subTest(text):
                    headers = {**BINARY, "content-type": "text/plain; charset=utf-8"}
                    got = instance.request("POST", body=text.encode(), headers=headers)
                    self.assertEqual((status, content_type, body), (got[0], got[1].get("content-type"), got[2]))
                    self.assertEqual(fields, {name: got[1].get(name) for name in fields})
            got = instance.request("POST", headers={**BINARY, "ce-type": "back"})
            self.assertEqual((200, "back", "1"), (got[0], got[1]["ce-type"], got[1]["ce-id"]))

    def test_beside_handle(self):
        code = "def handle(r): return 'request'\ndef handle_event(e): return {'type': 'event'}"
        rows = [({}, None), (BINARY, "event"), ({"content-type": JSON}, "event")]
        with Instance({"main.py": code}) as instance:
            for headers, want in rows:
                with self.subTest(headers):
                    body = json.dumps(STRUCTURED).encode()
                    self.assertEqual(want, instance.request("POST", body=body, headers=headers)[1].get("ce-type"))


if __name__ == "__main__":
    unittest.main()
