#!/usr/bin/python3
"""Makes a base image for functions from the Debian packages of this machine, as an OCI archive.

Usage: base-image.py python|node FILE.tar

The image holds the packages, what they depend on, a shell and its tools, and nothing else. Nothing in it depends on the
time: the same packages give the same bytes. It is for tests; in the field a base image is whatever the operator trusts.
"""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile

ALWAYS = ["dash", "coreutils", "findutils", "sed", "grep", "libc6", "ca-certificates", "netbase"]
PACKAGES = {
    "python": ["python3", "python3-pip"],
    "node": ["nodejs"],
}
INTERPRETER = {"python": "/usr/bin/python3", "node": "/usr/bin/node"}
# Brought in by a dependency and of no use to a function.
NOT_THESE = {
    "debconf", "dpkg", "perl-base", "tar", "openssl", "build-essential", "python3-dev", "gcc", "g++", "make", "python3-wheel",
    "init-system-helpers", "libc-bin", "install-info", "gcc-12-base", "python-pip-whl", "python3.11-dev", "libpython3-dev",
}  # fmt: skip
NOT_BELOW = re.compile(
    r"/usr/(share/(doc|man|locale|info|lintian|bug|pixmaps|applications|doc-base|zsh|bash-completion|menu)|include"
    r"|lib/node_modules/(corepack|npm/(docs|man)))(/|$)|/(etc/init\.d|var|usr/lib/systemd)(/|$)|/__pycache__(/|$)"
)
# Debian's merged layout, which packages older than it do not name.
MERGED = ("bin", "sbin", "lib", "lib64")
PASSWD = "root:x:0:0:root:/root:/usr/sbin/nologin\nnonroot:x:65532:65532::/tmp:/usr/sbin/nologin\n"
GROUP = "root:x:0:\nnonroot:x:65532:\n"


def closure(names):
    """The installed packages among these and what they depend on."""
    query = ["dpkg-query", "-W", "-f", "${Package}\t${db:Status-Abbrev}\t${Provides}\t${Depends}, ${Pre-Depends}\n"]
    depends, provided = {}, {}
    for line in subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines():
        name, status, provides, needs = line.split("\t")
        if status.startswith("ii"):
            depends[name] = [re.split(r"[\s:(|]", need.strip())[0] for need in needs.split(",") if need.strip()]
            for virtual in filter(None, (p.strip().split(" ")[0] for p in provides.split(","))):
                provided.setdefault(virtual, name)
    missing = [name for name in names if name not in depends]
    if missing:
        sys.exit(f"base-image: not installed: {' '.join(missing)}; apt-get install them")
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        name = name if name in depends else provided.get(name)
        if name and name not in found and name not in NOT_THESE:
            found.add(name)
            todo.extend(depends[name])
    return sorted(found)


def merged(path):
    first, _, rest = path.lstrip("/").partition("/")
    return f"/usr/{first}/{rest}" if first in MERGED and rest else path


def files(packages):
    listed = subprocess.run(["dpkg", "-L", *packages], check=True, capture_output=True, text=True).stdout.splitlines()
    # Made by the packages' own scripts, so that no list names them.
    listed += ["/etc/ssl/certs/ca-certificates.crt", "/etc/nsswitch.conf"]
    # npm replaces itself, and the list of its package is old then.
    npm = "/usr/lib/node_modules/npm"
    if npm in listed:
        listed = [path for path in listed if not path.startswith(f"{npm}/")]
        listed += [os.path.join(folder, name) for folder, folders, names in os.walk(npm) for name in folders + names]
    paths = {merged(path) for path in listed if path.startswith("/") and path != "/."}
    paths = {path for path in paths if path.strip("/") not in MERGED and not NOT_BELOW.search(path) and os.path.lexists(path)}
    # Links of the alternatives system lead through a folder of their own.
    for path in sorted(paths):
        while os.path.islink(path):
            target = merged(os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path))))
            if not os.path.lexists(target) or NOT_BELOW.search(target):
                break
            paths.add(target)
            path = target
    return paths


def layer(paths):
    """The files as a gzipped tar: its bytes and the digest of the tar inside."""
    entries = {}
    for path in paths:
        while path not in ("/", ""):
            entries.setdefault(path.lstrip("/"), path)
            path = os.path.dirname(path)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:

        def add(name, kind, mode, content=b"", link=""):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname = kind, mode, len(content), link
            archive.addfile(info, io.BytesIO(content))

        for name in ("etc", "usr", "tmp", "app", "proc", "sys", "dev"):
            entries.setdefault(name, None)
        for name in sorted(entries):
            path = entries[name]
            if path is None or os.path.isdir(path) and not os.path.islink(path):
                add(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755)
            elif os.path.islink(path):
                add(name, tarfile.SYMTYPE, 0o777, link=os.readlink(path))
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    add(name, tarfile.REGTYPE, 0o755 if os.access(path, os.X_OK) and os.stat(path).st_mode & 0o111 else 0o644, file.read())
        for name in MERGED:
            add(name, tarfile.SYMTYPE, 0o777, link=f"usr/{name}")
        add("etc/passwd", tarfile.REGTYPE, 0o644, PASSWD.encode())
        add("etc/group", tarfile.REGTYPE, 0o644, GROUP.encode())
    tar = raw.getvalue()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0, filename="") as out:
        out.write(tar)
    return packed.getvalue(), digest(tar)


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in PACKAGES:
        sys.exit(__doc__)
    runtime, target = sys.argv[1:]
    packed, diff_id = layer(files(closure(ALWAYS + PACKAGES[runtime])))
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = json.dumps({
        "architecture": machine,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Labels": {"dev.dhow.interpreter": INTERPRETER[runtime]},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }, sort_keys=True).encode()  # fmt: skip

    def descriptor(kind, content, **more):
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(content), "size": len(content), **more}

    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config),
        "layers": [descriptor("layer.v1.tar+gzip", packed)],
    }, sort_keys=True).encode()  # fmt: skip
    name = {"org.opencontainers.image.ref.name": runtime, "io.containerd.image.name": f"dhow.local/bases/{runtime}:1"}
    index = {"schemaVersion": 2, "manifests": [descriptor("manifest.v1+json", manifest, annotations=name)]}
    contents = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index, sort_keys=True).encode()}
    for blob in (config, manifest, packed):
        contents["blobs/" + digest(blob).replace(":", "/")] = blob
    with tarfile.open(target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    print(digest(manifest))


if __name__ == "__main__":
    main()
