"""How a release is learned from, beyond the training plan: what a fleet must agree on. Pure.

Part of a manifest (`models.protocol.manifest`). Agents of before it was there refuse a manifest
that has one, so tasks whose settings are all the defaults of then have none.
"""

import math
from typing import Annotated, Literal

import msgspec

__all__ = ["Feedback", "LearningPlan", "StepsPlan"]

Feedback = Literal["residual", "memory", "gd-sec"]  # of `models.codec.feedback.RECURSIONS`
Estimate = Annotated[float, msgspec.Meta(ge=0, le=1e30)]


class StepsPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the fleet knows for choosing how many local steps are worth it.

    The symbols of Wang et al., JSAC 37(6) 2019, section VI: the loss is ``rho``-Lipschitz and
    ``beta``-smooth, gradients of devices differ by ``delta``; ``phi`` is the control parameter.
    ``reference``: effective steps of a delta of weight 1 (FedNova, Wang et al. 2020).
    """

    rho: Estimate
    beta: Estimate
    delta: Estimate
    phi: Estimate
    reference: Estimate
    most: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100


class LearningPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which recursion devices carry on, how many steps they make, and which model they run.

    ``beta``, ``threshold`` (kappa, in units of 1/L) and ``gradient`` (one plain gradient step for
    each release) are those of gd-sec. ``average`` is the decay of the average that devices run;
    0: they run what they train from. ``serve``: None leaves it to the device's owner.
    ``alone``: devices also train a model on their own data alone, to compare with.
    """

    feedback: Feedback = "residual"
    beta: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    gradient: bool = False
    steps: StepsPlan | None = None
    average: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    serve: Literal["released"] | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.beta, self.threshold, self.average))):
            raise ValueError("a setting of learning that is not finite")
