"""The server's loop: what came in is committed, then acknowledged, then answered; what is due is
folded; what is published goes out. It decides nothing itself and knows no clock: `Server` is
driven from outside by ``handle(event, now)`` and ``tick(now)``, by `broker.serving` or a simulator.
"""

import contextlib
import logging
from collections.abc import Sequence
from functools import partial

from broker.devices.forgetting import Forgetting
from broker.devices.hearing import Hearing
from broker.devices.unserved import Unserved
from broker.lease.echoes import Echoes
from broker.lease.server_state import Connection, ServerState
from broker.receiving.receipt_queue import ReceiptQueue
from broker.receiving.update_inbox import Inbox, TaskView
from broker.records.device_records import DeviceRecords
from broker.records.registry import Registry
from broker.records.update_records import UpdateKey, UpdateRecords
from broker.releases.lost_releases import ALONE_S, LostReleases
from broker.releases.publisher import Publisher
from broker.releases.release_line import ReleaseLine
from broker.retry import LONGEST_RETRY_S, Retry
from models.errors import PayloadError, TransientError
from models.protocol.manifest import decode_manifest
from models.protocol.messages import Receipt, Request, Status, decode_message
from models.protocol.topics import DeviceTopic, Topics, UpdateChunk
from models.protocol.update import MAX_HEADER_BYTES, decode_header
from models.protocol.update_life import ReceiptEvent, ReceiptState
from models.transport.link import (
    Connected,
    Disconnected,
    Event,
    Link,
    Published,
    Received,
    Subscribed,
)
from models.transport.refusals import Refusals
from models.version import VERSION

__all__ = ["Server"]

log = logging.getLogger(__name__)

HELD_ON_FULL_DISK = 4  # chunks kept unacknowledged meanwhile; half of what the broker sends ahead
IDLE_S = 10.0  # at most between two ticks: the watchdog wants to hear of us
SILENT_S = 180.0  # without a word from the broker, the status line says so
RECEIPTS_AT_START = 100_000  # of those the broker had not taken over; devices ask for others


class Server:
    """All of one fleet's aggregator but the clock, the process and the choice of parts."""

    def __init__(
        self,
        *,
        topics: Topics,
        link: Link,
        registry: Registry,
        devices: DeviceRecords,
        updates: UpdateRecords,
        inbox: Inbox,
        lines: Sequence[ReleaseLine],
        largest: dict[str, int],
        publisher: Publisher,
    ) -> None:
        self._topics = topics
        self._link = link
        self._registry = registry
        self._devices = devices
        self._updates = updates
        self._inbox = inbox
        self._lines = {line.task: line for line in lines}
        self._largest = largest  # bytes of an update, by task
        self._publisher = publisher
        self._receipts = ReceiptQueue(topics)
        self._hearing = Hearing(topics)
        self._forgetting = Forgetting(topics, registry, devices, updates)
        self._connection = Connection()
        self._refusals = Refusals()  # of what we read and write
        self._echoes = Echoes()
        self._unserved = Unserved(self._lines)
        self._held: list[Received] = []  # not acknowledged yet
        self._told: list[tuple[UpdateKey, str]] = []  # receipts the broker took over, not noted yet
        self._subscribed = False
        self._intake = Retry("take in updates")
        self._removal = Retry("forget devices")
        self._overtaking = {task: Retry(f"overtake releases of {task}") for task in self._lines}
        self._folding = {
            task: Retry(f"fold updates of {task}", longest_s=LONGEST_RETRY_S)
            for task in self._lines
        }
        self._planning = Retry("note what to publish")
        by_task = (*self._overtaking.values(), *self._folding.values())
        self._retries = (self._intake, self._planning, self._removal, *by_task)
        self._lost = {task: LostReleases() for task in self._lines}
        self._looked_at: set[str] = set()  # tasks whose retained manifest we have seen
        self._is_planned = True  # what to publish, since the last release
        self._suspect: Received | None = None  # being handled now
        self._said: dict[str, int] = {}  # nonsense seen in this run, by device

    def start(self, now: float) -> None:
        """Open every task's releases and remember what still has to be told.

        Raises:
            UsageError: a bundle does not fit.
            TransientError, OSError: the disk is full or failing.
        """
        for line in self._lines.values():
            line.open(now)
        self._refuse_tasks_not_served()
        self._publisher.plan()
        for key, receipt in self._updates.untold(RECEIPTS_AT_START):
            self._receipts.add(key.device, receipt)

    def _refuse_tasks_not_served(self) -> None:
        """Give back what waits for a task that left broker.toml: nobody would ever fold it."""
        for task in self._updates.tasks_waiting():
            reason = f"task {task} is not served here any more"
            while task not in self._lines and (some := self._updates.waiting(task, 1000)):
                try:
                    with self._registry.transaction():
                        for update in some:
                            self._updates.settle(update, ReceiptEvent.REFUSED, reason=reason)
                except TransientError as error:  # it takes room, and the next start tries again
                    log.error("cannot refuse what waits for task=%s: %s", task, error)
                    break
                log.warning("updates refused count=%d reason=%s", len(some), reason)

    @property
    def registry(self) -> Registry:
        return self._registry

    @property
    def status(self) -> str:
        """One line for ``systemctl status``."""
        releases = ", ".join(
            f"{line.task} at release {line.newest}" for line in self._lines.values()
        )
        if problem := self._problem:
            return f"{releases}; {problem}"
        if not self._connection.is_up:
            return f"{releases}; not connected to the MQTT broker"
        if self._link.silence_s() > SILENT_S:
            return f"{releases}; the MQTT broker is silent for {self._link.silence_s():.0f} s"
        return releases

    @property
    def _problem(self) -> str:
        problems = [retry.problem for retry in self._retries]
        if self._connection.is_up:
            self._refusals.may_write("device/+/receipt", self._receipts.refused)
            problems += [self._refusals.sentence("this server", "it"), self._publisher.problem]
            if not any(problems):  # else it is known why
                problems.append(self._echoes.problem(self._topics.prefix))
        return "; ".join(dict.fromkeys(filter(None, problems)))

    def state(self, started: float, now: float) -> ServerState:
        """Return what people are told of this server, which was ``started`` then."""
        connection = self._connection
        return ServerState(
            version=VERSION,
            started=started,
            seen=now,
            is_connected=connection.is_up,
            since=connection.since or started,
            listening_since=connection.listening_since,
            reason="" if connection.is_up else connection.reason,
            problem=self._problem,
            tasks=tuple(self._lines),
        )

    # Events

    def handle(self, event: Event, now: float) -> None:
        """Take one event of the link. Messages wait for `tick`, which commits them together."""
        match event:
            case Connected(session_present, limits):
                self._on_connected(session_present, now)
                self._publisher.connected(limits)
            case Disconnected(reason):
                self._hearing.disconnected()
                self._echoes.disconnected()
                self._connection = self._connection.lost(reason, now)
                log.warning("disconnected from the MQTT broker reason=%s", reason)
            case Subscribed(topics, refused):
                for topic in topics:
                    self._refusals.may_read(topic.removeprefix(self._topics.prefix), refused)
            case Published(token, refused):
                self._told += self._receipts.published(token, refused)
                self._publisher.published(token, refused, now)
                self._forgetting.published(token, refused)
            case Received():
                self._held.append(event)
                self._hearing.take(event, now)
                self._look_for_lost_releases(event)

    def _on_connected(self, session_present: bool, now: float) -> None:
        self._hearing.connected(now, session_present=session_present)
        self._connection = self._connection.made(now)
        self._echoes.connected(self._lines, now)
        log.info("connected to the MQTT broker session_present=%s", session_present)
        topics = self._topics
        # To see if we are behind them; and the last thing that comes from the past (`Hearing`).
        own = [topics.release(task) for task in self._lines]
        if session_present and self._subscribed:
            self._link.subscribe(own)
        else:
            self._link.subscribe(
                [topics.all_updates, topics.all_statuses, topics.all_requests, *own]
            )
            self._subscribed = True
        if not session_present:
            self._publisher.broker_was_wiped()

    def _look_for_lost_releases(self, message: Received) -> None:
        """Take note of releases that the fleet has and the registry does not know.

        This is before any update is looked at, which would be refused for its unknown release.
        """
        with contextlib.suppress(PayloadError):  # said when it is taken in
            match self._topics.parse(message.topic):
                case str(task) if task in self._lines and message.payload:
                    if self._echoes.came(task):
                        self._publisher.broker_was_wiped()
                    self._look_at_manifest(task, message)
                case UpdateChunk(device, _, 0):
                    header, _ = decode_header(message.payload[:MAX_HEADER_BYTES])
                    self._device_has(device, header.task, header.base)
                case DeviceTopic(device, "status") if message.payload:
                    status = decode_message(message.payload, Status)
                    self._device_has(device, status.task, status.release)

    def _look_at_manifest(self, task: str, message: Received) -> None:
        """Take note of what stands on a topic that only the fleet's server writes.

        The first retained one tells whether the registry is behind its fleet. When another server
        had the lease meanwhile, a new `Server` is made (`leaseholder.py`), which looks anew. So
        what is overtaken is a predecessor's; later ones, of a server that asks for no lease, are
        only said: the two would overtake each other for ever. What comes before it without being
        retained is what the session kept of a predecessor's.
        """
        line = self._lines[task]
        try:
            manifest = decode_manifest(message.payload)
        except PayloadError as error:
            self._say("", f"message dropped: {error}")
            return
        if manifest.task != task:
            return
        if message.retained and task not in self._looked_at:
            self._looked_at.add(task)
            if not line.made(manifest) and not self._lost[task].broker_retains(
                manifest.release, newest=line.newest
            ):
                log.error("a release that is not taken for ours number=%d", manifest.release)
        elif task in self._looked_at and manifest.release > line.newest:
            self._say("", f"somebody else publishes releases of {task}: is there another server?")

    def _device_has(self, device: str, task: str, release: int) -> None:
        if task not in self._lines:
            return
        newest = self._lines[task].newest
        if release > newest:
            self._say(device, f"has release {release} of {task}, the newest here is {newest}")
        self._lost[task].device_has(device, release, newest=newest)

    # The work

    def tick(self, now: float) -> float:
        """Do what can be done at ``now``; return when to be called again at the latest."""
        self._overtake(now)  # before updates are refused for the releases it is about
        self._intake.run(now, partial(self._take_in, now))
        if self._intake.problem:
            self._answer_without_disk(now)
        self._removal.run(now, partial(self._forgetting.look, now))
        self._fold(now)
        if not self._is_planned or self._publisher.is_outdated:
            self._planning.run(now, self._plan)
        self._receipts.pump(self._link)
        self._publisher.pump(self._link, now)
        self._look_for_echoes(now)
        if self._hearing.is_listening(now):
            self._forgetting.pump(self._link)
        return self._wake_at(now)

    def _look_for_echoes(self, now: float) -> None:
        if missing := self._echoes.due(now, is_idle=self._publisher.is_idle):
            self._link.subscribe([self._topics.release(task) for task in missing])
            for task in missing:
                self._publisher.ask_manifest(task, now)

    def _take_in(self, now: float) -> None:
        """Commit everything that came, together; then acknowledge it and queue the receipts."""
        if not self._held and not self._told and not self._hearing.due(now):
            return
        answers: list[tuple[str, Receipt]] = []
        is_writing = any(not message.topic.endswith("/request") for message in self._held)
        notes_heard = is_writing or bool(self._told) or self._hearing.due(now)
        with self._registry.transaction():
            for message in self._held:
                self._suspect = message
                answers += self._take(message, now)
            self._suspect = None
            self._updates.was_told(self._told)
            if notes_heard:
                self._inbox.take_heard(self._hearing.unnoted())
        if notes_heard:
            self._hearing.noted()
        self._told.clear()
        for message in self._held:
            self._link.acknowledge(message)
        self._held.clear()
        for device, receipt in answers:
            self._receipts.add(device, receipt)

    def _take(self, message: Received, now: float) -> list[tuple[str, Receipt]]:
        """Take one message into the registry; return the receipts that are owed for it."""
        device = ""
        try:
            place = self._topics.parse(message.topic)
            match place:
                case UpdateChunk(device):
                    if not self._inbox.has_room():
                        self._say(device, "update not taken: those that wait fill max_waiting_mb")
                        return []
                    receipt = self._inbox.take_chunk(place, message.payload, self._view(), now)
                    if receipt is None:
                        return []
                    self._note_receipt(device, receipt)
                    return [(device, receipt)]
                case DeviceTopic(device, "status"):
                    if message.payload:  # else an operator cleared the retained message
                        self._take_status(device, message, now)
                case DeviceTopic(device, "request"):
                    return self._answer(device, message.payload, now)
        except PayloadError as error:
            if device:
                self._inbox.count_garbage(device)
            self._say(device, f"message dropped: {error}{self._whose(message)}")
        return []

    def _take_status(self, device: str, message: Received, now: float) -> None:
        status = decode_message(message.payload, Status)
        if self._inbox.take_status(device, status, now, is_retained=message.retained):
            self._say(device, "two boards have this identity: was an SD card cloned?")
        self._unserved.look(device, status)

    def _whose(self, message: Received) -> str:
        """Return what it means that a message came which we did not ask for."""
        if message.topic.startswith(self._topics.prefix):
            return ""
        return (
            "; the server of another fleet uses the same MQTT client id: give each a [fleet] "
            "client_id of its own"
        )

    def _note_receipt(self, device: str, receipt: Receipt) -> None:
        if receipt.state is ReceiptState.STORED:
            for line in self._lines.values():
                line.changed()
            log.debug("update stored device=%s id=%s", device, receipt.update)
        elif receipt.state is ReceiptState.REFUSED:
            self._say(device, f"update refused id={receipt.update} reason={receipt.reason}")

    def _answer(self, device: str, payload: bytes, now: float) -> list[tuple[str, Receipt]]:
        """Answer a request; it changes nothing."""
        request = decode_message(payload, Request)
        if request.blobs:
            self._publisher.ask_chunks(request.blobs, now)
        if request.release:
            self._publisher.ask_manifest(request.release, now)
        keys = [UpdateKey.parse(device, update_id) for update_id in request.receipts]
        return [(device, self._updates.receipt(key)) for key in keys]

    def _view(self) -> dict[str, TaskView]:
        return {
            line.task: TaskView(line.newest, self._largest[line.task])
            for line in self._lines.values()
        }

    def _plan(self) -> None:
        self._publisher.plan()
        self._is_planned = True

    def _overtake(self, now: float) -> None:
        """Catch up with releases that devices have and this registry has forgotten."""
        for task, line in self._lines.items():
            self._overtaking[task].run(now, partial(self._overtake_one, task, line, now))

    def _overtake_one(self, task: str, line: ReleaseLine, now: float) -> None:
        lost = self._lost[task]
        if release := lost.highest(line.newest, now, partial(self._is_alone, task, now)):
            line.overtake(release, now)
            lost.overtook(release, now)
            self._is_planned = False

    def _is_alone(self, task: str, now: float, device: str) -> bool:
        return not self._devices.was_another_heard(device, task, now - ALONE_S)

    def _fold(self, now: float) -> None:
        for task, line in self._lines.items():
            self._folding[task].run(now, partial(self._fold_one, line, now))

    def _fold_one(self, line: ReleaseLine, now: float) -> None:
        before = line.newest
        line.ask_again(now)
        due_at = line.due_at(now)
        settled = line.fold(now) if due_at is not None and due_at <= now else []
        self._is_planned = self._is_planned and line.newest == before
        for update in settled:
            self._receipts.add(update.key.device, self._updates.receipt(update.key))

    def _wake_at(self, now: float) -> float:
        times = [retry.at for retry in self._retries if retry.problem]
        for task, line in self._lines.items():
            if not self._folding[task].problem and (due_at := line.due_at(now)) is not None:
                times.append(due_at)
        return max(now, min([now + IDLE_S, *times]))

    # When the disk is full or failing

    def _answer_without_disk(self, now: float) -> None:
        """Answer requests, which only read, and let go of what the broker need not hold for us.

        The broker sends a few messages ahead of our acknowledgements, so without this nothing
        would come through any more. What is dropped was promised to nobody: its device has no
        receipt, and sends it again.
        """
        kept: list[Received] = []
        dropped = 0
        for message in self._held:
            is_chunk = "/update/" in message.topic
            if is_chunk and len(kept) < HELD_ON_FULL_DISK:
                kept.append(message)
                continue
            try:
                match self._topics.parse(message.topic):
                    case DeviceTopic(device, "request"):
                        for _, receipt in self._answer(device, message.payload, now):
                            self._receipts.add(device, receipt)
            except (PayloadError, TransientError) as error:
                self._say("", f"message dropped: {error}")
            dropped += is_chunk
            self._link.acknowledge(message)
        self._held = kept
        if dropped:
            log.warning("chunks dropped for want of disk count=%d; devices repeat them", dropped)

    def close(self) -> None:
        """Let go of the registry; what is not acknowledged is repeated to whoever serves next."""
        self._registry.close()

    def drop_suspect(self) -> None:
        """Let go of the message during which `tick` raised something unexpected."""
        if self._suspect is not None and self._suspect in self._held:
            self._held.remove(self._suspect)
            self._link.acknowledge(self._suspect)
        self._suspect = None

    def _say(self, device: str, what: str) -> None:
        """Log nonsense, but the second, fourth, eighth … time only: a log is finite, too."""
        count = self._said[device] = self._said.get(device, 0) + 1
        if len(self._said) > 10_000:
            self._said = {device: count}
        if count & (count - 1) == 0:
            log.warning("%s device=%s count=%d", what, device or "-", count)
