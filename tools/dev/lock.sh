#!/bin/sh
# lock.sh PYTHON: print constraints.txt for what PYTHON's environment holds now.
set -eu
cat <<'HEAD'
# Every version that a development or demo installation may take; `make lock` renews it.
# torch is pinned to its +cpu local version, which no CUDA build can satisfy.
HEAD
"$1" -m pip freeze --exclude-editable | grep -vi -e '^torch==' -e '^edgefold'
echo 'torch==2.13.0+cpu ; sys_platform == "linux"'
echo 'torch==2.13.0 ; sys_platform != "linux"'
