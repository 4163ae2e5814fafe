"""The downlink in few bytes: what devices hold follows what was folded, patch by patch. Pure.

The server keeps two vectors: x, the exact sum of all that was folded, and p, what devices hold.
From release to release::

    p' = p + Q(x' - p)

so what a patch leaves out of x' - p is part of the next one, and nothing is lost: error feedback
in the space of models (EF21-P, Gruntkowska et al., arXiv:2209.15218; the hidden state of QAFeL,
Ortega and Jafarkhani, arXiv:2308.00263). Devices train from p, and the server evaluates p.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from broker.config import DownlinkPlan
from models.codec.budget import Budget
from models.codec.payload import compressed
from models.codec.release_patch import patched
from models.codec.transform.frame import step_in
from models.errors import PayloadError
from models.protocol.manifest import Artifact
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["Step", "chained", "next_step"]

TRIALS = (1.0, 0.9, 0.7, 0.5)  # of the budget: the codec's search may miss a single one
SMALL_BYTES = 4096  # a model of so few bytes goes whole: the manifest is not much shorter


class Step(NamedTuple):
    """The two vectors of a release, float32 of shape (d,), and how devices get there."""

    exact: Vector  # x
    published: Vector  # p
    patch: bytes | None = None  # None: p is what it was, or is not reached by a patch


def next_step(
    published: Vector,
    exact: Vector,
    tensors: Sequence[TensorSpec],
    plan: DownlinkPlan,
    last: bytes | None = None,
) -> Step:
    """Return the release that follows ``published`` when ``exact`` is all that was learned.

    ``last`` is the patch that led to ``published``: patches are alike, and where the codec begins
    at its step, it is done in a fraction of the time. Then a patch may be up to a quarter shorter
    than the budget, or its NMSE a tenth off, which the next one makes good. The same ``last``
    makes the same patch, also after a restart. Where a patch would not be shorter than the
    parameters, or says nothing within its budget, there is none, and p is x.
    """
    whole = Step(exact, exact)
    size = exact.nbytes
    if plan.method == "full" or size <= SMALL_BYTES:
        return whole
    with np.errstate(over="ignore"):  # the next line looks
        owed: Vector = exact - published
    if not np.isfinite(owed).all():
        return whole
    if not owed.any():
        return Step(exact, published)
    hint = None if last is None else step_in(last)
    for share in TRIALS:
        budget = _budget(plan, share)
        try:
            patch = compressed(owed, tensors, budget, hint=hint).payload
            moved = patched(published, patch, tensors)
        except (PayloadError, np.linalg.LinAlgError):
            continue
        if len(patch) < size and not np.array_equal(moved, published):
            return Step(exact, moved, patch)
    return whole


def _budget(plan: DownlinkPlan, share: float) -> Budget:
    if plan.bytes:
        return Budget(bytes=max(1, int(share * plan.bytes)))
    return Budget(nmse=share * plan.nmse)


def chained(
    patches: Mapping[int, Artifact], *, most: int, whole: int, oldest: int
) -> dict[int, Artifact]:
    """Return the newest ``patches`` that are worth offering, by number (see `Manifest`).

    At most ``most``, together shorter than the ``whole`` parameters, and none that leads from a
    release before ``oldest``, which no device has any more.
    """
    kept: dict[int, Artifact] = {}
    size = 0
    for number in sorted(patches, reverse=True):
        size += patches[number].size
        if kept and (len(kept) == most or size >= whole or min(kept) <= oldest):
            break
        kept[number] = patches[number]
    return kept
