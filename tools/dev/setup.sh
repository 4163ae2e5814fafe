#!/bin/sh
# setup.sh PYTHON VENV: everything that a fresh machine lacks. `make` calls it; safe to repeat.
set -eu
python=$1
venv=$2
packages="mosquitto mosquitto-clients dataset-fashion-mnist strace iproute2 debootstrap rabbitmq-server nats-server"
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

say() { printf 'setup: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

case $(uname -m) in
x86_64 | aarch64) ;;
*) fail "$(uname -m) has no onnxruntime wheels; a 64-bit system (64-bit Raspberry Pi OS, Debian) is needed" ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old; edgefold needs Python 3.11 or newer (make PYTHON=python3.12 ...)"
"$python" -c 'import ensurepip' 2>/dev/null ||
    fail "this Python cannot make virtual environments; on Debian: apt install python3-venv"

# System packages: as root, or with a sudo that asks nothing. Otherwise we do without and say so.
missing=
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok' || missing="$missing $package"
done
if [ -n "$missing" ] && command -v apt-get >/dev/null; then
    if [ "$(id -u)" = 0 ]; then as_root=; elif sudo -n true 2>/dev/null; then as_root=sudo; else as_root=no; fi
    if [ "$as_root" != no ]; then
        say "installing$missing"
        export DEBIAN_FRONTEND=noninteractive
        log=${TMPDIR:-/tmp}/edgefold-apt.$$
        apt_install() { $as_root apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1; }
        $as_root apt-get update -qq >"$log" 2>&1 || say "apt-get update failed: $(tail -n 1 "$log")"
        # All at once; where that fails one by one, so that a package that this system does not
        # have costs itself only.
        if ! apt_install $missing; then
            for package in $missing; do
                apt_install "$package" || say "apt-get could not install $package; last line: $(tail -n 1 "$log")"
            done
        fi
        rm -f "$log"
        # Debian starts brokers as services; ours are started where they are needed. With RabbitMQ
        # comes Erlang's name server, which listens to the network.
        for service in mosquitto rabbitmq-server nats-server; do
            if [ -d /run/systemd/system ] && case "$missing " in *" $service "*) true ;; *) false ;; esac; then
                $as_root systemctl disable --now "$service.service" >/dev/null 2>&1 || true
                if [ "$service" = rabbitmq-server ]; then
                    $as_root systemctl disable --now epmd.socket epmd.service >/dev/null 2>&1 || true
                fi
            fi
        done
    fi
fi
PATH=$PATH:/usr/sbin command -v mosquitto >/dev/null ||
    say "no Mosquitto here and no right to install it: the embedded broker (amqtt) takes its place"

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# constraints.txt pins torch to its +cpu build, which no CUDA build satisfies. Where the default
# index lacks that build, pip stops within seconds and PyTorch's own CPU index is asked as well.
install() {
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt "$@" -e '.[dev]'
}
say "installing Python packages into $venv (about 1.5 GB, most of it torch for the author's tools)"
if ! install >"$venv/pip.log" 2>&1; then
    say "the default index does not do ($(grep -m 1 ERROR "$venv/pip.log" || echo "see $venv/pip.log")); trying PyTorch's CPU index too"
    install --extra-index-url "$cpu_index"
fi
say "ready"
