#!/bin/sh
# Runs Knative Serving's own tests, out of a checkout of its repository, against a `dhow up` of this machine, with
# the suite's own images. Usage: serving.sh CHECKOUT SUITE [FLAGS OF THE TEST], as root and with Go, where SUITE is a
# folder below its test/, such as conformance/api/v1, conformance/runtime or e2e/initcontainers, and a flag of the test is for
# example -test.run=TestRoute; target/debug/dhow is built first. What serving.excluded lists is left out.
set -eu
checkout=$(cd "$1" && pwd)
suite=$2
shift 2
cd "$(dirname "$0")/../.."
excluded=$PWD/tests/conformance/serving.excluded
kubectl=$(xtask/kubectl.sh)
images=${XDG_CACHE_HOME:-$HOME/.cache}/dhow/conformance/$(git -C "$checkout" rev-parse HEAD)
if [ ! -e "$images/complete" ]; then
    mkdir -p "$images"
    (cd "$checkout" && CGO_ENABLED=0 go build -mod=vendor -trimpath -ldflags=-s -o "$images/" $(go list -mod=vendor ./test/test_images/... | grep -v /vendor/))
    touch "$images/complete"
fi

flags=$*
set -- --gateway-listen 127.0.0.1:80
for listener in api gateway-tls console metrics registry; do
    set -- "$@" "--$listener-listen" 127.0.0.1:0
done
. tests/tools/dhow-up.sh

registry=$(sed -n 's/.*"registry": *"\([^"]*\)".*/\1/p' "$work/data/endpoints.json")
for program in "$images"/*; do
    [ "${program##*/}" = complete ] ||
        python3 tests/conformance/push.py "$registry" "$(cat "$work/data/token")" "conformance.test/${program##*/}:latest" "$program"
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
skipped=$(grep -v '^#' "$excluded" | cut -d ' ' -f 1 | paste -s -d '|')
# All at once, or each that fails holds the others up for the ten minutes that it waits.
# shellcheck disable=SC2086
go test -v -mod=vendor -tags=e2e -count=1 -timeout 60m "./test/$suite" -args -kubeconfig "$KUBECONFIG" -disable-logstream \
    -enable-alpha -enable-beta -ingressendpoint 127.0.0.1 -dockerrepo "$registry/conformance.test" -tag latest \
    -imagetemplate '{{.Repository}}/{{.Name}}:{{.Tag}}' -test.parallel 40 -test.skip "$skipped" $flags
