"""Devices that an operator removed: their rows, and what the broker retains of them.

``edgefold-broker forget`` is another process. It writes the name into the table `forgotten`, and
the running server (or the next one) does the rest, step by step, each of which is durable:

0. asked for;
1. the rows of the device are gone: what it said, its counters, its memory, its unfinished updates;
2. so is its retained status at the broker.

What became of its updates stays for ever, and what is stored is still folded: so an update is
folded at most once, and none with a receipt is lost, also when the device comes back. Until then
the row in `forgotten` keeps a status that the broker retained or queued from bringing it back; any
live word does (`broker.receiving.update_inbox`), with nothing lost.
"""

import logging

from broker.records.device_records import DeviceRecords
from broker.records.memory_records import MemoryRecords
from broker.records.registry import Registry
from broker.records.update_records import UpdateRecords
from models.errors import TransientError
from models.protocol.topics import Topics
from models.protocol.update_life import ReceiptEvent
from models.transport.link import Link

__all__ = ["Forgetting"]

log = logging.getLogger(__name__)

LOOK_S = 2.0  # between two looks at what is asked for
RESERVED = 2  # publications of the window that stay free for receipts
AT_ONCE = 100  # devices in one transaction


class Forgetting:
    """The server's side."""

    def __init__(
        self, topics: Topics, registry: Registry, devices: DeviceRecords, updates: UpdateRecords
    ) -> None:
        self._topics = topics
        self._registry = registry
        self._devices = devices
        self._partials = updates.partials
        self._memories = MemoryRecords(registry)
        self._looked_at: float | None = None
        self._retained: dict[str, None] | None = None  # to be cleared; None: to be read
        self.in_flight: dict[int, str] = {}

    def look(self, now: float) -> None:
        """Forget what is asked for, if it is time to look.

        Raises:
            TransientError: the disk is full or failing; what is done is done.
        """
        if self._looked_at is not None and now - self._looked_at < LOOK_S:
            return
        while asked := self._devices.to_be_forgotten()[:AT_ONCE]:
            with self._registry.transaction():
                for device in asked:
                    self.forget(device)
            for device in asked:
                log.info("device forgotten device=%s", device)
            self._retained = None
        if self._retained is None:
            self._retained = dict.fromkeys(self._devices.retained())
        self._looked_at = now

    def forget(self, device: str) -> None:
        """Drop the rows of ``device``, within a transaction; what became of its updates stays."""
        for key in self._partials.partials_of(device):
            self._partials.drop_partial(key, ReceiptEvent.EVICTED)
        self._devices.forget(device)
        self._memories.forget(device)

    def pump(self, link: Link) -> None:
        """Clear at the broker what is left of them, as far as the link's window allows.

        Not before all that the broker queued was taken in: one of them may have come back.
        """
        while self._retained and link.window() > RESERVED:
            device = next(iter(self._retained))
            del self._retained[device]
            try:
                is_gone = self._devices.is_forgotten(device)
            except TransientError as error:  # then at the next start
                log.warning("status not cleared device=%s: %s", device, error)
                continue
            if is_gone and device not in self.in_flight.values():
                self.in_flight[link.publish(self._topics.status(device), b"", retain=True)] = device

    def published(self, token: int, refused: str) -> None:
        """Take note that the broker cleared one, or why it did not want to."""
        device = self.in_flight.pop(token, None)
        if device is None:
            return
        if refused:
            log.warning(
                "cannot clear the status of a forgotten device: let the server write "
                "%sdevice/+/status; tried again at the next start device=%s reason=%s",
                *(self._topics.prefix, device, refused),
            )
            return
        try:
            with self._registry.transaction():
                self._devices.was_cleared(device)
        except TransientError as error:  # then it is cleared once more after a restart
            log.warning("status cleared, but not noted device=%s: %s", device, error)
