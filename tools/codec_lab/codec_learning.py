"""Federated learning through a codec: what few bytes a round cost in accuracy. Author side."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from models.codec.average import averaged
from models.codec.budget import Budget
from models.codec.payload import compress, decompress
from models.task.params import Vector
from models.task.spec import TensorSpec
from tools.codec_lab.codec_deltas import SCENARIOS, Federation
from tools.codec_lab.codec_peers import WITHIN, Decoded

__all__ = ["Course", "Known", "dense", "learn", "peer_within", "within"]


class Known(NamedTuple):
    """What sender and receiver both hold; None: nothing yet."""

    own: Vector | None = None  # the sender's last update, as decoded
    released: Vector | None = None  # the last release minus its parent


DECAY = 0.9  # of the average that devices run, as a new task has it
Context = Literal["none", "own", "release"]
Channel = Callable[[Vector, Sequence[TensorSpec], Known], Decoded]  # returns what arrives


class Course(NamedTuple):
    """How a federation learned."""

    accuracy: list[float]  # after each round
    bytes_per_update: float
    averaged: list[float]  # of what devices run: an average of the released parameters

    @property
    def final(self) -> float:
        """Mean of the last five rounds."""
        return float(np.mean(self.accuracy[-5:]))

    @property
    def final_averaged(self) -> float:
        """The same of what devices run."""
        return float(np.mean(self.averaged[-5:]))


def dense(wanted: Vector, tensors: Sequence[TensorSpec], known: Known) -> Decoded:
    """Send everything, as float32."""
    return Decoded(wanted, 4 * wanted.size)


def within(most: int, *, context_of: Context = "none") -> Channel:
    """Return a channel of at most ``most`` bytes per update, each in the context of what is named.

    The product's is "release".
    """

    def send(wanted: Vector, tensors: Sequence[TensorSpec], known: Known) -> Decoded:
        context = {"none": None, "own": known.own, "release": known.released}[context_of]
        payload = compress(wanted, tensors, Budget(bytes=most), context=context)
        return Decoded(decompress(payload, tensors, context=context), len(payload))

    return send


def peer_within(name: str, most: int) -> Channel:
    """Return a channel of a peer (`WITHIN`) of at most ``most`` bytes per update."""
    peer = WITHIN[name]

    def send(wanted: Vector, tensors: Sequence[TensorSpec], known: Known) -> Decoded:
        return peer(wanted, most)

    return send


def learn(scenario: str, channel: Channel, *, seed: int, rounds: int) -> Course:
    """Run federated averaging with error feedback on every device."""
    federation = Federation(SCENARIOS[scenario], seed)
    base = federation.start
    owed: dict[int, Vector] = {}
    last: dict[int, Vector] = {}
    released: Vector | None = None
    accuracy, sizes, averages = [], [], []
    average: Vector | None = None
    for number in range(1, rounds + 1):
        devices = federation.draw()
        arrived = []
        for device in devices:
            wanted = federation.train(base, device) + owed.get(device, np.float32(0))
            sent = channel(wanted, federation.specs, Known(last.get(device), released))
            owed[device] = wanted - sent.delta
            last[device] = sent.delta
            arrived.append(sent.delta)
            sizes.append(sent.size)
        weights = [len(federation.homes[device]) for device in devices]
        parent = base
        base = parent + np.average(arrived, axis=0, weights=weights).astype(np.float32)
        released = base - parent
        average = averaged(average, base, number, decay=DECAY)
        accuracy.append(federation.accuracy(base, 4000))
        averages.append(federation.accuracy(average, 4000))
    return Course(accuracy, float(np.mean(sizes)), averages)
