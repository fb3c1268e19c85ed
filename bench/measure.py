"""What both benchmarks measure with: the machine's idle share, a process tree's CPU time, wrk, and peers by template."""
import contextlib
import os
import pathlib
import re
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench/peers"


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
