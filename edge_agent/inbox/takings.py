"""Which files a segment is made of, written down before it: so they are taken once, and not lost.

Files of samples stay where they are until their segment is on the disk for good. Then they are
removed. Whoever is killed in between leaves the list behind, and the next run reads there which
files are in the store already. A file that was changed meanwhile is another one, and stays.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edge_agent.inbox.inbox_files import Identity, remove_same
from edge_agent.samples.sample_store import segments
from models.host.durable import atomic_write, remove, sync_directory

__all__ = ["TakenFile", "TakenPart", "Taking", "begin", "complete", "finish_all"]

PREFIX, ENDING = "taking-", ".json"


class TakenFile(msgspec.Struct, frozen=True, array_like=True):
    """A file of one sample."""

    name: bytes
    inode: int
    size: int
    mtime_ns: int

    @property
    def identity(self) -> Identity:
        return Identity(self.inode, self.size, self.mtime_ns)


class TakenPart(msgspec.Struct, frozen=True, array_like=True):
    """A segment, and the files that it is made of."""

    is_holdout: bool
    number: int
    files: tuple[TakenFile, ...]


class Taking(msgspec.Struct, frozen=True):
    """What is made of some files of one folder."""

    source: str  # of the segments
    folder: bytes  # in the inbox
    parts: tuple[TakenPart, ...]


def begin(workspace: Path, taking: Taking) -> None:
    """Write down what is going to be taken, before the first segment is written."""
    atomic_write(_path(workspace, taking.source), msgspec.json.encode(taking))


def complete(workspace: Path, inbox: Path, taking: Taking, parts: Iterable[TakenPart]) -> None:
    """Remove the files of ``parts``, whose segments are on the disk, and then the list.

    Raises:
        OSError: some could not be removed: the list stays.
    """
    folder = inbox / os.fsdecode(taking.folder)
    for part in parts:
        for file in part.files:
            remove_same(f"{folder}/{os.fsdecode(file.name)}", file.identity)
    if folder.is_dir():
        sync_directory(folder)
    remove(_path(workspace, taking.source))


def finish_all(
    workspace: Path, inbox: Path, train: Path, holdout: Path
) -> set[tuple[bytes, Identity]]:
    """Go on where earlier runs ended; return the files that are in the store but still here.

    Those are given by their path in the inbox. Usually there are none.

    Raises:
        OSError: the disk is failing.
    """
    left: set[tuple[bytes, Identity]] = set()
    names = [name for name in os.listdir(workspace) if name.startswith(PREFIX)]
    if not names:
        return left
    present = {
        (is_holdout, segment.source, segment.part)
        for is_holdout, folder in ((False, train), (True, holdout))
        for segment in segments(folder)
    }
    for name in names:
        if not name.endswith(ENDING):
            remove(workspace / name)  # a draft: nothing was made of it yet
            continue
        try:
            taking = msgspec.json.decode((workspace / name).read_bytes(), type=Taking)
        except msgspec.MsgspecError:
            remove(workspace / name)  # damaged: its files are taken anew
            continue
        stored = [p for p in taking.parts if (p.is_holdout, taking.source, p.number) in present]
        try:
            complete(workspace, inbox, taking, stored)
        except OSError:
            left |= {
                (taking.folder + b"/" + file.name, file.identity)
                for part in stored
                for file in part.files
            }
    return left


def _path(workspace: Path, source: str) -> Path:
    return workspace / f"{PREFIX}{source}{ENDING}"
