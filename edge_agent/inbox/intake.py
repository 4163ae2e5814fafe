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
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edge_agent.board.children import settle_in
from edge_agent.board.problems import sentence_of
from edge_agent.inbox.class_folders import ClassFolders
from edge_agent.inbox.examination import Examination, NoRoomError
from edge_agent.inbox.inbox_files import remove_same
from edge_agent.inbox.inbox_folder import is_taken
from edge_agent.inbox.intake_job import OPENED, Entry, IntakeJob, IntakeResult
from edge_agent.inbox.labeled_folders import is_sample_name
from edge_agent.inbox.rejects import REASONS, REJECTED
from edge_agent.inbox.taken_folders import put_back
from edge_agent.inbox.takings import finish_all
from edge_agent.samples.entry_fate import Group, NotHereError, Wait
from edge_agent.samples.fitting import Array
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

__all__ = ["main", "take_in"]

CPU_SECONDS = 120
ADDRESS_SPACE = 2 << 30


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
        print(sentence_of(error), file=sys.stderr)
        return 1
    return 0


def take_in(job: IntakeJob, note: Callable[[bytes], object] = len) -> IntakeResult:
    """Carry out ``job``; each entry is taken, left to wait or put aside, and costs only itself.

    ``note`` hears of each file before it is parsed: should that end us, one knows of what.

    Raises:
        OSError, PayloadError: the store or the spec cannot be read.
    """
    return _Intake(job, note).run()


class _Intake:
    """One run."""

    def __init__(self, job: IntakeJob, note: Callable[[bytes], object]) -> None:
        self._job = job
        self._look = Examination(job, note)
        self._shelves = Shelves()
        self._folders = ClassFolders(self._look, self._shelves)
        self._has_removed = False

    def run(self) -> IntakeResult:
        job, look, no_room, expired = self._job, self._look, "", 0
        try:
            look.stored = finish_all(
                Path(job.workspace), look.inbox, Path(job.train), Path(job.holdout)
            )
            for entry in job.entries:
                self._take(entry)
                look.findings.examined += 1
            look.note(b"")
            expired = self._expire()
        except NoRoomError as error:
            no_room = str(error)
        if self._has_removed:  # till then a power cut brings files back, whose samples are known
            sync_directory(look.inbox)
        return look.findings.result(no_room=no_room, expired=expired)

    def _expire(self) -> int:
        """Delete what was put aside for long enough; return how many files that were."""
        try:
            expired, foreign = self._look.rejects.expire()
        except OSError as error:  # nothing is taken the less for it
            reason = f"what is to be deleted there is not: {sentence_of(error)}"
            self._look.findings.foreign = (Group(Wait.REFUSED, 1, f"{REJECTED}/{REASONS}", reason),)
            return 0
        self._say_class_of_that_name(foreign)
        return expired

    def _say_class_of_that_name(self, foreign: list[str]) -> None:
        """Say what somebody put among the rejected, where that is also the name of a class."""
        if foreign and REJECTED in self._look.spec.class_names:
            reason = (
                f"inbox/{REJECTED} is for what cannot be taken, and is not looked into: give the "
                f"class a folder named by its number, {self._look.spec.class_names.index(REJECTED)}"
            )
            first = f"{REJECTED}/{min(foreign)}"
            self._look.findings.foreign = (Group(Wait.UNKNOWN, len(foreign), first, reason),)

    def _take(self, entry: Entry) -> None:
        path = self._look.inbox / os.fsdecode(entry.name)
        with self._look.deciding(entry.name, entry.name, entry.unchanged_s):
            status = os.lstat(path)
            self._look.begin(entry.name, status)
            if is_taken(path.name):
                put_back(path, self._look.spec, self._job)
            elif stat.S_ISDIR(status.st_mode):
                self._folders.take(entry, path)
            elif self._look.is_late():
                self._look.findings.more.append((entry.name, b""))
            else:
                self._take_file(entry, path)

    # -- a file of samples

    def _take_file(self, entry: Entry, path: Path) -> None:
        job = self._job
        if path.suffix.lower() != ".npz":
            raise NotHereError(Wait.UNKNOWN, _unknown(path.name))
        data, identity = self._look.opened(entry.name, path, job.max_bytes)
        given = read_npz(data, self._look.spec, max_bytes=job.max_bytes)
        # By what it holds: another file may have the same name, size and time.
        digest = hashlib.sha256(data).hexdigest()
        source = source_of(path.name, identity.size, identity.mtime_ns, digest)
        self._look.note(b"")
        self._look.findings.added += self._store(given.x, given.y, given.test, source)
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
            self._look.rejects.keep(name, file.getvalue(), reason)
        except NotHereError:
            reason += f", and inbox/{REJECTED} is full"
        self._look.findings.rejected.append(f"{brief(name)}: {reason}")

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
            self._look.findings.dropped += surplus
            parts += parts_of(x, rows[surplus:], folder)
        return write_parts(x, y, parts, source, self._shelves)


def _unknown(name: str) -> str:
    if is_sample_name(name):
        return "one sample goes into a folder named after its class: LABEL/" + brief(name)
    return "neither an .npz file with x and y, nor a folder LABEL/ of samples"


if __name__ == "__main__":
    raise SystemExit(main())
