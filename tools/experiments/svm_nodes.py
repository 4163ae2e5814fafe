"""Smooth SVM on nodes of Fashion-MNIST, as in Wang et al., IEEE JSAC 37(6), 2019, in float64.

Even or odd class, lambda = 0.1, minibatches of 100; the four ways to deal out the samples and what
a node measures are those of the authors' published program.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.training.local_steps import Smoothness, smoothness
from tools.author.data.built_in_data import fashion_mnist

__all__ = [
    "ETA",
    "Data",
    "Doubles",
    "Node",
    "Word",
    "World",
    "accuracy_of",
    "deal",
    "loss_and_gradient",
    "loss_of",
    "world",
]

Doubles = npt.NDArray[Any]  # float64
Rows = npt.NDArray[Any]  # int64: places in the training set

NODES = 5
LAMBDA = 0.1
ETA = 0.01
BATCH = 100
REUSED = 3  # times that a minibatch serves while there is one step a round
BLOCK = 10_000  # samples in float64 at a time


class Data(NamedTuple):
    """Samples, uint8 [n, 784], and +1 for even, -1 for odd classes."""

    x: npt.NDArray[np.uint8]
    y: Doubles
    classes: npt.NDArray[np.int64]


class World(NamedTuple):
    train: Data
    test: Data


@lru_cache(1)
def world() -> World:
    """Return Fashion-MNIST as even and odd classes.

    Raises:
        UsageError: it is not installed.
    """
    data = fashion_mnist()
    assert data.test is not None
    labels = np.asarray(data.y, np.int64)
    x = np.asarray(data.x, np.uint8).reshape(len(data.x), -1)
    y = np.where(labels % 2 == 0, 1.0, -1.0)
    parts = (Data(x[rows], y[rows], labels[rows]) for rows in (~data.test, data.test))
    return World(*parts)


def deal(case: int, classes: npt.NDArray[np.int64]) -> list[Rows]:
    """Return each node's rows. 1: in turn; 2: by class; 3: all of them for everybody; 4: the lower
    half of the classes in turn to the first three nodes, the others by class to the other two.
    """
    rows = np.arange(len(classes))
    if case == 3:
        return [rows] * NODES
    owner = rows % NODES if case == 1 else classes % NODES
    if case == 4:
        half = math.ceil(NODES / 2)
        lower = classes < (classes.min() + classes.max()) / 2
        owner = np.where(lower, rows % half, classes % (NODES - half) + half)
    return [np.flatnonzero(owner == node) for node in range(NODES)]


def loss_and_gradient(w: Doubles, data: Data, rows: Rows) -> tuple[float, Doubles]:
    """Return lambda/2 |w|^2 + 1/2 mean max(0, 1 - y w.x)^2 on ``rows``, and its gradient."""
    x, y = data.x[rows] / 255.0, data.y[rows]
    slack = np.maximum(0.0, 1.0 - y * (x @ w))
    loss = 0.5 * LAMBDA * float(w @ w) + 0.5 * float(np.mean(slack * slack))
    return loss, LAMBDA * w - (slack * y) @ x / len(rows)


class _Batches:
    """Minibatches of one node: its rows in random order, again and again."""

    def __init__(self, rows: Rows, rng: np.random.Generator) -> None:
        self._rows, self._rng = rows, rng
        self._order, self._at = rng.permutation(rows), 0

    def next(self) -> Rows:
        if self._at + BATCH > len(self._order):
            self._order, self._at = self._rng.permutation(self._rows), 0
        self._at += BATCH
        return self._order[self._at - BATCH : self._at]


class Node:
    """One node: it trains, and sees how smooth its loss is, on the batch that it ended with."""

    def __init__(self, data: Data, rows: Rows, rng: np.random.Generator, *, estimates: bool):
        self.size = len(rows)
        self._data, self._batches, self._estimates = data, _Batches(rows, rng), estimates
        self._batch = self._batches.next()
        self._uses = 0
        self._last: tuple[Doubles, float, Doubles] | None = None  # w_i, its loss and gradient
        self._before: Doubles | None = None  # the model with the least loss, as far as is known

    def round(self, w: Doubles, tau: int, best: Doubles | None) -> "Word":
        """Make ``tau`` steps from ``w``."""
        if not self._estimates or (tau <= 1 and self._uses >= REUSED):
            self._renew()
        first = w
        loss, first_gradient = loss_and_gradient(w, self._data, self._batch)
        best_loss = None
        if best is not None:
            best_loss = loss_and_gradient(best, self._data, self._batch)[0]
        seen = Smoothness(None, None)
        if self._last is not None:
            there, loss_there, gradient_there = self._last
            seen = smoothness(
                loss_there - loss,
                float(np.linalg.norm(gradient_there - first_gradient)),
                float(np.linalg.norm(there - first)),
            )
        self._uses += 1
        w = w - ETA * first_gradient
        for _ in range(tau - 1):
            self._renew()
            self._uses = 1
            w = w - ETA * loss_and_gradient(w, self._data, self._batch)[1]
        if self._estimates:
            self._last = (w, *loss_and_gradient(w, self._data, self._batch))
        return Word(w, loss, best_loss, seen, first_gradient, self._last[2] if self._last else w)

    def _renew(self) -> None:
        self._batch, self._uses = self._batches.next(), 0


class Word(NamedTuple):
    """What a node sends after a round."""

    w: Doubles
    loss: float  # where the round began, on this node's batch
    best_loss: float | None  # of the best model so far, on the same
    seen: Smoothness
    gradient: Doubles  # where the round began, on this node's batch
    ended: Doubles  # and where its steps ended, on the batch that the next round begins with


def loss_of(w: Doubles, data: Data) -> float:
    """Return the loss on all of ``data``."""
    starts = range(0, len(data.y), BLOCK)
    blocks = [np.arange(start, min(start + BLOCK, len(data.y))) for start in starts]
    return sum(loss_and_gradient(w, data, rows)[0] * len(rows) for rows in blocks) / len(data.y)


def accuracy_of(w: Doubles, data: Data) -> float:
    """Return the share of ``data`` on the right side."""
    return float(np.mean(data.y * (data.x / 255.0 @ w) > 0))
