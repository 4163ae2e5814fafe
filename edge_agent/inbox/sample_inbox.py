"""Watches the inbox and has what lies there parsed by a child; survives whatever that meets."""

import contextlib
import importlib.util
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_agent.board.child_job import ChildJob, Ended
from edge_agent.board.children import Launch
from edge_agent.board.pace import Pace
from edge_agent.board.problems import Problems, brief
from edge_agent.inbox.intake_job import INTAKE, OPENED, Entry, IntakeJob, IntakeResult
from edge_agent.inbox.waiting import SETTLED_S, Waitlist, sentence
from edge_agent.samples.entry_fate import DAY_S, HOUR_S, Group, Wait
from edge_agent.samples.sample_store import Samples
from models.host.backoff import doubled

__all__ = ["LIBRARY", "UNFINISHED", "UNRENAMED", "Inbox", "is_taken"]

log = logging.getLogger("edge_agent")

LONGEST_LOOK_S = 30.0
LOOKED_AT_A_SECOND = 100  # files: a crowded inbox is looked at less often
RETRY_S = 30.0  # after an intake that a full disk ended, or that could not start: at first,
LONGEST_RETRY_S = 600.0  # and at last
FREED_BYTES = 1_000_000  # so much more room, and a full disk is tried at once
AT_A_TIME = 512  # entries per child, which leaves what it has no time for to the next one
CHILD_S = 300.0  # then it is ended
SAID_EVERY_S = 60.0  # how many wait: that changes with every file
RELEASE_SAID_S = 30.0  # without a release, before one says that samples wait for it
EMPTY_S = 600.0  # a folder that we have emptied goes when nothing came for so long
LIBRARY = "PIL"
UNFINISHED = (".part", ".tmp", ".draft", ".swp")
UNRENAMED = (
    f"a name that ends in {', '.join(UNFINISHED)} is left alone, and was for a day: "
    "rename it when it is whole, or delete it"
)
NOT_ENTRIES = {"rejected", "lost+found"}
_TAKEN = re.compile(r"\.taken-[0-9a-f]{16}")


class _Found(NamedTuple):
    """An entry of the inbox, as the last look found it."""

    name: str
    changed: float  # by the wall clock, of whoever wrote it
    stamp: int  # of what lies there: other bytes, another stamp
    is_folder: bool


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
        pace: Pace,
    ) -> None:
        self._inbox = inbox
        self._samples = samples
        self._workspace = workspace
        self._spec = spec
        self._problems = problems
        self._wall_clock = wall_clock
        self._limits = limits
        self._pace = pace
        self._child = ChildJob(launch, workspace, program=INTAKE)
        self._given: list[_Found] = []
        self._waiting = Waitlist()
        self._aside: list[Group] = []  # what waits and was never given to a child
        self._foreign: tuple[Group, ...] = ()  # what somebody put among the rejected,
        self._foreign_stamp = 0  # as that folder was then
        self._ended: dict[bytes, tuple[int, float]] = {}  # file -> parsers it ended, until when
        self._emptied: dict[str, float | None] = {}  # folders, and since when they are empty
        self._spec_then: str | None = None
        self._no_spec_since: float | None = None
        self._had_library = True
        self._failures = 0
        self._no_room = ""  # why nothing could be stored,
        self._free_then = 0  # and how much room there was
        self._said: tuple[frozenset[Wait], float] = (frozenset(), 0.0)
        self._look_at = 0.0
        self.rejected = 0
        self._prepare()

    def _prepare(self) -> None:
        with self._problems.contained("inbox"):
            self._inbox.mkdir(parents=True, exist_ok=True)
        self._workspace.mkdir(parents=True, exist_ok=True)

    def tick(self, now: float) -> float:
        """Collect a child that ended, start one when there is something; return when to look."""
        if self._child.is_running:
            ended = self._child.poll(now)
            if ended is None:
                return self._child.next_look(now, self._pace.child_s)
            self._look_at = now + self._collect(ended, now)
        if self._no_room and _free_bytes(self._samples.train) > self._free_then + FREED_BYTES:
            self._no_room, self._look_at = "", now  # somebody has made room
        if self._spec_then is None and self._no_spec_since is not None and self._spec() is not None:
            self._look_at = now  # what samples have waited for
        if now >= self._look_at:
            self._look_at = now + self._pace.inbox_s
            due: list[_Found] = []
            with self._problems.contained("inbox", whatever=True):
                due = self._look(now)
            if due:
                self._look_at = now + RETRY_S  # if it cannot start
                with self._problems.contained("intake start", whatever=True):
                    self._start(due, now)
                    return self._child.next_look(now, self._pace.child_s)
        return self._look_at

    def stop(self) -> None:
        """End the child; what it had not finished is taken in again later."""
        self._child.kill()

    def wake(self) -> None:
        """Look at the next tick: something was brought."""
        self._look_at = 0.0

    # -- looking

    def _look(self, now: float) -> list[_Found]:
        """Return what to look into now, oldest first; say what waits."""
        found, aside, looked_at = self._found(now)
        crowded_s = min(looked_at / LOOKED_AT_A_SECOND, LONGEST_LOOK_S)
        self._look_at = now + max(self._pace.inbox_s, crowded_s)
        self._waiting.keep_only({entry.name for entry in found})
        if self._foreign and self._stamp_of_rejected() != self._foreign_stamp:
            self._foreign = ()  # the next child says what is there now
        spec = self._spec()
        self._aside = aside + self._without_release(spec, found, now)
        if spec is None:
            self._say_waiting(now)
            return []  # nobody knows yet what a sample looks like: the files wait
        if spec != self._spec_then:
            self._spec_then = spec
            self._waiting.wake(Wait.SPEC, now)
        self._look_for_library(now)
        settled = self._wall_clock() - SETTLED_S
        due = [
            entry
            for entry in found
            if self._waiting.is_due(
                entry.name,
                entry.stamp,
                now,
                # A time in the future is of a clock that was wrong: nobody waits for it.
                is_settled=entry.changed <= settled or entry.changed > settled + 3600,
                is_folder=entry.is_folder,
            )
        ]
        self._say_waiting(now)
        due.sort(key=lambda entry: (self._waiting.is_known(entry.name), entry.changed))
        return due[:AT_A_TIME]

    def _found(self, now: float) -> tuple[list[_Found], list[Group], int]:
        """Return the entries, those of them whose names say they are not whole, and the work."""
        found, unfinished, looked_at = [], [], 0
        with os.scandir(self._inbox) as entries:
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
                    found.append(_Found(name, 0.0, 0, is_folder=False))
                    continue
                if name.endswith(UNFINISHED):
                    if self._wall_clock() - status.st_mtime > DAY_S:
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
                found.append(_Found(name, status.st_mtime, stamp, is_folder))
        aside = []
        if unfinished:
            first = brief(min(unfinished))
            aside.append(Group(Wait.RENAME, len(unfinished), first, UNRENAMED))
        return found, aside, looked_at

    def _stamp_of_rejected(self) -> int:
        try:
            return os.stat(self._inbox / "rejected").st_mtime_ns
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

    def _without_release(self, spec: str | None, found: list[_Found], now: float) -> list[Group]:
        if spec is not None or not found:
            self._no_spec_since = None
            return []
        if self._no_spec_since is None:
            self._no_spec_since = now
        if now - self._no_spec_since < RELEASE_SAID_S:
            return []
        reason = "no release has come yet that says what a sample is"
        first = brief(min(entry.name for entry in found))
        return [Group(Wait.RELEASE, len(found), first, reason)]

    def _look_for_library(self, now: float) -> None:
        """Wake what waits for the library when it has come."""
        if self._waiting.waits_for(Wait.LIBRARY):
            has_library = _is_installed(LIBRARY)
            if has_library and not self._had_library:
                self._waiting.wake(Wait.LIBRARY, now)
            self._had_library = has_library

    # -- the child

    def _start(self, due: Sequence[_Found], now: float) -> None:
        waiting = self._waiting
        self._ended = {file: end for file, end in self._ended.items() if now < end[1] + DAY_S}
        job = msgspec.structs.replace(
            self._limits,
            entries=tuple(
                Entry(
                    os.fsencode(entry.name),
                    waiting.unchanged_s(entry.name, now),
                    waiting.known_s(entry.name, now),
                    waiting.after(entry.name),
                )
                for entry in due
            ),
            spec=self._spec_then or "",
            wall=self._wall_clock(),
            skip=tuple(file for file, (_, until) in self._ended.items() if now < until),
        )
        for name in ("result.json", OPENED):
            (self._workspace / name).unlink(missing_ok=True)
        (self._workspace / "job.json").write_bytes(msgspec.json.encode(job))
        self._given = list(due)
        self._child.begin([str(self._workspace / "job.json")], now, CHILD_S)

    def _collect(self, ended: Ended, now: float) -> float:
        """Take note of what a child left; return how long to rest."""
        with self._problems.contained("samples store", whatever=True):
            before = self._samples.dropped
            self._samples.refresh()
            _say_dropped(self._samples.dropped - before)
        if ended.worked:
            try:
                data = (self._workspace / "result.json").read_bytes()
                result = msgspec.json.decode(data, type=IntakeResult)
            except (OSError, msgspec.MsgspecError) as error:
                return self._failed(f"the intake left no result: {error}")
            self._problems.clear("intake child")
            self._note(result, now)
            self._say(result, now)
            if result.no_room:
                self._failures += 1
                self._free_then = _free_bytes(self._samples.train)
                return doubled(RETRY_S, self._failures - 1, LONGEST_RETRY_S)
            self._failures = 0
            return 0.0
        try:
            opened = (self._workspace / OPENED).read_bytes()
        except OSError:
            opened = b""
        if opened:  # it ended of this file, which is not opened again soon; the others go on
            ends = self._ended.get(opened, (0, 0.0))[0]
            self._ended[opened] = (ends + 1, now + doubled(HOUR_S, ends, DAY_S))
            name = brief(os.fsdecode(opened.partition(b"\0")[0]))
            log.warning("intake ended by a file name=%s code=%s", name, ended.code)
            return 0.0
        said = ended.last_line if ended.code == 1 else ""
        return self._failed(
            said or f"reading the inbox was ended (code {ended.code}): too little memory?"
        )

    def _failed(self, reason: str) -> float:
        """Say that no child can work now; return how long to rest."""
        self._problems.say("intake child", reason)
        self._failures += 1
        return doubled(RETRY_S, self._failures - 1, LONGEST_RETRY_S)

    def _note(self, result: IntakeResult, now: float) -> None:
        """Take note of what waits, entry by entry."""
        groups, more = dict(result.waiting), dict(result.more)
        self._no_room = result.no_room
        self._foreign, self._foreign_stamp = result.foreign, self._stamp_of_rejected()
        for entry in self._given[: result.examined]:
            name = os.fsencode(entry.name)
            if name in more and not more[name]:
                continue  # its turn has not come
            self._waiting.note(
                entry.name,
                entry.stamp,
                now,
                groups.get(name, ()),
                is_folder=entry.is_folder,
                after=more.get(name, b""),
            )
            if entry.is_folder and not is_taken(entry.name):
                self._emptied.setdefault(entry.name, None)
        if any(g.wait is Wait.LIBRARY for found in groups.values() for g in found):
            self._had_library = _is_installed(LIBRARY)

    def _say(self, result: IntakeResult, now: float) -> None:
        if result.added:
            log.info("samples added count=%d", result.added)
        _say_dropped(result.dropped)
        if result.expired:
            log.info("rejected files deleted, their days are over count=%d", result.expired)
        self.rejected += len(result.rejected)
        if result.rejected:
            more = f" (and {len(result.rejected) - 1} more)" if len(result.rejected) > 1 else ""
            self._problems.say("samples", f"rejected: {result.rejected[0]}{more}")
        elif result.added:
            self._problems.clear("samples")
        self._say_waiting(now)

    def _say_waiting(self, now: float) -> None:
        """Say what waits: at once when something else is waited for, else at times."""
        groups = [*self._waiting.groups(now), *self._aside, *self._foreign]
        if self._no_room:
            name, _, reason = self._no_room.rpartition(": ")
            groups.append(Group(Wait.NO_ROOM, 1, name, f"{reason}: make room on the disk"))
        kinds = frozenset(group.wait for group in groups)
        kinds_then, said_at = self._said
        if kinds == kinds_then and now < said_at + SAID_EVERY_S:
            return
        self._said = (kinds, now)
        if groups:
            self._problems.say("waiting samples", sentence(groups))
        else:
            self._problems.clear("waiting samples")


def _say_dropped(count: int) -> None:
    if count:
        log.info(
            "samples dropped, the oldest beyond samples.max_count or their disk count=%d", count
        )


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


def _free_bytes(folder: Path) -> int:
    """Return the room that the disk says to have; a quota or a read-only disk does not show."""
    try:
        room = os.statvfs(folder)
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):
        return False


def is_taken(name: str) -> bool:
    """Whether ``name`` is that of a folder that an intake of edgefold 0.1 has begun with."""
    return _TAKEN.fullmatch(name) is not None
