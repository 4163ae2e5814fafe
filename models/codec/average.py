"""The average that devices run while they train on the model itself, made on both sides. Pure.

An exponential average of the published parameters costs no bytes: server and device make it from
the same patches. Devices train from p and run a; training from a costs more than it gives
(docs/papers.md).
"""

import numpy as np

from models.task.params import Vector

__all__ = ["averaged"]

WARM_UP = 8  # eta; part of the wire: both sides compute with it


def averaged(average: Vector | None, published: Vector, number: int, *, decay: float) -> Vector:
    """Return the average after it was moved for the ``number``-th time, float32 of shape (d,).

    ``average`` is the one before, None where there was none (then ``number`` is 1), ``published``
    the parameters of the new release. With k = ``number``::

        w  = max(1 - decay, 9 / (k + 8))
        a' = a + w (p' - a)

    While the second term is the larger one (for a decay of 0.9, the first 82 times) this is the
    polynomial decay of Shamir and Zhang, arXiv:1212.1824, section 4, with eta = 8: the average is
    of the last tenth or so of what there was, and follows a model that still learns fast. With
    2 / (k + 1) it lagged by up to thirteen points there (docs/papers.md).

    w is rounded to float32; then one subtract, one multiply and one add, each as IEEE 754 rounds
    float32: the same bits on every machine.

    Raises:
        ValueError: ``number`` and ``average`` do not fit.
    """
    if number < 1 or (average is None) != (number == 1):
        raise ValueError(f"average number {number}, {'no' if average is None else 'one'} before it")
    if average is None:
        return published.copy()
    weight = np.float32(max(1.0 - decay, (1 + WARM_UP) / (number + WARM_UP)))
    gap = published - average
    gap *= weight
    moved: Vector = average + gap
    return moved
