"""Runs a program, and ends it with all that it started, also when the test was killed.

    python guarded_program.py PROGRAM [ARGUMENT...]

Erlang leaves a name server of its own session, and shells their children, to whoever adopts them:
that is us (Linux, PR_SET_CHILD_SUBREAPER).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
GUARD = Path(__file__)


def main() -> int:
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _stop)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    try:
        return subprocess.Popen(sys.argv[1:]).wait()
    finally:
        end_descendants()


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def end_descendants() -> None:
    """Kill every process below this one, and those that come while we do."""
    while True:
        for number in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:  # none is left
            return
        time.sleep(0.02)


def descendants(root: int) -> list[int]:
    """Return the processes below ``root``."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may have blanks and brackets in it.
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {root})


if __name__ == "__main__":
    sys.exit(main())
