"""`handle(request)`: what it sees, what it may return, and how it fails."""

import json
import re
import signal
import threading
import unittest

from instance import PATIENCE, Instance

ECHO = """
    def handle(request):
        return {
            "method": request.method, "path": request.path, "query": request.query, "all": request.query_all,
            "agent": request.headers["USER-AGENT"], "missing": request.headers.get("x-missing"),
            "twice": request.headers["X-Twice"], "body": request.body.decode(), "json": request.json(),
        }
"""

ANSWERS = """
    import os, sys
    answers = {
        "/str": "grüße", "/bytes": b"\\x00\\x01", "/dict": {"a": "ü"}, "/list": [1, 2], "/none": None,
        "/status": ("made", 201), "/empty-status": (None, 202), "/headers": ("<p>", 200, {"Content-Type": "text/html"}),
        "/pairs": ("x", 200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]), "/304": ("ignored", 304),
        "/length": ("abc", 200, {"Content-Length": "1"}),
        "/bad-type": 3.5, "/bad-status": ("x", 99), "/bad-header": ("x", 200, {"a": "b\\r\\nc: d"}), "/bad-tuple": (1,),
    }
    def handle(request):
        if request.path == "/raise":
            raise ValueError("secret of the function")
        if request.path == "/exit":
            sys.exit(7)
        print("asked for", request.path)
        return answers[request.path]
"""


class Requests(unittest.TestCase):
    def test_sees_the_request(self):
        with Instance({"main.py": ECHO}) as instance:
            status, headers, body = instance.request(
                "POST", "/a%20b/c?x=1&x=2&y=", body=b'{"n": 1}', headers={"User-Agent": "me", "X-Twice": "one, two"}
            )
        self.assertEqual(200, status)
        self.assertEqual("application/json", headers["content-type"])
        want = {
            "method": "POST", "path": "/a b/c", "query": {"x": "2", "y": ""}, "all": {"x": ["1", "2"], "y": [""]},
            "agent": "me", "missing": None, "twice": "one, two", "body": '{"n": 1}', "json": {"n": 1},
        }  # fmt: skip
        self.assertEqual(want, json.loads(body))

    def test_answers(self):
        text = "text/plain; charset=utf-8"
        rows = [
            ("/str", 200, text, "grüße".encode()),
            ("/bytes", 200, "application/octet-stream", b"\x00\x01"),
            ("/dict", 200, "application/json", '{"a": "ü"}'.encode()),
            ("/list", 200, "application/json", b"[1, 2]"),
            ("/none", 204, None, b""),
            ("/status", 201, text, b"made"),
            ("/empty-status", 202, None, b""),
            ("/headers", 200, "text/html", b"<p>"),
            ("/304", 304, None, b""),
            ("/length", 200, text, b"abc"),
            ("/pairs", 200, text, b"x"),
            ("/bad-type", 500, text, b"internal error\n"),
            ("/bad-status", 500, text, b"internal error\n"),
            ("/bad-header", 500, text, b"internal error\n"),
            ("/bad-tuple", 500, text, b"internal error\n"),
            ("/raise", 500, text, b"internal error\n"),
        ]
        with Instance({"main.py": ANSWERS}) as instance:
            for path, status, content_type, body in rows:
                with self.subTest(path):
                    got = instance.request(path=path)
                    self.assertEqual((status, content_type, body), (got[0], got[1].get("content-type"), got[2]))
            self.assertEqual("asked for /str\n", instance.process.stdout.readline())
            errors = instance.errors()
        self.assertIn("ValueError: secret of the function", errors)
        self.assertIn('main.py", line ', errors)
        self.assertNotIn("dhow_http", errors)
        self.assertIn("handle returned a float; return str, bytes", errors)

    def test_every_kind_of_handler(self):
        rows = [
            ("def handle(request): return 'sync'", None, b"sync"),
            ("async def handle(request): return 'async'", None, b"async"),
            ("class H:\n  async def __call__(self, r): return 'object'\nhandle = H()", None, b"object"),
            ("def handle(request, option=1): return 'default'", None, b"default"),
            ("async def inner(): return 'awaited'\ndef handle(r): return inner()", None, b"awaited"),
            ("def other(request): return 'named'", "main.other", b"named"),
        ]
        for code, handler, want in rows:
            with self.subTest(code), Instance({"main.py": code}, handler) as instance:
                self.assertEqual((200, want), instance.request()[::2])

    def test_a_package_and_a_module_beside_it(self):
        files = {"fn/__init__.py": "", "fn/entry.py": "import shared\ndef run(r): return shared.X", "shared.py": "X='y'"}
        with Instance(files, "fn.entry.run") as instance:
            self.assertEqual(b"y", instance.request()[2])

    def test_unix_socket_and_fork(self):
        for kind in ({"unix": True}, {"forked": True}, {"unix": True, "forked": True}):
            with self.subTest(kind), Instance({"main.py": "def handle(r): return 'here'"}, **kind) as instance:
                self.assertEqual(b"1", instance.ready)
                self.assertEqual(b"here", instance.request()[2])
                instance.process.send_signal(signal.SIGTERM)
                self.assertEqual(0, instance.wait())

    def test_a_body_over_the_limit(self):
        with Instance({"main.py": "def handle(r): return str(len(r.body))"}) as instance:
            self.assertEqual((200, b"1048576"), instance.request("POST", body=b"x" * (1 << 20))[::2])
            with instance.connect() as connection:
                connection.sendall(b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 99999999999\r\n\r\n")
                self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 413 "))
            # A caller that sends all of it before it looks gets the same answer.
            self.assertEqual(413, instance.request("POST", body=b"x" * (40 << 20))[0])

    def test_its_own_libraries_are_out_of_sight(self):
        code = """
            import sys
            hidden = [m for m in ("uvicorn", "h11", "wsproto", "a2wsgi", "typing_extensions") if m in sys.modules]
            outside = [p for p in sys.path if "packages" in p or "runtimes" in p]
            def handle(request): return {"hidden": hidden, "path": sys.path[:2], "outside": outside}
        """
        with Instance({"main.py": code, "h11.py": ""}) as instance:
            got = json.loads(instance.request()[2])
        self.assertEqual([], got["hidden"])
        self.assertEqual([], got["outside"])
        self.assertEqual("/deps/python", got["path"][1])

    def test_the_loop_lives_while_a_handler_works(self):
        code = """
            import threading
            barrier = threading.Barrier(2, timeout=20)
            def handle(request): return str(barrier.wait() >= 0)
        """
        with Instance({"main.py": code}) as instance:
            got = []
            other = threading.Thread(target=lambda: got.append(instance.request()[2]))
            other.start()
            self.assertEqual(b"True", instance.request()[2])
            other.join(PATIENCE)
        self.assertEqual([b"True"], got)


class Ends(unittest.TestCase):
    def test_sigterm_finishes_what_is_in_flight(self):
        code = """
            import os
            os.mkfifo("gate")
            def handle(request):
                print("working")
                return open("gate").read()
        """
        with Instance({"main.py": code}) as instance:
            got = []
            caller = threading.Thread(target=lambda: got.append(instance.request()[2]))
            caller.start()
            self.assertEqual("working\n", instance.process.stdout.readline())
            instance.process.send_signal(signal.SIGTERM)
            self.assertTrue(instance.refuses())
            (instance.code / "gate").write_text("finished")
            self.assertEqual(0, instance.wait())
            caller.join(PATIENCE)
        self.assertEqual([b"finished"], got)

    def test_sigterm_when_idle(self):
        with Instance({"main.py": "def handle(r): return 'x'"}) as instance:
            with instance.connect() as kept:
                kept.sendall(b"GET / HTTP/1.1\r\nHost: f\r\n\r\n")
                self.assertIn(b" 200 ", kept.recv(1000))
                instance.process.send_signal(signal.SIGTERM)
                self.assertEqual(0, instance.wait())

    def test_a_handler_that_exits(self):
        with Instance({"main.py": ANSWERS}) as instance:
            self.assertEqual((500, b"internal error\n"), instance.request(path="/exit")[::2])
            self.assertEqual(7, instance.wait())
            self.assertIn("the handler exited with 7; the instance ends", instance.errors())


class DoesNotLoad(unittest.TestCase):
    def test_says_what_is_wrong_and_what_to_do(self):
        rows = [
            ("empty", {}, None, "there is no main.py in .*; add it or set spec.handler"),
            ("other file", {"app.py": ""}, "service.run", "there is no service.py in .*; add it or set spec.handler"),
            ("no handle", {"main.py": "x = 1"}, None,
             r"main.py defines no 'handle'; define handle\(request\) or set spec.handler"),
            ("no such name", {"main.py": "def handle(r): pass"}, "main.other",
             r"main.py defines no 'other'; define other\(request\)"),
            ("no event", {"main.py": "def handle(r): pass"}, "main.handle_event", r"define handle_event\(event\)"),
            ("not callable", {"main.py": "handle = 3"}, None, "'handle' in main.py is a int, which cannot be called"),
            ("no argument", {"main.py": "def handle(): pass"}, None, "takes 0 arguments; a handler takes one"),
            ("bad handler", {"main.py": ""}, "main", "spec.handler is 'main'; write it as module.function"),
            ("missing dependency", {"main.py": "import not_installed_anywhere"}, None,
             "main.py needs 'not_installed_anywhere', which is not installed; add it to requirements.txt"),
            ("syntax", {"main.py": "def handle(:\n"}, None, "main.py line 1 is not valid Python"),
            ("raises", {"main.py": "1 / 0"}, None, "main.py failed while it was loaded: ZeroDivisionError"),
            ("exits", {"main.py": "raise SystemExit(3)"}, None, "main.py exited with 3 while it was loaded"),
            ("start-up fails", {"main.py": LIFESPAN_FAILS}, None, "the application's start-up failed"),
        ]  # fmt: skip
        for name, files, handler, want in rows:
            for forked in (False, True):
                with self.subTest(name, forked=forked), Instance(files, handler, forked=forked) as instance:
                    self.assertEqual(b"", instance.ready)
                    self.assertEqual(1, instance.wait())
                    last = instance.errors().splitlines()[-1]
                    self.assertTrue(re.match("dhow: ", last) and re.search(want, last), instance.errors())
                    self.assertNotIn("dhow_adapter", instance.errors())
                    self.assertNotIn("importlib", instance.errors())


LIFESPAN_FAILS = """
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
"""

if __name__ == "__main__":
    unittest.main()
