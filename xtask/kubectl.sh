#!/bin/sh
# Prints the path of a kubectl (1.31 or newer) for the tests: the one on PATH, else one that is built when Go is here.
# Prints nothing when there is neither.
set -eu

new_enough() {
    version=$("$1" version --client 2>/dev/null | sed -n 's/^Client Version: v1\.\([0-9]*\).*/\1/p')
    [ -n "$version" ] && [ "$version" -ge 31 ]
}

if command -v kubectl >/dev/null 2>&1 && new_enough kubectl; then
    command -v kubectl
    exit 0
fi
exec tests/clients/install.sh kubectl
