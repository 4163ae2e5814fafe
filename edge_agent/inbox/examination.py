"""Looks into the files of the inbox one by one: whatever is wrong with one costs only that one."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent.inbox.inbox_files import (
    Identity,
    identity_of,
    may_remove,
    open_for_writing,
    read_regular,
)
from edge_agent.inbox.intake_job import IntakeJob, IntakeResult
from edge_agent.inbox.rejects import Rejects
from edge_agent.samples.entry_fate import Fate, Group, NotHereError, Wait, fate_of
from models.host.sentences import brief
from models.task.spec import decode_spec

__all__ = ["ENDED", "Examination", "Findings", "NoRoomError", "noted"]

BUSY_S = 30.0  # of the processor; then the next child goes on,
WHILE_S = 100.0  # or so long in all
ENDED = "reading it was ended: it takes too much memory or time"


class NoRoomError(Exception):
    """Nothing more can be stored."""


class Findings:
    """What a child has to say, as it grows."""

    def __init__(self) -> None:
        self.added = self.dropped = 0
        self.rejected: list[str] = []
        self.more: list[tuple[bytes, bytes]] = []
        self.foreign: tuple[Group, ...] = ()
        self.examined = 0
        self._waiting: dict[bytes, dict[Wait, Group]] = {}

    def wait(self, entry: bytes, wait: Wait, example: str, reason: str, count: int = 1) -> None:
        groups = self._waiting.setdefault(entry, {})
        if wait in groups:
            first = groups[wait]
            groups[wait] = Group(wait, first.count + count, first.example, first.reason)
        else:
            groups[wait] = Group(wait, count, example, reason)

    def result(self, *, no_room: str, expired: int) -> IntakeResult:
        """Return all that was found."""
        return IntakeResult(
            added=self.added,
            rejected=tuple(self.rejected),
            waiting=tuple((e, tuple(groups.values())) for e, groups in self._waiting.items()),
            examined=self.examined,
            more=tuple(self.more),
            no_room=no_room,
            dropped=self.dropped,
            expired=expired,
            foreign=self.foreign,
        )


class Examination:
    """One look at the entries of a job, with its bounds of time and what may be opened."""

    def __init__(self, job: IntakeJob, note: Callable[[bytes], object]) -> None:
        self.job = job
        self.note = note
        self.inbox = Path(job.inbox)
        self.spec = decode_spec(Path(job.spec).read_bytes())
        self.rejects = Rejects(
            self.inbox,
            max_bytes=job.keep_rejected_bytes,
            keep_s=job.keep_rejected_s,
            wall=job.wall,
        )
        self.findings = Findings()
        self.stored: set[tuple[bytes, Identity]] = set()  # and could not be removed
        self._skip = frozenset(job.skip)
        self._being_written: frozenset[tuple[int, int]] | None = None
        self._busy_until = time.process_time() + BUSY_S
        self._open_until = time.monotonic() + WHILE_S

    def begin(self, place: bytes, status: os.stat_result) -> None:
        """Say what is looked into now.

        Raises:
            NotHereError: it has ended a child before.
        """
        named = noted(place, status)
        if named in self._skip:
            raise NotHereError(Wait.ENDED, ENDED)
        self.note(named)

    def is_late(self) -> bool:
        """Whether the rest is for the next child."""
        return time.process_time() > self._busy_until or time.monotonic() > self._open_until

    @contextmanager
    def deciding(self, entry: bytes, place: bytes, unchanged_s: float) -> Iterator[None]:
        """Whatever is wrong with the file at ``place`` costs only that file."""
        try:
            yield
        except NoRoomError:
            raise
        except Exception as error:  # strangers' bytes find mistakes of ours and of libraries
            self._decide(error, entry, place, unchanged_s)

    def _decide(self, error: Exception, entry: bytes, place: bytes, unchanged_s: float) -> None:
        """Let what ``error`` says become of the file at ``place``."""
        fate = fate_of(error, unchanged_s=unchanged_s)
        name = brief(os.fsdecode(place))
        if fate.do == "reject" and self._is_being_written(place):
            fate = Fate("wait", Wait.WRITING, f"{fate.reason}; a program has it open to write")
        if fate.do == "reject":
            try:
                self.rejects.put(os.fsdecode(place), fate.reason)
            except (NotHereError, OSError) as refused:
                fate = fate_of(refused, unchanged_s=unchanged_s)
            else:
                self.findings.rejected.append(f"{name}: {fate.reason}")
        if fate.do == "wait":
            if fate.wait is Wait.NO_ROOM:
                raise NoRoomError(f"{name}: {fate.reason}")
            self.findings.wait(entry, fate.wait, name, fate.reason)

    def _is_being_written(self, place: bytes) -> bool:
        if self._being_written is None:
            self._being_written = open_for_writing()
        try:
            status = os.lstat(self.inbox / os.fsdecode(place))
        except OSError:
            return False
        return (status.st_dev, status.st_ino) in self._being_written

    def opened(self, place: bytes, path: Path, max_bytes: int) -> tuple[bytes, Identity]:
        """Read a file that we may remove, and that has not ended a parser before."""
        status = os.lstat(path)
        named = noted(place, status)
        if named in self._skip:
            raise NotHereError(Wait.ENDED, ENDED)
        if (place, identity_of(status)) in self.stored:
            raise NotHereError(Wait.REFUSED, "it was taken, and cannot be removed: remove it")
        if stat.S_ISREG(status.st_mode):
            self.note(named)
        data, identity = read_regular(path, max_bytes=max_bytes)
        if not may_remove(path):
            raise NotHereError(
                Wait.REFUSED, "the agent may not remove it: give it write permission to the folder"
            )
        return data, identity

    def age_s(self, path: Path) -> float:
        """Return how long the file has been as it is, by the wall clock."""
        try:
            status = os.lstat(path)
        except OSError:
            return 0.0
        return self.job.wall - max(status.st_mtime, status.st_ctime)


def noted(place: bytes, status: os.stat_result) -> bytes:
    """Return how `OPENED` names a file: where it is, and which one."""
    return b"%s\0%d\0%d" % (place, status.st_size, status.st_mtime_ns)
