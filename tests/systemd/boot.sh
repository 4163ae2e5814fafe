#!/usr/bin/env bash
# boot.sh ROOT [PID]: boot the root file system ROOT with its own systemd as PID 1, in namespaces of this machine.
# Needs root. With PID it shares that process' network, otherwise it has one of its own: loopback, which is also 192.0.2.10.
#
# ROOT.pid then holds the process id of its systemd: enter it with `nsenter -t "$(cat ROOT.pid)" -m -u -i -p -C [-n] -- …`.
# It ends when that system is switched off, or when this script is told to end. What cannot be done here is said
# in one line, with exit code 77.
set -euo pipefail
root=$(realpath "${1:?usage: tests/systemd/boot.sh ROOT [PID of a process whose network it shares]}")
network_of=${2:-}
name=edgefold-$(basename "$root")-$$
v1_controllers="memory pids cpu"

cannot() { echo "boot.sh: $*" >&2; exit 77; }
[ "$(id -u)" = 0 ] || cannot "booting a system needs root"
[ -x "$root/lib/systemd/systemd" ] || cannot "$root has no systemd"

# The groups of this system lie below those of the machine; inside it they are the whole tree.
groups=
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    hierarchy=v2
    parent=/sys/fs/cgroup
    # Processes of a container sit in the root of its tree, and then no controller can be handed down: it boots
    # all the same, and limits of memory are not in force.
    for c in $v1_controllers; do echo "+$c" >"$parent/cgroup.subtree_control" 2>/dev/null || true; done
    groups=$parent/$name
elif [ -d /sys/fs/cgroup/systemd ]; then
    hierarchy=v1
    for c in systemd $v1_controllers; do
        [ -d "/sys/fs/cgroup/$c" ] || cannot "this machine has no cgroup controller $c"
        groups="$groups /sys/fs/cgroup/$c/$name"
    done
else
    cannot "no control groups in /sys/fs/cgroup"
fi
mkdir $groups 2>/dev/null || cannot "no right to make control groups in /sys/fs/cgroup"
take_groups_away() {
    rm -f "$root.pid"
    for group in $groups; do
        for _ in $(seq 50); do # a group that a process still dies in stays for a moment
            find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
            [ -d "$group" ] || break
            sleep 0.1
        done
    done
}
trap take_groups_away EXIT

# Runs as the first process of the new namespaces, and becomes systemd.
become_systemd() {
    set -e
    mount --bind "$root" "$root"
    cd "$root"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t tmpfs tmpfs run
    mount -t tmpfs tmpfs tmp
    if [ "$hierarchy" = v2 ]; then
        mount -t cgroup2 cgroup2 sys/fs/cgroup
    else
        mount -t tmpfs tmpfs sys/fs/cgroup
        for c in $v1_controllers; do
            mkdir "sys/fs/cgroup/$c"
            mount -t cgroup -o "$c" cgroup "sys/fs/cgroup/$c"
        done
        mkdir sys/fs/cgroup/systemd
        mount -t cgroup -o none,name=systemd,xattr cgroup sys/fs/cgroup/systemd 2>/dev/null ||
            mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
    fi
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm
    for n in null zero full random urandom tty; do
        touch "dev/$n"
        mount --bind "/dev/$n" "dev/$n"
    done
    mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    touch dev/console
    if [ -z "$network_of" ]; then
        ip link set lo up
        ip address add 192.0.2.10/24 dev lo # a documentation address: RFC 5737
    fi
    mkdir -p .old
    pivot_root . .old
    umount -l .old
    mount --make-rshared / # or credentials of a DynamicUser= cannot be read
    mount -t tmpfs tmpfs /dev/shm
    # systemd 256 and later want to be asked for the older control groups.
    exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --show-status=0 --log-target=null \
        systemd.unified_cgroup_hierarchy=$([ "$hierarchy" = v2 ] && echo 1 || echo 0) SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
}
export root hierarchy v1_controllers network_of
export -f become_systemd

(
    for group in $groups; do echo "$BASHPID" >"$group/cgroup.procs"; done
    if [ -n "$network_of" ]; then join="nsenter --net=/proc/$network_of/ns/net"; else join="unshare --net"; fi
    # Whatever ends this script ends the whole system.
    exec setpriv --pdeathsig KILL $join unshare --cgroup --pid --mount --uts --ipc --fork --kill-child --propagation private \
        bash -c become_systemd </dev/null
) &
launcher=$!
end() { kill -KILL "$launcher" 2>/dev/null || true; } # its child, which is systemd, goes with it; unshare is deaf to TERM
trap end TERM INT

for _ in $(seq 100); do
    init=$(cat "/proc/$launcher/task/$launcher/children" 2>/dev/null || true)
    init=${init%% *}
    [ -n "$init" ] && [ "$(cat "/proc/$init/comm")" = systemd ] && break
    kill -0 "$launcher" 2>/dev/null || cannot "no systemd: the lines above say why"
    init=
    sleep 0.1
done
[ -n "${init:-}" ] || cannot "no systemd after 10 s"
echo "$init" >"$root.pid"
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done # a signal ends one wait
