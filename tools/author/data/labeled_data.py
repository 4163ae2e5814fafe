"""Labeled data as a value: samples, targets, whose they are, and which rows are for the test."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Dataset", "Rows", "draw_test_rows"]

Array = npt.NDArray[Any]


Rows = npt.NDArray[np.int64]


TEST_SHARE = 0.2  # of a file that has no test rows of its own


class Dataset(NamedTuple):
    """``x`` [n, ...], ``y`` [n, ...], ``user`` int64 [n] or None (-1: nobody), ``test`` bool [n].

    ``x`` is uint8, int32, int64 or float32; ``y`` is int64 or float32. What ``y`` is for a model,
    `tools.author.data.targets` knows.
    """

    name: str
    x: Array
    y: Array
    user: Rows | None
    test: npt.NDArray[np.bool_]
    test_is_ours: bool  # the file had no test rows; a fifth was drawn by a fixed seed
    class_names: tuple[str, ...] = ()  # in order of their labels; (): nobody named them
    are_names: bool = False  # y held names; its labels are their places in class_names
    are_pictures: bool = False  # x was read from files of pictures, as a device reads them

    @property
    def classes(self) -> int:
        """The number of labels, 0 for targets that are numbers."""
        return int(self.y.max()) + 1 if self.y.dtype.kind == "i" else 0

    @property
    def train_rows(self) -> Rows:
        return np.flatnonzero(~self.test)

    @property
    def test_rows(self) -> Rows:
        return np.flatnonzero(self.test)


def draw_test_rows(count: int) -> npt.NDArray[np.bool_]:
    test = np.zeros(count, bool)
    drawn = np.random.default_rng(0).permutation(count)[: max(1, round(TEST_SHARE * count))]
    test[drawn] = True
    return test
