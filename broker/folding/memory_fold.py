"""A fold of updates whose devices are remembered: EF21 and GD-SEC at the server. Pure.

The server keeps h_i of every device, the same bits as the device, and S = sum of n_i h_i in
float64. An update says c and names the h that it was made against (`history_digest`)::

    h' = h + beta c        S += n' h' - n h        W += n' - n
    step = S / W                                                        memory
    step = (sum of n' h, as before the fold, + sum of n' c) / W         gd-sec

memory is EF21 (Richtárik et al., arXiv:2106.05203, algorithm 2) with partial participation, gd-sec
that of Chen et al. (arXiv:2202.02491), both weighted by samples n as FedAvg is. A device that says
0 began anew: its old share is taken out first. Age damps nothing: a memory is valid or forgotten.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from broker.folding.server_step import ServerState
from models.codec.feedback import Recursion, history_after, history_digest
from models.errors import PayloadError
from models.task.params import Vector

__all__ = ["Memory", "MemoryFold", "OtherMemoryError", "agreed", "summed", "without"]

Doubles = npt.NDArray[Any]  # float64, shape (d,)


class OtherMemoryError(PayloadError):
    """An update was made against a memory that is not the one here: its device begins anew."""


class Memory(NamedTuple):
    """What is remembered of one device."""

    history: Vector  # h, float32, shape (d,)
    samples: float  # n, its weight in S


def agreed(memory: Memory | None, made_against: int) -> Vector | None:
    """Return the h that an update names by its digest, as both sides hold it; None: zeros.

    Raises:
        OtherMemoryError: it is not the one here.
    """
    if not made_against:
        return None
    known = memory.history if memory else None
    if made_against != history_digest(known):
        raise OtherMemoryError("its memory is not the one here")
    return known


class MemoryFold:
    """S and its weight while updates come in; holds two vectors beside the one that is taken."""

    def __init__(self, state: ServerState) -> None:
        size = state.exact.size
        before = state.remembered
        self._sum = np.zeros(size) if before is None else before.astype(np.float64)
        self._fresh = np.zeros(size)  # sum of n' (h + c - h')
        self._state = state
        self._weight = state.weight
        self._devices = state.devices

    def take(
        self,
        said: Vector,
        memory: Memory | None,
        *,
        made_against: int,
        samples: float,
        recursion: Recursion,
        longest: float,
    ) -> Memory:
        """Add one update, ``said`` (c) as decoded; return what is remembered from then on.

        ``memory``: what was; None: nothing. ``made_against`` is the digest that the update names,
        ``longest`` how long h' may be.

        Raises:
            OtherMemoryError: it names another one.
            PayloadError: h' would be too long. In both cases nothing was changed.
        """
        base = agreed(memory, made_against)
        history = history_after(base, said, recursion.beta)
        length = float(np.linalg.norm(history.astype(np.float64)))
        if not length <= longest:
            raise PayloadError(
                f"what is remembered of it would be {length:.3g} long, at most {longest:.3g} is "
                "plausible"
            )
        if memory is not None:
            self._sum -= memory.samples * memory.history.astype(np.float64)
            self._weight -= memory.samples
            self._devices -= 1
        exact = history.astype(np.float64)
        self._sum += samples * exact
        self._weight += samples
        self._devices += 1
        if recursion.keeps_owed:
            rest = said.astype(np.float64) - exact
            self._fresh += samples * (rest if base is None else rest + base)
        return Memory(history, samples)

    def step(self) -> Vector:
        """Return what the fold moves the model by, before any rate; float32 of shape (d,)."""
        step: Vector = ((self._sum + self._fresh) / self._weight).astype(np.float32)
        return step

    def state(self) -> ServerState:
        """Return the state with the memories as they are now; nothing moved yet."""
        return self._state._replace(
            remembered=self._sum, weight=self._weight, devices=self._devices
        )


def without(state: ServerState, memory: Memory) -> ServerState:
    """Return ``state`` after a device with ``memory`` was forgotten."""
    if state.devices <= 1 or state.remembered is None:
        return state._replace(remembered=None, weight=0.0, devices=0)
    return state._replace(
        remembered=state.remembered - memory.samples * memory.history.astype(np.float64),
        weight=state.weight - memory.samples,
        devices=state.devices - 1,
    )


def summed(state: ServerState, memories: Iterable[Memory]) -> ServerState:
    """Return ``state`` with S computed anew from all ``memories``; one is held at a time."""
    found = state._replace(remembered=None, weight=0.0, devices=0)
    total = np.zeros(state.exact.size)
    weight, devices = 0.0, 0
    for memory in memories:
        total += memory.samples * memory.history.astype(np.float64)
        weight += memory.samples
        devices += 1
    return found._replace(remembered=total, weight=weight, devices=devices) if devices else found
