#!/usr/bin/env python3
"""Measures Dhow on the test cluster beside plain Deployments on the same cluster, and keeps the result.

Started by tests/cluster/run.sh, which installs Dhow's release image. Usage: cluster.py KUBECONFIG AUDIT_LOG [PART...]
"""
import collections
import contextlib
import datetime
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import threading
import time

from kube import Kube
from measure import ROOT, idle_fraction, quiet, wrk
from run import machine, percentile, request

IMAGE = "dhow.test/hello:1"
KUBECTL = os.environ.get("DHOW_KUBECTL", "kubectl")
ROUNDS = int(os.environ.get("DHOW_BENCH_SAMPLES", "20"))
SERVICES = int(os.environ.get("DHOW_BENCH_SERVICES", "1000"))
ROLES = ("controller", "autoscaler", "gateway", "builder")
WRITES = ("create", "update", "patch", "delete", "deletecollection")
NAMESPACE = "bench"
SERVING = f"/apis/serving.knative.dev/v1/namespaces/{NAMESPACE}/services"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
SCALERS = f"/apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/{NAMESPACE}/podautoscalers"
# As Dhow's own pods have it.
PROBE = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}


def wait(what, check, seconds=120, pause=0.01):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := check()) not in (None, False, [], ""):
            return found
        time.sleep(pause)
    sys.exit(f"{what} did not happen within {seconds} s")


def is_true(item, kind):
    return any(c["type"] == kind and c["status"] == "True" for c in item.get("status", {}).get("conditions", []))


class Audit:
    """What Dhow's service accounts asked the API server for since some moment; leases apart, watches counted once."""

    def __init__(self, path):
        self.path, self.at = path, os.path.getsize(path)

    def since(self):
        time.sleep(1)
        counts, writes, seconds = collections.Counter(), collections.Counter(), collections.Counter()
        with open(self.path, "rb") as log:
            log.seek(self.at)
            for line in log:
                event = json.loads(line)
                user = event["user"]["username"].removeprefix("system:serviceaccount:dhow-system:dhow-")
                of = event.get("objectRef", {})
                if user not in ROLES or of.get("resource") == "leases" or event["stage"] == "ResponseStarted":
                    continue
                counts[user] += 1
                seconds[event["requestReceivedTimestamp"][:19]] += 1
                if event["verb"] in WRITES:
                    writes[f"{event['verb']} {of.get('resource')}{'/' + of['subresource'] if of.get('subresource') else ''}"] += 1
        return counts, writes, max(seconds.values(), default=0)


def processes():
    """Role to the process ids of its copies."""
    found = collections.defaultdict(list)
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[0] == b"/dhow" and words[1] == b"role":
                found[words[2].decode()].append(int(entry.name))
    return found


def footprint(case, seconds=20):
    def cpu(pid):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(pid):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) / 1024

    all_of = processes()
    before = {pid: cpu(pid) for pids in all_of.values() for pid in pids}
    idle = idle_fraction(seconds)
    rows = []
    for role in ROLES:
        pids = all_of[role]
        used = [(cpu(pid) - before[pid]) / seconds * 100 for pid in pids]
        target = 60 if case == "idle" else 150
        rows.append({"what": f"{role}, {case}: memory of the larger copy", "unit": "MiB", "value": max(map(rss, pids)), "target": target, "idle": idle})
        rows.append({"what": f"{role}, {case}: CPU of the busier copy", "unit": "% of one", "value": max(used), "target": None, "idle": idle})
    return rows


class Bench:
    def __init__(self, kubeconfig, audit):
        self.kubeconfig, self.audit = kubeconfig, audit
        self.kube = Kube(kubeconfig, KUBECTL)
        self.kube.ask("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        spec = self.kube.ask("GET", "/api/v1/namespaces/dhow-system/services/dhow-gateway")["spec"]
        self.gateway = (spec["clusterIP"], spec["ports"][0]["port"])

    def service(self, name, annotations=(), **spec):
        template = {"metadata": {"annotations": dict(annotations)}, "spec": {"containers": [{"image": IMAGE, "ports": [{"containerPort": 8080}]}], **spec}}
        self.kube.ask("POST", SERVING, {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name}, "spec": {"template": template}})

    def deployment(self, name, replicas, **spec):
        labels = {"app": name}
        pod = {"terminationGracePeriodSeconds": 1, "enableServiceLinks": False, "automountServiceAccountToken": False,
               "containers": [{"name": "c", "image": IMAGE, "ports": [{"containerPort": 8080}], "readinessProbe": PROBE}], **spec}
        self.kube.ask("POST", DEPLOYMENTS, {"metadata": {"name": name}, "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}})
        port = {"port": 80, "targetPort": 8080}
        self.kube.ask("POST", f"{CORE}/services", {"metadata": {"name": name}, "spec": {"selector": labels, "ports": [port]}})

    def pods(self, selector):
        return self.kube.ask("GET", f"{CORE}/pods?labelSelector={selector}")["items"]

    def service_ready(self, name):
        return is_true(self.kube.ask("GET", f"{SERVING}/{name}"), "Ready")

    def answers(self, ip):
        with contextlib.suppress(OSError), socket.create_connection((ip, 8080), timeout=1):
            return b" 200 " in request((ip, 8080), "x")[1]
        return False

    def to_zero(self, name):
        at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.kube.merge(f"{SCALERS}/{name}-00001", {"metadata": {"annotations": {"dhow.dev/scale-request": f"0@{at}"}}})
        wait("scale to zero", lambda: not self.pods(f"serving.knative.dev/service={name}"), pause=0.1)

    def cold(self):
        """A request at zero, and the same container started by scaling a Deployment from 0 to 1, in turns."""
        self.service("cold")
        self.deployment("bare", 0)
        wait("ready", lambda: self.service_ready("cold"))
        dhow, bare, counted = [], [], None
        audit = Audit(self.audit)
        for _ in range(ROUNDS):
            self.to_zero("cold")
            idle = quiet()
            first, answer = request(self.gateway, f"cold.{NAMESPACE}.dhow.test")
            assert b" 200 " in answer, answer
            dhow.append(first * 1000)
            idle = quiet()
            begin = time.perf_counter()
            self.kube.merge(f"{DEPLOYMENTS}/bare/scale", {"spec": {"replicas": 1}})
            ip = wait("an address", lambda: [p["status"]["podIP"] for p in self.pods("app=bare") if p["status"].get("podIP")], pause=0.005)[0]
            wait("an answer", lambda: self.answers(ip), pause=0.002)
            bare.append((time.perf_counter() - begin) * 1000)
            self.kube.merge(f"{DEPLOYMENTS}/bare/scale", {"spec": {"replicas": 0}})
            wait("no pod", lambda: not self.pods("app=bare"), pause=0.1)
        _, writes, _ = audit.since()
        p50, peer = statistics.median(dhow), statistics.median(bare)
        per = sum(writes.values()) / ROUNDS
        return [
            {"what": "cold start from zero", "p50": p50, "p99": percentile(dhow, 0.99), "peer": "Deployment 0 to 1 by hand", "peer_p50": peer,
             "peer_p99": percentile(bare, 0.99), "difference_p50": p50 - peer, "ratio": p50 / peer, "samples": ROUNDS, "target": "difference 100", "idle": idle},
            {"what": "API writes for one start and one end", "unit": "writes", "value": per, "target": None, "idle": idle, "writes": dict(writes)},
        ]

    def apply(self):
        """From the creation of one object to Ready, beside a Deployment and a Service to Available; and what it costs."""
        dhow, bare = [], []
        audit = Audit(self.audit)
        for i in range(ROUNDS):
            idle = quiet()
            begin = time.perf_counter()
            self.service(f"apply-{i}")
            wait("ready", lambda: self.service_ready(f"apply-{i}"))
            dhow.append((time.perf_counter() - begin) * 1000)
            containers = [len(p["spec"]["containers"]) for p in self.pods(f"serving.knative.dev/service=apply-{i}")]
            begin = time.perf_counter()
            self.deployment(f"plain-{i}", 1)
            wait("available", lambda: is_true(self.kube.ask("GET", f"{DEPLOYMENTS}/plain-{i}"), "Available"))
            bare.append((time.perf_counter() - begin) * 1000)
            self.kube.ask("DELETE", f"{DEPLOYMENTS}/plain-{i}")
        counts, writes, _ = audit.since()
        for i in range(ROUNDS):
            self.kube.ask("DELETE", f"{SERVING}/apply-{i}")
        wait("no pod", lambda: not [p for p in self.pods("serving.knative.dev/service") if "apply" in p["metadata"]["name"]], 300, 0.5)
        p50, peer = statistics.median(dhow), statistics.median(bare)
        return [
            {"what": "from apply to Ready", "p50": p50, "p99": percentile(dhow, 0.99), "peer": "Deployment, to Available", "peer_p50": peer,
             "peer_p99": percentile(bare, 0.99), "difference_p50": p50 - peer, "ratio": p50 / peer, "samples": ROUNDS, "target": None, "idle": idle},
            {"what": "API writes per service created", "unit": "writes", "value": sum(writes.values()) / ROUNDS, "target": 15, "idle": idle,
             "writes": {k: round(v / ROUNDS, 2) for k, v in writes.items()}},
            {"what": "API requests per service created", "unit": "requests", "value": sum(counts.values()) / ROUNDS, "target": None, "idle": idle},
            {"what": "containers per pod", "unit": "", "value": containers[0], "target": 1, "idle": idle},
        ]

    def warm(self):
        """What the gateway adds to a request to the same pod."""
        self.service("warm", {"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1"})
        wait("ready", lambda: self.service_ready("warm"))
        ip = self.pods("serving.knative.dev/service=warm")[0]["status"]["podIP"]
        rows = []
        for connections in (1, 32):
            idle = quiet()
            through, direct = [], []
            for _ in range(3):
                through.append(wrk(self.gateway, f"warm.{NAMESPACE}.dhow.test", connections, 4))
                direct.append(wrk((ip, 8080), "warm", connections, 4))
            of = lambda runs, key: statistics.median(run[key] for run in runs)
            rows.append({"what": f"warm through the gateway, {connections} connection(s)", "p50": of(through, "p50") / 1000, "p99": of(through, "p99") / 1000,
                         "peer": "the pod itself", "peer_p50": of(direct, "p50") / 1000, "peer_p99": of(direct, "p99") / 1000,
                         "difference_p50": (of(through, "p50") - of(direct, "p50")) / 1000, "ratio": of(through, "rps") / of(direct, "rps"),
                         "samples": 3, "target": None, "idle": idle})
        self.kube.ask("DELETE", f"{SERVING}/warm")
        return rows

    def footprints(self):
        quiet()
        audit = Audit(self.audit)
        rows = footprint("idle")
        _, writes, _ = audit.since()
        rows.append({"what": "API writes in 20 s, idle", "unit": "writes", "value": sum(writes.values()), "target": 0, "idle": rows[-1]["idle"], "writes": dict(writes)})
        return rows

    def in_parallel(self, count, act, threads=8):
        todo = iter(range(count))
        lock = threading.Lock()

        def work():
            while True:
                with lock:
                    i = next(todo, None)
                if i is None:
                    return
                act(i)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        [w.start() for w in workers]
        [w.join() for w in workers]

    def many(self):
        """Services on a node without containers, beside as many Deployments with a Service each."""
        fake = subprocess.Popen([sys.executable, ROOT / "bench/fake_node.py", self.kubeconfig, KUBECTL])
        there = {"nodeSelector": {"type": "fake"}, "tolerations": [{"key": "fake", "operator": "Exists"}]}
        rows = []
        try:
            wait("the fake node", lambda: self.kube.ask("GET", "/api/v1/nodes/fake", missing={}))
            begin = time.perf_counter()
            self.in_parallel(SERVICES, lambda i: self.deployment(f"many-{i}", 1, **there))
            done = lambda path, kind, n: sum(is_true(item, kind) for item in self.kube.ask("GET", path)["items"] if "many" in item["metadata"]["name"]) >= n
            wait("deployments", lambda: done(DEPLOYMENTS, "Available", SERVICES), 900, 2)
            plain = time.perf_counter() - begin
            self.kube.ask("DELETE", DEPLOYMENTS)
            self.kube.ask("DELETE", f"{CORE}/services")
            wait("no pod", lambda: not self.pods("app"), 900, 2)
            quiet()
            asked = 0
            for case, upto in (("500 services", SERVICES // 2), (f"{SERVICES} services", SERVICES)):
                audit, begin = Audit(self.audit), time.perf_counter()
                keep = {"autoscaling.knative.dev/min-scale": "1"}
                self.in_parallel(upto - asked, lambda i: self.service(f"many-{asked + i}", keep, **there))
                wait("services", lambda: done(SERVING, "Ready", upto), 900, 2)
                took, (counts, writes, most) = time.perf_counter() - begin, audit.since()
                asked, made = upto, upto - asked
                idle = quiet()
                rows += [
                    {"what": f"{made} services until all Ready, up to {case}", "unit": "s", "value": took, "target": 60 * made / 1000,
                     "peer": f"{SERVICES} Deployments until all Available", "peer_value": plain, "ratio": took / made / (plain / SERVICES), "idle": idle},
                    {"what": f"API requests a second meanwhile, {case}", "unit": "/s", "value": sum(counts.values()) / took, "most": most, "target": 250, "idle": idle,
                     "of": dict(counts)},
                    {"what": f"API writes per service, {case}", "unit": "writes", "value": sum(writes.values()) / made, "target": 15, "idle": idle,
                     "writes": {k: round(v / made, 2) for k, v in writes.items()}},
                ]
                audit = Audit(self.audit)
                rows += footprint(f"{case}", 20)
                _, writes, _ = audit.since()
                rows.append({"what": f"API writes in 20 s, {case}", "unit": "writes", "value": sum(writes.values()), "target": 0, "idle": rows[-1]["idle"], "writes": dict(writes)})
        finally:
            fake.terminate()
        return rows


def show(rows):
    for row in rows:
        if "p50" in row:
            print(f"{row['what']:<46} p50 {row['p50']:8.2f} ms  p99 {row['p99']:8.2f} ms   {row['peer']}: p50 {row['peer_p50']:8.2f} p99 {row['peer_p99']:8.2f} ms   "
                  f"difference {row['difference_p50']:+8.2f} ms  ratio {row['ratio']:5.2f}  idle {row['idle']}", flush=True)
        else:
            beside = f"   {row['peer']}: {row['peer_value']:.1f}, ratio for one {row['ratio']:.2f}" if "peer" in row else ""
            print(f"{row['what']:<58} {row['value']:9.2f} {row['unit']:<9} target {row['target']}{beside}   idle {row['idle']}", flush=True)


def main():
    kubeconfig, audit, *only = sys.argv[1:]
    bench = Bench(kubeconfig, audit)
    rows = []
    for part in only or ["footprints", "cold", "apply", "warm", "many"]:
        made = getattr(bench, part)()
        show(made)
        rows += made
    bench.kube.ask("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()
    date = datetime.date.today().isoformat()
    path = ROOT / f"bench/results/{date}-cluster-{commit or 'uncommitted'}.json"
    path.write_text(json.dumps({"date": date, "commit": commit, "machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"kept in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
