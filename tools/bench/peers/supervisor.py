"""A process above a peer's program: whatever that starts, however it detaches itself, stays below.

    python -m tools.bench.peers.supervisor LOG COMMAND...

It is a subreaper (prctl(2)): orphans become its own children, so the CPU time of every process
that has ended is in its books for children that were waited for (getrusage(2)), which the kernel
also shows in /proc. It writes the exit code of COMMAND to its standard output, and stays, so that
its books can be read, until SIGTERM: then it ends all that is left.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

import psutil

__all__ = ["main"]

PATIENCE_S = 8  # between SIGTERM and SIGKILL
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main(arguments: list[str]) -> int:
    """Run the command until it has ended and SIGTERM has come; return 0."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopping: list[signal.Signals] = []

    def end(number: int, frame: object) -> None:
        how = signal.SIGKILL if stopping else signal.SIGTERM
        stopping.append(how)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.send_signal(how)
        signal.alarm(PATIENCE_S)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    with open(arguments[0], "ab") as log:
        child = subprocess.Popen(
            arguments[1:], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            if stopping:
                return 0
            signal.pause()
            continue
        if pid == child.pid:
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
