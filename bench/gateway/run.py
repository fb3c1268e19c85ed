#!/usr/bin/env python3
"""The gateway alone as a plain proxy beside nginx and HAProxy, before the same back end: requests per second, CPU per
request, latency. `bench/gateway/run.py [SECONDS [ROUNDS]]` builds the example `bench_proxy` first.

One worker each, pinned to the first processor; wrk and the back end share the second. The proxies take turns within
each round, so that other work on the machine falls on all alike; the medians are compared.
"""
import contextlib
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "bench/peers"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def idle_fraction(seconds=0.3):
    def read():
        fields = [int(x) for x in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return fields[3] + fields[4], sum(fields)

    idle, total = read()
    time.sleep(seconds)
    idle2, total2 = read()
    return (idle2 - idle) / max(1, total2 - total)


def cpu_seconds(pid):
    total = 0
    pids = [pid]
    for p in pids:
        with contextlib.suppress(OSError):
            for task in pathlib.Path(f"/proc/{p}/task").iterdir():
                pids += [int(c) for c in (task / "children").read_text().split()]
            fields = pathlib.Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def wrk(port, connections, seconds):
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", "Host: bench.test",
               f"http://127.0.0.1:{port}/"]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "Non-2xx" not in text and "Socket errors" not in text, text
    unit = {"us": 1, "ms": 1e3, "s": 1e6}
    latency = {k: float(v) * unit[u] for k, v, u in re.findall(r"\s(50|99)%\s+([\d.]+)(us|ms|s)", text)}
    return {"rps": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]), "p50": latency["50"], "p99": latency["99"],
            "requests": int(re.search(r"(\d+) requests in", text)[1])}


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


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    if "BENCH_PROXY" in os.environ:
        proxy = os.environ["BENCH_PROXY"]
    else:
        subprocess.run(["cargo", "build", "--release", "-q", "-p", "gateway", "--example", "bench_proxy"], cwd=ROOT, check=True)
        proxy = TARGET / "release/examples/bench_proxy"
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = pathlib.Path(name)
        ports = {side: free_port() for side in ("backend", "dhow", "nginx", "haproxy")}
        config = {side: template(file, directory, PORT=ports[side], BACKEND=ports["backend"], DIR=directory)
                  for side, file in {"backend": "backend.conf", "nginx": "nginx.conf", "haproxy": "haproxy.cfg"}.items()}
        commands = {
            "backend": ["taskset", "-c", "1", "nginx", "-c", config["backend"]],
            "dhow": ["taskset", "-c", "0", proxy, f"127.0.0.1:{ports['dhow']}", f"127.0.0.1:{ports['backend']}"],
            "nginx": ["taskset", "-c", "0", "nginx", "-c", config["nginx"]],
            "haproxy": ["taskset", "-c", "0", "haproxy", "-f", config["haproxy"]],
        }
        running = {side: stack.enter_context(started(command, ports[side])) for side, command in commands.items()}
        sides = ["dhow", "nginx", "haproxy"]
        for connections in (1, 32, 128):
            runs = {side: [] for side in sides}
            idle = []
            for _ in range(rounds):
                idle.append(idle_fraction())
                for side in sides:
                    before = cpu_seconds(running[side].pid)
                    run = wrk(ports[side], connections, seconds)
                    run["cpu"] = (cpu_seconds(running[side].pid) - before) / run["requests"] * 1e6
                    runs[side].append(run)
            mid = {side: {k: statistics.median(r[k] for r in runs[side]) for k in ("rps", "p50", "p99", "cpu")} for side in sides}
            for side in sides:
                m = mid[side]
                print(f"c={connections:<4} {side:<8} {m['rps']:9.0f}/s  cpu {m['cpu']:6.1f} us  p50 {m['p50']:7.0f} us  p99 {m['p99']:7.0f} us"
                      f"   dhow/{side}: {mid['dhow']['rps'] / m['rps']:.2f} of the rate, {mid['dhow']['cpu'] / m['cpu']:.2f} of the CPU, "
                      f"{mid['dhow']['p50'] / m['p50']:.2f} of p50   idle before {min(idle):.2f}")


if __name__ == "__main__":
    main()
