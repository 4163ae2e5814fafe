"""From the step of a fold to the server's next state: optimizers, and the average. Pure.

Reddi et al., "Adaptive Federated Optimization", arXiv:2003.00295, algorithm 2, with the fold's step
in place of their pseudo-gradient. Without bias correction, as published; moments begin at zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.codec.average import averaged
from models.task.params import Vector

__all__ = ["OPTIMIZERS", "OptimizerPlan", "ServerState", "moved", "with_published"]

Doubles = npt.NDArray[Any]  # float64, shape (d,)


class ServerState(NamedTuple):
    """All that one task's server carries from release to release: float32 of shape (d,)."""

    exact: Vector  # x, the exact sum
    published: Vector  # p, what devices hold and train from
    average: Vector | None = None  # a, what devices run; None: p
    averaged: int = 0  # how often it was moved
    velocity: Vector | None = None  # of momentum; Adam's and Yogi's m
    second: Vector | None = None  # Adam's and Yogi's v
    remembered: Doubles | None = None  # S = sum of n_i h_i, float64
    weight: float = 0.0  # sum of n_i
    devices: int = 0  # that have a share in it


class OptimizerPlan(NamedTuple):
    """What makes a step a move."""

    name: str = "sgd"  # one of `OPTIMIZERS`
    learning_rate: float = 1.0
    momentum: float = 0.5  # of momentum
    beta1: float = 0.9  # of adam and yogi, like the next two
    beta2: float = 0.99
    tau: float = 1e-3


Moves = tuple[Vector, Vector | None, Vector | None]  # the move, velocity and second after it
Optimizer = Callable[[Vector, ServerState, OptimizerPlan, float], Moves]


def sgd(step: Vector, state: ServerState, plan: OptimizerPlan, damping: float) -> Moves:
    """Return ``rate * step``."""
    return np.float32(plan.learning_rate) * step, None, None


def momentum(step: Vector, state: ServerState, plan: OptimizerPlan, damping: float) -> Moves:
    """Return ``rate * v`` with v = mu damping v + step: FedAvgM (Hsu et al., arXiv:1909.06335).

    ``damping``, the mean one of the fold by age, shortens the push of folds that come late.
    """
    velocity = step
    if state.velocity is not None:
        velocity = np.float32(plan.momentum * damping) * state.velocity + step
    return np.float32(plan.learning_rate) * velocity, velocity, None


def adam(step: Vector, state: ServerState, plan: OptimizerPlan, damping: float) -> Moves:
    """Return FedAdam's move: m / (sqrt(v) + tau), both moments exponential means."""
    square = np.square(step)
    second = np.float32(1 - plan.beta2) * square
    if state.second is not None:
        second = np.float32(plan.beta2) * state.second + second
    return _adaptive(step, second, state, plan)


def yogi(step: Vector, state: ServerState, plan: OptimizerPlan, damping: float) -> Moves:
    """Return FedYogi's move: v goes toward step^2 by steps of its own size, up or down."""
    square = np.square(step)
    before = np.zeros_like(step) if state.second is None else state.second
    second = before - np.float32(1 - plan.beta2) * square * np.sign(before - square)
    return _adaptive(step, second, state, plan)


def _adaptive(step: Vector, second: Vector, state: ServerState, plan: OptimizerPlan) -> Moves:
    first: Vector = np.float32(1 - plan.beta1) * step
    if state.velocity is not None:
        first = np.float32(plan.beta1) * state.velocity + first
    scale: Vector = np.sqrt(second) + np.float32(plan.tau)
    move: Vector = np.float32(plan.learning_rate) * first / scale
    return move, first, second


OPTIMIZERS: dict[str, Optimizer] = {"sgd": sgd, "momentum": momentum, "adam": adam, "yogi": yogi}


def moved(
    state: ServerState, step: Vector, plan: OptimizerPlan, *, damping: float = 1.0
) -> ServerState:
    """Return the state whose exact sum took ``step``, float32 of shape (d,); p is as it was.

    ``damping`` in (0, 1]: the mean one of what was folded. Values may overflow: the caller looks.
    """
    move, velocity, second = OPTIMIZERS[plan.name](step, state, plan, damping)
    return state._replace(exact=state.exact + move, velocity=velocity, second=second)


def with_published(state: ServerState, published: Vector, *, decay: float) -> ServerState:
    """Return the state after devices were given ``published``; the average moves if that is new.

    ``decay`` 0: there is no average.
    """
    if not decay:
        return state._replace(published=published, average=None, averaged=0)
    if np.array_equal(published, state.published):
        return state
    number = state.averaged + 1
    average = averaged(state.average, published, number, decay=decay)
    return state._replace(published=published, average=average, averaged=number)
