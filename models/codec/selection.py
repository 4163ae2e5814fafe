"""What to send of a delta: encoder only, never on the wire. Pure."""

import math

import numpy as np
import numpy.typing as npt

from models.params import Vector

Positions = npt.NDArray[np.int64]  # ascending, each once


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
