"""What a device carries from update to update: error feedback, EF21 and GD-SEC in one recursion.

With d the delta of one training and C the codec::

    D  = d - h + e          what is wanted said
    c  = C(D)               what the payload says, as decoded
    h' = h + beta c         what the server remembers of this device from then on
    e' = D - c              if the method keeps what it owes, else 0

Device, server, simulator and experiments call these, in any type of float. ``h + beta c`` is one
multiply and one add in the vectors' own type, in this order: both sides hold the same bits. Pure.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.codec.transform.shared_basis import context_digest
from models.protocol.learning import LearningPlan

__all__ = [
    "RECURSIONS",
    "Carried",
    "Recursion",
    "carried_after",
    "history_after",
    "history_digest",
    "recursion_of",
    "taken_back",
    "wanted",
]

Floats = npt.NDArray[Any]  # float32 or float64, shape (d,)


class Recursion(NamedTuple):
    """Which published algorithm: the two constants of the recursion."""

    beta: float  # the share of c that the server remembers; 0: no memory
    keeps_owed: bool

    @property
    def has_memory(self) -> bool:
        return self.beta != 0


class Carried(NamedTuple):
    """What a device carries: vectors of one type and shape (d,). None stands for zeros."""

    owed: Floats | None = None  # e
    history: Floats | None = None  # h


RECURSIONS = {
    # Error feedback: Seide et al., Interspeech 2014; Stich et al., arXiv:1809.07599.
    "residual": Recursion(0.0, keeps_owed=True),
    # EF21: Richtárik, Sokolov, Fatkhullin, arXiv:2106.05203, algorithm 2.
    "memory": Recursion(1.0, keeps_owed=False),
    # GD-SEC: Chen, Blum, Takáč, Sadler, arXiv:2202.02491, worker side; its beta is a setting.
    "gd-sec": Recursion(0.1, keeps_owed=True),
    # Nothing is fed back: the baseline of experiments, never of a fleet.
    "none": Recursion(0.0, keeps_owed=False),
}


def recursion_of(plan: LearningPlan) -> Recursion:
    """Return the constants of what ``plan`` names."""
    found = RECURSIONS[plan.feedback]
    return found._replace(beta=plan.beta) if plan.feedback == "gd-sec" else found


def wanted(delta: Floats, carried: Carried) -> Floats:
    """Return D: what ``delta``, of one training, and what is carried want to be said."""
    asked = delta
    if carried.history is not None:
        asked = asked - carried.history
    if carried.owed is not None:
        asked = asked + carried.owed
    return asked


def carried_after(asked: Floats, said: Floats, carried: Carried, recursion: Recursion) -> Carried:
    """Return what is carried once ``said`` (c) was made of ``asked`` (D).

    With a memory it holds only when the server has folded c; until then ``carried`` does.
    """
    owed = asked - said if recursion.keeps_owed else None
    history = None
    if recursion.has_memory:
        history = history_after(carried.history, said, recursion.beta)
    return Carried(owed, history)


def history_after(history: Floats | None, said: Floats, beta: float) -> Floats:
    """Return h' = h + beta c: the same bits on the device and on the server."""
    before = np.zeros_like(said) if history is None else history
    after: Floats = before + said.dtype.type(beta) * said
    return after


def history_digest(history: Floats | None) -> int:
    """Return what both sides compare, 0 for zeros; it names the history as a context, too."""
    if history is None or not history.any():
        return 0
    return context_digest(history)


def taken_back(said: Floats, carried: Carried) -> Carried:
    """Return what is carried when ``said``, which left, comes back unused. Without a memory only:
    with one, h and e are still what they were before it was said.
    """
    return carried._replace(owed=said if carried.owed is None else carried.owed + said)
