"""Child processes of the agent: their memory returns to the system, their crash is a result.

Both sides of it: `launch` for the agent, `settle_in` for the program that is launched.
"""

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = [
    "DISK_FAILED",
    "Child",
    "Launch",
    "last_line",
    "launch",
    "parent_process",
    "peak_rss_mb",
    "settle_in",
]

DISK_FAILED = 3  # exit code of a child that could not read or write its files
NICENESS = 10
# Numerical libraries start a thread per core otherwise, and glibc a heap per thread.
_SMALL = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"
)
_PARENT = "EDGEFOLD_PARENT"  # whose child this is: getppid() is 1 if that one ended before we ask
_MOST_OUTPUT = 64 * 1024  # bytes of a child's output that are looked at


class Child(Protocol):
    """A running child process."""

    def poll(self) -> int | None:
        """Return its exit code (negative: the signal that ended it), None while it runs."""

    def kill(self) -> None:
        """End it at once."""


class Launch(Protocol):
    """Starts ``python -m module arguments`` with its output in the file ``log``."""

    def __call__(self, module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        """Start it.

        Raises:
            OSError: no process or no file could be made.
        """


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
    """Start one of our programs in a child process; `Launch` for real."""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "wb")) if log else None
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **_SMALL, _PARENT: str(os.getpid())},
            start_new_session=True,  # a Ctrl-C in a terminal is for the agent alone
        )
    return _Process(process)


def parent_process() -> int:
    """Return the process that launched this program, also if it has ended since."""
    return int(os.environ.get(_PARENT, "0")) or os.getppid()


def settle_in() -> None:
    """Called first in a child program: be nice, and end at once when the agent does."""
    os.nice(NICENESS)
    parent = parent_process()
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(1)

    def watch() -> None:
        select.select([descriptor], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    if os.getppid() != parent:  # it ended before we watched
        os._exit(1)


def peak_rss_mb(process: int | str = "self") -> float:
    """Return the most memory that ``process`` ever had resident.

    Not getrusage's: that one begins with what the process had that started us.

    Raises:
        OSError: there is no such process.
    """
    with open(f"/proc/{process}/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def last_line(log: Path | str) -> str:
    """Return the last line of a child's output: its error in one sentence."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_OUTPUT))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip()[:300] if lines else ""
