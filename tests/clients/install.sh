#!/bin/sh
# Installs a client of the Kubernetes API that tests run, outside the clone, and prints the program, or the folder of the
# library. Where it cannot be had it says why and prints nothing. What was installed for the same versions is not looked
# at again.
# Usage: install.sh kubectl|helm|helm4|python|javascript|go
set -eu
what=$1
here=$(cd "$(dirname "$0")" && pwd)

helm3=helm.sh/helm/v3/cmd/helm@v3.19.2
helm4=helm.sh/helm/v4/cmd/helm@v4.3.1

cache=${XDG_CACHE_HOME:-$HOME/.cache}/dhow
# Most of what these are made of is in the test cluster's programs, too.
export GOCACHE="${DHOW_CLUSTER_DIR:-$cache/cluster}/go-build" CGO_ENABLED=0

unable() {
    echo "skipped: $*" >&2
    exit 0
}

# CI has the network and must not pass by being unable to use it.
failed() {
    [ -z "${CI:-}" ] || exit 1
    unable "$what cannot be installed"
}

with_go() {
    command -v go >/dev/null 2>&1 || unable "$what is built with Go, which is not installed"
    echo "installing $what; the first time takes some minutes" >&2
    "$@" >&2 || failed
}

# Published modules do not know which release they are, and kubectl compares itself with the server.
kubectl_version() {
    minor=$(sed -n 's/^[[:space:]]*k8s.io\/kubectl v0\.\([0-9]*\)\..*/\1/p' "$here/../tools/kubectl/go.mod")
    for value in "gitVersion=v1.$minor.0" gitMajor=1 "gitMinor=$minor"; do
        printf '%s' "-X k8s.io/component-base/version.$value "
    done
}

case $what in
kubectl) pinned=$(cat "$here/../tools/kubectl/"*) ;;
helm) pinned=$helm3 ;;
helm4) pinned=$helm4 ;;
python) pinned=$(cat "$here/python/requirements.txt"; /usr/bin/python3 --version) ;;
javascript) pinned=$(cat "$here/javascript/package-lock.json") ;;
go) pinned=$(cat "$here/go/"*) ;;
*) echo "usage: install.sh kubectl|helm|helm4|python|javascript|go" >&2; exit 2 ;;
esac
state=$(printf '%s' "$pinned" | sha256sum | cut -c1-16)
folder=$cache/clients/$what-$state
mkdir -p "$cache/clients"
# Two tests may want the same one.
exec 9>"$cache/clients/$what.lock"
flock 9

if ! [ -e "$folder/complete" ]; then
    rm -rf "$cache/clients/$what"-*
    mkdir -p "$folder"
    case $what in
    kubectl)
        cd "$here/../tools/kubectl"
        with_go go build -trimpath -ldflags "-s -w $(kubectl_version)" -o "$folder/kubectl" .
        ;;
    helm | helm4) with_go env GOBIN="$folder" go install -trimpath -ldflags "-s -w" "$pinned" ;;
    go)
        cd "$here/go"
        with_go go build -trimpath -ldflags "-s -w" -o "$folder/go" .
        ;;
    python)
        /usr/bin/python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$folder/packages" \
            --requirement "$here/python/requirements.txt" >&2 || failed
        ;;
    javascript)
        cp "$here/javascript/package.json" "$here/javascript/package-lock.json" "$folder"
        npm ci --prefix "$folder" --silent --no-audit --no-fund >&2 || failed
        ;;
    esac
    touch "$folder/complete"
fi
case $what in
helm4) echo "$folder/helm" ;;
python) echo "$folder/packages" ;;
javascript) echo "$folder" ;;
*) echo "$folder/$what" ;;
esac
