"""From chunks to whole, checked updates in the registry. Refuses to believe what it is sent.

Every method runs within a transaction of the registry; the server acknowledges the messages and
sends the receipts only after that was committed. Nothing is cached here, so a transaction that
fails leaves nothing behind.

Bounds: a device keeps at most `PARTIALS_PER_DEVICE` unfinished updates and as many bytes as the
largest two it may send; all devices together ``partial_bytes``. Beyond that others of its own go,
then the one longest untouched of all, and its device, having no receipt, sends it again.
"""

import contextlib
from collections.abc import Mapping
from typing import NamedTuple

from broker.receiving.hearing import Heard
from broker.receiving.incoming import ArrivedChunk
from broker.records.device_records import DeviceRecords
from broker.records.partial_records import Partial
from broker.records.schema import MIN_CHUNK
from broker.records.settled_ranges import MAX_RANGES
from broker.records.update_records import UpdateKey, UpdateRecords
from models.errors import PayloadError
from models.protocol.chunked_transfer import Layout
from models.protocol.messages import Receipt, Status
from models.protocol.update import UpdateHeader, decode_header, payload_of
from models.protocol.update_life import ReceiptEvent, ReceiptState

__all__ = ["InboxLimits", "TaskView", "UpdateInbox", "largest_update"]

MAX_CHUNK = 120 * 1024
PARTIALS_PER_DEVICE = 8
SLACK = 64 * 1024  # bytes of an update beyond its values: header, centers, container


class InboxLimits(NamedTuple):
    """How much may lie here; bytes but for ``devices``."""

    partial_bytes: int
    waiting_bytes: int
    devices: int


class TaskView(NamedTuple):
    """What the inbox must know of a task."""

    newest: int  # release
    largest: int  # bytes of an update, header and payload


def largest_update(parameters: int, limit: int) -> int:
    """Return the size in bytes beyond which no honest update of so many parameters is.

    Eight bytes for each: a float32 and a 32-bit position, uncompressed.
    """
    return min(8 * parameters + SLACK, limit)


class UpdateInbox:
    """Takes chunks and statuses into the registry, and says what to answer."""

    def __init__(self, devices: DeviceRecords, updates: UpdateRecords, limits: InboxLimits) -> None:
        self._devices = devices
        self._updates = updates
        self._partials = updates.partials
        self._limits = limits

    def has_room(self) -> bool:
        """Whether another update may be stored; if not, devices keep theirs and try again."""
        return self._updates.waiting_bytes() < self._limits.waiting_bytes

    def take_heard(self, heard: Mapping[str, Heard]) -> None:
        """Record when devices were heard, if there is room for those that are new."""
        for device, (at, is_here) in heard.items():
            if not self._devices.note_heard(device, at, is_here=is_here) and is_here:
                with contextlib.suppress(PayloadError):
                    self._introduce(device)
                    self._devices.note_heard(device, at, is_here=is_here)

    def take_status(
        self, device: str, status: Status, wall: float, *, is_retained: bool = False
    ) -> bool:
        """Record what ``device`` says of itself; return whether two boards speak by its name.

        Of a device that was forgotten neither a goodbye nor what ``is_retained`` is news.

        Raises:
            PayloadError: there is no room for another device.
        """
        is_double = self._devices.note_status(device, status, wall)
        if is_double is None:
            is_old = is_retained or not status.online
            if is_old and self._devices.is_forgotten(device):
                return False
            self._introduce(device)
            is_double = self._devices.note_status(device, status, wall)
        return bool(is_double)

    def count_garbage(self, device: str) -> None:
        """Count a message of ``device`` that was none of ours, if there is room to."""
        with contextlib.suppress(PayloadError):
            self._count(device, garbage=1)

    def take_chunk(
        self, chunk: ArrivedChunk, tasks: Mapping[str, TaskView], wall: float
    ) -> Receipt | None:
        """Keep one chunk; return the receipt that its device is owed now, if any.

        Raises:
            PayloadError: it is nothing that we could keep; the device is owed no answer.
        """
        key, data = UpdateKey.parse(chunk.device, chunk.update_id), chunk.data
        self._count(key.device, bytes_received=len(data))
        if known := self._updates.whole(key):
            self._devices.count(key.device, duplicates=1)
            return known if chunk.number == 0 else None
        if not 0 < len(data) <= MAX_CHUNK:
            raise PayloadError(f"a chunk of {len(data)} bytes, 1 to {MAX_CHUNK} are allowed")
        partial = self._partials.partial(key)
        if partial is None:
            self._check_room_for_update(key)
        if chunk.number == 0:
            return self._take_first(key, chunk, tasks, wall)
        largest = max((task.largest for task in tasks.values()), default=0)
        if partial is None or not partial.size:
            partial = Partial(0, 0)
            self._check_without_header(key, chunk.number, len(data), largest)
        else:
            _layout(partial).check(chunk.number, data)
        return self._keep(key, partial, chunk.number, data, largest, wall)

    def _check_without_header(self, key: UpdateKey, number: int, size: int, largest: int) -> None:
        """Refuse a chunk that no update could have, while chunk 0 does not say which this one has.

        Raises:
            PayloadError: why. An honest device whose chunk 0 got lost may be met by this if it cut
                its update anew; it sends again what is missing.
        """
        if number * MIN_CHUNK > largest:
            raise PayloadError(f"chunk {number} is beyond the largest update of all tasks")
        if self._partials.held(key).size + size > largest:
            raise PayloadError(f"chunks without the first of more than {largest} bytes together")
        short = self._partials.short_chunk(key)
        if size >= MIN_CHUNK or short is None or short == number:
            return
        if number < short:
            raise PayloadError(f"only the last chunk may be shorter than {MIN_CHUNK} bytes")
        self._partials.drop_chunk(key, short)  # it was not the last: damaged on its way

    def _take_first(
        self, key: UpdateKey, chunk: ArrivedChunk, tasks: Mapping[str, TaskView], wall: float
    ) -> Receipt | None:
        header, data = None, chunk.data
        try:
            header, length = chunk.opening
            size = length + header.payload_size
            _check_header(header, size, len(data), tasks)
        except PayloadError as error:
            self._updates.refuse_unseen(key, header, str(error)[:400], wall)
            return Receipt(key.update_id, ReceiptState.REFUSED, reason=str(error)[:400])
        if size == len(data):
            return self._finish(key, data, (header, length), wall)
        partial = Partial(size, len(data))
        before = self._partials.partial(key)
        if before != partial:
            if before and before.size:  # the device cuts it otherwise now
                self._partials.drop_partial(key, ReceiptEvent.EVICTED)
            self._drop_unfitting(key, _layout(partial))
        return self._keep(key, partial, 0, data, tasks[header.task].largest, wall)

    def _drop_unfitting(self, key: UpdateKey, layout: Layout) -> None:
        """Drop the chunks that came before the first and are none of this ``layout``."""
        for number, found in self._partials.chunk_sizes(key).items():
            if number >= layout.count or found != layout.length(number):
                self._partials.drop_chunk(key, number)

    def _keep(
        self, key: UpdateKey, partial: Partial, number: int, data: bytes, largest: int, wall: float
    ) -> Receipt | None:
        self._partials.keep_partial(key, partial, wall)
        if not self._partials.keep_chunk(key, number, data):
            self._devices.count(key.device, duplicates=1)
            return None
        self.evict(key, largest)
        if not partial.size or self._partials.held(key).chunks < _layout(partial).count:
            return None
        return self._finish(key, self._partials.assemble(key), None, wall)

    def _finish(
        self, key: UpdateKey, data: bytes, opening: tuple[UpdateHeader, int] | None, wall: float
    ) -> Receipt | None:
        """Store the update that is whole now; where it is damaged, ask for all of it again.

        ``opening``: what it begins with, where that was just read.
        """
        try:
            header, start = opening or decode_header(data)
            payload_of(header, data[start:])
        except PayloadError:  # damaged on its way, or chunks of two tries: all of it again
            state = self._partials.drop_partial(key, ReceiptEvent.DAMAGED)
            self._devices.count(key.device, garbage=1)
            return Receipt(key.update_id, state)
        self._updates.store(key, header, data, wall)
        return Receipt(key.update_id, ReceiptState.STORED)

    def evict(self, key: UpdateKey, largest: int) -> None:
        """Make room for ``key`` at the cost of unfinished updates, its device's own first."""
        own = [other for other in self._partials.partials_of(key.device) if other != key]
        while own and (
            len(own) >= PARTIALS_PER_DEVICE
            or self._partials.partial_bytes(key.device) > 2 * (largest + MAX_CHUNK)
        ):
            self._partials.drop_partial(own.pop(0), ReceiptEvent.EVICTED)
        while self._partials.partial_bytes() > self._limits.partial_bytes:
            oldest = own.pop(0) if own else self._partials.oldest_partial(but=key)
            if oldest is None:
                break
            self._partials.drop_partial(oldest, ReceiptEvent.EVICTED)

    def _count(self, device: str, **counts: int) -> None:
        if not self._devices.count(device, **counts):
            self._introduce(device)
            self._devices.count(device, **counts)

    def _introduce(self, device: str) -> None:
        if self._devices.how_many() >= self._limits.devices:
            raise PayloadError(
                f"no room for device {device}: {self._limits.devices} are known "
                f"([storage] max_devices)"
            )
        self._devices.introduce(device)

    def _check_room_for_update(self, key: UpdateKey) -> None:
        if self._updates.settled.ranges_of(key.device) >= MAX_RANGES:
            raise PayloadError(
                f"device {key.device} used up its {MAX_RANGES} ranges of update numbers"
            )


def _layout(partial: Partial) -> Layout:
    return Layout(partial.size, partial.chunk_size)


def _check_header(
    header: UpdateHeader, size: int, first: int, tasks: Mapping[str, TaskView]
) -> None:
    """Refuse an update that this server will never fold.

    Raises:
        PayloadError: why.
    """
    task = tasks.get(header.task)
    if task is None:
        raise PayloadError(f"task {header.task} is not served here")
    if not 1 <= header.base <= task.newest:
        raise PayloadError(f"trained on release {header.base}, the newest here is {task.newest}")
    if header.samples < 1 or header.payload_size < 1:
        raise PayloadError("an update of no samples or no payload")
    if size > task.largest:
        raise PayloadError(f"{size} bytes, an update of this task has at most {task.largest}")
    if first > size:
        raise PayloadError(f"{first - size} bytes behind the end of the update")
    if first < size and first < MIN_CHUNK:
        raise PayloadError(f"chunks of {first} bytes, at least {MIN_CHUNK} are allowed")
