"""`--port`: the adapter opens its own port, once the handler is loaded and not before."""

import http.client
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import textwrap
import threading
import time
import unittest

from instance import ADAPTER, INTERPRETER, PATIENCE


class Instance:
    """The adapter as an image's entrypoint starts it."""

    def __init__(self, code, port, env=None):
        self.port = port
        self._folder = tempfile.TemporaryDirectory(prefix="dhow-function-")
        (pathlib.Path(self._folder.name) / "main.py").write_text(textwrap.dedent(code))
        self.stderr = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [INTERPRETER, "-I", str(ADAPTER), "--port"],
            cwd=self._folder.name,
            env={"PORT": str(port), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.stderr.close()
        self._folder.cleanup()

    def accepts(self):
        """Waits until the port accepts, which is when the instance is ready; false when it has ended."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
                return True
            except ConnectionRefusedError:
                time.sleep(0.005)
        return False

    def get(self, path="/"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait(self):
        code = self.process.wait(PATIENCE)
        self.stderr.seek(0)
        return code, self.stderr.read()


def free_port():
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Port(unittest.TestCase):
    def test_accepts_once_the_handler_is_loaded(self):
        gate = os.path.join(tempfile.mkdtemp(), "gate")
        os.mkfifo(gate)
        code = f"""
            import sys
            print("loading", flush=True)
            open({gate!r}).read()
            def handle(request):
                return {{"argv": len(sys.argv)}}
        """
        with Instance(code, free_port()) as instance:
            self.assertEqual("loading\n", instance.process.stdout.readline())
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", instance.port), timeout=PATIENCE)
            with open(gate, "w"):
                pass
            self.assertTrue(instance.accepts())
            self.assertEqual((200, b'{"argv": 1}'), instance.get())
            instance.process.send_signal(signal.SIGTERM)
            self.assertEqual((0, ""), instance.wait())

    def test_an_application_with_a_start_up_of_its_own(self):
        code = """
            state = []
            async def app(scope, receive, send):
                if scope["type"] == "lifespan":
                    await receive()
                    state.append("started")
                    await send({"type": "lifespan.startup.complete"})
                    await receive()
                    await send({"type": "lifespan.shutdown.complete"})
                    return
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": state[0].encode()})
        """
        with Instance(code, free_port()) as instance:
            self.assertTrue(instance.accepts())
            self.assertEqual((200, b"started"), instance.get())

    def test_the_end_waits_for_requests_in_flight(self):
        code = """
            def handle(request):
                print("asked", flush=True)
                with open(request.query["gate"]) as gate:
                    return gate.read()
        """
        gate = os.path.join(tempfile.mkdtemp(), "gate")
        os.mkfifo(gate)
        with Instance(code, free_port()) as instance:
            self.assertTrue(instance.accepts())
            answers = []
            asking = threading.Thread(target=lambda: answers.append(instance.get(f"/?gate={gate}")))
            asking.start()
            self.assertEqual("asked\n", instance.process.stdout.readline())
            instance.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    socket.create_connection(("127.0.0.1", instance.port), timeout=PATIENCE).close()
                except OSError:
                    break
            with open(gate, "w") as answer:
                answer.write("done")
            asking.join(PATIENCE)
            self.assertEqual([(200, b"done")], answers)
            self.assertEqual((0, ""), instance.wait())

    def test_what_cannot_be_served_ends(self):
        taken = socket.create_server(("", 0))
        self.addCleanup(taken.close)
        for code, port, want in [
            ("nothing = 1", free_port(), "main.py defines no 'handle'"),
            ("def handle(r): pass", taken.getsockname()[1], "cannot listen on PORT="),
            ("def handle(r): pass", "http", "cannot listen on PORT=http"),
            ("def handle(r): pass", "70000", "cannot listen on PORT=70000"),
        ]:
            with self.subTest(want), Instance(code, port) as instance:
                code, errors = instance.wait()
                self.assertEqual(1, code)
                self.assertIn(want, errors)
