#!/usr/bin/env python3
"""Makes protobuf.json.gz: how Go clients encode the kinds that the API server serves.

usage: extract_protobuf.py <folder of k8s.io/api> <folder of k8s.io/apimachinery>

Both are Go modules:
    go mod download -json k8s.io/api@v0.36.3 k8s.io/apimachinery@v0.36.3    # prints "Dir"
The numbers and forms come from the struct tags in types.go, not from the .proto files: only there stands whether a
field is a pointer, so whether its zero means something.

The file maps a message to its fields, each [number, JSON name ("" for inlined), form, keep zero]. A form is
s string, i integer, b boolean, y bytes, t time, u microtime, q quantity, x int-or-string, r raw JSON, or a message;
with "[]" before it for a list and "{}" for a map.
"""

import gzip
import json
import pathlib
import re
import sys

ROOTS = [
    "io.k8s.api.core.v1.Namespace", "io.k8s.api.core.v1.Pod", "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ConfigMap", "io.k8s.api.core.v1.Secret", "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.core.v1.Event", "io.k8s.api.core.v1.Node", "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.apps.v1.ReplicaSet", "io.k8s.api.autoscaling.v1.Scale", "io.k8s.api.discovery.v1.EndpointSlice",
    "io.k8s.api.coordination.v1.Lease", "io.k8s.api.events.v1.Event",
    "io.k8s.api.authorization.v1.SelfSubjectAccessReview", "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    "io.k8s.api.authentication.v1.SelfSubjectReview",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
]
SPECIAL = {
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "t",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "u",
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "r",
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "q",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "x",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "r",
}
SCALARS = {"string": "s", "bool": "b", "byte": "y", "int": "i", "int32": "i", "int64": "i", "uint64": "i"}


def package_name(path):
    return ".".join(["io", "k8s"] + path.split("/")[1:])


class Go:
    """The struct and alias declarations of the packages that are asked for."""

    def __init__(self, folders):
        self.folders = folders
        self.packages = {}

    def package(self, path):
        if path in self.packages:
            return self.packages[path]
        module = next((m for m in self.folders if path.startswith(m + "/")), None)
        structs, aliases = {}, {}
        if module:
            for file in sorted((self.folders[module] / path[len(module) + 1:]).glob("*.go")):
                if not file.name.endswith("_test.go") and "generated" not in file.name:
                    self.read(file.read_text(), structs, aliases)
        self.packages[path] = (structs, aliases)
        return self.packages[path]

    @staticmethod
    def read(text, structs, aliases):
        imports = {}
        for alias, path in re.findall(r'^\s*(?:import\s+)?(\w+)?\s*"([^"]+)"$', text, re.M):
            imports[alias or path.rsplit("/", 1)[-1]] = path
        for name, body in re.findall(r"^type (\w+) struct \{\n(.*?)^\}", text, re.M | re.S):
            fields = re.findall(r'^\t(?:\w+ +)?([\w\.\*\[\]]+) +`(.*)`', body, re.M)
            structs[name] = [(kind, tag, imports) for kind, tag in fields]
        for name, kind in re.findall(r"^type (\w+) ([\w\.\[\]\*]+)$", text, re.M):
            aliases[name] = (kind, imports)


def form(go, kind, path, imports):
    """The form of a Go type, without its pointer."""
    kind = kind.lstrip("*")
    if kind == "[]byte":
        return "y"
    if kind.startswith("[]"):
        return "[]" + form(go, kind[2:], path, imports)
    if kind.startswith("map["):
        return "{}" + form(go, kind[kind.index("]") + 1:], path, imports)
    if kind in SCALARS:
        return SCALARS[kind]
    if "." in kind:
        alias, kind = kind.split(".")
        path = imports[alias]
    name = f"{package_name(path)}.{kind}"
    if name in SPECIAL:
        return SPECIAL[name]
    structs, aliases = go.package(path)
    if kind in structs:
        return f"{path}#{kind}"
    inner = form(go, *(aliases[kind][0], path, aliases[kind][1]))
    # A named list is a message with one repeated field.
    return "V" + inner[2:] if inner.startswith("[]") else inner


def fields_of(go, message):
    path, kind = message.split("#")
    fields = []
    for kind, tag, imports in go.package(path)[0][kind]:
        wire, names = re.search(r'protobuf:"([^"]*)"', tag), re.search(r'json:"([^"]*)"', tag)
        if not wire or not names or wire[1] == "-":
            continue
        name, *flags = names[1].split(",")
        inline = "inline" in flags or (not name and not flags)
        keep = kind.startswith("*") or (not kind.startswith(("[]", "map[")) and "omitempty" not in flags)
        fields.append([int(wire[1].split(",")[1]), "" if inline else name, form(go, kind, path, imports), keep])
    return fields


def main(api, machinery):
    go = Go({"k8s.io/api": api, "k8s.io/apimachinery": machinery})
    wanted = []
    for root in ROOTS:
        *path, kind = root.removeprefix("io.k8s.").split(".")
        wanted.append(f"k8s.io/{'/'.join(path)}#{kind}")
    messages = {}
    while wanted:
        message = wanted.pop()
        path, kind = message.split("#")
        name = f"{package_name(path)}.{kind}"
        if name in messages:
            continue
        messages[name] = fields_of(go, message)
        for field in messages[name]:
            if "#" in field[2]:
                prefix = re.match(r"(\[\]|\{\}|V)*", field[2])[0]
                target = field[2][len(prefix):]
                wanted.append(target)
                path, kind = target.split("#")
                field[2] = f"{prefix}{package_name(path)}.{kind}"
    text = json.dumps(dict(sorted(messages.items())), separators=(",", ":")).encode()
    target = pathlib.Path(__file__).with_name("protobuf.json.gz")
    target.write_bytes(gzip.compress(text, 9, mtime=0))
    print(f"{len(messages)} messages, {len(text)} bytes, {target.stat().st_size} compressed", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
