#!/bin/sh
# Runs kube-rs's own cluster tests, out of a checkout of its repository, against a `dhow up` of this machine; all but those
# that kube-rs.excluded lists with their reasons. Usage: kube-rs.sh CHECKOUT (as root; target/debug/dhow is built first)
set -eu
checkout=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."

set --
for listener in api gateway gateway-tls console metrics registry; do
    set -- "$@" "--$listener-listen" 127.0.0.1:0
done
. tests/tools/dhow-up.sh

set --
while read -r test _; do
    set -- "$@" --skip "$test"
done <<END
$(grep -v '^#' tests/clients/kube-rs.excluded)
END
cd "$checkout"
# One after the other: several of them write to the same objects.
cargo test --lib --workspace --exclude e2e --all-features -- --ignored --test-threads 1 "$@"
for example in crd_derive crd_api; do
    cargo run --quiet --package kube-examples --example "$example"
done
