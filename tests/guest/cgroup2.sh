#!/bin/sh
# Runs one command as root in a virtual machine that has cgroup v2 only and Debian's own kernel, and exits with the
# command's exit code. The guest sees this machine's files and keeps its changes in memory; it has no network but its
# loopback. Made to be cargo's runner, see `make test-guest`. Usage: tests/guest/cgroup2.sh COMMAND [ARGUMENT...]
set -eu

here=$(dirname "$(readlink -f "$0")")
cache=$(readlink -m "${CARGO_TARGET_DIR:-$here/../../target}")/guest
# Several times what the longest takes with an emulated processor that it does not have to share.
limit_seconds=${DHOW_GUEST_SECONDS:-2400}

cannot() {
    echo "cannot run a guest: $1" >&2
    exit 125
}

# Unpacks Debian's kernel without installing it, and lays out the first file system: a shell and what mounting takes.
prepare() {
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p')
    [ -n "$package" ] || cannot "apt knows no linux-image-amd64; run apt-get update on a Debian for amd64"
    release=${package#linux-image-}
    kernel=$cache/$release
    [ ! -f "$kernel/complete" ] || return 0
    rm -rf "$cache"
    mkdir -p "$kernel/first/bin"
    (cd "$cache" && apt-get download -qq "$package" 2>/dev/null) || cannot "apt-get cannot download $package"
    dpkg --fsys-tarfile "$cache/$package"_*.deb | tar -x -C "$kernel" --wildcards '*/vmlinuz-*' '*/modules.*' \
        '*/kernel/crypto' '*/kernel/arch' '*/kernel/lib' '*/kernel/net' '*/kernel/fs' '*/kernel/drivers/virtio' \
        '*/veth.ko*'
    rm "$cache/$package"_*.deb
    [ -d "$kernel/lib" ] || ln -s usr/lib "$kernel/lib"
    busybox depmod -b "$kernel" "$release"
    cp "$(command -v busybox)" "$kernel/first/bin/"
    modules=lib/modules/$release
    for name in 9p 9pnet_virtio virtio_pci overlay; do
        sed -n "s|^\(.*/$name\.ko[.xz]*\):|\1|p" "$kernel/$modules/modules.dep"
    done | tr ' ' '\n' | sort -u | while read -r module; do
        mkdir -p "$kernel/first/$modules/$(dirname "$module")"
        cp "$kernel/$modules/$module" "$kernel/first/$modules/$module"
    done
    cp "$kernel/$modules/modules.dep" "$kernel/first/$modules/"
    : >"$kernel/complete"
}

quoted() {
    for word; do
        printf "'%s' " "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
    done
}

for program in qemu-system-x86_64 busybox apt-get; do
    command -v $program >/dev/null || cannot "there is no $program; see xtask/prepare.sh guest"
done
prepare

# KVM on top of the PVM hypervisor starts only kernels that were built for it; this one hangs before its first word.
accelerators="-accel kvm -accel tcg,thread=multi"
if [ ! -w /dev/kvm ] || [ -d /sys/module/kvm_pvm ]; then
    echo "no KVM for guests: this one is emulated, which is slow" >&2
    accelerators="-accel tcg,thread=multi"
    export DHOW_TEST_SECONDS=600
fi

# What the guest is told to do, and where it says how that ended.
share=$(mktemp -d)
trap 'rm -rf "$share"' EXIT
{
    export -p
    echo "cd $(quoted "$PWD")"
    echo "exec $(quoted "$@")"
} >"$share/job"
echo "$kernel" >"$share/kernel"
cp "$here/init.sh" "$kernel/first/init"
(cd "$kernel/first" && find . | busybox cpio -o -H newc 2>/dev/null) >"$share/initramfs"
: >"$share/status"

timeout --foreground --kill-after=10 $limit_seconds qemu-system-x86_64 \
    $accelerators -cpu max -smp 2 -m 3072 -nodefaults -display none -no-reboot -serial stdio -net none \
    -kernel "$kernel"/boot/vmlinuz-* -initrd "$share/initramfs" \
    -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all" \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
    -virtfs "local,path=$share,mount_tag=share,security_model=none" </dev/null | sed -u 's/\r//g'

status=$(cat "$share/status")
[ -n "$status" ] || cannot "it ended without a word, or took more than $limit_seconds seconds"
exit "$status"
