#!/usr/bin/env bash
# trial.sh WORK: run both services under a real systemd as PID 1, in namespaces of this machine.
# Needs root and debootstrap. WORK keeps the root file system; boot.sh boots it.
#
# It shows: READY after start, the watchdog restarting a hung agent, Restart= after SIGKILL,
# MemoryMax in force, the unprivileged user, a release installed over the air inside, and that an
# application of another user asks and feeds if it is in the group, and else does neither.
set -euo pipefail
work=$(realpath -m "${1:?usage: tests/systemd/trial.sh WORK}")
source=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$source/.venv/bin/python}
root=$work/root

[ "$(id -u)" = 0 ] || { echo "trial.sh needs root" >&2; exit 1; }

if [ ! -e "$root/.made" ]; then
    echo "== making the root file system in $root (once)"
    mkdir -p "$work"
    debootstrap --variant=minbase \
        --include=systemd,systemd-sysv,dbus,python3,libpam-systemd,mosquitto \
        bookworm "$root" >"$work/debootstrap.log"
    touch "$root/.made"
fi

echo "== installing edgefold as on a device, without torch"
rm -rf "$root/opt/edgefold" "$root/etc/edgefold" "$root/srv/edgefold" "$root/var/lib/private" \
    "$root/var/lib/edge-agent" "$root/var/lib/edge-broker"
mkdir -p "$root/opt/edgefold/bin" "$root/etc/edgefold" "$root/srv/edgefold"
"$python" -m pip install -q --target "$root/opt/edgefold/lib" --python-version 3.11 \
    --only-binary=:all: --no-compile -c "$source/constraints.txt" \
    msgspec numpy onnxruntime paho-mqtt psutil
"$python" -m pip install -q --target "$root/opt/edgefold/lib" --no-deps --no-compile "$source"
for name in agent broker; do
    module=edge_agent
    [ $name = broker ] && module=broker
    printf '#!/bin/sh\nPYTHONPATH=/opt/edgefold/lib exec /usr/bin/python3 -m %s "$@"\n' $module \
        >"$root/opt/edgefold/bin/edgefold-$name"
    chmod 755 "$root/opt/edgefold/bin/edgefold-$name"
done
cp "$source"/systemd/edge-*.service "$root/etc/systemd/system/"
ln -sf /etc/systemd/system/edge-agent.service /etc/systemd/system/edge-broker.service \
    "$root/etc/systemd/system/multi-user.target.wants/"

echo "== a task from real handwriting, and one device's samples"
"$python" "$source/tests/systemd/trial_files.py" "$root"

make_applications() { # two users, a clone, and their program with the client
    id() { chroot "$root" id "$1" >/dev/null 2>&1; }
    id app || chroot "$root" useradd --create-home app
    id stranger || chroot "$root" useradd --create-home stranger
    ! grep -q ^edgefold: "$root/etc/group" || chroot "$root" groupdel edgefold
    rm -rf "$root/srv/edgefold/inbox" "$root/etc/systemd/system/edge-agent.service.d"
    install -d "$root/srv/edgefold/application" "$root/srv/edgefold/clone"
    cp -r "$source/systemd" "$root/srv/edgefold/clone"
    install -m 644 "$source/tests/systemd/trial_application.py" \
        "$source/edge_agent/client/edgefold_client.py" "$root/srv/edgefold/application"
}
make_applications

"$source/tests/systemd/boot.sh" "$root" >"$work/boot.log" 2>&1 </dev/null &
boot=$!
for _ in $(seq 100); do
    [ -s "$root.pid" ] && break
    kill -0 "$boot" 2>/dev/null || { cat "$work/boot.log" >&2; exit 1; }
    sleep 0.2
done
init=$(cat "$root.pid")
inside() { nsenter -t "$init" -m -u -i -n -p -C -- "$@"; }
finish() {
    inside systemctl poweroff 2>/dev/null || true
    for _ in $(seq 60); do kill -0 "$boot" 2>/dev/null || break; sleep 0.5; done
    kill "$boot" 2>/dev/null || true
}
trap finish EXIT

property() { inside systemctl show "$1" -p "$2" --value; }
wait_for() { # wait_for SECONDS DESCRIPTION COMMAND...
    local seconds=$1 what=$2
    shift 2
    for _ in $(seq $((seconds * 2))); do "$@" >/dev/null 2>&1 && { echo "ok   $what"; return; }; sleep 0.5; done
    echo "FAIL $what" >&2
    inside journalctl -u edge-agent -u edge-broker --no-pager -o short-monotonic | tail -n 60 >&2
    exit 1
}
active() { [ "$(property "$1" ActiveState)" = active ]; }
restarted() { [ "$(property edge-agent NRestarts)" -ge "$1" ] && active edge-agent; }
installed() { inside /opt/edgefold/bin/edgefold-agent status --config /etc/edgefold/agent.toml --json | grep -q "\"release\": *[1-9]"; }
status_line() { property edge-agent StatusText | grep -q release; }

wait_for 60 "edge-broker is ready (Type=notify)" active edge-broker
wait_for 60 "edge-agent is ready (Type=notify)" active edge-agent
wait_for 60 "a release came over the air and is installed" installed
learned() { inside /opt/edgefold/bin/edgefold-broker status --config /etc/edgefold/broker.toml --json | grep -q '"updates_folded": *[1-9]'; }
inside cp /srv/edgefold/samples.npz /var/lib/private/edge-agent/inbox/samples.npz
inside chown --reference=/var/lib/private/edge-agent/inbox /var/lib/private/edge-agent/inbox/samples.npz
wait_for 120 "samples dropped into the inbox became a folded update" learned
pid=$(property edge-agent MainPID)
echo "     user $(inside stat -c %u "/proc/$pid"), memory $(($(property edge-agent MemoryCurrent) / 1048576)) MB of $(($(property edge-agent MemoryMax) / 1048576)) MB"
inside sh -c "grep -q '^NoNewPrivs:.*1' /proc/$pid/status" && echo "ok   no new privileges"
[ "$(inside stat -c %u "/proc/$pid")" != 0 ] && echo "ok   not root"

inside sh -c "kill -KILL $pid"
wait_for 60 "restarted after SIGKILL" restarted 1
wait_for 60 "the release is still installed" installed
inside sh -c "kill -STOP $(property edge-agent MainPID)"
wait_for 200 "restarted by the watchdog after it was stopped (WatchdogSec=120)" restarted 2
wait_for 60 "the release is still installed" installed
application() { # application USER ask|feed [INBOX]: prints what it said, in one line
    inside setpriv --reuid "$1" --regid "$1" --init-groups python3 -B \
        /srv/edgefold/application/trial_application.py "$2" /srv/edgefold/samples.npz "${@:3}" 2>&1 | tail -n 1
}
says() { # says DESCRIPTION PATTERN COMMAND...
    local what=$1 pattern=$2 said
    said=$("${@:3}") || true
    if grep -q -- "$pattern" <<<"$said"; then echo "ok   $what: $said"; return; fi
    echo "FAIL $what: $said" >&2
    exit 1
}
documented() { # documented WORD: do as docs/inference.md says, in its block of commands with WORD
    local commands
    commands=$(awk -v word="$1" '/^```/ { if (on && index(text, word)) printf "%s", text; on = !on; text = ""; next }
        on { text = text $0 "\n" }' "$source/docs/inference.md")
    inside env USER=app sh -ec "cd /srv/edgefold/clone; sudo() { \"\$@\"; }; $commands" >/dev/null
}
applications_ask() { # with the unit as it is shipped; until now without the group
    says "without the group an application is told to make it" "NoPermissionError.*groupadd --system edgefold" application app ask
    documented groupadd
    says "an application of the group asks" "^release [1-9].* right$" application app ask
    says "a stranger is told which group to join" "NoPermissionError.*join the group edgefold" application stranger ask
    inside rm /run/edge-agent/inference.sock
    says "a deleted socket comes back" "^release [1-9].* right$" application app ask
}
applications_feed() { # with the drop-in, and a setting
    local folded since
    folded=$(updates_folded)
    since=$(date +%s)
    documented applications.conf.example
    says "a stop in good order warns of nothing" "^0$" warnings "$since"
    wait_for 60 "the agent is ready again" active edge-agent
    says "an application asks with the drop-in" "^release [1-9].* right$" application app ask
    says "a stranger may not feed" "NoPermissionError.*join the group edgefold" application stranger feed /srv/edgefold/inbox
    says "an application of the group feeds" "^/srv/edgefold/inbox/" application app feed /srv/edgefold/inbox
    more_folded() { [ "$(updates_folded)" -gt "$folded" ]; }
    wait_for 180 "what it fed became a folded update" more_folded
    says "what the agent puts there is the group's too" "0007" inside grep Umask "/proc/$(property edge-agent MainPID)/status"
}
updates_folded() { inside /opt/edgefold/bin/edgefold-broker status --config /etc/edgefold/broker.toml --json | grep -o '"updates_folded": *[0-9]*' | grep -o '[0-9]*$' | head -n 1; }
warnings() { # warnings SECONDS: how many since then
    inside journalctl -u edge-agent -p warning --no-pager -o cat --quiet --since "@$1" | wc -l
}
applications_ask
applications_feed
echo "== journal of the agent"
inside journalctl -u edge-agent --no-pager -o cat | tail -n 25
