"""Watches the inbox and has what lies there parsed by a child; survives whatever that meets."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_agent.children import Child, Launch, last_line
from edge_agent.problems import Problems
from edge_agent.samples import Samples

__all__ = ["Inbox", "IntakeJob", "IntakeResult", "is_taken", "reject"]

log = logging.getLogger("edge_agent")

LOOK_EVERY_S = 2.0
RETRY_S = 30.0  # after an intake that a full disk ended
LEFT_S = 3600.0  # an entry that could not be read or moved is tried again after that
SETTLED_S = 1.0  # a file that is still being written is left alone
AT_A_TIME = 64  # entries per child
KEPT_REJECTS = 20  # of the rejected files: so many of the newest, and not more bytes than
KEPT_REJECT_BYTES = 16_000_000
CHILD_S = 300.0  # then it is ended
POLL_S = 0.2
UNFINISHED = (".part", ".tmp", ".draft", ".swp")
_TAKEN = re.compile(r"\.taken-[0-9a-f]{16}")


class IntakeJob(msgspec.Struct, frozen=True):
    """What the child shall take in."""

    entries: tuple[str, ...]
    inbox: str
    spec: str
    train: str
    holdout: str
    holdout_share: float
    max_count: int
    max_holdout: int
    max_bytes: int


class IntakeResult(msgspec.Struct, frozen=True):
    """What came of it."""

    added: int
    rejected: tuple[str, ...]
    left: tuple[tuple[str, str], ...] = ()  # names that could not be read or moved, and why


class Inbox:
    """Feeds `Samples` from a folder that anybody may write to."""

    def __init__(
        self,
        *,
        inbox: Path,
        samples: Samples,
        workspace: Path,
        spec: Callable[[], str | None],
        launch: Launch,
        problems: Problems,
        wall_clock: Callable[[], float],
        limits: IntakeJob,
    ) -> None:
        self._inbox = inbox
        self._samples = samples
        self._workspace = workspace
        self._spec = spec
        self._launch = launch
        self._problems = problems
        self._wall_clock = wall_clock
        self._limits = limits
        self._child: Child | None = None
        self._given: list[Path] = []
        self._left: dict[str, float] = {}  # names in the inbox -> when to try again
        self._one_by_one = False
        self._deadline = 0.0
        self._look_at = 0.0
        self.rejected = 0
        self._prepare()

    def _prepare(self) -> None:
        with self._problems.contained("inbox"):
            self._inbox.mkdir(parents=True, exist_ok=True)
        self._workspace.mkdir(parents=True, exist_ok=True)

    def tick(self, now: float) -> float:
        """Collect a child that ended, start one when there is something; return when to look."""
        if self._child is not None:
            code = self._child.poll()
            if code is None and now < self._deadline:
                return now + POLL_S
            if code is None:
                self._child.kill()
            self._child = None
            # There may be more; but what the disk does not take now needs time.
            self._look_at = now if self._collect(code, now) else now + RETRY_S
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            with self._problems.contained("inbox"):
                if self._start(now):
                    return now + POLL_S
        return self._look_at

    def stop(self) -> None:
        """End the child; what it had not finished is taken in again later."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _start(self, now: float) -> bool:
        spec = self._spec()
        if spec is None:
            return False  # nobody knows yet what a sample looks like: the files wait
        entries = self._ready(now)[: 1 if self._one_by_one else AT_A_TIME]
        if not entries:
            return False
        job = msgspec.structs.replace(self._limits, entries=tuple(map(str, entries)), spec=spec)
        (self._workspace / "result.json").unlink(missing_ok=True)
        (self._workspace / "job.json").write_bytes(msgspec.json.encode(job))
        self._given = entries
        self._child = self._launch(
            "edge_agent.intake",
            [str(self._workspace / "job.json")],
            log=self._workspace / "log.txt",
        )
        self._deadline = now + CHILD_S
        return True

    def _ready(self, now: float) -> list[Path]:
        """Return what lies in the inbox and is not being written, oldest first."""
        settled = self._wall_clock() - SETTLED_S
        self._left = {name: until for name, until in self._left.items() if until > now}
        found = []
        with os.scandir(self._inbox) as entries:
            for entry in entries:
                if entry.name == "rejected" or entry.name.endswith(UNFINISHED):
                    continue
                if entry.name in self._left:
                    continue
                if entry.name.startswith(".") and not _TAKEN.fullmatch(entry.name):
                    continue
                changed = entry.stat(follow_symlinks=False).st_mtime
                # A time in the future is of a clock that was wrong: nobody waits for it.
                if changed <= settled or changed > settled + 3600:
                    if entry.is_dir(follow_symlinks=False) and _is_empty(entry.path):
                        continue
                    found.append((changed, Path(entry.path)))
        return [path for _, path in sorted(found)]

    def _collect(self, code: int | None, now: float) -> bool:
        """Take note of what a child left; return whether the next may start at once."""
        with self._problems.contained("samples store"):
            self._samples.refresh()
        if code == 0:
            try:
                data = (self._workspace / "result.json").read_bytes()
                result = msgspec.json.decode(data, type=IntakeResult)
            except (OSError, msgspec.MsgspecError) as error:
                self._problems.say("inbox", f"the intake left no result: {error}")
                return False
            self._one_by_one = False
            self._left |= dict.fromkeys((name for name, _ in result.left), now + LEFT_S)
            self._say(result)
        elif code == 1:
            self._problems.say("inbox", last_line(self._workspace / "log.txt"))
            return False
        elif len(self._given) > 1:
            self._one_by_one = True  # one of them ended the parser: find out which
        elif self._given:
            reason = "reading it was ended: it takes too much memory or time"
            with self._problems.contained("inbox"):
                reject(self._inbox, self._given[0], reason)
            if os.path.lexists(self._given[0]):
                self._left[self._given[0].name] = now + LEFT_S
            self.rejected += 1
            self._problems.say("samples", f"{self._given[0].name}: {reason}")
        return True

    def _say(self, result: IntakeResult) -> None:
        if result.added:
            log.info("samples added count=%d", result.added)
        self.rejected += len(result.rejected)
        if result.rejected:
            more = f" (and {len(result.rejected) - 1} more)" if len(result.rejected) > 1 else ""
            self._problems.say("samples", f"rejected: {result.rejected[0]}{more}")
        elif result.left:
            name, reason = result.left[0]
            self._problems.say("samples", f"left in the inbox: {name}: {reason}")
        elif result.added:
            self._problems.clear("samples")


def _is_empty(folder: str) -> bool:
    """Whether nothing lies in ``folder``, or nobody may look: lost+found is such a one."""
    try:
        with os.scandir(folder) as entries:
            return not any(entries)
    except OSError:
        return True


def is_taken(path: Path) -> bool:
    """Whether ``path`` is a folder that an intake has begun with."""
    return _TAKEN.fullmatch(path.name) is not None


def reject(inbox: Path, path: Path, reason: str) -> None:
    """Move ``path`` into ``rejected/`` with its reason beside it; old rejects make room."""
    folder = inbox / "rejected"
    folder.mkdir(exist_ok=True)
    target = folder / path.name.lstrip(".")
    for stale in (target, folder / f"{target.name}.reason.txt"):
        _delete(stale)
    path.rename(target)
    (folder / f"{target.name}.reason.txt").write_text(reason + "\n", "utf-8")
    kept = size = 0
    newest = sorted(folder.iterdir(), key=lambda p: p.lstat().st_mtime, reverse=True)
    for old in newest:
        if old.name.endswith(".reason.txt"):
            continue
        kept, size = kept + 1, size + _size(old)
        if kept > KEPT_REJECTS or (size > KEPT_REJECT_BYTES and kept > 1):
            _delete(old)
            _delete(folder / f"{old.name}.reason.txt")


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(inner) for inner in path.iterdir())
    return path.lstat().st_size


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
