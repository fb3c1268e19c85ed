#!/bin/sh
# The end-to-end tests on a real cluster of this machine, with Dhow installed on it as on any other. Arguments choose
# among the tests; without any there is more: an upgrade, what leads to Dhow from outside, rights, and the removal. The first
# argument `bench` measures the release instead, and what follows chooses among its parts.
# Where there can be no cluster it says so and ends well. DHOW_KEEP_CLUSTER=1 leaves everything running.
set -eu
cd "$(dirname "$0")/../.."

# What pods call this machine, and the registry that containerd there speaks plain HTTP to.
host=10.213.255.1
registry=$host:5000
work=${DHOW_CLUSTER_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dhow/cluster}/tests

code=0
kubeconfig=$(cargo xtask cluster up) || code=$?
case $code in
0) ;;
3) exit 0 ;;
*) exit "$code" ;;
esac

serving=""
finish() {
    code=$?
    trap - EXIT
    if [ -z "${DHOW_KEEP_CLUSTER:-}" ]; then
        for one in $serving; do kill "$one" 2>/dev/null || true; done
        cargo xtask cluster down || true
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

mkdir -p "$work"
answers() { python3 -c "import urllib.request; urllib.request.urlopen('http://$registry/v2/', timeout=2)" 2>/dev/null; }
if ! answers; then
    printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: "%s"}\nlog: {level: warn}\n' \
        "$work/registry" "$registry" >"$work/registry.yaml"
    docker-registry serve "$work/registry.yaml" >"$work/registry.log" 2>&1 &
    serving=$!
    until answers; do
        kill -0 "$serving" || { cat "$work/registry.log" >&2; exit 1; }
        sleep 0.1
    done
fi
# Base images out of Debian's packages: made once for each state of the script and of the packages' versions.
state=$(cat tests/cluster/base-image.py /var/lib/dpkg/status | sha256sum | cut -c1-16)
for base in python node; do
    archive=$work/$base-$state.tar
    if ! [ -f "$archive" ]; then
        rm -f "$work/$base"-*.tar
        /usr/bin/python3 tests/cluster/base-image.py "$base" "$archive.part" >/dev/null
        mv "$archive.part" "$archive"
    fi
    skopeo copy --quiet --dest-tls-verify=false "oci-archive:$archive" "docker://$registry/base/$base:1"
done

profile=--dev
[ "${1:-}" != bench ] || profile=""
made=$(cargo xtask image $profile)
archive=$(echo "$made" | head -n 1)
image=$(echo "$made" | tail -n 1)
cargo xtask cluster load "$archive"
# The image's program is the command line, too: the same build for both.
cargo build --quiet --package dhow
cat >"$work/install.sh" <<END
#!/bin/sh
exec env KUBECONFIG='$kubeconfig' '$PWD/target/debug/dhow' install --domain dhow.test --gateway-service-type ClusterIP \
    --registry '$registry/dhow' --registry-insecure '$registry' --build-egress '$host/32:5000' \
    --build-env NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt \
    --base-python '$registry/base/python:1' --base-node '$registry/base/node:1' "\$@"
END
chmod +x "$work/install.sh"
"$work/install.sh" --image "$image"
export DHOW_TEST_CLUSTER=$kubeconfig DHOW_KUBECTL=${DHOW_KUBECTL:-$(xtask/kubectl.sh)}
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-2}
if [ -z "$profile" ]; then
    shift
    /usr/bin/python3 bench/cluster.py "$kubeconfig" "${work%/tests}/logs/audit.log" "$@"
    exit 0
fi
scenarios() { cargo test --quiet --workspace --test e2e -- "$@"; }
scenarios "$@"
[ $# = 0 ] || exit 0

# The embedded API server beside this real one.
scenarios --ignored differential::scripts
scenarios --ignored differential::random

# The same program under another name is another version for all that an upgrade does.
skopeo copy --quiet --dest-tls-verify=false "oci-archive:$archive" "docker://$registry/dhow:next"
DHOW_TEST_INSTALL="$work/install.sh --image $registry/dhow:next" scenarios --ignored upgrade::
image=$registry/dhow:next

as_admin() { "$DHOW_KUBECTL" --kubeconfig "$kubeconfig" "$@"; }
tests/cluster/outside.sh "$kubeconfig" "$work/outside" &
serving="$serving $!"
as_admin wait --for=create namespace/outside --timeout=10m
for how in ingress httproute=outside/edge istio=outside/edge; do
    "$work/install.sh" --image "$image" --exposure "$how"
    DHOW_TEST_OUTSIDE=$how scenarios --ignored outside::
done

cargo test --quiet --package cli --lib -- install::tests::cluster
DHOW_TEST_AUDIT_LOG=${work%/tests}/logs/audit.log scenarios --ignored permissions::
# The tests' own namespaces are on their way out, and what is in them is somebody's. A namespace's pods go first, each
# within its grace of at most five minutes, and only then the rest.
tests_are_gone() {
    for _ in $(seq 360); do
        there=$(as_admin get functions.dhow.dev,services.serving.knative.dev --all-namespaces --output name)
        [ -n "$there" ] || return 0
        sleep 1
    done
    echo "the tests left behind: $there" >&2
    exit 1
}
tests_are_gone
KUBECONFIG=$kubeconfig target/debug/dhow uninstall
nothing_is_left() {
    left=$(as_admin get deployments,replicasets,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,leases,networkpolicies \
        --all-namespaces --output name --selector app.kubernetes.io/part-of=dhow)
    left=$left$(as_admin get crds,clusterroles,clusterrolebindings --output name | grep -E 'dhow|knative' || true)
    [ -z "$left" ] || { echo "left behind by $1: $left" >&2; exit 1; }
}
nothing_is_left "dhow uninstall"
as_admin wait --for=delete namespace/dhow-system --timeout=60s

# The same by Helm: from the oldest chart that was ever released, else from this one, to this one.
helm=$(tests/clients/install.sh helm)
oldest=$(git tag --list 'v*' --sort=version:refname | while read -r tag; do
    git cat-file -e "$tag:charts/dhow/Chart.yaml" 2>/dev/null && echo "$tag" && break
done)
chart=$PWD/charts/dhow
if [ -n "$oldest" ]; then
    rm -rf "$work/oldest" && mkdir "$work/oldest"
    git archive "$oldest" charts/dhow | tar -x -C "$work/oldest"
    chart=$work/oldest/charts/dhow
else
    echo "skipped: the upgrade from a released chart (none is tagged); from this one to itself instead"
fi
cat >"$work/values.yaml" <<END
domain: dhow.test
gateway: {serviceType: ClusterIP}
registry: {prefix: "$registry/dhow", insecure: ["$registry"]}
build:
  basePython: $registry/base/python:1
  baseNode: $registry/base/node:1
  egress: ["$host/32:5000"]
  env: ["NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt"]
END
release="--kubeconfig $kubeconfig --namespace dhow-system --wait --timeout 3m"
set_up="$release --values $work/values.yaml"
"$helm" install dhow "$chart" $set_up --create-namespace --set "image=$(echo "$made" | tail -n 1)" >/dev/null
DHOW_TEST_INSTALL="$helm upgrade dhow $PWD/charts/dhow $set_up --set image=$image" scenarios --ignored upgrade::
tests_are_gone
"$helm" uninstall dhow $release >/dev/null
# Helm keeps the namespace, and in it what the builder has made there.
as_admin delete namespace dhow-system --timeout=120s >/dev/null
nothing_is_left "helm uninstall"
