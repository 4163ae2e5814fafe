"""Takes the samples of a folder that is named after a class: one file, one sample."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_agent.board.problems import sentence_of
from edge_agent.inbox.examination import Examination
from edge_agent.inbox.inbox_files import Identity
from edge_agent.inbox.inbox_folder import UNFINISHED, UNRENAMED
from edge_agent.inbox.intake_job import Entry
from edge_agent.inbox.labeled_folders import (
    is_clutter,
    is_sample_name,
    label_of,
    missing_library,
    read_sample,
)
from edge_agent.inbox.takings import TakenFile, TakenPart, Taking, begin, complete
from edge_agent.samples.entry_fate import DAY_S, NotHereError, Wait, unchanged_in_folder
from edge_agent.samples.fitting import Array, fitted
from edge_agent.samples.segment_writer import Shelves, chosen, parts_of, source_of, write_parts
from models.host.sentences import brief

__all__ = ["ClassFolders"]

FILES_AT_A_TIME = 1000  # of one folder
BYTES_AT_A_TIME = 32 << 20  # of their samples


class _Found(NamedTuple):
    """A good file of a folder."""

    name: str
    identity: Identity
    x: Array


class ClassFolders:
    """Takes folders for one run of the intake."""

    def __init__(self, look: Examination, shelves: Shelves) -> None:
        self._look = look
        self._shelves = shelves
        self._missing: dict[str, NotHereError | None] = {}  # libraries, by the end of a name

    def take(self, entry: Entry, path: Path) -> None:
        """Take the good files of a folder, as many as fit; decide about each of the others."""
        names = sorted(os.listdir(path), key=os.fsencode)
        names = [name for name in names if not is_clutter(name)]
        names = self._finished(entry.name, path, names)
        try:
            label = label_of(path.name, self._look.spec)
        except NotHereError as error:
            example = brief(f"{path.name}/{names[0]}") if names else ""
            if names:
                self._look.findings.wait(
                    entry.name, error.wait, example, sentence_of(error), len(names)
                )
            return
        found: list[_Found] = []
        size = 0
        after = entry.after
        for name in names:
            if os.fsencode(name) <= entry.after:
                continue
            is_enough = len(found) >= FILES_AT_A_TIME or size > BYTES_AT_A_TIME
            if is_enough or size > self._look.job.max_bytes or self._look.is_late():
                self._look.findings.more.append((entry.name, after))
                break
            after = os.fsencode(name)
            if (one := self._read_one(entry, path, name, label)) is not None:
                found.append(one)
                size += one.x.nbytes
        self._look.note(b"")
        if found:
            self._store_files(entry.name, found, label)

    def _finished(self, entry: bytes, path: Path, names: list[str]) -> list[str]:
        """Return ``names`` without those that say themselves that they are not whole."""
        finished = []
        for name in names:
            if not name.endswith(UNFINISHED):
                finished.append(name)
            elif self._look.age_s(path / name) > DAY_S:
                self._look.findings.wait(
                    entry, Wait.RENAME, brief(f"{path.name}/{name}"), UNRENAMED
                )
        return finished

    def _read_one(self, entry: Entry, path: Path, name: str, label: int) -> _Found | None:
        place = entry.name + b"/" + os.fsencode(name)
        unchanged_s = unchanged_in_folder(
            self._look.age_s(path / name),
            folder_unchanged_s=entry.unchanged_s,
            folder_known_s=entry.known_s,
        )
        with self._look.deciding(entry.name, place, unchanged_s):
            if not is_sample_name(name):
                raise NotHereError(Wait.UNKNOWN, "not a sample: .npy, .png or .jpg are taken")
            self._check_library(name)
            data, identity = self._look.opened(place, path / name, self._look.job.max_bytes)
            sample = read_sample(name, data, self._look.spec)
            x, _ = fitted(sample[np.newaxis], np.array([label]), self._look.spec)
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
        job = self._look.job
        source = source_of(entry, job.wall, *((one.name, one.identity) for one in found))
        x = np.concatenate([one.x for one in found])
        y = np.full(len(x), label, self._look.spec.y.dtype)
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
        begin(Path(job.workspace), taking)
        self._look.findings.added += write_parts(x, y, parts, source, self._shelves)
        complete(Path(job.workspace), self._look.inbox, taking, taken)
