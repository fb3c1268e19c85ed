#!/bin/sh
# Runs kn's own end-to-end tests, out of a checkout of its repository (knative/client), against a `dhow up` of this machine,
# with that checkout's kn and with the suite's own images. Usage: kn.sh CHECKOUT [FLAGS OF THE TEST], as root and with Go,
# where a flag is for example -test.run=TestDomain; target/debug/dhow is built first. What kn.excluded lists is left out.
set -eu
checkout=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
push=$PWD/tests/conformance/push.py
skipped=$(grep -v '^#' tests/conformance/kn.excluded | sed 's/^\([^ ]*\) .*/^\1$/' | paste -s -d '|')
kubectl=$(xtask/kubectl.sh)
built=${XDG_CACHE_HOME:-$HOME/.cache}/dhow/conformance/kn-$(git -C "$checkout" rev-parse HEAD)
if [ ! -e "$built/complete" ]; then
    mkdir -p "$built/bin" "$built/images"
    export CGO_ENABLED=0
    (cd "$checkout" && go build -trimpath -ldflags=-s -o "$built/bin/kn" ./cmd/kn)
    (cd "$checkout" && go test -c -trimpath -ldflags=-s -tags=e2e -o "$built/tests" ./test/e2e)
    (cd "$checkout" && go build -trimpath -ldflags=-s -o "$built/images/" ./test/test_images/helloworld)
    # The other images are Serving's, of the version that this kn is made for.
    (cd "$checkout" && cd "$(go list -m -f '{{.Dir}}' knative.dev/serving)" && GOWORK=off go build -trimpath -ldflags=-s \
        -o "$built/images/" ./test/test_images/grpc-ping ./test/test_images/multicontainer/servingcontainer \
        ./test/test_images/multicontainer/sidecarcontainer)
    ln -sf "$kubectl" "$built/bin/kubectl"
    touch "$built/complete"
fi

flags=$*
set --
for listener in gateway gateway-tls api console metrics registry; do
    set -- "$@" "--$listener-listen" 127.0.0.1:0
done
. tests/tools/dhow-up.sh

registry=$(sed -n 's/.*"registry": *"\([^"]*\)".*/\1/p' "$work/data/endpoints.json")
for program in "$built"/images/*; do
    python3 "$push" "$registry" "$(cat "$work/data/token")" "conformance.test/${program##*/}:latest" "$program"
done
# The suite turns features on where Knative Serving reads them.
"$kubectl" create namespace knative-serving
for settings in features network; do
    "$kubectl" create configmap "config-$settings" --namespace knative-serving
done
# It runs kn and kubectl by their names.
export PATH="$built/bin:$PATH"
cd "$checkout/test/e2e"
# shellcheck disable=SC2086
"$built/tests" -test.v -test.timeout 60m -test.skip "$skipped" -dockerrepo "$registry/conformance.test" -tag latest \
    -imagetemplate '{{.Repository}}/{{.Name}}:{{.Tag}}' $flags
