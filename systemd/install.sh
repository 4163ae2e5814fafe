#!/bin/sh
# install.sh [agent] [broker]: edgefold in /opt/edgefold with its units and commands; as root. Safe to repeat: the same
# command upgrades, and without a name it upgrades what is installed. State, settings and samples are never touched.
set -eu
program=/opt/edgefold
units=/etc/systemd/system
source=$(cd "$(dirname "$0")/.." && pwd)
usage="usage: sudo systemd/install.sh agent    (on a board), or: sudo systemd/install.sh broker    (beside the MQTT broker)"

say() { printf 'install: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

for role in "$@"; do
    case $role in agent | broker) ;; *) fail "'$role' is nothing to install; $usage" ;; esac
done
[ "$(id -u)" = 0 ] || fail "needs root: sudo systemd/install.sh $*"
roles=
for role in agent broker; do
    case " $* " in *" $role "*) roles="$roles $role" ;; *) [ ! -e "$units/edge-$role.service" ] || roles="$roles $role" ;; esac
done
[ -n "$roles" ] || fail "nothing is installed yet; $usage"
case $(uname -m) in
x86_64 | aarch64) ;;
*) fail "$(uname -m) has no onnxruntime; a 64-bit system is needed (64-bit Raspberry Pi OS or Debian)" ;;
esac
command -v systemctl >/dev/null || fail "no systemd here; docs/install.md says how to go without"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "Python 3.11 or newer is needed: Debian 12 (bookworm) has it"
python3 -c 'import sys; sys.exit(sys.maxsize < 2**32)' || # such as 32-bit Raspberry Pi OS, whose kernel has 64
    fail "this system's programs have 32 bits, though its kernel has 64: a 64-bit system is needed (64-bit Raspberry Pi OS or Debian)"
python3 -c 'import ensurepip' 2>/dev/null || fail "Python's venv is missing: sudo apt install python3-venv"

# /var/tmp: where /tmp lies in memory, that of a small board is too small for the wheels.
work=$(mktemp -d /var/tmp/edgefold.XXXXXX)
stopped=
finish() {
    rm -rf "$work"
    # Also after a failure: what ran before runs again.
    for role in $stopped; do systemctl start --no-block "edge-$role"; done
}
trap finish EXIT
trap 'exit 1' HUP INT TERM
umask 022
export TMPDIR="$work"

# An environment that was cut off half way, or whose Python is gone (Debian was upgraded), is made again.
if [ -e "$program/.unfinished" ] || ! "$program/bin/python" -m pip --version >/dev/null 2>&1; then
    python3 -m venv --clear "$program"
fi
pip() { "$program/bin/python" -m pip --disable-pip-version-check "$@"; }

# First all that takes long and may fail; services stop only for the seconds that it takes to put the files in place.
# Built from a copy, so that nothing is left in the checkout. The versions are those that our tests ran with.
case $roles in *broker*) extra='[tasks]' ;; *) extra= ;; esac # as `edgefold` is there too
say "fetching Python packages for$roles (about 70 MB)"
mkdir "$work/source" "$work/wheels"
for part in pyproject.toml README.md LICENSE models edge_agent broker tools; do
    cp -R "$source/$part" "$work/source/"
done
pip wheel -q --only-binary=:all: -c "$source/constraints.txt" -w "$work/wheels" "$work/source$extra"

for role in $roles; do
    # Also one that is just starting, or that failed and is about to be started again: it would run what is half old.
    case $(systemctl is-active "edge-$role") in
    active | activating | reloading)
        say "stopping edge-$role for a moment"
        stopped="$stopped $role"
        systemctl stop "edge-$role"
        ;;
    esac
done
touch "$program/.unfinished"
pip install -q --no-index --find-links "$work/wheels" -c "$source/constraints.txt" "edgefold$extra"
pip install -q --no-index --no-deps --force-reinstall "$work"/wheels/edgefold-*.whl # also of the same version
rm "$program/.unfinished"

install -d -m 755 /etc/edgefold /usr/local/bin
case $roles in *agent*) groupadd --system --force edgefold ;; esac # its members may ask the model
for role in $roles; do
    install -m 644 "$source/systemd/edge-$role.service" "$units/"
    ln -sfn "$program/bin/edgefold-$role" "/usr/local/bin/edgefold-$role"
done
case $roles in *broker*) ln -sfn "$program/bin/edgefold" /usr/local/bin/edgefold ;; esac # makes tasks
systemctl daemon-reload

for role in $roles; do
    if [ ! -e "/etc/edgefold/$role.toml" ]; then
        say "edge-$role is installed; write /etc/edgefold/$role.toml, then: sudo systemctl enable --now edge-$role"
    else
        case $stopped in
        *$role*) say "edge-$role is upgraded and runs again" ;;
        *) say "edge-$role is installed; to start it: sudo systemctl enable --now edge-$role" ;;
        esac
    fi
done
