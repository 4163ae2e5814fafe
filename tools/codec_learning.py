"""Federated learning through a codec: what few bytes a round cost in accuracy. Author side."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from models.codec.budget import Budget
from models.codec.chain import compress, decompress
from models.params import Vector
from models.spec import TensorSpec
from tools.codec_deltas import SCENARIOS, Federation
from tools.codec_peers import WITHIN, Decoded

# (wanted, tensors, the sender's last update as decoded or None) -> what arrives
Channel = Callable[[Vector, Sequence[TensorSpec], Vector | None], Decoded]


class Course(NamedTuple):
    """How a federation learned."""

    accuracy: list[float]  # after each round
    bytes_per_update: float

    @property
    def final(self) -> float:
        """Mean of the last five rounds."""
        return float(np.mean(self.accuracy[-5:]))


def dense(wanted: Vector, tensors: Sequence[TensorSpec], last: Vector | None) -> Decoded:
    """Send everything, as float32."""
    return Decoded(wanted, 4 * wanted.size)


def within(most: int, *, in_context: bool = False) -> Channel:
    """Return a channel of at most ``most`` bytes per update, in the context of the last or not."""

    def send(wanted: Vector, tensors: Sequence[TensorSpec], last: Vector | None) -> Decoded:
        context = last if in_context else None
        payload = compress(wanted, tensors, Budget(bytes=most), context=context)
        return Decoded(decompress(payload, tensors, context=context), len(payload))

    return send


def peer_within(name: str, most: int) -> Channel:
    """Return a channel of a peer (`WITHIN`) of at most ``most`` bytes per update."""
    peer = WITHIN[name]

    def send(wanted: Vector, tensors: Sequence[TensorSpec], last: Vector | None) -> Decoded:
        return peer(wanted, most)

    return send


def learn(scenario: str, channel: Channel, *, seed: int, rounds: int) -> Course:
    """Run federated averaging with error feedback on every device."""
    federation = Federation(SCENARIOS[scenario], seed)
    base = federation.start
    owed: dict[int, Vector] = {}
    last: dict[int, Vector] = {}
    accuracy, sizes = [], []
    for _ in range(rounds):
        devices = federation.draw()
        arrived = []
        for device in devices:
            wanted = federation.train(base, device) + owed.get(device, np.float32(0))
            sent = channel(wanted, federation.specs, last.get(device))
            owed[device] = wanted - sent.delta
            last[device] = sent.delta
            arrived.append(sent.delta)
            sizes.append(sent.size)
        weights = [len(federation.homes[device]) for device in devices]
        base = base + np.average(arrived, axis=0, weights=weights).astype(np.float32)
        accuracy.append(federation.accuracy(base, 4000))
    return Course(accuracy, float(np.mean(sizes)))
