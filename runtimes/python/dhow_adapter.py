"""Loads a Python function and serves it; what runs inside every Python instance.

Owns: finding the user's callable, the server around it, readiness and the way out. Must not know any platform API,
image or build. The surprise: everything here is imported once, in a zygote that is forked for each instance, so the
module level pays for all imports and `main` must stay cheap; and the libraries it serves with are hidden from the
user's code afterwards, so that a function may bring its own copies.

The contract: the working directory holds the code, `/deps/python` the installed dependencies, `DHOW_HANDLER` names the
callable. Either descriptor 3 is the listening socket and one byte on descriptor 4 says that the handler is loaded, or,
with `--port`, the adapter listens on `PORT` itself once the handler is loaded, so that accepting says the same. SIGTERM
finishes what is in flight and exits 0. A function that cannot be loaded exits 1 and says why on stderr.
"""

import asyncio
import concurrent.futures
import glob
import importlib
import inspect
import logging
import os
import platform
import signal
import socket
import sys
import traceback
import types

LISTENER_FD = 3
READY_FD = 4
# Where a sandbox has no mounts, PYTHONPATH says where they are instead.
DEPENDENCIES = "/deps/python"
# Worker threads of synchronous handlers. They start one by one as requests overlap, and the platform sends no more
# simultaneous requests than the function's concurrency.
THREADS = 64
# The gateway closes idle connections, never the instance: otherwise one could close while a request is on its way.
KEEP_ALIVE_SECONDS = 3600

_HOME = os.path.dirname(os.path.abspath(__file__))
_LIBRARIES = [os.path.join(_HOME, "lib"), *sorted(glob.glob(os.path.join(_HOME, "wheels", "*.whl")))]


def _import_libraries():
    """Imports what serving needs, and takes it out of sight again."""
    added = [_HOME, *_LIBRARIES]
    before = set(sys.modules)
    sys.path[:0] = added
    # The package's front door would import its command line, and with it 3 MB that every fork would carry.
    entry = types.ModuleType("uvicorn.main")
    entry.Server = entry.main = entry.run = None
    sys.modules["uvicorn.main"] = entry
    try:
        import a2wsgi
        import uvicorn.config
        import uvicorn.lifespan.off
        import uvicorn.lifespan.on
        import uvicorn.protocols.http.h11_impl
        import uvicorn.protocols.websockets.wsproto_impl
        import uvicorn.server

        import dhow_http

        modules = a2wsgi, uvicorn, dhow_http
    finally:
        for path in added:
            sys.path.remove(path)
    hidden = ("uvicorn", "h11", "wsproto", "a2wsgi", "typing_extensions")
    return modules, [name for name in sys.modules if name.split(".")[0] in hidden and name not in before]


(a2wsgi, uvicorn, dhow_http), _hidden = _import_libraries()


class LoadError(Exception):
    """The function cannot be served; the message says what is wrong and what to do."""


class Door:
    """The ASGI application that the server is configured with before the user's is known."""

    def __init__(self):
        self.app = None

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


class Server(uvicorn.server.Server):
    """The library's server, told when to be ready and when to end, without its ten wake-ups a second."""

    def __init__(self, config, announce):
        super().__init__(config)
        self.exit_code = 0
        self._stop = None
        self._announce = announce

    def stop(self, exit_code=0):
        self.exit_code = self.exit_code or exit_code
        self.should_exit = True
        if self._stop is not None:
            self._stop.set()

    def capture_signals(self):
        # It would raise the signal again at the end, and a drained instance must exit 0.
        return _NOTHING

    async def startup(self, sockets=None):
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(THREADS, "handler"))
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        try:
            await super().startup(sockets)
        except SystemExit:
            raise LoadError("the application's start-up failed; see above") from None
        self._announce()

    async def main_loop(self):
        await self._stop.wait()


class _Nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False


_NOTHING = _Nothing()


def _configure(door):
    """The library resolves names while it loads its configuration, which must happen before they are hidden."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.config.Config(
        door,
        loop="asyncio",
        http=uvicorn.protocols.http.h11_impl.H11Protocol,
        ws=uvicorn.protocols.websockets.wsproto_impl.WSProtocol,
        interface="asgi3",
        lifespan="auto",
        log_config=None,
        access_log=False,
        # A tick a second would be needed for the date; the gateway, always in the path, writes it.
        date_header=False,
        server_header=False,
        # Whoever wants to believe X-Forwarded-For wraps the application; here it is the caller's to write.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        workers=1,
    )
    config.load()
    return config


_door = Door()
_config = _configure(_door)
_lifespan_off = uvicorn.lifespan.off.LifespanOff
for _name in _hidden:
    del sys.modules[_name]
# The server asks for it at every start; the first answer is slow and kept.
platform.system()


def main():
    """Serves the function in this process until it is told to stop; returns the exit code."""
    # The first process of a pid namespace ignores signals without a handler; nothing is in flight before the server.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    # A zygote's children are never started this way: they have no arguments.
    own_port = sys.argv[1:] == ["--port"]
    del sys.argv[1:]
    server = Server(_config, _nothing if own_port else _announce_ready)
    try:
        listener = _bound() if own_port else _listener()
        _set_path(os.getcwd(), os.environ.get("PYTHONPATH") or DEPENDENCIES)
        _door.app, has_lifespan = load(os.environ.get("DHOW_HANDLER") or "main.handle", server.stop)
        if not has_lifespan:
            _config.lifespan_class = _lifespan_off
        asyncio.run(server.serve(sockets=[listener]))
    except LoadError as error:
        print(f"dhow: {error}", file=sys.stderr, flush=True)
        return 1
    return server.exit_code


def load(handler, stop):
    """The ASGI application for the callable that `handler` names, and whether it speaks the lifespan protocol."""
    module_name, _, name = handler.rpartition(".")
    if not module_name or not name:
        raise LoadError(f"spec.handler is '{handler}'; write it as module.function, such as main.handle")
    file = module_name.replace(".", "/") + ".py"
    module = _import(module_name, file)
    found = getattr(module, name, None)
    on_event = getattr(module, "handle_event", None)
    if found is None and name == "handle":
        found = None if on_event is not None else getattr(module, "app", None)
        name = "app" if found is not None else name
    if name == "handle_event":
        found = None
    if found is None and on_event is None:
        signature = "handle_event(event)" if name == "handle_event" else f"{name}(request)"
        raise LoadError(f"{file} defines no '{name}'; define {signature} or set spec.handler")
    if found is not None and not callable(found):
        raise LoadError(f"'{name}' in {file} is a {type(found).__name__}, which cannot be called; make it a function")
    if on_event is not None and not callable(on_event):
        raise LoadError(f"'handle_event' in {file} is a {type(on_event).__name__}; make it a function")
    arity = _arity(found) if found is not None else 1
    if arity == 3:
        return found, True
    if arity == 2:
        return a2wsgi.WSGIMiddleware(found, workers=THREADS), False
    if arity == 1:
        return dhow_http.Application(found, on_event, stop, _print_traceback), False
    raise LoadError(
        f"'{name}' in {file} takes {arity} arguments; a handler takes one, the request (WSGI two, ASGI three)"
    )


def _listener():
    try:
        listener = socket.socket(fileno=LISTENER_FD)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise LoadError(f"descriptor {LISTENER_FD} is no socket ({error}); the platform must pass a listener") from None
    if not listening:
        raise LoadError(f"descriptor {LISTENER_FD} does not listen; the platform must pass a listener")
    return listener


def _bound():
    """A socket that is bound and does not listen yet: whoever connects before the handler is loaded is refused. The
    server listens on it when it starts, after the application's own start-up."""
    given = os.environ.get("PORT") or "8080"
    try:
        port = int(given)
        # Both families on one socket, where there are two.
        both = socket.has_dualstack_ipv6()
        bound = socket.socket(socket.AF_INET6 if both else socket.AF_INET, socket.SOCK_STREAM)
        if both:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("::" if both else "0.0.0.0", port))
    except (OSError, OverflowError, ValueError) as error:
        raise LoadError(f"cannot listen on PORT={given}: {error}") from None
    return bound


def _set_path(code, dependencies):
    """The code first, its dependencies second, then the standard library and nothing else of the host."""
    system = [p for p in sys.path if p and not p.endswith(("dist-packages", "site-packages"))]
    sys.path[:] = [code, dependencies] + [p for p in system if p not in (code, dependencies)]
    # A zygote has looked into folders that were empty then.
    importlib.invalidate_caches()


def _import(module_name, file):
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise LoadError(f"there is no {file} in {os.getcwd()}; add it or set spec.handler") from None
        _print_traceback(error)
        raise LoadError(f"{file} needs '{error.name}', which is not installed; add it to requirements.txt") from None
    except SyntaxError as error:
        _print_traceback(error)
        where = os.path.relpath(error.filename) if error.filename else file
        raise LoadError(f"{where} line {error.lineno} is not valid Python: {error.msg}") from None
    except SystemExit as error:
        raise LoadError(f"{file} exited with {error.code!r} while it was loaded; guard it with __name__") from None
    except BaseException as error:
        _print_traceback(error)
        raise LoadError(f"{file} failed while it was loaded: {type(error).__name__}: {error}") from None


def _arity(function):
    """How many arguments it must be called with."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if not required and (positional or any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        return 1
    return len(required)


def _print_traceback(error):
    """Writes the traceback to stderr with the user's frames only."""
    trace = traceback.TracebackException.from_exception(error)
    _trim(trace)
    sys.stderr.write("".join(trace.format()))
    sys.stderr.flush()


def _trim(trace):
    machinery = [os.path.dirname(m.__file__) + os.sep for m in (asyncio, concurrent.futures, importlib)]
    ours = (_HOME + os.sep, "<frozen importlib", *machinery)
    trace.stack = traceback.StackSummary.from_list(f for f in trace.stack if not f.filename.startswith(ours))
    for cause in (trace.__cause__, trace.__context__):
        if cause is not None:
            _trim(cause)


def _nothing():
    """Nobody is to be told: the server accepts."""


def _announce_ready():
    try:
        os.write(READY_FD, b"1")
        os.close(READY_FD)
    except OSError as error:
        print(f"dhow: nobody waits for readiness: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
