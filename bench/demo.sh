#!/bin/bash
# A whole life of one function on a platform of its own: deployed, started from nothing, warm, and back to nothing.
# Everything lies in a temporary folder and on free ports. Usage: bench/demo.sh path/to/dhow
set -euo pipefail

dhow=$(realpath "$1")
work=$(mktemp -d -t dhow-demo-XXXXXX)
export DHOW_KUBECONFIG=$work/data/kubeconfig

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() {
    echo "demo failed: $*" >&2
    echo "--- last lines of the platform's log ($work/dhow.log)" >&2
    tail -n 30 "$work/dhow.log" >&2
    exit 1
}

"$dhow" up --data-dir "$work/data" --api-listen 127.0.0.1:0 --gateway-listen 127.0.0.1:0 --console-listen 127.0.0.1:0 \
    --metrics-listen 127.0.0.1:0 --gateway-tls-listen 127.0.0.1:0 --registry-listen 127.0.0.1:0 2>"$work/dhow.log" &
platform=$!
stop() {
    kill "$platform" 2>/dev/null || true
    wait "$platform" 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT

for _ in $(seq 200); do
    [ -f "$work/data/endpoints.json" ] && break
    kill -0 "$platform" 2>/dev/null || fail "dhow up ended"
    sleep 0.05
done
[ -f "$work/data/endpoints.json" ] || fail "dhow up was not ready within 10 s"
say "The platform is up."
"$dhow" status || fail "dhow status"

say "\$ dhow new python hello && dhow deploy hello"
cd "$work"
"$dhow" new python hello || fail "dhow new"
"$dhow" deploy hello || fail "dhow deploy"

instances() { "$dhow" describe hello -o json | python3 -c 'import json,sys; print(len(json.load(sys.stdin)["instances"]))'; }
call() { "$dhow" invoke hello || fail "dhow invoke"; }
milliseconds() { echo $((($2 - $1) / 1000000)); }

say "To zero, and a call that starts it"
"$dhow" scale hello --to 0 || fail "dhow scale"
[ "$(instances)" = 0 ] || fail "there are still instances"
begin=$(date +%s%N); cold=$(call); end=$(date +%s%N)
echo "cold: $cold  ($(milliseconds "$begin" "$end") ms, the command line included)"
begin=$(date +%s%N); warm=$(call); end=$(date +%s%N)
echo "warm: $warm  ($(milliseconds "$begin" "$end") ms, the command line included)"
[ -n "$cold" ] && [ "$cold" = "$warm" ] || fail "the answers differ"
[ "$(instances)" = 1 ] || fail "expected one instance"

say "And back to zero"
"$dhow" scale hello --to 0 || fail "dhow scale"
[ "$(instances)" = 0 ] || fail "there are still instances"
"$dhow" list

say "It works."
if [ -t 0 ] && [ -t 1 ] && [ -z "${CI:-}" ]; then
    echo "The platform stays up until you press Enter. In another terminal:"
    echo "    export DHOW_KUBECONFIG=$DHOW_KUBECONFIG"
    echo "    $dhow invoke hello        # or: kubectl --kubeconfig \$DHOW_KUBECONFIG get functions"
    read -r _ || true
fi
