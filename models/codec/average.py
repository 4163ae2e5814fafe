"""The average that devices run while they train on the model itself, made on both sides. Pure.

An exponential average of the published parameters costs no bytes: server and device make it from
the same patches. Devices train from p and run a; training from a costs more than it gives
(docs/papers.md).
"""

import numpy as np

from models.task.params import Vector

__all__ = ["averaged"]


def averaged(average: Vector | None, published: Vector, number: int, *, decay: float) -> Vector:
    """Return the average after it was moved for the ``number``-th time, float32 of shape (d,).

    ``average`` is the one before, None where there was none (then ``number`` is 1), ``published``
    the parameters of the new release. With k = ``number``::

        w  = max(1 - decay, 2 / (k + 1))
        a' = a + w (p' - a)

    w is rounded to float32; then one subtract, one multiply and one add, each as IEEE 754 rounds
    float32: the same bits on every machine. For a short time the average covers few releases,
    which is the warm-up.

    Raises:
        ValueError: ``number`` and ``average`` do not fit.
    """
    if number < 1 or (average is None) != (number == 1):
        raise ValueError(f"average number {number}, {'no' if average is None else 'one'} before it")
    if average is None:
        return published.copy()
    weight = np.float32(max(1.0 - decay, 2.0 / (number + 1)))
    gap = published - average
    gap *= weight
    moved: Vector = average + gap
    return moved
