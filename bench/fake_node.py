#!/usr/bin/env python3
"""A node without containers: its pods are ready as soon as they are bound to it, and gone as soon as they are deleted.

Usage: fake_node.py KUBECONFIG KUBECTL
"""
import datetime
import queue
import sys
import threading
import time

from kube import Kube

NAME = "fake"
WORKERS = 4


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def register(kube):
    room = {"cpu": "4k", "memory": "16Ti", "pods": "5000", "ephemeral-storage": "16Ti"}
    taints = [{"key": "fake", "effect": "NoSchedule"}]
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME, "labels": {"type": NAME}}, "spec": {"taints": taints}}
    kube.ask("DELETE", f"/api/v1/nodes/{NAME}", missing={})
    kube.ask("POST", "/api/v1/nodes", node)
    condition = {"type": "Ready", "status": "True", "reason": "Fake", "message": "", "lastHeartbeatTime": now()[:19] + "Z"}
    status = {"capacity": room, "allocatable": room, "conditions": [condition], "addresses": [{"type": "InternalIP", "address": "10.250.0.1"}]}
    kube.merge(f"/api/v1/nodes/{NAME}/status", {"status": status})


def beat(kube):
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    while True:
        spec = {"holderIdentity": NAME, "leaseDurationSeconds": 40, "renewTime": now()}
        if not kube.ask("GET", f"{leases}/{NAME}", missing={}):
            kube.ask("POST", leases, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NAME}, "spec": spec})
        kube.merge(f"{leases}/{NAME}", {"spec": spec})
        time.sleep(10)


def work(kube, todo):
    while True:
        path, number, deleting, containers = todo.get()
        if deleting:
            kube.ask("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}, missing={})
            continue
        at = now()[:19] + "Z"
        ready = [{"type": t, "status": "True", "lastTransitionTime": at} for t in ("Initialized", "PodScheduled", "ContainersReady", "Ready")]
        states = [{"name": c["name"], "image": c["image"], "imageID": c["image"], "containerID": "fake://x", "ready": True, "started": True,
                   "restartCount": 0, "state": {"running": {"startedAt": at}}} for c in containers]
        ip = f"10.250.{1 + number // 250}.{1 + number % 250}"
        status = {"phase": "Running", "conditions": ready, "containerStatuses": states, "podIP": ip, "podIPs": [{"ip": ip}],
                  "hostIP": "10.250.0.1", "startTime": at}
        kube.ask("PATCH", f"{path}/status", {"status": status}, "application/merge-patch+json", missing={})


def main():
    kube = Kube(*sys.argv[1:3])
    register(kube)
    todo = queue.Queue()
    for target in [lambda: beat(kube)] + [lambda: work(kube, todo)] * WORKERS:
        threading.Thread(target=target, daemon=True).start()
    seen, deleted = {}, set()
    for kind, pod in kube.watch(f"/api/v1/pods?fieldSelector=spec.nodeName={NAME}"):
        meta = pod["metadata"]
        deleting = "deletionTimestamp" in meta
        if kind == "DELETED" or (deleting and meta["uid"] in deleted) or (not deleting and meta["uid"] in seen):
            continue
        seen.setdefault(meta["uid"], len(seen))
        if deleting:
            deleted.add(meta["uid"])
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        todo.put((path, seen[meta["uid"]], deleting, pod["spec"]["containers"]))


if __name__ == "__main__":
    main()
