"""What came in is committed, then acknowledged, then answered: that order is here, in `take_in`."""

import logging
from collections.abc import Mapping

from broker.devices.unserved import Unserved
from broker.publishing.publisher import Publisher
from broker.receiving.hearing import Hearing
from broker.receiving.incoming import (
    ArrivedChunk,
    Asked,
    Incoming,
    Malformed,
    SaidStatus,
    parsed,
)
from broker.receiving.nonsense import Nonsense
from broker.receiving.receipt_queue import ReceiptQueue
from broker.receiving.update_inbox import UpdateInbox
from broker.records.update_records import UpdateKey
from broker.releases.release_maker import Books
from broker.task_lane import TaskLane
from models.errors import PayloadError, TransientError
from models.protocol.messages import Receipt, Request, Status
from models.protocol.topics import Topics
from models.protocol.update_life import ReceiptState
from models.transport.link import Link, Received

__all__ = ["Reception"]

log = logging.getLogger(__name__)

# Chunks kept unacknowledged meanwhile; fewer than any broker sends ahead, whatever we allow it.
HELD_ON_FULL_DISK = 4

Answers = list[tuple[str, Receipt]]  # with the device that is owed it


class Reception:
    """Holds what came until it is durable, and queues what devices are told of it."""

    def __init__(
        self,
        topics: Topics,
        link: Link,
        books: Books,
        inbox: UpdateInbox,
        lanes: Mapping[str, TaskLane],
        publisher: Publisher,
        nonsense: Nonsense,
    ) -> None:
        self.link = link
        self.inbox = inbox
        self.hearing = Hearing()
        self.receipts = ReceiptQueue(topics)
        self.held: list[Incoming] = []  # not acknowledged yet
        self._topics = topics
        self._books = books
        self._lanes = lanes
        self._publisher = publisher
        self._nonsense = nonsense
        self._unserved = Unserved(lanes)
        self._suspect: Incoming | None = None  # being handled now

    def receive(self, message: Received, now: float, wall: float) -> Incoming:
        """Hold ``message`` for `take_in`; return what it says."""
        incoming = parsed(self._topics, message)
        self.held.append(incoming)
        self.hearing.take(incoming, now, wall)
        return incoming

    def take_in(self, now: float, wall: float) -> None:
        """Commit everything that came, together; then acknowledge it and queue the receipts.

        Raises:
            TransientError: the disk is full or failing; all is held as before.
        """
        told, is_noting = self.receipts.told, self.hearing.due(now)
        if not self.held and not told and not is_noting:
            return
        answers: Answers = []
        is_writing = any(not isinstance(incoming.says, Asked) for incoming in self.held)
        is_noting = is_noting or is_writing or bool(told)
        with self._books.registry.transaction():
            for incoming in self.held:
                self._suspect = incoming
                answers += self._take(incoming, now, wall)
            self._suspect = None
            self._books.updates.was_told(told)
            if is_noting:
                self.inbox.take_heard(self.hearing.unnoted())
        if is_noting:
            self.hearing.noted()
        told.clear()
        for incoming in self.held:
            self.link.acknowledge(incoming.message)
        self.held.clear()
        for device, receipt in answers:
            self.receipts.add(device, receipt)

    def _take(self, incoming: Incoming, now: float, wall: float) -> Answers:
        """Take one message into the registry; return the receipts that are owed for it."""
        device, message = incoming.device, incoming.message
        try:
            match incoming.says:
                case ArrivedChunk() as chunk:
                    return self._take_chunk(chunk, wall)
                case SaidStatus(_, Status() as status):
                    if self.inbox.take_status(device, status, wall, is_retained=message.retained):
                        self._nonsense.say(
                            device, "two boards have this identity: was an SD card cloned?"
                        )
                    self._unserved.look(device, status)
                case Asked(_, Request() as request):
                    return self._answer(device, request, now)
                case SaidStatus(_, Malformed(why)) | Asked(_, Malformed(why)) | Malformed(why):
                    raise PayloadError(why)
        except PayloadError as error:
            if device:
                self.inbox.count_garbage(device)
            self._nonsense.say(device, f"message dropped: {error}{self._whose(message)}")
        return []

    def _take_chunk(self, chunk: ArrivedChunk, wall: float) -> Answers:
        device = chunk.device
        if not self.inbox.has_room():
            self._nonsense.say(device, "update not taken: those that wait fill max_waiting_mb")
            return []
        tasks = {task: lane.view for task, lane in self._lanes.items()}
        receipt = self.inbox.take_chunk(chunk, tasks, wall)
        if receipt is None:
            return []
        if receipt.state is ReceiptState.STORED:
            for lane in self._lanes.values():
                lane.line.changed()
            log.debug("update stored device=%s id=%s", device, receipt.update)
        elif receipt.state is ReceiptState.REFUSED:
            refused = f"update refused id={receipt.update} reason={receipt.reason}"
            self._nonsense.say(device, refused)
        return [(device, receipt)]

    def _answer(self, device: str, request: Request, now: float) -> Answers:
        """Answer a request; it changes nothing."""
        if request.blobs:
            self._publisher.ask_chunks(request.blobs, now)
        if request.release:
            self._publisher.ask_manifest(request.release, now)
        keys = [UpdateKey.parse(device, update_id) for update_id in request.receipts]
        return [(device, self._books.updates.receipt(key)) for key in keys]

    def _whose(self, message: Received) -> str:
        """Return what it means that a message came which we did not ask for."""
        if message.topic.startswith(self._topics.prefix):
            return ""
        return (
            "; the server of another fleet uses the same MQTT client id: give each a [fleet] "
            "client_id of its own"
        )

    def answer_without_disk(self, now: float) -> None:
        """Answer requests, which only read, and let go of what the broker need not hold for us.

        The broker sends a few messages ahead of our acknowledgements, so without this nothing
        would come through any more. What is dropped was promised to nobody: its device has no
        receipt, and sends it again.
        """
        kept: list[Incoming] = []
        dropped = 0
        for incoming in self.held:
            is_chunk = isinstance(incoming.says, ArrivedChunk)
            if is_chunk and len(kept) < HELD_ON_FULL_DISK:
                kept.append(incoming)
                continue
            try:
                match incoming.says:
                    case Asked(device, Request() as request):
                        for _, receipt in self._answer(device, request, now):
                            self.receipts.add(device, receipt)
                    case Asked(_, Malformed(why)) | Malformed(why):
                        raise PayloadError(why)
            except (PayloadError, TransientError) as error:
                self._nonsense.say("", f"message dropped: {error}")
            dropped += is_chunk
            self.link.acknowledge(incoming.message)
        self.held[:] = kept
        if dropped:
            log.warning("chunks dropped for want of disk count=%d; devices repeat them", dropped)

    def drop_suspect(self) -> None:
        """Let go of the message during which `take_in` raised something unexpected."""
        if self._suspect is not None and self._suspect in self.held:
            self.held.remove(self._suspect)
            self.link.acknowledge(self._suspect.message)
        self._suspect = None
