#!/usr/bin/env python3
"""Makes builtin.json.gz: the shape, without prose, of the Kubernetes kinds that the API server serves.

usage: extract.py <folder of api/openapi-spec/v3>

The folder comes with the Go module k8s.io/kubernetes:
    go mod download -json k8s.io/kubernetes@v1.36.3    # prints "Dir"
Descriptions, examples and defaults are left out, except the defaults that list-map keys need, and the empty ones: they mark
what is a struct in Go, so that it is there even when nobody wrote it.
"""

import gzip
import json
import pathlib
import sys

DOCUMENTS = {
    "api__v1": ["Namespace", "Pod", "Service", "ConfigMap", "Secret", "ServiceAccount", "Event", "Node"],
    "apis__apps__v1": ["Deployment", "ReplicaSet"],
    "apis__discovery.k8s.io__v1": ["EndpointSlice"],
    "apis__coordination.k8s.io__v1": ["Lease"],
    "apis__events.k8s.io__v1": ["Event"],
    "apis__apiextensions.k8s.io__v1": ["CustomResourceDefinition"],
    "apis__authorization.k8s.io__v1": ["SelfSubjectAccessReview", "SelfSubjectRulesReview"],
    "apis__authentication.k8s.io__v1": ["SelfSubjectReview"],
}
META = ["DeleteOptions", "Status", "ListMeta", "ObjectMeta", "Patch"]
PREFIX = "#/components/schemas/"
DROPPED = {"description", "example", "externalDocs", "x-kubernetes-unions", "x-kubernetes-group-version-kind"}


def strip(schema):
    if isinstance(schema, list):
        return [strip(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    all_of = schema.get("allOf")
    if all_of and len(all_of) == 1:
        rest = {k: v for k, v in schema.items() if k != "allOf"}
        return strip({**rest, **all_of[0]})
    out = {}
    for key, value in schema.items():
        if key in DROPPED and not isinstance(value, dict):
            continue
        if key == "default":
            if (isinstance(value, str) and value) or value == {}:
                out[key] = value
        elif key == "properties":
            out[key] = {name: strip(s) for name, s in value.items()}
        else:
            out[key] = strip(value)
    return out


def references(schema):
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix(PREFIX)
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def main(folder):
    known, wanted = {}, []
    for document, kinds in DOCUMENTS.items():
        schemas = json.loads((folder / f"{document}_openapi.json").read_text())["components"]["schemas"]
        for name, schema in schemas.items():
            known.setdefault(name, strip(schema))
        group, version = document.split("__")[1:] if document.count("__") == 2 else ("", "v1")
        for kind in kinds:
            for name, schema in schemas.items():
                ids = schema.get("x-kubernetes-group-version-kind", [])
                if {"group": group, "version": version, "kind": kind} in ids:
                    wanted.append(name)
    wanted.append("io.k8s.api.autoscaling.v1.Scale")
    wanted += [f"io.k8s.apimachinery.pkg.apis.meta.v1.{kind}" for kind in META]
    kept = {}
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = known[name]
            wanted += references(known[name])
    text = json.dumps(dict(sorted(kept.items())), separators=(",", ":"), sort_keys=True).encode()
    target = pathlib.Path(__file__).with_name("builtin.json.gz")
    # No name and no time in the header, so that the same input gives the same file.
    target.write_bytes(gzip.compress(text, 9, mtime=0))
    print(f"{len(kept)} definitions, {len(text)} bytes, {target.stat().st_size} compressed", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
