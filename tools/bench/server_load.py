"""What a fleet does to its server, as a load to measure it with: real updates, over any link.

Each device sends its next update when the last one is stored, as agents do, so ``devices`` is how
many updates are under way at once. Several devices share a link.
"""

import hashlib
import random
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from broker.records.device_records import DeviceRecords
from broker.records.registry import Registry
from models.codec.payload import compress
from models.errors import TransientError
from models.protocol.chunked_transfer import split
from models.protocol.manifest import CodecPlan, TrainingPlan
from models.protocol.messages import Receipts, Status, decode_message
from models.protocol.topics import DeviceTopic, Topics
from models.protocol.update import UpdateHeader, encode_update
from models.protocol.update_life import ReceiptState
from models.task.bundle import Bundle
from models.task.params import flatten
from models.transport.link import Connected, Disconnected, Link, Received
from tools.author.bundle.export_model import read_tensors
from tools.author.data.device_split import split_devices
from tools.author.data.labeled_data import Dataset

__all__ = ["INSTALLATION", "Load", "fill_registry", "learned_deltas", "updates_of"]

INSTALLATION = 0x0BADCAFE
CHUNK = 32 * 1024  # bytes; as devices cut at first


def learned_deltas(bundle: Bundle, data: Dataset, devices: int) -> list[np.ndarray]:
    """Return what each device learns in an epoch on its share of ``data``, float32 (d,)."""
    from models.learning.training_loop import train

    tensors = read_tensors(bundle)
    base = flatten(tensors, bundle.spec.shared)
    plan = TrainingPlan(open=True, epochs=1.0, batch=16, learning_rate=0.01, mu=0.0)
    deltas = []
    for number, part in enumerate(split_devices(data, devices, seed=1, limit=600)):
        x, y = data.x[part.train], data.y[part.train]
        trained = train(bundle.train, bundle.spec, tensors, x, y, plan, seed=number)
        deltas.append(flatten(trained.tensors, bundle.spec.shared) - base)
    return deltas


def updates_of(bundle: Bundle, deltas: Sequence[np.ndarray], plan: CodecPlan) -> list[bytes]:
    """Return ``deltas`` as devices send them, learned on release 1."""
    updates = []
    for delta in deltas:
        payload = compress(delta, bundle.spec.shared, plan)
        digest = hashlib.sha256(payload).hexdigest()
        header = UpdateHeader(bundle.spec.task, 1, 100, 7, 1.0, 0.5, None, len(payload), digest)
        updates.append(encode_update(header, payload))
    return updates


class Load:
    """``count`` updates of ``devices`` devices; the caller drives it with `tick`."""

    def __init__(
        self,
        links: Sequence[Link],
        topics: Topics,
        updates: Sequence[bytes],
        *,
        devices: int,
        count: int,
    ) -> None:
        self._topics = topics
        self._updates = updates
        self._count = count
        self._links = {link: deque[tuple[str, bytes]]() for link in links}
        self._devices = {
            link: [f"device-{n}" for n in range(devices) if n % len(links) == lane]
            for lane, link in enumerate(links)
        }
        self._started = 0
        self._current: dict[str, str] = {}  # update under way, by device
        self._folded: set[tuple[str, str]] = set()
        self.stored = 0
        self.began_at = 0.0  # when the first one was sent, of the monotonic clock

    @property
    def folded(self) -> int:
        return len(self._folded)

    @property
    def unfolded(self) -> int:
        return self._count - len(self._folded)

    def tick(self) -> None:
        """Take in what came, send what may be sent; never waits.

        Raises:
            TransientError: the connection broke, or the server refused an update.
        """
        for link, queued in self._links.items():
            for event in link.poll(0.0):
                match event:
                    case Connected():
                        link.subscribe([self._topics.receipt(d) for d in self._devices[link]])
                        for device in self._devices[link]:
                            self._next(link, device)
                    case Disconnected(reason):
                        raise TransientError(f"the load lost its broker: {reason}")
                    case Received():
                        self._take(link, event)
                        link.acknowledge(event)
            while queued and link.window() > 0:
                self.began_at = self.began_at or time.monotonic()
                link.publish(*queued.popleft())

    def _take(self, link: Link, message: Received) -> None:
        place = self._topics.parse(message.topic)
        assert isinstance(place, DeviceTopic)
        for receipt in decode_message(message.payload, Receipts).receipts:
            if receipt.state is ReceiptState.REFUSED:
                raise TransientError(f"the server refused an update: {receipt.reason}")
            if receipt.state is ReceiptState.FOLDED:
                self._folded.add((place.device, receipt.update))
            is_stored = receipt.state in {ReceiptState.STORED, ReceiptState.FOLDED}
            if is_stored and receipt.update == self._current.get(place.device):
                self.stored += 1
                self._next(link, place.device)

    def _next(self, link: Link, device: str) -> None:
        number = 1 + int(self._current.pop(device, "-0").partition("-")[2])
        if self._started == self._count:
            return
        update_id = self._current[device] = f"{INSTALLATION:08x}-{number}"
        update = self._updates[self._started % len(self._updates)]
        self._started += 1
        for index, chunk in enumerate(split(update, CHUNK)):
            self._links[link].append((self._topics.update(device, update_id, index), chunk))


def fill_registry(registry: Registry, *, devices: int, past: int) -> None:
    """Make a fleet that has sent ``past`` updates: ranges, as the server itself leaves them."""
    rng = random.Random(1)
    per_device = past // devices
    status = Status(online=True, task="light", release=7, installation=f"{INSTALLATION:08x}")
    known = DeviceRecords(registry)
    with registry.transaction():
        for number in range(devices):
            device = f"device-{number}"
            known.introduce(device)
            known.note_status(device, status, 1000.0)
            refused = rng.randrange(1, per_device)  # one in the middle: three ranges
            for first, last, state in (
                (1, refused - 1, "folded"),
                (refused, refused, "refused"),
                (refused + 1, per_device, "folded"),
            ):
                if first <= last:
                    registry.execute(
                        "INSERT INTO settled VALUES (?, ?, ?, ?, ?, ?)",
                        *(device, INSTALLATION, first, last, state, 7),
                    )
