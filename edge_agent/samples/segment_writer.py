"""Writes samples as segments, some into the hold-out; the same source twice adds once."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.samples.fitting import Array
from edge_agent.samples.sample_store import segment_name, segments
from models.host.durable import atomic_write

__all__ = ["Part", "Shelves", "chosen", "parts_of", "source_of", "write_parts"]

SEGMENT_SAMPLES = 256
SEGMENT_BYTES = 1 << 20


class Part(NamedTuple):
    """The rows of a source that become one segment."""

    folder: str  # of the training samples, or of the hold-out
    number: int
    rows: Array


def source_of(*facts: object) -> str:
    """Return the 16 hex digits that name what has these ``facts`` as a source of samples."""
    text = "\0".join(map(str, facts))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def chosen(count: int, share: float, source: str) -> npt.NDArray[np.bool_]:
    """Choose the hold-out: the same rows whenever the same source is taken in again."""
    chance = np.random.default_rng(int(source, 16))
    held = int(share * count + chance.random())  # right in the mean for single samples too
    mask = np.zeros(count, np.bool_)
    mask[chance.permutation(count)[:held]] = True
    return mask


def parts_of(x: Array, rows: Array, folder: str) -> Iterator[Part]:
    """Return the segments that ``rows`` of ``x`` become in ``folder``."""
    per_sample = max(1, x[:1].nbytes)
    size = max(1, min(SEGMENT_SAMPLES, SEGMENT_BYTES // per_sample))
    for number, start in enumerate(range(0, len(rows), size)):
        yield Part(folder, number, rows[start : start + size])


class Shelves:
    """What the folders of segments hold, listed once by the only program that writes there.

    Thousands of files of one sample each would have them listed thousands of times.
    """

    def __init__(self) -> None:
        self._held: dict[str, set[tuple[str, int]]] = {}
        self._end: dict[str, int] = {}  # of each folder: the number of the next sample

    def _look(self, folder: str) -> None:
        if folder not in self._held:
            present = segments(Path(folder))
            self._held[folder] = {(segment.source, segment.part) for segment in present}
            self._end[folder] = max((one.first + one.samples for one in present), default=0)

    def holds(self, part: Part, source: str) -> bool:
        self._look(part.folder)
        return (source, part.number) in self._held[part.folder]

    def put(self, part: Part, source: str, data: bytes) -> None:
        """Write a segment behind all others.

        Raises:
            OSError: the disk is full or failing; the segment is not there.
        """
        self._look(part.folder)
        count = len(part.rows)
        name = segment_name(self._end[part.folder], count, source, part.number)
        atomic_write(Path(part.folder) / name, data)
        self._held[part.folder].add((source, part.number))
        self._end[part.folder] += count


def write_parts(x: Array, y: Array, parts: list[Part], source: str, shelves: Shelves) -> int:
    """Write the segments that are not there yet; return how many samples are new.

    Raises:
        OSError: the disk is full or failing; some of them may be there.
    """
    added = 0
    for part in parts:
        if shelves.holds(part, source):
            continue
        file = io.BytesIO()
        np.savez(file, x=x[part.rows], y=y[part.rows])
        shelves.put(part, source, file.getvalue())
        added += len(part.rows)
    return added
