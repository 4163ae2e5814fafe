"""Writes samples as segments, some into the hold-out; the same source twice adds once."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.fitting import Array
from edge_agent.samples import segment_name, segments
from models.durable import atomic_write

__all__ = ["Part", "chosen", "parts_of", "source_of", "write_parts"]

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


def write_parts(x: Array, y: Array, parts: list[Part], source: str) -> int:
    """Write the segments that are not there yet; return how many samples are new.

    Raises:
        OSError: the disk is full or failing; some of them may be there.
    """
    added = 0
    for part in parts:
        present = segments(Path(part.folder))
        if any(segment.source == source and segment.part == part.number for segment in present):
            continue
        first = max((segment.first + segment.samples for segment in present), default=0)
        file = io.BytesIO()
        np.savez(file, x=x[part.rows], y=y[part.rows])
        name = segment_name(first, len(part.rows), source, part.number)
        atomic_write(Path(part.folder) / name, file.getvalue())
        added += len(part.rows)
    return added
