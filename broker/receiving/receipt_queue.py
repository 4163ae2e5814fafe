"""Receipts on their way out: the newest state of each update, batched per device.

The queue is only in memory. What is in it and matters can be found again in the registry (`told`),
so a restart repeats it; answers to requests are asked for again.
"""

import logging
from collections.abc import Iterable, Iterator

from broker.records.update_records import UpdateKey
from models.errors import UsageError
from models.protocol.messages import MAX_BYTES, Receipt, Receipts, encode_message
from models.protocol.topics import Topics
from models.protocol.update_life import FINAL, ReceiptState
from models.transport.link import Link
from models.transport.refusals import TOO_LARGE

__all__ = ["ReceiptQueue"]

log = logging.getLogger(__name__)

MOST_QUEUED = 65_536  # beyond this, answers that say nothing lasting are dropped
BATCH = 64  # the schema's limit
LASTING = FINAL | {ReceiptState.STORED}


class ReceiptQueue:
    """Hands receipts to the link as its window allows, one message per device in turn."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._queued: dict[str, dict[str, Receipt]] = {}
        self._count = 0
        self._in_flight: dict[int, tuple[str, tuple[Receipt, ...]]] = {}
        self._room = MAX_BYTES  # of a message, as far as the broker takes it
        self.told: list[tuple[UpdateKey, str]] = []  # the broker took them over; to be noted
        self.refused = ""  # the broker's words to the last ones; "" when it takes them

    def __len__(self) -> int:
        return self._count

    def add(self, device: str, receipt: Receipt) -> None:
        """Queue ``receipt``; it takes the place of an older one for the same update."""
        if self._count >= MOST_QUEUED and receipt.state not in LASTING:
            return
        queued = self._queued.setdefault(device, {})
        self._count += receipt.update not in queued
        queued[receipt.update] = receipt

    def pump(self, link: Link) -> None:
        """Publish as many batches as the link's window allows."""
        while self._queued and link.window() > 0:
            device = next(iter(self._queued))
            queued = self._queued[device]
            batch = tuple(_batch(queued.values(), self._room))
            payload = encode_message(Receipts(batch))
            try:
                token = link.publish(self._topics.receipt(device), payload)
            except UsageError as error:  # not to end the server for: a device asks again
                if len(batch) > 1:
                    self._room //= 2
                    continue
                log.error("cannot send receipt device=%s id=%s: %s", device, batch[0].update, error)
            else:
                self._in_flight[token] = (device, batch)
            del self._queued[device]
            for receipt in batch:
                del queued[receipt.update]
            self._count -= len(batch)
            if queued:
                self._queued[device] = queued  # behind the others

    def published(self, token: int, refused: str) -> None:
        """Take note which updates' states are `told` now, if ``token`` is ours."""
        device, batch = self._in_flight.pop(token, ("", ()))
        if batch:
            self.refused = refused
        if refused == TOO_LARGE and len(batch) > 1:
            self._room //= 2
            for receipt in batch:
                self.add(device, receipt)
        if refused:
            return
        self.told += [
            (UpdateKey.parse(device, receipt.update), receipt.state)
            for receipt in batch
            if receipt.state in LASTING
        ]


def _batch(receipts: Iterable[Receipt], room: int) -> Iterator[Receipt]:
    room -= 64
    for count, receipt in enumerate(receipts):
        # A reason is text of people and may double when quoted; a chunk number takes 7 digits.
        room -= 160 + 6 * len(receipt.reason) + 8 * len(receipt.missing)
        if count and (count == BATCH or room < 0):
            return
        yield receipt
