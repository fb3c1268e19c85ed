"""A Kubernetes API client of a few lines, for benchmarks: JSON over one kept connection per thread, and watches."""
import base64
import http.client
import json
import os
import ssl
import tempfile
import threading


class Kube:
    def __init__(self, kubeconfig, kubectl="kubectl"):
        import subprocess

        text = subprocess.run([kubectl, "config", "view", "--raw", "--minify", "--output=json", f"--kubeconfig={kubeconfig}"],
                              check=True, stdout=subprocess.PIPE, text=True).stdout
        config = json.loads(text)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.host = cluster["server"].removeprefix("https://")

        def material(of, key):
            if f"{key}-data" not in of:
                return of[key]
            handle, path = tempfile.mkstemp()
            with os.fdopen(handle, "wb") as file:
                file.write(base64.b64decode(of[f"{key}-data"]))
            return path

        self.tls = ssl.create_default_context(cafile=material(cluster, "certificate-authority"))
        self.tls.load_cert_chain(material(user, "client-certificate"), material(user, "client-key"))
        self.kept = threading.local()

    def connection(self, timeout=60):
        return http.client.HTTPSConnection(self.host, context=self.tls, timeout=timeout)

    def ask(self, method, path, body=None, kind="application/json", missing=None):
        for attempt in range(5):
            connection = getattr(self.kept, "connection", None) or self.connection()
            self.kept.connection = connection
            try:
                connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": kind})
                answer = connection.getresponse()
                data = answer.read()
                break
            except (OSError, http.client.HTTPException):
                self.kept.connection = None
                if attempt == 4:
                    raise
        if answer.status == 404 and missing is not None:
            return missing
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]}")
        return json.loads(data)

    def merge(self, path, body):
        return self.ask("PATCH", path, body, "application/merge-patch+json")

    def watch(self, path):
        """Objects as they are and as they change, for ever: (type, object)."""
        listed = self.ask("GET", path)
        for item in listed["items"]:
            yield "ADDED", item
        version = listed["metadata"]["resourceVersion"]
        while True:
            connection = self.connection(timeout=None)
            sep = "&" if "?" in path else "?"
            connection.request("GET", f"{path}{sep}watch=1&resourceVersion={version}&allowWatchBookmarks=true")
            for line in connection.getresponse():
                event = json.loads(line)
                version = event["object"]["metadata"].get("resourceVersion", version)
                if event["type"] not in ("BOOKMARK", "ERROR"):
                    yield event["type"], event["object"]
