"""The agent's loop: passes events and the time to its parts, and tells the fleet how it is.

`Agent` does no I/O of its own and never reads a clock, so that it runs unchanged in a simulation;
`run` is the loop around it in a real process.
"""

import logging
import math
import threading
import time
from typing import Any, Final, Protocol

from edge_agent.parts import Parts
from edge_agent.reporting import Reporting
from edge_agent.reports.silence import PARTS, Silence
from edge_agent.updates.outbox_file import DamagedError
from models.access.reload import Reload
from models.errors import TransientError
from models.host.backoff import doubled
from models.host.service import Cleaner, Notifier
from models.protocol.messages import (
    Receipts,
    Request,
    ServerStatus,
    Status,
    decode_message,
    encode_message,
)
from models.protocol.topics import BlobChunk, DeviceTopic, ServerTopic
from models.transport.link import (
    BrokerLimits,
    Connected,
    Disconnected,
    Event,
    Link,
    Published,
    Received,
    Subscribed,
)

__all__ = ["Agent", "run"]

log = logging.getLogger("edge_agent")

LOOK_AGAIN_S = 60.0  # while nothing is announced to us; doubles
LONGEST_LOOK_S = 4 * 3600.0
SILENCE_S = 600.0  # the keepalive asks every minute; then systemd's watchdog may have us
SHORTEST_SLEEP_S = 0.01


class Ticking(Protocol):
    """A part that does something as time passes."""

    def tick(self, now: float) -> float:
        """Do what is due; return when to call again."""


class Agent:
    """One device. Call `start` once, `handle` for each event, `tick` when it said, `stop`."""

    def __init__(self, parts: Parts) -> None:
        self.parts: Final = parts
        # The learner after what gives it something to learn, the children after who has work.
        ticking: tuple[tuple[str, Ticking | None], ...] = (
            ("intake", parts.inbox),
            ("storage", parts.downlink),
            ("learner", parts.learner),
            ("inference process", parts.inference),
            ("outbox", parts.uplink),
            ("children", parts.warm),
        )
        self._ticking = [
            (parts.problems.contained(name), part) for name, part in ticking if part is not None
        ]
        self._heartbeat = parts.heartbeat
        self._silence = Silence(
            device=parts.identity.device, task=parts.identity.task, fleet=parts.topics.fleet
        )
        self._reporting = Reporting(parts, self._silence)
        self._reasons: set[str] = set()  # of this outage, so that each is logged once
        self._written: dict[int, str] = {}  # publications under way -> their topics
        self._looks = 0  # for announcements, since the last connection
        self._look_at = 0.0

    @property
    def _connected(self) -> bool:
        return self._silence.is_connected

    @property
    def state(self) -> str:
        """What the agent is doing, in one word."""
        return self._reporting.state

    @property
    def summary(self) -> str:
        """What the agent does, or what is wrong, in one sentence."""
        return self._reporting.summary

    def status(self) -> Status:
        """Return what this device says of itself now."""
        return self._reporting.status()

    def start(self, now: float) -> None:
        self.parts.problems.now = now
        self._silence.started(now)
        self._reporting.started(now)
        for sentence in self.parts.slots.damaged:
            self.parts.problems.say("storage", sentence)
        self.parts.link.start()

    def stop(self) -> None:
        """Say good-bye and end all children; whatever they had not finished is begun anew."""
        parts = self.parts
        for part in (parts.inbox, parts.learner, parts.inference, parts.downlink, parts.warm):
            if part is not None:
                part.stop()
        if self._connected and self.parts.link.window() > 0:
            status = Status(online=False, task=self.parts.identity.task)
            self.parts.link.publish(
                self.parts.topics.status(self.parts.identity.device),
                encode_message(status),
                retain=True,
            )
        self.parts.link.close()

    def is_alive(self) -> bool:
        """Whether the network side still makes progress: a live connection is never silent."""
        return not self._connected or self.parts.link.silence_s() < SILENCE_S

    def say(self, part: str, mistake: str) -> None:
        """``part``, which is none of ours, has this problem now; none if it is empty."""
        self.parts.problems.say(part, mistake)

    # -- events

    def handle(self, event: Event, now: float) -> None:
        """Take one event of the link. Nothing that arrives and no full disk ends the agent."""
        self.parts.problems.now = now
        match event:
            case Connected(limits=limits):
                self._on_connected(limits, now)
            case Disconnected():
                self._on_disconnected(event, now)
            case Subscribed(topics, refused):
                for topic in topics:
                    self._silence.may_read(self._named(topic), refused)
            case Published(token, refused):
                if topic := self._written.pop(token, ""):
                    self._silence.may_write(topic, refused)
                with self.parts.problems.contained("outbox"):
                    self.parts.uplink.on_published(token, refused, now)
            case Received():
                # What a full disk kept from being stored is asked for again; a message that
                # were held back would only block those behind it.
                with self.parts.problems.contained("message"):
                    self._on_message(event, now)
                self.parts.link.acknowledge(event)

    def _on_connected(self, limits: BrokerLimits, now: float) -> None:
        log.log(logging.DEBUG if self._silence.is_unsteady else logging.INFO, "connected")
        self._silence.connected(now)
        self._reasons.clear()
        self.parts.requests.clear()
        self._reporting.connected()
        self.parts.link.subscribe([self.parts.topics.server_status])
        self._looks, self._look_at = 0, now + LOOK_AGAIN_S
        self.parts.downlink.on_connected(now)
        with self.parts.problems.contained("outbox"):
            self.parts.uplink.on_connected(now, limits)

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        is_news = event.reason not in self._reasons and not self._silence.is_unsteady
        log.log(logging.INFO if is_news else logging.DEBUG, "disconnected reason=%s", event.reason)
        self._reasons.add(event.reason)
        self._silence.disconnected(event, now)
        self.parts.downlink.on_disconnected()
        self.parts.uplink.on_disconnected()

    def _named(self, topic: str) -> str:
        """Return ``topic`` as people read it: below the fleet's, a chunk for all chunks."""
        name = topic.removeprefix(self.parts.topics.prefix)
        return "blob/#" if name.startswith("blob/") else name

    def _on_message(self, message: Received, now: float) -> None:
        topic = self.parts.topics.parse(message.topic)
        if not isinstance(topic, ServerTopic) and not message.retained:
            self._silence.heard(now)
        match topic:
            case BlobChunk():
                self.parts.downlink.on_chunk(topic, message.payload, now)
            case DeviceTopic(device, "receipt") if device == self.parts.identity.device:
                receipts = decode_message(message.payload, Receipts)
                self.parts.uplink.on_receipts(receipts, now)
            case ServerTopic("status"):
                status = decode_message(message.payload, ServerStatus) if message.payload else None
                if self._silence.server_said(status, now):
                    self.parts.uplink.on_server_back(now)
                if status is not None and status.online and not message.retained:
                    self._silence.heard(now)
            case str() if topic == self.parts.identity.task:
                if message.payload:
                    self._silence.manifest_came()
                self.parts.downlink.on_manifest(message.payload, now)
            case _:
                log.debug("message ignored topic=%s", message.topic[:200])

    # -- time passes

    def tick(self, now: float) -> float:
        """Let every part do what is due; return when to call again at the latest."""
        parts = self.parts
        parts.problems.now = now
        moments = [now + parts.pace.sleep_s]
        for contained, part in self._ticking:
            with contained:
                moments.append(part.tick(now))
        moments += [self._listen(now), self._look(now)]
        self._watch_outbox()
        self._ask(now)
        if (due := self._reporting.tell(now, self._publish)) is not None:
            moments.append(due)
        if (due := self._reporting.note(now)) is not None:
            moments.append(due)
        due = self._heartbeat.still_here_at
        if self._connected and due is not None and due > now:
            moments.append(due)
        return max(min(moments), now + SHORTEST_SLEEP_S)

    def _watch_outbox(self) -> None:
        """End the process if the outbox is damaged: the next start puts it aside."""
        try:
            self.parts.outbox.file.check()
        except DamagedError as error:
            raise RuntimeError(str(error)) from None
        except TransientError:
            return

    def _listen(self, now: float) -> float:
        """Say what is silent around us; return when that may change by itself."""
        sentences = self._silence.sentences(now)
        for part in PARTS:
            self.parts.problems.say(part, sentences.get(part, ""))
        return self._silence.next_at(now)

    def _look(self, now: float) -> float:
        """Ask for the announcements again while there are none; return when to do so next.

        A broker whose ACL hides them in silence sends them when it is asked, not when it is mended.
        """
        if not self._connected or self._silence.has_manifest:
            return math.inf
        if now >= self._look_at:
            topics = self.parts.topics
            release = topics.release(self.parts.identity.task)
            self.parts.link.subscribe([topics.server_status, release])
            self._looks += 1
            self._look_at = now + doubled(LOOK_AGAIN_S, self._looks, LONGEST_LOOK_S)
        return self._look_at

    def _ask(self, now: float) -> None:
        requests, link = self.parts.requests, self.parts.link
        due_at = self._heartbeat.still_here_at
        if self._connected and not requests and due_at is not None and now >= due_at:
            requests.append(Request())  # of nothing: we are still here
        while self._connected and requests and link.window() > 0:
            topic = self.parts.topics.request(self.parts.identity.device)
            with self.parts.problems.contained("requests"):  # it may be too large for the broker
                self._publish(topic, encode_message(requests.popleft()))
            self._heartbeat.spoke(now)

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        token = self.parts.link.publish(topic, payload, retain=retain)
        self._written[token] = self._named(topic)


def run(
    agent: Agent,
    link: Link,
    stop: threading.Event,
    notifier: Notifier,
    reload: Reload[Any] | None = None,
) -> None:
    """Run ``agent`` until ``stop`` is set. The only clock and the only sleep of the agent."""
    agent.start(time.monotonic())
    notifier.ready("started")
    cleaner = Cleaner()
    wake_at = 0.0
    while not stop.is_set():
        for event in link.poll(max(0.0, wake_at - time.monotonic())):
            agent.handle(event, time.monotonic())
        if stop.is_set():  # systemd has told our children too: that they end is no problem
            break
        wake_at = agent.tick(time.monotonic())
        cleaner.tick()
        if reload is not None:
            agent.say("settings", reload.tick())
            if reload.wants_start:
                break
        if agent.is_alive():
            notifier.alive(agent.summary)
    notifier.stopping()
    agent.stop()
