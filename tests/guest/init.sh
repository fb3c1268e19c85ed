#!/bin/busybox sh
# The guest's first process: makes of the shared files and a memory file system a Debian with cgroup v2, whose first
# process does the job and switches the machine off. The job runs where systemd would put a service.
/bin/busybox --install -s /bin
mkdir /proc /sys /host /share /changes /new
mount -t proc proc /proc
for module in virtio_pci 9pnet_virtio 9p overlay; do
    modprobe $module
done
mount -t 9p -o ro,version=9p2000.L,msize=512000,cache=loose host /host
mount -t 9p -o version=9p2000.L share /share
mount -t tmpfs -o size=75% changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work root /new
kernel=$(cat /share/kernel)

cd /new
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm
mount -t devpts devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=755 run run
mkdir run/share
mount --move /share run/share
mkdir -p lib/modules
mount --bind "/host$kernel/lib/modules" lib/modules
# The kernel looks for a module's loader here.
ln -sf "$(readlink -f bin/busybox | sed 's|^/new||')" sbin/modprobe
mount -t cgroup2 -o nsdelegate cgroup2 sys/fs/cgroup
mkdir -p sys/fs/cgroup/init.scope sys/fs/cgroup/system.slice/job.service
echo 1 >sys/fs/cgroup/init.scope/cgroup.procs
ip link set lo up

exec switch_root /new /bin/sh -c '
    sh -c "echo 0 >/sys/fs/cgroup/system.slice/job.service/cgroup.procs; exec sh /run/share/job"
    echo $? >/run/share/status
    sync
    exec /bin/busybox poweroff -f' <dev/console >dev/console 2>&1
