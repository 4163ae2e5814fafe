"""One job for a child program: its folder, its log, its deadline, and what its end means."""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edge_agent.board.children import DISK_FAILED, Child, Launch, last_line

__all__ = ["ChildJob", "Ended"]

_LOG = "log.txt"


class Ended(NamedTuple):
    """How a child ended."""

    code: int | None  # negative: the signal that ended it; None: overdue, and ended for it
    last_line: str = ""  # of what it wrote, which is its error in one sentence; "" if it worked

    @property
    def worked(self) -> bool:
        return self.code == 0

    @property
    def is_overdue(self) -> bool:
        return self.code is None

    @property
    def is_disk(self) -> bool:
        """Whether only the disk was full or failing, so that the same may work later."""
        return self.code == DISK_FAILED

    @property
    def is_killed(self) -> bool:
        """Whether somebody else ended it at once: mostly the system, for want of memory."""
        return self.code == -signal.SIGKILL

    @property
    def reason(self) -> str:
        """Why it failed, where nothing better is known."""
        return self.last_line or f"exit code {self.code}"


class ChildJob:
    """At most one child at a time; its owner passes on the time.

    ``folder`` takes the child's log and whatever its owner puts there for it.
    """

    def __init__(self, launch: Launch, folder: Path | str, *, program: str) -> None:
        self.folder = os.fspath(folder)  # no `Path`, see `models.host.files`
        self._launch = launch
        self._program = program
        self._child: Child | None = None
        self._deadline = 0.0

    @property
    def is_running(self) -> bool:
        """Whether a child was begun whose end nobody has been told."""
        return self._child is not None

    def prepare(self) -> None:
        """Make the folder, with nothing in it.

        Raises:
            OSError: the disk is full or failing.
        """
        self.clear()
        os.mkdir(self.folder)

    def begin(self, arguments: Sequence[str], now: float, within_s: float) -> None:
        """Start the child; it is ended when it has not ended ``within_s`` from ``now``.

        Raises:
            OSError: no process or no file could be made.
        """
        self._child = self._launch(self._program, arguments, log=f"{self.folder}/{_LOG}")
        self._deadline = now + within_s

    def poll(self, now: float) -> Ended | None:
        """Return, once, how the child ended; None while it runs, and where there is none."""
        if self._child is None:
            return None
        code = self._child.poll()
        if code is None and now < self._deadline:
            return None
        if code is None:
            self._child.kill()
        self._child = None
        return Ended(code, last_line(f"{self.folder}/{_LOG}") if code != 0 else "")

    def next_look(self, now: float, every_s: float) -> float:
        """Return when to `poll` again, at the latest at the deadline."""
        return min(now + every_s, self._deadline)

    def kill(self) -> None:
        """End the child, if there is one; nobody is told."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def clear(self) -> None:
        """Remove the folder; no child is running."""
        shutil.rmtree(self.folder, ignore_errors=True)
