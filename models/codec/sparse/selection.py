"""What to send of a delta: encoder only, never on the wire. Pure."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from models.task.params import Vector

__all__ = ["Positions", "gd_sec_threshold", "only", "top_k"]

Positions = npt.NDArray[np.int64]  # ascending, each once
Floats = npt.NDArray[Any]  # float32 or float64, shape (d,)


def top_k(wanted: Vector, share: float) -> Positions:
    """Return the positions of the ``ceil(share * d)`` largest magnitudes, zeros left out.

    Of equal magnitudes at the edge any may be taken.
    """
    magnitudes = np.abs(wanted)
    count = min(wanted.size, math.ceil(share * wanted.size))
    if count < wanted.size:
        found = np.argpartition(magnitudes, wanted.size - count)[wanted.size - count :]
    else:
        found = np.arange(wanted.size)
    return np.sort(found[magnitudes[found] > 0])


def gd_sec_threshold(wanted: Floats, moved: Floats, *, xi: float, workers: int) -> Positions:
    """Return the positions whose change is worth sending, given how far the model moved.

    GD-SEC (Chen, Blum, Takáč, Sadler, arXiv:2202.02491), worker side::

        |wanted| > xi / M * |moved|

    ``moved`` is current minus previous global parameters; ``xi`` >= 0 is dimensionless.
    """
    return np.flatnonzero(np.abs(wanted) > wanted.dtype.type(xi / workers) * np.abs(moved))


def only(wanted: Floats, positions: Positions) -> Floats:
    """Return ``wanted`` at ``positions``, zero elsewhere: what a selector hands to the stages."""
    selected: Floats = np.zeros_like(wanted)
    selected[positions] = wanted[positions]
    return selected
