#!/bin/sh
# Prints the path of a kubectl (1.29 or newer) for the tests: the one on PATH, else one built from tests/tools/kubectl
# when Go is here. Prints nothing when there is neither.
set -eu

new_enough() {
    version=$("$1" version --client 2>/dev/null | sed -n 's/^Client Version: v1\.\([0-9]*\).*/\1/p')
    [ -n "$version" ] && [ "$version" -ge 29 ]
}

if command -v kubectl >/dev/null 2>&1 && new_enough kubectl; then
    command -v kubectl
    exit 0
fi
built=$PWD/target/tools/kubectl
if ! [ -x "$built" ] && command -v go >/dev/null 2>&1; then
    mkdir -p target/tools
    (cd tests/tools/kubectl && go build -o "$built" .) >&2 || exit 0
fi
[ -x "$built" ] && echo "$built"
exit 0
