"""Receipts go out in batches that the broker takes, whatever its limit is."""

import pytest

from broker.receiving.receipt_queue import ReceiptQueue
from models.errors import UsageError
from models.protocol.messages import Receipt, Receipts, decode_message
from models.protocol.topics import Topics
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink

REASON = "trained on release 1234, the newest here is 12"


class NarrowLink(MemoryLink):
    """Of a broker that takes packets of at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(MemoryBroker(lambda: 0.0), client_id="edgefold-broker")
        self.limit = limit
        self.sent: list[Receipt] = []

    def window(self) -> int:
        return 8

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        if len(topic) + len(payload) > self.limit:
            raise UsageError(f"the broker takes packets of at most {self.limit} bytes")
        self.sent += decode_message(payload, Receipts).receipts
        return len(self.sent)


@pytest.mark.parametrize("limit", [100_000, 4096, 1000, 300])
def test_batches_shrink_to_what_the_broker_takes(limit: int) -> None:
    link = NarrowLink(limit)
    queue = ReceiptQueue(Topics("test"))
    for device in ("dev-1", "dev-2"):
        for number in range(1, 101):
            queue.add(device, Receipt(f"a0a0a0a0-{number}", "refused", reason=REASON))
    queue.pump(link)
    assert (len(link.sent), len(queue)) == (200, 0)


def test_a_receipt_that_is_too_large_alone_holds_up_no_other() -> None:
    link = NarrowLink(300)
    queue = ReceiptQueue(Topics("test"))
    queue.add("dev-1", Receipt("a0a0a0a0-1", "partial", missing=tuple(range(256))))
    queue.add("dev-1", Receipt("a0a0a0a0-2", "stored"))
    queue.pump(link)
    assert [receipt.update for receipt in link.sent] == ["a0a0a0a0-2"]
    assert len(queue) == 0
