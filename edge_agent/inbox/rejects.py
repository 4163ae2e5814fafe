"""What no samples can be made of: moved to ``rejected/`` under its own path, with its reason.

Nothing there is ever overwritten, and nothing goes before its days are over, or that others put
there: when the bytes that
the owner allows are used up, what comes next stays where it is.
"""

import calendar
import contextlib
import os
import time
from pathlib import Path

from edge_agent.samples.entry_fate import NotHereError, Wait
from models.host.durable import atomic_write
from models.host.sentences import shown

__all__ = ["REASONS", "REJECTED", "Rejects", "free_name"]

REJECTED = "rejected"  # in the inbox
REASONS = "reasons.txt"  # in there: a line for each, with the day, the path and the reason
LEAST_BYTES = 4096  # what a file takes at least
LONGEST_NAME = 255  # bytes
RIGHT_CLOCK = 1_577_836_800.0  # 2020: a clock that says less was not set yet
FORMAT = "%Y-%m-%d %H:%M:%S"  # UTC


class Rejects:
    """The folder ``rejected/`` of one inbox, for one run of the intake."""

    def __init__(self, inbox: Path, *, max_bytes: int, keep_s: float, wall: float) -> None:
        self._inbox = inbox
        self._folder = inbox / REJECTED
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._wall = wall
        self._size: int | None = None

    def put(self, place: str, reason: str) -> None:
        """Move the file at ``place``, relative to the inbox, aside.

        Raises:
            NotHereError: there is no more room among the rejected: it stays where it is.
            OSError: it cannot be moved.
        """
        source = self._inbox / place
        size = max(os.lstat(source).st_size, LEAST_BYTES)
        target = self._place(place, size, reason)
        source.rename(target)  # undone by a power cut, it happens once more
        self._size = self._used() + size

    def keep(self, place: str, data: bytes, reason: str) -> None:
        """Write what of the file at ``place`` is no sample, under the name of that file.

        Raises:
            NotHereError: there is no more room among the rejected.
            OSError: it cannot be written.
        """
        size = max(len(data), LEAST_BYTES)
        atomic_write(self._place(place, size, reason), data)
        self._size = self._used() + size

    def _place(self, place: str, size: int, reason: str) -> Path:
        """Return where to put so many bytes, after writing down why."""
        if self._used() + size > self._max_bytes:
            raise NotHereError(
                Wait.ASIDE,
                f"{reason}; it stays here since inbox/{REJECTED} is full "
                f"({self._max_bytes / 1e6:.0f} MB, samples.keep_rejected_mb): empty it",
            )
        target = free_name(self._folder / place)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(self._folder / REASONS, "a", encoding="utf-8") as file:
            file.write(_line(self._wall, shown(str(target.relative_to(self._folder))), reason))
        return target

    def expire(self) -> tuple[int, list[str]]:
        """Delete what was kept for as many days as the owner wants.

        Returns:
            How many files went, and the names of those that were not put here by `put`: nobody
            said of them that they may go.
        """
        if not self._folder.is_dir():
            return 0, []
        since = self._since()
        is_right = self._wall >= RIGHT_CLOCK
        lines, foreign, expired, is_changed = [], [], 0, False
        for path in self._files():
            name = shown(str(path.relative_to(self._folder)))
            if name not in since:
                foreign.append(name)
                continue
            moment, reason = since.pop(name)
            if is_right and moment < RIGHT_CLOCK:
                moment, is_changed = self._wall, True
            if is_right and self._wall - moment > self._keep_s:
                with contextlib.suppress(OSError):
                    path.unlink()
                    expired, is_changed = expired + 1, True
                    with contextlib.suppress(OSError):
                        path.parent.rmdir()
                    continue
            lines.append(_line(moment, name, reason))
        if is_changed or since:  # what the owner took away needs no reason any more
            atomic_write(self._folder / REASONS, "".join(lines).encode())
        return expired, foreign

    def _since(self) -> dict[str, tuple[float, str]]:
        """Return when and why each file came here, as `REASONS` has it."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            text = (self._folder / REASONS).read_text("utf-8", "replace")
            for line in text.splitlines():
                day, _, rest = line.partition("\t")
                name, _, reason = rest.partition("\t")
                try:
                    moment = time.strptime(day, FORMAT)
                except ValueError:
                    continue
                found[name] = (_seconds(moment), reason)
        return found

    def _files(self) -> list[Path]:
        found = []
        for folder, _, names in os.walk(self._folder):
            found += [Path(folder, name) for name in names]
        return [path for path in found if path != self._folder / REASONS]

    def _used(self) -> int:
        if self._size is None:
            self._size = sum(max(path.lstat().st_size, LEAST_BYTES) for path in self._files())
        return self._size


def _line(moment: float, name: str, reason: str) -> str:
    day = time.strftime(FORMAT, time.gmtime(moment))
    return f"{day}\t{name}\t{shown(' '.join(reason.split()))}\n"


def _seconds(moment: time.struct_time) -> float:
    return float(calendar.timegm(moment))


def free_name(path: Path) -> Path:
    """Return ``path`` if nothing is there, else a name beside it with a number that is free."""
    number, target = 1, path
    while os.path.lexists(target):
        number += 1
        ending = os.fsencode(f"-{number}{path.suffix}")
        stem = os.fsencode(path.stem)[: LONGEST_NAME - len(ending)]
        target = path.with_name(os.fsdecode(stem + ending))
    return target
