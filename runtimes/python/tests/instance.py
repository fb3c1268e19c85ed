"""Starts the adapter as the platform does: a listener on descriptor 3, a readiness pipe on descriptor 4."""

import http.client
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

ADAPTER = pathlib.Path(__file__).resolve().parent.parent / "dhow_adapter.py"
INTERPRETER = os.environ.get("DHOW_TEST_PYTHON", "/usr/bin/python3")
# How long anything may take before the test gives up; never how long something should take.
PATIENCE = 30

# Puts the two descriptors where the contract wants them, whatever numbers they have here.
_PLACE = textwrap.dedent(
    """
    import fcntl, os, sys
    listener, ready = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 64) for fd in sys.argv[1:3])
    os.dup2(listener, 3)
    os.dup2(ready, 4)
    os.closerange(5, 256)
    os.execv(sys.argv[3], sys.argv[3:])
    """
)
# As a zygote does it: everything imported, then a fork.
_FORK = textwrap.dedent(
    f"""
    import os, sys
    sys.path.insert(0, {str(ADAPTER.parent)!r})
    import dhow_adapter
    pid = os.fork()
    if pid == 0:
        code = dhow_adapter.main()
        sys.stdout.flush()
        os._exit(code)
    os.close(3)
    os.close(4)
    import signal
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
)


class Instance:
    def __init__(self, files, handler=None, env=None, unix=False, forked=False):
        self._folder = tempfile.TemporaryDirectory(prefix="dhow-function-")
        self.code = code = pathlib.Path(self._folder.name)
        for name, text in files.items():
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            (code / name).write_text(textwrap.dedent(text))
        self.listener = _listen(code / ".socket" if unix else None)
        self._address = self.listener.getsockname()
        ready, ready_inside = os.pipe()
        self.stderr = tempfile.TemporaryFile("w+")
        program = [INTERPRETER, "-I", "-c", _FORK] if forked else [INTERPRETER, "-I", str(ADAPTER)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PLACE, str(self.listener.fileno()), str(ready_inside), *program],
            cwd=code,
            env={"PORT": "8080", **({"DHOW_HANDLER": handler} if handler else {}), **(env or {})},
            pass_fds=(self.listener.fileno(), ready_inside),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )
        os.close(ready_inside)
        self.ready = os.read(ready, 2)
        os.close(ready)
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.stderr.close()
            self._folder.cleanup()

    def connect(self):
        if isinstance(self._address, tuple):
            return socket.create_connection(self._address, timeout=PATIENCE)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(self._address)
        return connection

    def request(self, method="GET", path="/", body=None, headers=None):
        """One exchange: the status, the headers in lower case, the body."""
        connection = http.client.HTTPConnection("function", timeout=PATIENCE)
        connection.sock = self.connect()
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return response.status, fields, response.read()
        finally:
            connection.close()

    def refuses(self):
        """Waits until no new connection is accepted."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                self.connect().close()
            except OSError:
                return True
        return False

    def wait(self):
        return self.process.wait(PATIENCE)

    def errors(self):
        self.stderr.seek(0)
        return self.stderr.read()


def _listen(path):
    if path is None:
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
    return listener
