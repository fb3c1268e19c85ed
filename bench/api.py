"""The embedded Kubernetes API beside etcd, which is what lies underneath a real one: the same program loads both, each
alone on the machine. A request of the API is validated, defaulted and given its managed fields; etcd's is a key and a value
of the same size. Both are spoken to over HTTP/2 and TLS, as in a cluster; and etcd once more without TLS, since Debian's has
another, slower server behind it."""
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

from measure import ROOT, Platform, cpu_seconds, free_port, quiet, rss, started

LOAD = ROOT / "target/release/examples/load"
ROUNDS = 3
PARTS = {
    "create": "create or put, 64 clients",
    "get": "get, 64 clients",
    "list": "list of 1000, 8 clients",
    "apply": "apply or put, 64 clients",
    "watch": "one change to 1000 watches",
}
STORED = 100_000


def load(kind, place, part, **variables):
    env = dict(os.environ, **{name: str(value) for name, value in variables.items()})
    return json.loads(subprocess.run([LOAD, kind, place, part], env=env, check=True, stdout=subprocess.PIPE).stdout)


@contextlib.contextmanager
def etcd(secure=True):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="dhow-bench-"))
    client, peer = free_port(), free_port()
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = ["etcd", "--data-dir", directory / "etcd", "--log-level", "error"]
    if secure:
        made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=etcd",
                "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", certificate]
        subprocess.run(made, check=True, stderr=subprocess.DEVNULL)
        command += ["--cert-file", certificate, "--key-file", key]
    for flags, url in ((("listen-client", "advertise-client"), f"http{'s' * secure}://127.0.0.1:{client}"),
                       (("listen-peer", "initial-advertise-peer"), f"http://127.0.0.1:{peer}")):
        command += [text for flag in flags for text in (f"--{flag}-urls", url)]
    command += ["--initial-cluster", f"default=http://127.0.0.1:{peer}"]
    try:
        with started(command, client) as process:
            time.sleep(2)
            yield "etcd", f"127.0.0.1:{client},{certificate if secure else ''}", process.pid
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def etcd_without_tls():
    return etcd(secure=False)


@contextlib.contextmanager
def ours():
    platform = Platform()
    try:
        yield "api", platform.data / "kubeconfig", platform.process.pid
    finally:
        platform.stop()


def measured(side, part):
    """Every run has a server and a data directory of its own."""
    with side() as (kind, place, pid):
        before = cpu_seconds(pid)
        run = load(kind, place, part)
        run["cpu_us"] = (cpu_seconds(pid) - before) / run["count"] * 1e6
        return run


def beside_etcd():
    rows = []
    peers = {"etcd": etcd, "etcd without TLS": etcd_without_tls}
    keys = ("per_second", "p50_ms", "p99_ms", "cpu_us")
    for part, what in PARTS.items():
        idle = quiet()
        runs = {side: [] for side in (ours, *peers.values())}
        for _ in range(ROUNDS):
            for side, values in runs.items():
                values.append(measured(side, part))
        medians = {side: {key: statistics.median(run[key] for run in values) for key in keys} for side, values in runs.items()}
        mine = medians[ours]
        for name, side in peers.items():
            theirs = medians[side]
            rows.append({"what": what, "unit": "requests/s", "idle": idle, "peer": name, "value": mine["per_second"], "peer_value": theirs["per_second"],
                         "ratio": mine["per_second"] / theirs["per_second"], **{key: mine[key] for key in keys[1:]},
                         **{f"peer_{key}": theirs[key] for key in keys[1:]}})
    return rows


def many_objects():
    """What a hundred thousand objects cost: memory while they are there, and time when the platform starts with them."""
    idle = quiet()
    platform = Platform()
    try:
        before = rss(platform.process.pid)
        load("api", platform.data / "kubeconfig", "fill", COUNT=STORED)
        memory = rss(platform.process.pid)
        platform.restart()
        fresh = rss(platform.process.pid)
    finally:
        platform.stop()
    mib = 1 << 20
    return [
        {"what": "100k objects, resident over the process tree", "unit": "MiB", "value": memory / mib, "target": 400, "idle": idle},
        {"what": "the same, above what it was without them", "unit": "MiB", "value": (memory - before) / mib, "target": 400, "idle": idle},
        {"what": "the same after a restart", "unit": "MiB", "value": fresh / mib, "target": 400, "idle": idle},
        {"what": "start with 100k objects, until ready", "unit": "s", "value": platform.start_seconds, "target": 2, "idle": idle},
    ]


def rows():
    return beside_etcd() + many_objects()
