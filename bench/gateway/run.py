#!/usr/bin/env python3
"""The gateway alone as a plain proxy beside nginx and HAProxy, before the same back end: requests per second, CPU per
request, latency. `bench/gateway/run.py [SECONDS [ROUNDS]]` builds the example `bench_proxy` first.

One worker each, pinned to the first processor; wrk and the back end share the second. The proxies take turns within
each round, so that other work on the machine falls on all alike; the medians are compared.
"""
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from measure import ROOT, cpu_seconds, free_port, idle_fraction, started, template, wrk  # noqa: E402

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


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
                    run = wrk(("127.0.0.1", ports[side]), "bench.test", connections, seconds)
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
