"""A device that the server remembers, as a protocol: h moves when a receipt says folded."""

from dataclasses import dataclass

import numpy as np
from server_world import FakeDevice, World

from models.codec.feedback import RECURSIONS, history_after, history_digest
from models.codec.payload import decompress
from models.protocol.messages import Receipt, Request
from models.protocol.update import Extras, decode_update
from models.task.params import Vector


@dataclass
class RememberedDevice:
    """Carries h; at most one of its updates is unanswered."""

    device: FakeDevice
    beta: float = RECURSIONS["memory"].beta
    history: Vector | None = None
    resets: int = 0
    waiting: str = ""  # its update that is not answered yet
    data: bytes = b""
    said: Vector | None = None

    def learn(self, delta: Vector, *, base: int = 1, samples: int = 10) -> str:
        """Send what ``delta`` comes to (multiples of 1/64, so that they are sent exactly)."""
        assert not self.waiting
        asked = delta if self.history is None else delta - self.history
        extras = Extras(memory=history_digest(self.history))
        self.waiting, self.data = self.device.update(
            asked, base=base, samples=samples, extras=extras
        )
        self.said = decompress(decode_update(self.data)[1], self.device.spec.shared)
        return self.waiting

    def send(self) -> None:
        self.device.send(self.waiting, self.data, chunk_size=1200)

    def settle(self) -> Receipt | None:
        """Take note of the last receipt; return it if it was the last word."""
        self.device.listen()
        receipt = self.device.receipts.get(self.waiting)
        if receipt is None or receipt.state not in ("folded", "refused"):
            return None
        if receipt.state == "folded":
            assert self.said is not None
            self.history = history_after(self.history, self.said, self.beta)
        elif receipt.reset:
            self.history = None
            self.resets += 1
        self.waiting = ""
        return receipt

    def until_settled(self, world: World) -> Receipt:
        """Send and ask as devices do, until the last word."""
        for _ in range(8):
            world.run(61.0)
            if (receipt := self.settle()) is not None:
                return receipt
            if self.device.state(self.waiting) in ("nothing", "unknown", "partial"):
                self.send()
            self.device.request(Request(receipts=(self.waiting,)))
        raise AssertionError(f"{self.device.name}: {self.waiting} is never settled")


def some_delta(seed: int, size: int) -> Vector:
    generator = np.random.default_rng(seed)
    return (generator.integers(-8, 9, size) / 64).astype(np.float32)
