"""What the benchmarks measure with: a platform of their own, the machine's idle share, a process tree's CPU time and
memory, wrk, and peers by template."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench/peers"
DHOW = ROOT / "target/release/dhow"


def idle_fraction(seconds=0.5):
    def read():
        fields = [int(x) for x in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return fields[3] + fields[4], sum(fields)

    idle, total = read()
    time.sleep(seconds)
    idle2, total2 = read()
    return round((idle2 - idle) / max(1, total2 - total), 3)


def quiet():
    """Waits, bounded, for the machine to have nothing else to do; returns the idle fraction seen last."""
    for _ in range(20):
        idle = idle_fraction()
        if idle > 0.9:
            break
    return idle


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def tree(pid):
    found = [pid]
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


def cpu_seconds(pid):
    total = 0
    for p in tree(pid):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def rss(pid):
    """Resident bytes over the process tree, shared pages counted once per process: an upper bound."""
    total = 0
    for p in tree(pid):
        with contextlib.suppress(OSError):
            total += int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{p}/status").read_text())[1]) * 1024
    return total


def wrk(address, host, connections, seconds):
    """wrk on the second processor; requests per second and latencies in µs."""
    script = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", f"Host: {host}",
              f"http://{address[0]}:{address[1]}/"]
    text = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout
    unit = {"us": 1, "ms": 1e3, "s": 1e6}
    latency = {k: float(v) * unit[u] for k, v, u in re.findall(r"\s(50|99)%\s+([\d.]+)(us|ms|s)", text)}
    requests = int(re.search(r"(\d+) requests in", text)[1])
    assert "Non-2xx" not in text and "Socket errors" not in text, text
    return {"rps": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]), "requests": requests, "p50": latency["50"], "p99": latency["99"]}


@contextlib.contextmanager
def started(command, port):
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def template(name, directory, **values):
    text = (PEERS / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    path = directory / name
    path.write_text(text)
    return path


class Platform:
    def __init__(self, prefix=()):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="dhow-bench-"))
        self.data = self.dir / "data"
        self.prefix = prefix
        self.start()

    def start(self):
        listeners = [x for name in ("api", "gateway", "gateway-tls", "console", "metrics", "registry") for x in (f"--{name}-listen", "127.0.0.1:0")]
        (self.data / "endpoints.json").unlink(missing_ok=True)
        begin = time.perf_counter()
        self.log = open(self.dir / "log", "w")
        self.process = subprocess.Popen([*self.prefix, DHOW, "up", "--data-dir", self.data, *listeners], stderr=self.log, stdout=self.log)
        while not (self.data / "endpoints.json").exists():
            if self.process.poll() is not None:
                sys.exit(f"dhow up ended:\n{(self.dir / 'log').read_text()}")
            time.sleep(0.001)
        self.start_seconds = time.perf_counter() - begin
        self.endpoints = json.loads((self.data / "endpoints.json").read_text())
        host, port = self.endpoints["gateway"].rsplit(":", 1)
        self.gateway = (host, int(port))

    def run(self, *args, **kwargs):
        env = dict(os.environ, DHOW_KUBECONFIG=str(self.data / "kubeconfig"), KUBECONFIG=str(self.data / "kubeconfig"))
        done = subprocess.run([str(a) for a in args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)
        if done.returncode:
            sys.exit(f"{args}: {done.stderr.decode()}\n{(self.dir / 'log').read_text()}")
        return done

    def deploy(self, name, files):
        source = self.dir / name
        source.mkdir()
        for file, content in files.items():
            (source / file).write_text(content)
        self.run(DHOW, "deploy", source)

    def restart(self):
        self.process.terminate()
        self.process.wait(30)
        self.start()

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.dir, ignore_errors=True)
