#!/bin/sh
# Installs what a target of the Makefile needs and this machine lacks. As root through apt; otherwise it prints the one
# line to run and stops. Usage: xtask/prepare.sh build|test|bench|guest|cluster
set -eu

for_what=${1:-build}

# Command that must exist, Debian package that brings it.
needs="cc:gcc python3:python3 pip3:python3-pip"
case $for_what in
test | demo) needs="$needs node:nodejs npm:npm nft:nftables ip:iproute2" ;;
guest) needs="$needs node:nodejs npm:npm nft:nftables ip:iproute2 qemu-system-x86_64:qemu-system-x86 busybox:busybox-static" ;;
cluster)
    needs="$needs node:nodejs npm:npm nft:nftables ip:iproute2 etcd:etcd-server containerd:containerd runc:runc"
    needs="$needs docker-registry:docker-registry skopeo:skopeo"
    ;;
bench) needs="$needs node:nodejs npm:npm nft:nftables ip:iproute2 wrk:wrk nginx:nginx-light haproxy:haproxy etcd:etcd-server openssl:openssl" ;;
esac

missing=""
for need in $needs; do
    command=${need%%:*}
    package=${need##*:}
    PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null 2>&1 || missing="$missing $package"
done
# Functions run on the system's own interpreter, which sandboxes can see; one in a home folder they cannot.
[ -x /usr/bin/python3 ] || missing="$missing python3"
[ "$for_what" != cluster ] || [ -x /usr/lib/cni/bridge ] || missing="$missing containernetworking-plugins"
/usr/bin/python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
case $for_what in
build) ;;
*) [ -x /usr/bin/node ] || missing="$missing nodejs" ;;
esac

if [ -n "$missing" ]; then
    missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
    if [ "$(id -u)" != 0 ]; then
        echo "This needs packages that are not installed. Run:" >&2
        echo "    sudo apt-get install -y --no-install-recommends $missing" >&2
        exit 1
    fi
    echo "installing: $missing" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

command -v cargo >/dev/null 2>&1 || {
    echo "This needs Rust 1.95 or newer with cargo on PATH; see https://rustup.rs" >&2
    exit 1
}

# The pinned pure-Python libraries that the Python adapter serves with; embedded in the binary.
wheels=runtimes/python/wheels
stamp=$wheels/.complete
if ! [ -f "$stamp" ] || ! cmp -s runtimes/python/requirements.txt "$stamp"; then
    echo "fetching the Python adapter's libraries" >&2
    rm -rf "$wheels"
    /usr/bin/python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        -d "$wheels" -r runtimes/python/requirements.txt
    cp runtimes/python/requirements.txt "$stamp"
fi
