"""The device's own samples on disk: bounded, oldest out first, counted without being opened.

Each segment is an npz with ``x`` and ``y``; its name says which samples it holds, counted since
the first one ever, so that counts cost one directory listing. Segments are written by the intake
child and read by the trainer; this module, and so the resident agent, needs no numpy.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_agent.client import edgefold_client

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Counts", "Samples", "Segment", "add_samples", "first_of", "segment_name", "segments"]

_NAME = re.compile(r"(\d{12})-(\d{6})-([0-9a-f]{16})-(\d{4})\.npz")


class Segment(NamedTuple):
    """One file of consecutive samples."""

    path: str
    first: int  # number of its first sample, counted since the first one ever
    samples: int
    source: str  # 16 hex digits: what it was made from
    part: int  # which part of the source
    size: int  # bytes


class Counts(NamedTuple):
    """How many samples there are."""

    train: int
    holdout: int
    ever: int  # training samples since the beginning, those dropped since included


def segments(directory: Path) -> list[Segment]:
    """Return the segments in ``directory``, oldest first; what is no segment is ignored."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if match := _NAME.fullmatch(entry.name):
                first, count, source, part = match.groups()
                size = entry.stat().st_size
                found.append(Segment(entry.path, int(first), int(count), source, int(part), size))
    return sorted(found)


def first_of(path: str) -> int:
    """Return the number of the first sample in the segment at ``path``; 0 if that is none."""
    match = _NAME.fullmatch(os.path.basename(path))
    return int(match[1]) if match else 0


def segment_name(first: int, count: int, source: str, part: int) -> str:
    """Return the file name of a segment."""
    return f"{first:012d}-{count:06d}-{source}-{part:04d}.npz"


class Samples:
    """The training samples and the hold-out of one device."""

    def __init__(
        self, directory: Path, *, max_count: int, max_bytes: int, holdout_share: float
    ) -> None:
        self.train = directory / "samples"
        self.holdout = directory / "holdout"
        self._bounds = (
            (self.train, max_count, max_bytes * (1 - holdout_share)),
            (self.holdout, max(1, max_count * holdout_share), max_bytes * holdout_share),
        )
        for folder in (self.train, self.holdout):
            folder.mkdir(parents=True, exist_ok=True)
        self.dropped = 0  # samples, by this process, that were the oldest of too many
        self._counts: Counts | None = None
        self._paths: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def counts(self) -> Counts:
        """Return the counts as of the last `refresh`."""
        return self._counts or self.refresh()

    def paths(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the segments to train on and the hold-out's, those that `counts` is about."""
        self.counts()
        return self._paths

    def refresh(self) -> Counts:
        """Look at the disk, drop the oldest segments beyond the bounds, and count."""
        train, holdout = (self._within_bounds(*bounds) for bounds in self._bounds)
        self._counts = Counts(
            train=sum(segment.samples for segment in train),
            holdout=sum(segment.samples for segment in holdout),
            ever=max((segment.first + segment.samples for segment in train), default=0),
        )
        self._paths = (
            tuple(segment.path for segment in train),
            tuple(segment.path for segment in holdout),
        )
        return self._counts

    def _within_bounds(self, folder: Path, max_count: float, max_bytes: float) -> list[Segment]:
        """Drop the oldest segments of ``folder`` beyond the bounds, if the disk lets us.

        Returns:
            Those that are still there.
        """
        found = segments(folder)
        count = sum(segment.samples for segment in found)
        size = sum(segment.size for segment in found)
        dropped = 0
        while dropped < len(found) - 1 and (count > max_count or size > max_bytes):
            oldest = found[dropped]  # the newest one stays, whatever its size
            try:
                Path(oldest.path).unlink(missing_ok=True)
            except OSError:  # a disk that is read-only or failing: next time
                break
            self.dropped += oldest.samples
            count, size = count - oldest.samples, size - oldest.size
            dropped += 1
        return found[dropped:]


def add_samples(inbox: Path | str, x: "npt.NDArray[Any]", y: "npt.NDArray[Any]") -> Path:
    """Hand samples to the agent whose inbox is ``inbox``; return the file that it will take.

    The client's own, for programs that have the agent's package: see there.
    """
    return edgefold_client.add_samples(inbox, x, y)
