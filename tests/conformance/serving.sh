#!/bin/sh
# Runs Knative Serving's own conformance tests, out of a checkout of its repository, against a `dhow up` of this machine, with
# the suite's own images. Usage: serving.sh CHECKOUT SUITE [GO TEST FLAGS], as root and with Go, where SUITE is api/v1,
# api/v1beta1 or runtime; target/debug/dhow is built first.
set -eu
checkout=$(cd "$1" && pwd)
suite=$2
shift 2
cd "$(dirname "$0")/../.."
cargo build --quiet --package dhow
dhow=${CARGO_TARGET_DIR:-target}/debug/dhow
kubectl=$(xtask/kubectl.sh)
images=${XDG_CACHE_HOME:-$HOME/.cache}/dhow/conformance/$(git -C "$checkout" rev-parse HEAD)
if [ ! -e "$images/complete" ]; then
    mkdir -p "$images"
    (cd "$checkout" && CGO_ENABLED=0 go build -mod=vendor -trimpath -ldflags=-s -o "$images/" $(go list -mod=vendor ./test/test_images/... | grep -v /vendor/))
    touch "$images/complete"
fi

work=$(mktemp -d)
"$dhow" up --data-dir "$work/data" --gateway-listen 127.0.0.1:80 --api-listen 127.0.0.1:0 --console-listen 127.0.0.1:0 \
    --metrics-listen 127.0.0.1:0 --registry-listen 127.0.0.1:0 >"$work/log" 2>&1 &
running=$!
finish() {
    code=$?
    trap - EXIT
    kill "$running" 2>/dev/null || true
    wait "$running" || true
    [ "$code" = 0 ] || tail -n 20 "$work/log" >&2
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM
until [ -e "$work/data/endpoints.json" ]; do
    kill -0 "$running"
    sleep 0.1
done
export KUBECONFIG="$work/data/kubeconfig"

registry=$(sed -n 's/.*"registry": *"\([^"]*\)".*/\1/p' "$work/data/endpoints.json")
for program in "$images"/*; do
    [ "${program##*/}" = complete ] ||
        python3 tests/conformance/push.py "$registry" "$(cat "$work/data/token")" "serving-tests/${program##*/}:latest" "$program"
done
for namespace in serving-tests serving-tests-alt tls; do
    "$kubectl" create namespace "$namespace"
done
# Where the suite looks for the way in.
"$kubectl" create namespace knative-serving
"$kubectl" create service clusterip gateway --namespace knative-serving --tcp 1
"$kubectl" apply --filename "$checkout/test/config/test-resources.yaml" || true
export GATEWAY_OVERRIDE=gateway GATEWAY_NAMESPACE_OVERRIDE=knative-serving SYSTEM_NAMESPACE=knative-serving
cd "$checkout"
go test -mod=vendor -tags=e2e -count=1 -timeout 60m "./test/conformance/$suite" "$@" -args -kubeconfig "$KUBECONFIG" \
    -disable-logstream=true -ingressendpoint=127.0.0.1 -dockerrepo "$registry/serving-tests" -tag latest -imagetemplate '{{.Repository}}/{{.Name}}:{{.Tag}}'
