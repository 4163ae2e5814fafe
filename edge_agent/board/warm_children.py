"""One child that is kept for the next job: to start a process costs more than most jobs do.

`WarmChildren` launches like any other `Launch`. A job goes to the kept child if that is free, else
to a process of its own, so that none waits for another. Only a child whose last job worked is kept,
and not for long: it is there for releases that follow each other, not for the hour between them.
"""

import contextlib
import errno
import math
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from edge_agent.board.children import Child, call_when_ready, launch, start_process

__all__ = ["IDLE_S", "MOST_BYTES", "WARM", "Given", "WarmChildren", "answer_to"]

WARM = "edge_agent.board.warm_program"  # the child program
IDLE_S = 15.0  # without a job; then its memory goes back to the system
LOOK_S = 1.0  # at the board's memory meanwhile
END_S = 1.0  # a child that closed its line ends within
MOST_BYTES = 128 * 1024  # of a message; a job is a few paths


class Given(msgspec.Struct, frozen=True):
    """A job, as the child gets it: one message, and with it where to write what is said."""

    number: int
    program: str  # a module with a function ``work``
    arguments: tuple[str, ...]


def answer_to(number: int) -> bytes:
    """Return what the child says of a job that worked. Of one that did not its end tells."""
    return b"done %d" % number


class WarmChildren:
    """`Launch` for jobs of ``programs``, whose memory is given up for ``min_free_mb``.

    Each is a module with a function ``work(arguments)``. ``wake`` is called, from a thread, when a
    job may have ended. Call `tick` when it said, and `stop` at the end.
    """

    def __init__(
        self,
        programs: frozenset[str],
        *,
        free_mb: Callable[[], float],
        min_free_mb: float,
        wake: Callable[[], None],
        idle_s: float = IDLE_S,
    ) -> None:
        self._programs = programs
        self._free_mb = free_mb
        self._min_free_mb = min_free_mb
        self._wake = wake
        self._idle_s = idle_s
        self._kept: _Kept | None = None
        self._idle_since: float | None = None

    @property
    def pid(self) -> int:
        """Of the child that is kept, 0 when there is none."""
        return self._kept.process.pid if self._kept is not None else 0

    def __call__(self, module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        """See `Launch`."""
        if module in self._programs and log is not None and self._is_free():
            try:
                return self._give(module, arguments, log)
            except OSError:  # of the child or of the line to it: without them, then
                self.stop()
        return launch(module, arguments, log=log, wake=self._wake)

    def tick(self, now: float) -> float:
        """End the child if it has had nothing to do for long; return when to look again."""
        if not self._is_free() or self._kept is None:
            self._idle_since = None
            return math.inf
        if self._idle_since is None:
            self._idle_since = now
        until = self._idle_since + self._idle_s
        if now >= until or self._free_mb() < self._min_free_mb:
            self.stop()
            return math.inf
        return min(now + LOOK_S, until)

    def stop(self) -> None:
        """End the child, also in the middle of a job."""
        if self._kept is not None:
            self._kept.end()
            self._kept = None
        self._idle_since = None

    def _is_free(self) -> bool:
        """Whether a job may be given; a child of no more use is let go."""
        if self._kept is None or self._kept.job is None:
            return True
        code = self._kept.job.poll()
        if code is None:
            return False
        if code != 0 or self._kept.process.poll() is not None:
            self.stop()
        return True

    def _give(self, module: str, arguments: Sequence[str], log: Path | str) -> Child:
        self._idle_since = None
        with open(log, "wb") as output:
            if self._kept is None:
                self._kept = _Kept.started(output)
            return self._kept.give(module, arguments, output, self._wake)


class _Kept:
    """The child and our end of the line to it."""

    def __init__(self, process: subprocess.Popen[bytes], line: socket.socket) -> None:
        self.process = process
        self.job: _Job | None = None  # the last one
        self._line = line

    @classmethod
    def started(cls, output: IO[bytes]) -> "_Kept":
        """Start one; what it says before its first job goes to ``output``.

        Raises:
            OSError: no process could be made.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs, contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            process = start_process(WARM, [], output=output, stdin=theirs)
            stack.pop_all()
        return cls(process, ours)

    def give(
        self, module: str, arguments: Sequence[str], output: IO[bytes], wake: Callable[[], None]
    ) -> "_Job":
        """Give it a job.

        Raises:
            OSError: it has ended, or takes nothing.
        """
        number = self.job.number + 1 if self.job else 1
        given = msgspec.json.encode(Given(number, module, tuple(arguments)))
        if len(given) > MOST_BYTES:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        socket.send_fds(self._line, [given], [output.fileno()])
        ready = [os.dup(self._line.fileno()), os.pidfd_open(self.process.pid)]
        call_when_ready(ready, wake)
        self.job = _Job(self, number, os.fspath(output.name))
        return self.job

    def outcome(self, number: int) -> "_Outcome | None":
        """Return what became of a job; None while it is at it."""
        try:
            answer = self._line.recv(MOST_BYTES)
        except BlockingIOError:
            code = self.process.poll()  # it may live no more, and another have its end of the line
            return None if code is None else _Outcome(code or 1)
        except OSError:
            answer = b""
        if answer == answer_to(number):
            return _Outcome(0)
        if answer:
            self.end()
            return _Outcome(1, f"its child answered {answer[:50]!r}, which makes no sense")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        self.end()
        return _Outcome(self.process.returncode or 1)

    def end(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        self._line.close()


class _Outcome(NamedTuple):
    code: int  # as of a process
    said: str = ""


class _Job:
    """`Child` for one job."""

    def __init__(self, kept: _Kept, number: int, log: str) -> None:
        self.number = number
        self._kept = kept
        self._log = log
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None and (outcome := self._kept.outcome(self.number)) is not None:
            self._code = outcome.code
            if outcome.said:
                with contextlib.suppress(OSError), open(self._log, "a") as file:
                    file.write(f"{outcome.said}\n")
        return self._code

    def kill(self) -> None:
        if self._code is None:
            self._kept.end()
            self._code = self._kept.process.returncode
