"""The server's loop: what came in is taken in, what is due is folded, what is published goes out.

It decides nothing itself and knows no clock: `Server` is driven from outside, by `broker.serving`
or a simulator, which pass both of them (`broker.two_clocks`).
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial

from broker.broker_contact import BrokerContact
from broker.devices.forgetting import Forgetting
from broker.lease.server_state import ServerState
from broker.publishing.publisher import Publisher
from broker.receiving.incoming import Announcement, ArrivedChunk, Incoming, SaidStatus
from broker.receiving.nonsense import Nonsense
from broker.receiving.update_inbox import UpdateInbox
from broker.reception import Reception
from broker.records.update_records import WaitingUpdate
from broker.releases.release_line import ReleaseLine
from broker.releases.release_maker import Books
from broker.retry import Retry
from broker.task_lane import TaskLane
from models.errors import TransientError
from models.protocol.messages import Status
from models.protocol.topics import Topics
from models.protocol.update_life import ReceiptEvent
from models.transport.link import (
    Connected,
    Disconnected,
    Event,
    Link,
    Published,
    Received,
    Subscribed,
)
from models.version import VERSION

__all__ = ["IDLE_S", "Server"]

log = logging.getLogger(__name__)

IDLE_S = 10.0  # at most between two ticks: the watchdog wants to hear of us
RECEIPTS_AT_START = 100_000  # of those the broker had not taken over; devices ask for others


class Server:
    """All of one fleet's aggregator but the clock, the process and the choice of parts.

    ``largest``: bytes of an update, by task.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        link: Link,
        books: Books,
        inbox: UpdateInbox,
        lines: Sequence[ReleaseLine],
        largest: Mapping[str, int],
        publisher: Publisher,
    ) -> None:
        nonsense = Nonsense()
        self.books = books
        self.lanes: Mapping[str, TaskLane] = {
            line.task: TaskLane(line, largest[line.task], books.devices, nonsense) for line in lines
        }
        self.publisher = publisher
        self.reception = Reception(topics, link, books, inbox, self.lanes, publisher, nonsense)
        self.forgetting = Forgetting(topics, books.registry, books.devices, books.updates)
        self._topics = topics
        self._link = link
        self._contact = BrokerContact(topics, link)
        self._intake = Retry("take in updates")
        self._removal = Retry("forget devices")
        self._planning = Retry("note what to publish")
        self._planned: list[int] = []  # the releases that the publisher knows of

    def start(self, now: float, wall: float) -> None:
        """Open every task's releases and remember what still has to be told.

        Raises:
            UsageError: a bundle does not fit.
            TransientError, OSError: the disk is full or failing.
        """
        for lane in self.lanes.values():
            lane.line.open(now, wall)
        self._refuse_tasks_not_served()
        self._plan()
        for key, receipt in self.books.updates.untold(RECEIPTS_AT_START):
            self.reception.receipts.add(key.device, receipt)

    def _refuse_tasks_not_served(self) -> None:
        """Give back what waits for a task that left broker.toml: nobody would ever fold it."""
        updates = self.books.updates
        for task in updates.tasks_waiting():
            reason = f"task {task} is not served here any more"
            while task not in self.lanes and (some := updates.waiting(task, 1000)):
                try:
                    with self.books.registry.transaction():
                        for update in some:
                            updates.settle(update, ReceiptEvent.REFUSED, reason=reason)
                except TransientError as error:  # it takes room, and the next start tries again
                    log.error("cannot refuse what waits for task=%s: %s", task, error)
                    break
                log.warning("updates refused count=%d reason=%s", len(some), reason)

    @property
    def status(self) -> str:
        """One line for ``systemctl status``."""
        lines = [lane.line for lane in self.lanes.values()]
        releases = ", ".join(f"{line.task} at release {line.newest}" for line in lines)
        return "; ".join(filter(None, (releases, self._problem or self._contact.silence)))

    @property
    def _problem(self) -> str:
        receipts = self.reception.receipts
        problems = [retry.problem for retry in self._retries]
        problems += self._contact.problems(self.publisher.problem, receipts.refused)
        if not any(problems):  # else it is known why
            problems.append(self._contact.echoes.problem(self._topics.prefix))
        return "; ".join(dict.fromkeys(filter(None, problems)))

    @property
    def _retries(self) -> list[Retry]:
        lanes = self.lanes.values()
        by_task = [*(lane.overtaking for lane in lanes), *(lane.folding for lane in lanes)]
        return [self._intake, self._planning, self._removal, *by_task]

    def state(self, started: float, wall: float) -> ServerState:
        """Return what people are told of this server, which was ``started`` then."""
        connection = self._contact.connection
        return ServerState(
            version=VERSION,
            started=started,
            seen=wall,
            is_connected=connection.is_up,
            since=connection.since or started,
            listening_since=connection.listening_since,
            reason="" if connection.is_up else connection.reason,
            problem=self._problem,
            tasks=tuple(self.lanes),
        )

    # Events

    def handle(self, event: Event, now: float, wall: float) -> None:
        """Take one event of the link. Messages wait for `tick`, which commits them together."""
        match event:
            case Connected(session_present, limits):
                self.reception.hearing.connected(now, session_present=session_present)
                self._contact.connected(session_present, self.lanes.keys(), now, wall)
                if not session_present:
                    self.publisher.broker_was_wiped()
                self.publisher.connected(limits)
            case Disconnected(reason):
                self.reception.hearing.disconnected()
                self._contact.disconnected(reason, wall)
            case Subscribed(topics, refused):
                self._contact.subscribed(topics, refused)
            case Published(token, refused):
                self.reception.receipts.published(token, refused)
                self.publisher.published(token, refused, now)
                self.forgetting.published(token, refused)
            case Received():
                self._look_for_lost_releases(self.reception.receive(event, now, wall))

    def _look_for_lost_releases(self, incoming: Incoming) -> None:
        """Take note of releases that the fleet has and the registry does not know.

        This is before any update is looked at, which would be refused for its unknown release.
        """
        match incoming.says:
            case Announcement(task, manifest, release) if task in self.lanes:
                if self._contact.echoes.came(task):
                    self.publisher.broker_was_wiped()
                retained = incoming.message.retained
                self.lanes[task].announced(manifest, release, is_retained=retained)
            case ArrivedChunk(device, head=(header, int())) if header.task in self.lanes:
                self.lanes[header.task].device_has(device, header.base)
            case SaidStatus(device, Status() as status) if status.task in self.lanes:
                self.lanes[status.task].device_has(device, status.release)

    # The work

    def tick(self, now: float, wall: float) -> float:
        """Do what can be done at ``now``; return when to be called again at the latest."""
        for lane in self.lanes.values():  # before updates are refused for the releases it is about
            if lane.overtake(now, wall):  # what we know of the broker is as old as the registry
                self.publisher.broker_was_wiped()
        self._intake.run(now, partial(self.reception.take_in, now, wall))
        if self._intake.problem:
            self.reception.answer_without_disk(now)
        self._removal.run(now, partial(self.forgetting.look, now))
        for lane in self.lanes.values():
            lane.fold(now, wall, self._settled)
        if self._newest != self._planned or self.publisher.is_outdated:
            self._planning.run(now, self._plan)
        self.reception.receipts.pump(self._link)
        self.publisher.pump(self._link, now)
        self._look_for_echoes(now)
        if self.reception.hearing.is_listening(now):
            self.forgetting.pump(self._link)
        return self._wake_at(now, wall)

    @property
    def _newest(self) -> list[int]:
        return [lane.line.newest for lane in self.lanes.values()]

    def _plan(self) -> None:
        newest = self._newest
        self.publisher.plan()
        self._planned = newest

    def _settled(self, updates: Sequence[WaitingUpdate]) -> None:
        for update in updates:
            receipt = self.books.updates.receipt(update.key)
            self.reception.receipts.add(update.key.device, receipt)

    def _look_for_echoes(self, now: float) -> None:
        if missing := self._contact.echoes.due(now, is_idle=self.publisher.is_idle):
            self._link.subscribe([self._topics.release(task) for task in missing])
            for task in missing:
                self.publisher.ask_manifest(task, now)

    def _wake_at(self, now: float, wall: float) -> float:
        times = [retry.at for retry in self._retries if retry.problem]
        due = [lane.due_at(now, wall) for lane in self.lanes.values()]
        return max(now, min([now + IDLE_S, *times, *(at for at in due if at is not None)]))

    def drop_suspect(self) -> None:
        """Let go of the message during which `tick` raised something unexpected."""
        self.reception.drop_suspect()

    def close(self) -> None:
        """Let go of the registry; what is not acknowledged is repeated to whoever serves next."""
        self.books.registry.close()
