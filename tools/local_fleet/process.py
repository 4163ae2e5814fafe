"""A program of ours as a child process that never outlives us; its log is a file."""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from models.errors import UsageError
from tools.child_environment import child_environment

__all__ = ["Process", "check_alive", "end_with_parent", "stop_all"]

PATIENCE_S = 20.0  # for a process that was asked to end
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)


class Process:
    """A program of ours as a child that never outlives us; its log is a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "-m", *command]
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process, 0 when there is none."""
        return self._child.pid if self._child is not None and self._child.poll() is None else 0

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C is for us: we end them in order
                preexec_fn=end_with_parent,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send ``number``, if it runs."""
        if self.pid and self._child is not None:
            self._child.send_signal(number)

    def wait(self, patience_s: float = PATIENCE_S) -> int | None:
        """Wait until it has ended, by force after ``patience_s``; return its exit code."""
        if self._child is None:
            return None
        try:
            return self._child.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()

    def kill(self) -> None:
        """End it at once, as a power cut would: it gets no chance to tidy up."""
        self.signal(signal.SIGKILL)
        self.wait()

    def last_words(self) -> str:
        """Return the end of the log, for a person who must find out what went wrong."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-5:])


def end_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Have the process in which this runs get a signal when its parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, how)


def stop_all(processes: Sequence[Process]) -> None:
    """End all of them in good order, at the same time."""
    for process in processes:
        process.signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    for process in processes:
        process.wait(max(0.1, deadline - time.monotonic()))


def check_alive(processes: Sequence[Process]) -> None:
    """Make sure that all of them run.

    Raises:
        UsageError: one has ended by itself; the message ends with what it said last.
    """
    for process in processes:
        if not process.pid:
            raise UsageError(f"{process.name} ended by itself; it said:\n{process.last_words()}")
