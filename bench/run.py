#!/usr/bin/env python3
"""Measures a real `dhow up` beside its peers, in the same run, and keeps the result.

Prints a table and writes bench/results/<date>-<commit>.json. Every figure stands beside a peer's as a ratio, with the
share of the time that the CPUs were idle just before, since other work on the machine moves everything.
"""
import concurrent.futures
import contextlib
import datetime
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import api
from measure import DHOW, PEERS, ROOT, Platform, cpu_seconds, free_port, quiet, rss, started, template, wrk

PYTHON = "/usr/bin/python3"
NODE = "/usr/bin/node"
SAMPLES = int(os.environ.get("DHOW_BENCH_SAMPLES", "50"))
SECONDS = int(os.environ.get("DHOW_BENCH_SECONDS", "5"))

HANDLER = "import os\n\ndef handle(request):\n    return os.environ['HOSTNAME']\n"
ASGI = (
    "import os\n\nasync def app(scope, receive, send):\n"
    "    if scope['type'] != 'http':\n        raise RuntimeError(scope['type'])\n"
    "    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})\n"
    "    await send({'type': 'http.response.body', 'body': os.environ['HOSTNAME'].encode()})\n"
)
FETCH = "export default { fetch: () => new Response(process.env.HOSTNAME) };\n"


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request(address, host, path="/"):
    """One request on a connection of its own; returns seconds to the first byte, and the whole answer."""
    begin = time.perf_counter()
    with socket.create_connection(address, timeout=60) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        data = s.recv(65536)
        first = time.perf_counter() - begin
        while chunk := s.recv(65536):
            data += chunk
    return first, data


def cold_bare(command, port):
    """A plain interpreter, started for the request: the time until it has answered."""
    begin = time.perf_counter()
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                request(("127.0.0.1", port), "localhost")
                return time.perf_counter() - begin
            except (ConnectionError, IndexError):
                time.sleep(0.0002)
    finally:
        process.kill()
        process.wait()


def cold_starts(platform):
    rows = []
    kinds = [
        ("python", {"main.py": HANDLER}, "bare.py", [PYTHON, "-I", "-S", PEERS / "bare.py"]),
        ("python-asgi", {"main.py": ASGI}, "bare.py", [PYTHON, "-I", "-S", PEERS / "bare.py"]),
        ("node", {"index.mjs": FETCH}, "bare.mjs", [NODE, PEERS / "bare.mjs"]),
    ]
    for name, files, peer, command in kinds:
        platform.deploy(name, files)
        ours, bare, seen = [], [], set()
        idle = quiet()
        for _ in range(SAMPLES):
            platform.run(DHOW, "scale", name, "--to", "0")
            # An instance on its way out still answers for a moment, and that would be no cold start.
            time.sleep(0.5)
            seconds, answer = request(platform.gateway, f"{name}.default.localhost")
            assert b" 200 " in answer.split(b"\r\n", 1)[0], answer
            seen.add(re.search(rf"{name}-\d+-deployment-\w+-\w+".encode(), answer)[0])
            ours.append(seconds)
            bare.append(cold_bare(command, free_port()))
        platform.run(DHOW, "scale", name, "--to", "0")
        rows.append({
            "what": f"cold start, {name}", "unit": "ms", "samples": SAMPLES, "fresh_instances": len(seen), "idle": idle,
            "p50": statistics.median(ours) * 1e3, "p99": percentile(ours, 0.99) * 1e3,
            "peer": peer, "peer_p50": statistics.median(bare) * 1e3, "peer_p99": percentile(bare, 0.99) * 1e3,
            "difference_p50": (statistics.median(ours) - statistics.median(bare)) * 1e3,
            "ratio": statistics.median(ours) / statistics.median(bare),
        })
    return rows


def burst(platform):
    """Twenty simultaneous calls of one second to a default function at zero: each gets an instance of its own."""
    slow = "import os, time\n\ndef handle(request):\n    time.sleep(1)\n    return os.environ['HOSTNAME']\n"
    platform.deploy("slow", {"main.py": slow})
    took, distinct = [], []
    idle = quiet()
    for _ in range(5):
        platform.run(DHOW, "scale", "slow", "--to", "0")
        time.sleep(0.5)
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(20) as callers:
            answers = list(callers.map(lambda _: request(platform.gateway, "slow.default.localhost")[1], range(20)))
        took.append(time.perf_counter() - begin)
        distinct.append(len({re.search(rb"slow-\d+-deployment-\w+-\w+", answer)[0] for answer in answers}))
    return [
        {"what": "20 calls of 1 s at once from zero, until all ended", "unit": "s", "value": statistics.median(took), "target": 2.5, "idle": idle},
        {"what": "the same, distinct instances at least", "unit": "", "value": min(distinct), "target": 20, "idle": idle},
    ]


def warm():
    """Keep-alive requests through dhow's gateway, nginx and HAProxy, each pinned alone to the first processor, in front
    of the same nginx that answers from memory; the load generator and the back end share the second."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="dhow-bench-"))
    backend, nginx, haproxy = free_port(), free_port(), free_port()
    platform = Platform(["taskset", "-c", "0"])
    objects = [
        {"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress", "metadata": {"name": "bench", "namespace": "default"},
         "spec": {"rules": [{"hosts": ["bench.test"], "visibility": "ExternalIP", "http": {"paths": [{"splits": [{
             "serviceName": "bench", "serviceNamespace": "default", "servicePort": 80, "percent": 100,
             "policy": {"service": "bench", "containerConcurrency": 0, "timeoutSeconds": 300}}]}]}}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {"name": "bench", "namespace": "default", "labels": {"kubernetes.io/service-name": "bench"}},
         "ports": [{"name": "http", "port": backend, "protocol": "TCP"}],
         "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True, "serving": True, "terminating": False}}]}]
    manifest = directory / "bench.json"
    manifest.write_text("\n".join(json.dumps(o) for o in objects))
    rows = []
    with contextlib.ExitStack() as stack:
        stack.callback(platform.stop)
        stack.callback(shutil.rmtree, directory, True)
        platform.run("kubectl", "apply", "-f", manifest)
        stack.enter_context(started(["taskset", "-c", "1", "nginx", "-c", template("backend.conf", directory, PORT=backend, DIR=directory)], backend))
        first = stack.enter_context(started(["taskset", "-c", "0", "nginx", "-c", template("nginx.conf", directory, PORT=nginx, BACKEND=backend, DIR=directory)], nginx))
        second = stack.enter_context(started(["taskset", "-c", "0", "haproxy", "-f", template("haproxy.cfg", directory, PORT=haproxy, BACKEND=backend)], haproxy))
        sides = {"dhow": (platform.gateway, platform.process.pid), "nginx": (("127.0.0.1", nginx), first.pid), "haproxy": (("127.0.0.1", haproxy), second.pid)}
        for connections in (1, 32):
            idle = quiet()
            runs = {side: [] for side in sides}
            direct = []
            for _ in range(3):
                for side, (address, pid) in sides.items():
                    before = cpu_seconds(pid)
                    run = wrk(address, "bench.test", connections, SECONDS)
                    run["cpu_us"] = (cpu_seconds(pid) - before) / max(1, run["requests"]) * 1e6
                    runs[side].append(run)
                direct.append(wrk(("127.0.0.1", backend), "bench.test", connections, SECONDS))
            mid = {side: {k: statistics.median(r[k] for r in values) for k in values[0]} for side, values in runs.items()}
            base = {k: statistics.median(r[k] for r in direct) for k in direct[0]}
            for peer in ("nginx", "haproxy"):
                ours, theirs = mid["dhow"], mid[peer]
                rows.append({"what": f"warm, {connections} connection(s)", "unit": "requests/s", "idle": idle, "peer": peer,
                             "value": ours["rps"], "peer_value": theirs["rps"], "ratio": ours["rps"] / theirs["rps"],
                             "cpu_us": ours["cpu_us"], "peer_cpu_us": theirs["cpu_us"],
                             "added_p50_us": ours["p50"] - base["p50"], "peer_added_p50_us": theirs["p50"] - base["p50"],
                             "added_p99_us": ours["p99"] - base["p99"], "peer_added_p99_us": theirs["p99"] - base["p99"]})
    return rows


def footprint():
    starts, memory, cpu = [], [], []
    idle = quiet()
    for _ in range(5):
        platform = Platform()
        time.sleep(2)
        before = cpu_seconds(platform.process.pid)
        time.sleep(3)
        starts.append(platform.start_seconds * 1e3)
        memory.append(rss(platform.process.pid) / (1 << 20))
        cpu.append((cpu_seconds(platform.process.pid) - before) / 3 * 100)
        platform.stop()
    return [
        {"what": "dhow up, until ready", "unit": "ms", "value": statistics.median(starts), "target": 100, "idle": idle},
        {"what": "dhow up idle, resident over the process tree", "unit": "MiB", "value": statistics.median(memory), "target": 25, "idle": idle},
        {"what": "dhow up idle, CPU", "unit": "% of one", "value": statistics.median(cpu), "target": 0.2, "idle": idle},
        {"what": "binary", "unit": "MiB", "value": DHOW.stat().st_size / (1 << 20), "target": 40, "idle": idle},
    ]


def machine():
    cpu = re.search(r"model name\s+: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {"cpu": cpu[1] if cpu else "unknown", "processors": os.cpu_count(), "kernel": os.uname().release,
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20}


def show(rows):
    for row in rows:
        if "p50" in row:
            print(f"{row['what']:<28} p50 {row['p50']:7.1f} ms  p99 {row['p99']:7.1f} ms   {row['peer']} p50 {row['peer_p50']:6.1f} ms   "
                  f"difference {row['difference_p50']:+6.1f} ms  ratio {row['ratio']:5.2f}   fresh {row['fresh_instances']}/{row['samples']}  idle {row['idle']}")
        elif "p99_ms" in row:
            print(f"{row['what']:<28} {row['value']:9.0f}/s   {row['peer']:<8} {row['peer_value']:9.0f}/s  ratio {row['ratio']:5.2f}   "
                  f"p99 {row['p99_ms']:.2f} : {row['peer_p99_ms']:.2f} ms   CPU/request {row['cpu_us']:.0f} : {row['peer_cpu_us']:.0f} µs   idle {row['idle']}")
        elif "peer" in row:
            print(f"{row['what']:<28} {row['value']:9.0f}/s   {row['peer']:<8} {row['peer_value']:9.0f}/s  ratio {row['ratio']:5.2f}   "
                  f"CPU/request {row['cpu_us']:.1f} : {row['peer_cpu_us']:.1f} µs   added p50 {row['added_p50_us']:.0f} : {row['peer_added_p50_us']:.0f} µs  "
                  f"p99 {row['added_p99_us']:.0f} : {row['peer_added_p99_us']:.0f} µs  idle {row['idle']}")
        else:
            print(f"{row['what']:<46} {row['value']:8.2f} {row['unit']:<10} final target {row['target']}   idle {row['idle']}")


def main():
    only = sys.argv[1:] or ["footprint", "cold", "burst", "warm", "api"]
    rows = []
    if "footprint" in only:
        rows += footprint()
    if "cold" in only:
        platform = Platform()
        try:
            rows += cold_starts(platform)
        finally:
            platform.stop()
    if "burst" in only:
        platform = Platform()
        try:
            rows += burst(platform)
        finally:
            platform.stop()
    if "warm" in only:
        rows += warm()
    if "api" in only:
        rows += api.rows()
    show(rows)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()
    date = datetime.date.today().isoformat()
    results = ROOT / "bench/results"
    results.mkdir(exist_ok=True)
    path = results / f"{date}-{commit or 'uncommitted'}.json"
    path.write_text(json.dumps({"date": date, "commit": commit, "machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"kept in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
