"""A peer's program below a supervisor of its own, which ends with us."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from models.errors import UsageError
from tools.child_environment import child_environment
from tools.local_fleet.process import end_with_parent

__all__ = ["Supervised", "wait_until"]

PATIENCE_S = 20.0  # for a supervisor that ends what is below it


class Supervised:
    """One program of a peer; ``pid`` is its supervisor's, whose books have all that it cost."""

    def __init__(
        self,
        name: str,
        command: Sequence[object],
        *,
        environment: Mapping[str, str],
        directory: Path,
    ) -> None:
        """Start it in ``directory``, where its log is to be, with ``environment`` and no other."""
        self.name = name
        self.log = directory / f"{name}.log"
        words = [sys.executable, "-m", "tools.bench.peers.supervisor", str(self.log)]
        # The supervisor needs our packages, the program shall have nothing of ours.
        clean = ["env", "-i", *(f"{key}={value}" for key, value in environment.items())]
        self._process = subprocess.Popen(
            [*words, *clean, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            env=child_environment(),
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self.code: int | None = None  # of the program, once it has ended
        threading.Thread(target=self._hear, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, most_s: float) -> None:
        """Wait until the program has ended well.

        Raises:
            UsageError: it has not, or not in time; with what it said last.
        """
        wait_until(lambda: self.code is not None, most_s, what=self.name, said=self.last_words)
        if self.code:
            raise UsageError(f"{self.name} failed ({self.code}); it said:\n{self.last_words()}")

    def last_words(self) -> str:
        """Return the end of the log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").strip().splitlines()[-8:])
        except OSError:
            return ""

    def end(self) -> None:
        """End it and everything that it started."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.code = int(line)


def wait_until(
    is_so: Callable[[], bool],
    most_s: float,
    *,
    what: str,
    said: Callable[[], str] = lambda: "",
    look_s: float = 0.2,
) -> None:
    """Return as soon as ``is_so()``.

    Raises:
        UsageError: it did not become so within ``most_s`` seconds.
    """
    until = time.monotonic() + most_s
    while not is_so():
        if time.monotonic() > until:
            words = said()
            raise UsageError(
                f"{what}: nothing came within {most_s:.0f} s"
                + (f"; it said:\n{words}" if words else "")
            )
        time.sleep(look_s)
