"""Watches the inbox and has what lies there parsed by a child; survives whatever that meets."""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge_agent.board.child_job import ChildJob, Ended
from edge_agent.board.children import Launch
from edge_agent.board.pace import Pace
from edge_agent.board.problems import Problems
from edge_agent.inbox.inbox_folder import InboxFolder, Lying
from edge_agent.inbox.intake_job import INTAKE, JOB, OPENED, RESULT, Entry, IntakeJob, IntakeResult
from edge_agent.inbox.waiting import Announcement, Waitlist
from edge_agent.samples.entry_fate import DAY_S, HOUR_S, Wait
from edge_agent.samples.sample_store import Samples
from models.host.backoff import Backoff
from models.host.sentences import brief

__all__ = ["LIBRARY", "SampleInbox", "free_bytes"]

log = logging.getLogger("edge_agent")

LONGEST_LOOK_S = 30.0
LOOKED_AT_A_SECOND = 100  # files: a crowded inbox is looked at less often
RETRY_S = 30.0  # after an intake that a full disk ended, or that could not start: at first,
LONGEST_RETRY_S = 600.0  # and at last
FREED_BYTES = 1_000_000  # so much more room, and a full disk is tried at once
AT_A_TIME = 512  # entries per child, which leaves what it has no time for to the next one
CHILD_S = 300.0  # then it is ended
LIBRARY = "PIL"


class _Awaited:
    """What entries may wait for that comes from elsewhere: another release, a library."""

    def __init__(self, spec: Callable[[], str | None]) -> None:
        self._spec_now = spec
        self.spec: str | None = None  # as of the last look
        self.had_library = True

    def look(self, waiting: Waitlist, now: float) -> None:
        """Wake what waits for what has come."""
        spec = self._spec_now()
        if spec is not None and spec != self.spec:
            waiting.wake(Wait.SPEC, now)
        self.spec = spec
        if spec is not None and waiting.waits_for(Wait.LIBRARY):
            has_library = _is_installed(LIBRARY)
            if has_library and not self.had_library:
                waiting.wake(Wait.LIBRARY, now)
            self.had_library = has_library

    def has_first_release(self) -> bool:
        """Whether there is a release now, and was none."""
        return self.spec is None and self._spec_now() is not None


class SampleInbox:
    """Feeds `Samples` from a folder that anybody may write to."""

    def __init__(
        self,
        *,
        folder: InboxFolder,
        samples: Samples,
        spec: Callable[[], str | None],
        launch: Launch,
        problems: Problems,
        workspace: Path,
        new_job: Callable[..., IntakeJob],
        pace: Pace,
    ) -> None:
        self._folder = folder
        self._samples = samples
        self._problems = problems
        self._new_job = new_job  # takes what is different each time
        self._pace = pace
        self._child = ChildJob(launch, workspace, program=INTAKE)
        self._given: list[Lying] = []
        self._waiting = Waitlist()
        self._announcement = Announcement()
        self._awaited = _Awaited(spec)
        self._ended: dict[bytes, Backoff] = {}  # files that ended a parser
        self._backoff = Backoff(RETRY_S, LONGEST_RETRY_S)
        self._free_then = 0  # when there was no room
        self._look_at = 0.0
        self.rejected = 0
        with self._problems.contained("inbox"):
            folder.path.mkdir(parents=True, exist_ok=True)
        workspace.mkdir(parents=True, exist_ok=True)

    def tick(self, now: float) -> float:
        """Collect a child that ended, start one when there is something; return when to look."""
        if self._child.is_running:
            ended = self._child.poll(now)
            if ended is None:
                return self._child.next_look(now, self._pace.child_s)
            self._look_at = now + self._collect(ended, now)
        said = self._announcement
        if said.no_room and free_bytes(self._samples.train) > self._free_then + FREED_BYTES:
            said.no_room, self._look_at = "", now  # somebody has made room
        if said.lacks_release and self._awaited.has_first_release():
            self._look_at = now
        if now >= self._look_at:
            self._look_at = now + self._pace.inbox_s
            due: list[Lying] = []
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

    def _look(self, now: float) -> list[Lying]:
        """Return what to look into now, oldest first; say what waits."""
        said, waiting = self._announcement, self._waiting
        found, said.unfinished, looked_at = self._folder.look(now)
        crowded_s = min(looked_at / LOOKED_AT_A_SECOND, LONGEST_LOOK_S)
        self._look_at = now + max(self._pace.inbox_s, crowded_s)
        waiting.keep_only({entry.name for entry in found})
        if said.foreign and self._folder.has_other_rejected():
            said.foreign = ()  # the next child says what is there now
        self._awaited.look(waiting, now)
        if self._awaited.spec is None:
            said.without_release([brief(entry.name) for entry in found], now)
            self._say_waiting(now)
            return []  # nobody knows yet what a sample looks like: the files wait
        said.without_release((), now)
        due = [
            entry
            for entry in found
            if waiting.is_due(
                entry.name,
                entry.stamp,
                now,
                is_settled=self._folder.is_settled(entry),
                is_folder=entry.is_folder,
            )
        ]
        self._say_waiting(now)
        due.sort(key=lambda entry: (waiting.is_known(entry.name), entry.changed))
        return due[:AT_A_TIME]

    # -- the child

    def _start(self, due: Sequence[Lying], now: float) -> None:
        waiting, folder = self._waiting, Path(self._child.folder)
        self._ended = {file: end for file, end in self._ended.items() if now < end.at + DAY_S}
        job = self._new_job(
            entries=tuple(
                Entry(
                    os.fsencode(entry.name),
                    waiting.unchanged_s(entry.name, now),
                    waiting.known_s(entry.name, now),
                    waiting.after(entry.name),
                )
                for entry in due
            ),
            spec=self._awaited.spec or "",
            wall=self._folder.wall_clock(),
            skip=tuple(file for file, end in self._ended.items() if not end.due(now)),
        )
        for name in (RESULT, OPENED):
            (folder / name).unlink(missing_ok=True)
        (folder / JOB).write_bytes(msgspec.json.encode(job))
        self._given = list(due)
        self._child.begin([str(folder / JOB)], now, CHILD_S)

    def _collect(self, ended: Ended, now: float) -> float:
        """Take note of what a child left; return how long to rest."""
        with self._problems.contained("samples store", whatever=True):
            before = self._samples.dropped
            self._samples.refresh()
            _say_dropped(self._samples.dropped - before)
        if ended.worked:
            try:
                data = Path(self._child.folder, RESULT).read_bytes()
                result = msgspec.json.decode(data, type=IntakeResult)
            except (OSError, msgspec.MsgspecError) as error:
                return self._failed(f"the intake left no result: {error}", now)
            self._problems.clear("intake child")
            self._note(result, now)
            self._say(result, now)
            if result.no_room:
                self._free_then = free_bytes(self._samples.train)
                return self._backoff.failed(now)
            self._backoff.worked()
            return 0.0
        try:
            opened = Path(self._child.folder, OPENED).read_bytes()
        except OSError:
            opened = b""
        if opened:  # it ended of this file, which is not opened again soon; the others go on
            self._ended.setdefault(opened, Backoff(HOUR_S, DAY_S)).failed(now)
            name = brief(os.fsdecode(opened.partition(b"\0")[0]))
            log.warning("intake ended by a file name=%s code=%s", name, ended.code)
            return 0.0
        said = ended.last_line if ended.code == 1 else ""
        return self._failed(
            said or f"reading the inbox was ended (code {ended.code}): too little memory?", now
        )

    def _failed(self, reason: str, now: float) -> float:
        """Say that no child can work now; return how long to rest."""
        self._problems.say("intake child", reason)
        return self._backoff.failed(now)

    def _note(self, result: IntakeResult, now: float) -> None:
        """Take note of what waits, entry by entry."""
        groups, more = dict(result.waiting), dict(result.more)
        self._announcement.no_room = result.no_room
        self._announcement.foreign = result.foreign
        self._folder.looked_at_rejected()
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
            self._folder.emptied(entry)
        if any(g.wait is Wait.LIBRARY for found in groups.values() for g in found):
            self._awaited.had_library = _is_installed(LIBRARY)

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
        text = self._announcement.due(self._waiting, now)
        if text is not None:
            self._problems.say("waiting samples", text)


def _say_dropped(count: int) -> None:
    if count:
        log.info(
            "samples dropped, the oldest beyond samples.max_count or their disk count=%d", count
        )


def free_bytes(folder: Path) -> int:
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
