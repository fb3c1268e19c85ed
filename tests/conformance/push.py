#!/usr/bin/env python3
"""Makes an image of one static program, and pushes it. Usage: push.py REGISTRY TOKEN REPOSITORY:TAG PROGRAM"""
import base64
import gzip
import hashlib
import io
import json
import pathlib
import sys
import tarfile
import urllib.request


def main(registry, token, name, program):
    repository, tag = name.rsplit(":", 1)
    credentials = base64.b64encode(f"dhow:{token}".encode()).decode()

    def send(method, path, media, body):
        headers = {"Authorization": f"Basic {credentials}", "Content-Type": media}
        with urllib.request.urlopen(urllib.request.Request(f"http://{registry}/v2/{repository}/{path}", body, headers, method=method)):
            pass

    def blob(media, body):
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        send("POST", f"blobs/uploads/?digest={digest}", "application/octet-stream", body)
        return {"mediaType": media, "digest": digest, "size": len(body)}

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for folder in ("tmp", "etc", "ko-app", "var/log"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        archive.add(program, arcname=f"ko-app/{pathlib.Path(program).name}")
    layer = gzip.compress(tar.getvalue(), 1)
    config = {
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": [f"/ko-app/{pathlib.Path(program).name}"], "User": "65532", "Env": ["PATH=/usr/bin:/ko-app"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}"]},
    }
    media = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2, "mediaType": media,
        "config": blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode()),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", layer)],
    }
    send("PUT", f"manifests/{tag}", media, json.dumps(manifest).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
