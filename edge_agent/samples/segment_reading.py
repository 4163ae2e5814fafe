"""Reads segments of samples, for child programs: bounded in memory; what is damaged is left out."""

import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.board.problems import sentence_of
from edge_agent.samples.sample_store import first_of
from models.errors import PayloadError
from models.host.files import content_of, patiently
from models.protocol.npz import read_arrays
from models.task.spec import TaskSpec

__all__ = ["content", "read_numbered", "read_samples"]

Array = npt.NDArray[Any]


def read_samples(paths: Sequence[str], spec: TaskSpec, *, max_bytes: int) -> tuple[Array, Array]:
    """Return the newest samples of these segments that fit into ``max_bytes``, oldest first.

    A segment that is damaged, gone, or of another shape is left out.
    """
    return read_numbered(paths, spec, max_bytes)[:2]


def read_numbered(
    paths: Sequence[str], spec: TaskSpec, max_bytes: int
) -> tuple[Array, Array, list[int]]:
    """Return what `read_samples` does, and the samples' numbers, counted since the first one."""
    parts: list[tuple[Array, Array]] = []
    numbers: list[range] = []
    size = 0
    for path in reversed(paths):
        try:
            arrays = read_arrays(content(path), max_bytes=max_bytes)
            x, y = arrays["x"], arrays["y"]
        except (FileNotFoundError, PayloadError, KeyError):
            print(f"segment left out: {Path(path).name} is damaged", file=sys.stderr)
            continue
        if (x.dtype, x.shape[1:]) != (np.dtype(spec.x.dtype), spec.x.shape) or len(x) != len(y):
            continue
        size += x.nbytes + y.nbytes
        if parts and size > max_bytes:
            break
        parts.append((x, y))
        numbers.append(range(first_of(path), first_of(path) + len(x)))
    if not parts:
        empty = (np.zeros((0, *one.shape), one.dtype) for one in (spec.x, spec.y))
        return next(empty), next(empty), []
    parts.reverse()
    numbers.reverse()
    return (_joined(x for x, _ in parts), _joined(y for _, y in parts), [*chain(*numbers)])


def content(path: str) -> bytes:
    """Return what a file of this device holds; on a bad sector it is as good as damaged.

    Raises:
        FileNotFoundError: there is none.
        PayloadError: it cannot be read, now and a little later.
    """
    try:
        return patiently(lambda: content_of(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PayloadError(f"{path}: {sentence_of(error)}") from None


def _joined(arrays: Iterable[Array]) -> Array:
    return np.concatenate(list(arrays))
