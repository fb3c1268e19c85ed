"""ASGI and WSGI applications."""

import base64
import os
import unittest

from instance import Instance

ASGI = """
    state = []
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            state.append("started")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            print("stopped", flush=True)
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            message = await receive()
            await send({"type": "websocket.send", "text": "echo " + message["text"]})
            await send({"type": "websocket.close"})
        elif scope["path"] == "/raise":
            raise ValueError("mine")
        else:
            size, more = 0, True
            while more:
                message = await receive()
                size, more = size + len(message["body"]), message.get("more_body", False)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", b"asgi")]})
            for part in (state[0], " ", str(size)):
                await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
"""

WSGI = """
    class App:
        def __call__(self, environ, start_response):
            start_response("201 Created", [("Content-Type", "text/x"), ("X-Kind", "wsgi")])
            yield environ["REQUEST_METHOD"].encode() + b" " + environ["PATH_INFO"].encode() + b" "
            yield environ["wsgi.input"].read()
    app = App()
"""


class Applications(unittest.TestCase):
    def test_asgi(self):
        for handler, forked in ((None, False), ("main.app", True)):
            with self.subTest(handler), Instance({"main.py": ASGI}, handler, forked=forked) as instance:
                status, headers, body = instance.request("POST", body=b"x" * 100_000)
                self.assertEqual((200, "asgi", b"started 100000"), (status, headers["x-kind"], body))
                self.assertEqual(500, instance.request(path="/raise")[0])
                self.assertIn("ValueError: mine", instance.errors())
                instance.process.terminate()
                self.assertEqual(0, instance.wait())
                self.assertEqual("stopped\n", instance.process.stdout.readline())

    def test_wsgi(self):
        for handler, forked in ((None, False), ("main.app", True)):
            with self.subTest(handler), Instance({"main.py": WSGI}, handler, forked=forked) as instance:
                status, headers, body = instance.request("POST", "/path", body=b"data")
                self.assertEqual((201, "wsgi", b"POST /path data"), (status, headers["x-kind"], body))

    def test_websocket(self):
        with Instance({"main.py": ASGI}, forked=True) as instance, instance.connect() as connection:
            key = base64.b64encode(os.urandom(16)).decode()
            connection.sendall(
                "GET / HTTP/1.1\r\nHost: f\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            stream = connection.makefile("rb")
            self.assertIn(b" 101 ", stream.readline())
            while stream.readline() != b"\r\n":
                pass
            # One masked text frame of two bytes, the mask being zeros.
            connection.sendall(b"\x81\x82\0\0\0\0hi")
            self.assertEqual(b"\x81\x07echo hi", stream.read(9))


if __name__ == "__main__":
    unittest.main()
