"""What lies in the inbox, seen from outside: names, times and stamps; nothing is opened."""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edge_agent.inbox.waiting import SETTLED_S
from edge_agent.samples.entry_fate import DAY_S, Group, Wait
from models.host.sentences import brief

__all__ = ["EMPTY_S", "UNFINISHED", "UNRENAMED", "InboxFolder", "Lying", "is_taken"]

EMPTY_S = 600.0  # a folder that we have emptied goes when nothing came for so long
CLOCK_WAS_WRONG_S = 3600.0  # so far in the future nobody writes: nobody waits for that
UNFINISHED = (".part", ".tmp", ".draft", ".swp")
UNRENAMED = (
    f"a name that ends in {', '.join(UNFINISHED)} is left alone, and was for a day: "
    "rename it when it is whole, or delete it"
)
NOT_ENTRIES = {"rejected", "lost+found"}
_TAKEN = re.compile(r"\.taken-[0-9a-f]{16}")


class Lying(NamedTuple):
    """An entry of the inbox, as the last look found it."""

    name: str
    changed: float  # by the wall clock, of whoever wrote it
    stamp: int  # of what lies there: other bytes, another stamp
    is_folder: bool


class InboxFolder:
    """The folder that anybody may write to, and which of its folders we have emptied."""

    def __init__(self, path: Path, wall_clock: Callable[[], float]) -> None:
        self.path = path
        self.wall_clock = wall_clock
        self._emptied: dict[str, float | None] = {}  # folders, and since when they are empty
        self._rejected_stamp = 0

    def look(self, now: float) -> tuple[list[Lying], list[Group], int]:
        """Return the entries, those of them whose names say they are not whole, and the work."""
        found, unfinished, looked_at = [], [], 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                looked_at += 1
                name = entry.name
                if name in NOT_ENTRIES or (name.startswith(".") and not _TAKEN.fullmatch(name)):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError:  # a bad sector costs only itself: the child will say so
                    found.append(Lying(name, 0.0, 0, is_folder=False))
                    continue
                if name.endswith(UNFINISHED):
                    if self.wall_clock() - status.st_mtime > DAY_S:
                        unfinished.append(name)
                    continue
                stamp = hash((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_folder:
                    files, count = _stamp_of(entry.path)
                    stamp ^= files
                    looked_at += count
                    if count == 0 and not _TAKEN.fullmatch(name):
                        self._drop_emptied(name, entry.path, now)
                        continue
                    if name in self._emptied:
                        self._emptied[name] = None
                found.append(Lying(name, status.st_mtime, stamp, is_folder))
        aside = []
        if unfinished:
            first = brief(min(unfinished))
            aside.append(Group(Wait.RENAME, len(unfinished), first, UNRENAMED))
        return found, aside, looked_at

    def is_settled(self, entry: Lying) -> bool:
        """Whether the wall clock says that nobody writes it any more."""
        age_s = self.wall_clock() - entry.changed
        return age_s >= SETTLED_S or age_s < -CLOCK_WAS_WRONG_S

    def emptied(self, entry: Lying) -> None:
        """Take note of a folder that we have looked through: empty, it goes some time later."""
        if entry.is_folder and not is_taken(entry.name):
            self._emptied.setdefault(entry.name, None)

    def looked_at_rejected(self) -> None:
        """Take note that a child has just looked at what was put aside."""
        self._rejected_stamp = self._stamp_of_rejected()

    def has_other_rejected(self) -> bool:
        """Whether somebody has put something there since, or taken it."""
        return self._stamp_of_rejected() != self._rejected_stamp

    def _stamp_of_rejected(self) -> int:
        try:
            return os.stat(self.path / "rejected").st_mtime_ns
        except OSError:
            return 0

    def _drop_emptied(self, name: str, path: str, now: float) -> None:
        """Remove a folder that we have emptied, when nobody has put anything there for long."""
        if name not in self._emptied:
            return
        since = self._emptied[name]
        if since is None:
            self._emptied[name] = now
        elif now - since >= EMPTY_S:
            with contextlib.suppress(OSError):
                os.rmdir(path)
            del self._emptied[name]


def _stamp_of(folder: str) -> tuple[int, int]:
    """Return what tells one state of a folder's files from another, and how many there are."""
    stamp = count = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                count += 1
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                state = (entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                stamp ^= hash(state)
    except OSError:
        return 0, 1  # the child finds out why
    return stamp, count


def is_taken(name: str) -> bool:
    """Whether ``name`` is that of a folder that an intake of edgefold 0.1 has begun with."""
    return _TAKEN.fullmatch(name) is not None
