"""Child processes of the agent: their memory returns to the system, their crash is a result.

Both sides of it: `launch` for the agent, `settle_in` for the program that is launched.
"""

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from edge_agent.board.problems import sentence_of
from models.errors import EdgefoldError

__all__ = [
    "DISK_FAILED",
    "Child",
    "Launch",
    "be_named",
    "call_when_ready",
    "last_line",
    "launch",
    "parent_process",
    "peak_rss_mb",
    "program_name",
    "settle_in",
    "start_process",
    "worked_off",
]

DISK_FAILED = 3  # exit code of a child that could not read or write its files
NICENESS = 10
# Numerical libraries start a thread per core otherwise, and glibc a heap per thread.
_SMALL = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"
)
_PARENT = "EDGEFOLD_PARENT"  # whose child this is: getppid() is 1 if that one ended before we ask
_MOST_OUTPUT = 64 * 1024  # bytes of a child's output that are looked at
_NAME_BYTES = 15  # of a process, at most


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


def launch(
    module: str,
    arguments: Sequence[str],
    *,
    log: Path | str | None,
    wake: Callable[[], None] | None = None,
) -> Child:
    """Start one of our programs in a child process; `Launch` for real.

    ``wake`` is called, from a thread, when it has ended.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "wb")) if log else None
        process = start_process(module, arguments, output=output)
    if wake is not None:
        call_when_ready([os.pidfd_open(process.pid)], wake)
    return _Process(process)


def start_process(
    module: str,
    arguments: Sequence[str],
    *,
    output: IO[bytes] | None,
    stdin: Any = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start ``python -m module arguments`` as a child that writes to ``output``.

    Raises:
        OSError: no process could be made.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=stdin,
        stdout=output,
        stderr=output,
        env={**os.environ, **_SMALL, _PARENT: str(os.getpid())},
        start_new_session=True,  # a Ctrl-C in a terminal is for the agent alone
    )


def call_when_ready(descriptors: Sequence[int], wake: Callable[[], None]) -> None:
    """Have ``wake`` called, once, when there is something to read in one of ``descriptors``.

    They are closed then. Without a thread, who waits looks now and then anyway.
    """

    def watch() -> None:
        select.select(descriptors, [], [])
        for descriptor in descriptors:
            os.close(descriptor)
        wake()

    try:
        threading.Thread(target=watch, name="child-watch", daemon=True).start()
    except RuntimeError:
        for descriptor in descriptors:
            os.close(descriptor)


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


def worked_off(
    module: str, work: Callable[[Sequence[str]], object], arguments: Sequence[str]
) -> int:
    """Do ``work``, a job of the child program ``module``; return the exit code that tells how.

    The error, in one sentence, goes to stderr.
    """
    be_named(module)
    try:
        work(arguments)
    except (OSError, EdgefoldError) as error:
        print(sentence_of(error), file=sys.stderr)
        return DISK_FAILED if isinstance(error, OSError) else 1
    return 0


def be_named(module: str) -> None:
    """Have this process shown by `program_name`."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(program_name(module))


def program_name(module: str) -> str:
    """Return the name of a process that is at a job of ``module``, as ps shows it."""
    return module.rpartition(".")[2][:_NAME_BYTES]


def peak_rss_mb(process: int | str = "self") -> float:
    """Return the most memory that ``process`` ever had resident.

    Not getrusage's: that one begins with what the process had that started us. Since its start, or
    since `edge_agent.board.process_memory.forget_peak`.

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
