#!/bin/sh
# arm_python.sh VENV DIR: DIR/python, which is Debian's aarch64 Python 3.11 with the device's packages, run by qemu as
# a Raspberry Pi 4 (Cortex-A72). Nothing is installed on this machine but qemu; DIR takes about 300 MB. Debian, as root.
set -eu
[ $# = 2 ] || { echo "usage: $0 VENV DIR" >&2; exit 2; }
venv=$1
mkdir -p "$2"
dir=$(realpath "$2")
if [ -x "$dir/python" ]; then exit 0; fi
command -v qemu-aarch64-static >/dev/null ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static

# The aarch64 packages of this machine's own Debian, into a folder: apt with lists and a state of its own.
apt=$dir/apt
root=$dir/root
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/empty" "$root"
: >"$apt/status"
own="-o Dir::State=$apt -o Dir::State::lists=$apt/lists -o Dir::State::status=$apt/status -o Dir::Cache=$apt \
 -o Dir::Etc::preferencesparts=$apt/empty -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
 -o APT::Install-Recommends=0 -o APT::Sandbox::User=root -o Debug::NoLocking=1"
apt-get $own -qq update
apt-get $own -qq -y --download-only install python3 libstdc++6 libgomp1 >/dev/null
for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
[ -e "$root/lib" ] || ln -s usr/lib "$root/lib"
version=$(basename "$(ls "$root"/usr/bin/python3.[0-9]* | head -n 1)")

# onnxruntime reads the processor from these files, and must not see this machine's.
mkdir -p "$root/sys/devices/system/cpu" "$root/proc"
for file in possible present; do echo 0-1 >"$root/sys/devices/system/cpu/$file"; done
for number in 0 1; do
    printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n' "$number"
done >"$root/proc/cpuinfo"

# The same versions as in the lock, as aarch64 wheels.
platforms=
for platform in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
    platforms="$platforms --platform ${platform}_aarch64"
done
pins=$(grep -iE '^(numpy|onnx|onnxruntime|flatbuffers|protobuf|packaging|paho-mqtt|psutil|msgspec|ml-dtypes|ml_dtypes|typing-extensions|typing_extensions|pytest|pluggy|iniconfig|pygments|hypothesis|sortedcontainers)==' constraints.txt)
"$venv/bin/python" -m pip install -q --disable-pip-version-check --target "$dir/site" --no-compile --no-deps \
    --only-binary=:all: --implementation cp --python-version "${version#python}" $platforms $pins

cat >"$dir/python" <<EOF
#!/bin/sh
exec qemu-aarch64-static -cpu \${ARM_CPU:-cortex-a72} -L "$root" -E PYTHONHOME="$root/usr" \\
    -E PYTHONPATH="$dir/site:\${PYTHONPATH:-}" -E OPENBLAS_NUM_THREADS=1 \\
    -E LD_LIBRARY_PATH="$root/usr/lib/aarch64-linux-gnu:$root/lib/aarch64-linux-gnu" "$root/usr/bin/$version" "\$@"
EOF
chmod +x "$dir/python"
