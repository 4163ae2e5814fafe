"""The child program that parses what lies in the inbox: ``python -m … JOB.json``.

The only place where files from outside are opened, bounded in memory and time. What is good becomes
segments and is deleted; what is not waits or is put aside, each by itself (`entry_fate`). Repeating
an intake that a crash ended adds nothing twice. It has no network.
"""

import hashlib
import io
import os
import resource
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edge_agent.board.children import settle_in
from edge_agent.board.problems import told
from edge_agent.inbox.inbox_files import (
    Identity,
    identity_of,
    may_remove,
    open_for_writing,
    read_regular,
    remove_same,
)
from edge_agent.inbox.intake_job import OPENED, Entry, IntakeJob, IntakeResult
from edge_agent.inbox.labeled_folders import (
    is_clutter,
    is_sample_name,
    label_of,
    missing_library,
    read_sample,
)
from edge_agent.inbox.rejects import REASONS, REJECTED, Rejects
from edge_agent.inbox.sample_inbox import UNFINISHED, UNRENAMED, is_taken
from edge_agent.inbox.taken_folders import put_back
from edge_agent.inbox.takings import TakenFile, TakenPart, Taking, begin, complete, finish_all
from edge_agent.samples.entry_fate import (
    DAY_S,
    Fate,
    Group,
    NotHereError,
    Wait,
    fate_of,
    unchanged_in_folder,
)
from edge_agent.samples.fitting import Array, fitted
from edge_agent.samples.sample_files import Given, read_npz
from edge_agent.samples.segment_writer import (
    Part,
    Shelves,
    chosen,
    parts_of,
    source_of,
    write_parts,
)
from models.errors import EdgefoldError
from models.host.durable import sync_directory
from models.host.sentences import brief
from models.task.spec import decode_spec

__all__ = ["main", "take_in"]

CPU_SECONDS = 120
ADDRESS_SPACE = 2 << 30
FILES_AT_A_TIME = 1000  # of one folder
BYTES_AT_A_TIME = 32 << 20  # of their samples
BUSY_S = 30.0  # of the processor; then the next child goes on,
WHILE_S = 100.0  # or so long in all
ENDED = "reading it was ended: it takes too much memory or time"


def main(arguments: list[str] | None = None) -> int:
    """Take in what the job names; write what came of it beside the job."""
    (job_file,) = arguments or sys.argv[1:]
    settle_in()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    path = Path(job_file)
    try:
        job = msgspec.json.decode(path.read_bytes(), type=IntakeJob)
        with open(path.parent / OPENED, "wb", buffering=0) as opened:

            def note(file: bytes) -> None:
                opened.seek(0)
                opened.truncate()
                opened.write(file)

            result = take_in(job, note)
            note(b"")
        (path.parent / "result.json").write_bytes(msgspec.json.encode(result))
    except (OSError, EdgefoldError) as error:
        (path.parent / OPENED).unlink(missing_ok=True)  # it was not the file's fault
        print(told(error), file=sys.stderr)
        return 1
    return 0


def take_in(job: IntakeJob, note: Callable[[bytes], object] = len) -> IntakeResult:
    """Carry out ``job``; each entry is taken, left to wait or put aside, and costs only itself.

    ``note`` hears of each file before it is parsed: should that end us, one knows of what.

    Raises:
        OSError, PayloadError: the store or the spec cannot be read.
    """
    return _Intake(job, note).run()


class _NoRoomError(Exception):
    """Nothing more can be stored."""


class _Found(NamedTuple):
    """A good file of a folder."""

    name: str
    identity: Identity
    x: Array


class _Intake:
    """One run."""

    def __init__(self, job: IntakeJob, note: Callable[[bytes], object]) -> None:
        self._job = job
        self._note = note
        self._inbox = Path(job.inbox)
        self._workspace = Path(job.workspace)
        self._spec = decode_spec(Path(job.spec).read_bytes())
        self._rejects = Rejects(
            self._inbox,
            max_bytes=job.keep_rejected_bytes,
            keep_s=job.keep_rejected_s,
            wall=job.wall,
        )
        self._skip = frozenset(job.skip)
        self._stored: set[tuple[bytes, Identity]] = set()
        self._being_written: frozenset[tuple[int, int]] | None = None
        self._busy_until = time.process_time() + BUSY_S
        self._open_until = time.monotonic() + WHILE_S
        self._shelves = Shelves()
        self._has_removed = False
        self._added = self._dropped = 0
        self._rejected: list[str] = []
        self._waiting: dict[bytes, dict[Wait, Group]] = {}
        self._more: list[tuple[bytes, bytes]] = []
        self._foreign: tuple[Group, ...] = ()
        self._examined = 0
        self._missing: dict[str, NotHereError | None] = {}  # libraries, by the end of a name

    def run(self) -> IntakeResult:
        job, no_room, expired = self._job, "", 0
        try:
            self._stored = finish_all(
                self._workspace, self._inbox, Path(job.train), Path(job.holdout)
            )
            for entry in job.entries:
                self._take(entry)
                self._examined += 1
            self._note(b"")
            expired = self._expire()
        except _NoRoomError as error:
            no_room = str(error)
        if self._has_removed:  # till then a power cut brings files back, whose samples are known
            sync_directory(self._inbox)
        return IntakeResult(
            added=self._added,
            rejected=tuple(self._rejected),
            waiting=tuple((e, tuple(groups.values())) for e, groups in self._waiting.items()),
            examined=self._examined,
            more=tuple(self._more),
            no_room=no_room,
            dropped=self._dropped,
            expired=expired,
            foreign=self._foreign,
        )

    def _expire(self) -> int:
        """Delete what was put aside for long enough; return how many files that were."""
        try:
            expired, foreign = self._rejects.expire()
        except OSError as error:  # nothing is taken the less for it
            reason = f"what is to be deleted there is not: {told(error)}"
            self._foreign = (Group(Wait.REFUSED, 1, f"{REJECTED}/{REASONS}", reason),)
            return 0
        self._say_class_of_that_name(foreign)
        return expired

    def _say_class_of_that_name(self, foreign: list[str]) -> None:
        """Say what somebody put among the rejected, where that is also the name of a class."""
        if foreign and REJECTED in self._spec.class_names:
            reason = (
                f"inbox/{REJECTED} is for what cannot be taken, and is not looked into: give the "
                f"class a folder named by its number, {self._spec.class_names.index(REJECTED)}"
            )
            first = f"{REJECTED}/{min(foreign)}"
            self._foreign = (Group(Wait.UNKNOWN, len(foreign), first, reason),)

    def _take(self, entry: Entry) -> None:
        path = self._inbox / os.fsdecode(entry.name)
        with self._deciding(entry.name, entry.name, entry.unchanged_s):
            named = noted(entry.name, status := os.lstat(path))
            if named in self._skip:
                raise NotHereError(Wait.ENDED, ENDED)
            self._note(named)
            if is_taken(path.name):
                put_back(path, self._spec, self._job)
            elif stat.S_ISDIR(status.st_mode):
                self._take_folder(entry, path)
            elif self._is_late():
                self._more.append((entry.name, b""))
            else:
                self._take_file(entry, path)

    def _is_late(self) -> bool:
        return time.process_time() > self._busy_until or time.monotonic() > self._open_until

    @contextmanager
    def _deciding(self, entry: bytes, place: bytes, unchanged_s: float) -> Iterator[None]:
        """Whatever is wrong with the file at ``place`` costs only that file."""
        try:
            yield
        except _NoRoomError:
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
                self._rejects.put(os.fsdecode(place), fate.reason)
            except (NotHereError, OSError) as refused:
                fate = fate_of(refused, unchanged_s=unchanged_s)
            else:
                self._rejected.append(f"{name}: {fate.reason}")
        if fate.do == "wait":
            if fate.wait is Wait.NO_ROOM:
                raise _NoRoomError(f"{name}: {fate.reason}")
            self._wait(entry, fate.wait, name, fate.reason)

    def _wait(self, entry: bytes, wait: Wait, example: str, reason: str, count: int = 1) -> None:
        groups = self._waiting.setdefault(entry, {})
        if wait in groups:
            first = groups[wait]
            groups[wait] = Group(wait, first.count + count, first.example, first.reason)
        else:
            groups[wait] = Group(wait, count, example, reason)

    def _is_being_written(self, place: bytes) -> bool:
        if self._being_written is None:
            self._being_written = open_for_writing()
        try:
            status = os.lstat(self._inbox / os.fsdecode(place))
        except OSError:
            return False
        return (status.st_dev, status.st_ino) in self._being_written

    def _opened(self, place: bytes, path: Path, max_bytes: int) -> tuple[bytes, Identity]:
        """Read a file that we may remove, and that has not ended a parser before."""
        status = os.lstat(path)
        named = noted(place, status)
        if named in self._skip:
            raise NotHereError(Wait.ENDED, ENDED)
        if (place, identity_of(status)) in self._stored:
            raise NotHereError(Wait.REFUSED, "it was taken, and cannot be removed: remove it")
        if stat.S_ISREG(status.st_mode):
            self._note(named)
        data, identity = read_regular(path, max_bytes=max_bytes)
        if not may_remove(path):
            raise NotHereError(
                Wait.REFUSED, "the agent may not remove it: give it write permission to the folder"
            )
        return data, identity

    # -- a file of samples

    def _take_file(self, entry: Entry, path: Path) -> None:
        job = self._job
        if path.suffix.lower() != ".npz":
            raise NotHereError(Wait.UNKNOWN, _unknown(path.name))
        data, identity = self._opened(entry.name, path, job.max_bytes)
        given = read_npz(data, self._spec, max_bytes=job.max_bytes)
        # By what it holds: another file may have the same name, size and time.
        digest = hashlib.sha256(data).hexdigest()
        source = source_of(path.name, identity.size, identity.mtime_ns, digest)
        self._note(b"")
        self._added += self._store(given.x, given.y, given.test, source)
        if given.bad.any():
            self._put_rows_aside(path.name, given)
        remove_same(path, identity)  # what has taken its place meanwhile is another one
        self._has_removed = True

    def _put_rows_aside(self, name: str, given: Given) -> None:
        """Keep the rows that are no samples among the rejected, in a file of the same name."""
        rows = np.flatnonzero(given.bad)
        reason = (
            f"{len(rows)} of {len(given.bad)} rows have values that are not finite, first row "
            f"{rows[0]}; the others were taken"
        )
        file = io.BytesIO()
        np.savez(file, x=given.bad_x, y=given.bad_y, row=rows)
        try:
            self._rejects.keep(name, file.getvalue(), reason)
        except NotHereError:
            reason += f", and inbox/{REJECTED} is full"
        self._rejected.append(f"{brief(name)}: {reason}")

    def _store(self, x: Array, y: Array, test: Array | None, source: str) -> int:
        """Write samples as segments; with the same ``source`` again only what is missing."""
        job = self._job
        if test is None:
            test = chosen(len(x), job.holdout_share, source)
        parts: list[Part] = []
        for folder, rows, limit in (
            (job.holdout, np.flatnonzero(test), job.max_holdout),
            (job.train, np.flatnonzero(~test), job.max_count),
        ):
            surplus = max(0, len(rows) - limit)
            self._dropped += surplus
            parts += parts_of(x, rows[surplus:], folder)
        return write_parts(x, y, parts, source, self._shelves)

    # -- a folder of one class

    def _take_folder(self, entry: Entry, path: Path) -> None:
        """Take the good files of a folder, as many as fit; decide about each of the others."""
        names = sorted(os.listdir(path), key=os.fsencode)
        names = [name for name in names if not is_clutter(name)]
        names = self._finished(entry.name, path, names)
        try:
            label = label_of(path.name, self._spec)
        except NotHereError as error:
            example = brief(f"{path.name}/{names[0]}") if names else ""
            if names:
                self._wait(entry.name, error.wait, example, told(error), len(names))
            return
        found: list[_Found] = []
        size = 0
        after = entry.after
        for name in names:
            if os.fsencode(name) <= entry.after:
                continue
            is_enough = len(found) >= FILES_AT_A_TIME or size > BYTES_AT_A_TIME
            if is_enough or size > self._job.max_bytes or self._is_late():
                self._more.append((entry.name, after))
                break
            after = os.fsencode(name)
            if (one := self._read_one(entry, path, name, label)) is not None:
                found.append(one)
                size += one.x.nbytes
        self._note(b"")
        if found:
            self._store_files(entry.name, found, label)

    def _finished(self, entry: bytes, path: Path, names: list[str]) -> list[str]:
        """Return ``names`` without those that say themselves that they are not whole."""
        finished = []
        for name in names:
            if not name.endswith(UNFINISHED):
                finished.append(name)
            elif self._age_s(path / name) > DAY_S:
                self._wait(entry, Wait.RENAME, brief(f"{path.name}/{name}"), UNRENAMED)
        return finished

    def _age_s(self, path: Path) -> float:
        """Return how long the file has been as it is, by the wall clock."""
        try:
            status = os.lstat(path)
        except OSError:
            return 0.0
        return self._job.wall - max(status.st_mtime, status.st_ctime)

    def _read_one(self, entry: Entry, path: Path, name: str, label: int) -> _Found | None:
        place = entry.name + b"/" + os.fsencode(name)
        unchanged_s = unchanged_in_folder(
            self._age_s(path / name),
            folder_unchanged_s=entry.unchanged_s,
            folder_known_s=entry.known_s,
        )
        with self._deciding(entry.name, place, unchanged_s):
            if not is_sample_name(name):
                raise NotHereError(Wait.UNKNOWN, "not a sample: .npy, .png or .jpg are taken")
            self._check_library(name)
            data, identity = self._opened(place, path / name, self._job.max_bytes)
            sample = read_sample(name, data, self._spec)
            x, _ = fitted(sample[np.newaxis], np.array([label]), self._spec)
            return _Found(name, identity, x)
        return None

    def _check_library(self, name: str) -> None:
        """Raise what is missing here to read such a file; looked for once, not for each."""
        kind = os.path.splitext(name)[1].lower()
        if kind not in self._missing:
            self._missing[kind] = missing_library(name)
        if (error := self._missing[kind]) is not None:
            raise error

    def _store_files(self, entry: bytes, found: list[_Found], label: int) -> None:
        """Write the samples of some files, and remove the files; a crash between is no matter."""
        job = self._job
        source = source_of(entry, job.wall, *((one.name, one.identity) for one in found))
        x = np.concatenate([one.x for one in found])
        y = np.full(len(x), label, self._spec.y.dtype)
        test = chosen(len(x), job.holdout_share, source)
        parts = [
            part
            for folder, rows in (
                (job.holdout, np.flatnonzero(test)),
                (job.train, np.flatnonzero(~test)),
            )
            for part in parts_of(x, rows, folder)
        ]
        taken = tuple(
            TakenPart(
                part.folder == job.holdout,
                part.number,
                tuple(
                    TakenFile(os.fsencode(found[row].name), *found[row].identity)
                    for row in part.rows
                ),
            )
            for part in parts
        )
        taking = Taking(source, entry, taken)
        begin(self._workspace, taking)
        self._added += write_parts(x, y, parts, source, self._shelves)
        complete(self._workspace, self._inbox, taking, taken)


def noted(place: bytes, status: os.stat_result) -> bytes:
    """Return how `OPENED` names a file: where it is, and which one."""
    return b"%s\0%d\0%d" % (place, status.st_size, status.st_mtime_ns)


def _unknown(name: str) -> str:
    if is_sample_name(name):
        return "one sample goes into a folder named after its class: LABEL/" + brief(name)
    return "neither an .npz file with x and y, nor a folder LABEL/ of samples"


if __name__ == "__main__":
    raise SystemExit(main())
