#!/bin/sh
# A systemd of its own: boot.sh PLACE BINARY UNITS, run by root in a mount namespace of its own (unshare --mount). It is the first process of
# namespaces, sees this machine's files with whatever it changes beside them, and ends, with everything in it, when standard input does.
# PLACE is an empty directory. The last line on standard output is the process id of systemd. Exit status 77: this cannot be had here.
set -eu
place=$1 binary=$2 units=$3

if [ "${4-}" != inside ]; then
    cannot() { echo "$1" >&2; exit 77; }
    [ -x /lib/systemd/systemd ] || cannot "systemd is not installed"
    for tool in ip nsenter pivot_root runuser systemctl systemd-analyze systemd-sysusers; do
        command -v $tool >/dev/null || cannot "$tool is not installed"
    done
    mount --make-rprivate / 2>/dev/null || cannot "mounts are not allowed"
    mount -t tmpfs tmpfs "$place"
    mkdir "$place/upper" "$place/work" "$place/root" "$place/groups"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root" 2>/dev/null || cannot "there is no overlay file system"
    mount -t cgroup2 cgroup2 "$place/groups" 2>/dev/null || cannot "there are no control groups of version 2"
    group=$place/groups/$(sed -n 's/^0:://p' /proc/self/cgroup)/grey-test-$$
    mkdir "$group" 2>/dev/null || cannot "control groups are not for us to make"
    # The shell moves itself there, so that the group is the root of what is made next, and back out of it.
    echo $$ >"$group/cgroup.procs"
    # What is read here is for whoever started this; whatever is started has none of it.
    unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child -- "$0" "$place" "$binary" "$units" inside </dev/null >&2 &
    unshare=$!
    echo $$ >"$group/../cgroup.procs"
    begun=
    while [ -z "$begun" ]; do
        kill -0 $unshare 2>/dev/null || { rmdir "$group"; cannot "namespaces are not allowed"; }
        begun=$(cat "/proc/$unshare/task/$unshare/children" || true)
    done
    echo $begun
    cat >/dev/null
    kill -9 $begun 2>/dev/null || true
    wait $unshare || true
    find "$group" -depth -type d -exec rmdir {} \;
    exit
fi

cd "$place/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    : >dev/$device
    mount --bind /dev/$device dev/$device
done
: >dev/console
mount --bind /dev/null dev/console
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
: >usr/local/bin/grey
mount --bind "$binary" usr/local/bin/grey
rm -rf var/lib/grey etc/grey
mkdir -p etc/grey etc/sysusers.d etc/grey-units var/log/grey
cp "$units"/*.service etc/grey-units
cp "$units/grey.sysusers.conf" etc/sysusers.d/grey.conf
# What the units name, and nothing else of this machine.
for target in basic sysinit shutdown network-online multi-user; do
    printf '[Unit]\nDefaultDependencies=no\n' >etc/grey-units/$target.target
done
# Nobody keeps a journal here.
for node in server worker; do
    mkdir etc/grey-units/grey-$node.service.d
    log="append:/var/log/grey/$node"
    printf '[Service]\nStandardOutput=%s\nStandardError=%s\n' "$log" "$log" >etc/grey-units/grey-$node.service.d/log.conf
done
ip link set lo up
mkdir -p before
pivot_root . before
umount -l /before
rmdir /before
systemd-sysusers grey.conf
exec env -i container=grey PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin SYSTEMD_UNIT_PATH=/etc/grey-units /lib/systemd/systemd --system \
    --unit=multi-user.target --log-target=null --show-status=no
