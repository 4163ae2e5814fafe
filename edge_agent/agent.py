"""The agent's loop: passes events and the time to its parts, and tells the fleet how it is.

`Agent` does no I/O of its own and never reads a clock, so that it runs unchanged in a simulation;
`run` is the loop around it in a real process.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from edge_agent.board.problems import Problems
from edge_agent.inbox.sample_inbox import Inbox
from edge_agent.inference.inference_process import InferenceProcess, NoInference
from edge_agent.releases.downlink import Downlink
from edge_agent.releases.model_slots import Slots
from edge_agent.reports.heartbeat import Heartbeat
from edge_agent.reports.local_status import LocalStatus, summary, waits_for
from edge_agent.reports.silence import PARTS, Silence
from edge_agent.samples.sample_store import Samples
from edge_agent.training.governor import Vitals
from edge_agent.training.learner import Learner
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_file import DamagedError
from edge_agent.updates.uplink import Uplink
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
from models.protocol.topics import BlobChunk, DeviceTopic, ServerTopic, Topics
from models.transport.link import (
    Connected,
    Disconnected,
    Event,
    Limits,
    Link,
    Published,
    Received,
    Subscribed,
)

__all__ = ["Agent", "Identity", "Parts", "run"]

log = logging.getLogger("edge_agent")

VITALS_EVERY_S = 60.0
NOTED_APART_S = 3.0  # two writes of the local status: a burst of changes becomes one
NOTED_AGAIN_S = 60.0  # after one that the disk did not take
LOOK_AGAIN_S = 60.0  # while nothing is announced to us; doubles
LONGEST_LOOK_S = 4 * 3600.0
SILENCE_S = 600.0  # the keepalive asks every minute; then systemd's watchdog may have us
LONGEST_SLEEP_S = 20.0  # the watchdog wants to hear from us
SHORTEST_SLEEP_S = 0.01


class Ticking(Protocol):
    """A part that does something as time passes."""

    def tick(self, now: float) -> float:
        """Do what is due; return when to call again."""


class Identity(NamedTuple):
    """Who this agent is, as its status says."""

    device: str
    task: str
    installation: str
    boot: int
    run: str  # of this process, drawn at its start
    version: str


class Parts(NamedTuple):
    """What an agent is made of."""

    link: Link
    topics: Topics
    identity: Identity
    outbox: Outbox
    slots: Slots
    samples: Samples
    inbox: Inbox
    learner: Learner
    inference: InferenceProcess | NoInference
    downlink: Downlink
    uplink: Uplink
    problems: Problems
    heartbeat: Heartbeat
    requests: deque[Request]  # what uplink and downlink want to ask the server
    vitals: Callable[[], Vitals]
    on_status: Callable[[LocalStatus], None]  # for whoever looks at the state directory


class Agent:
    """One device. Call `start` once, `handle` for each event, `tick` when it said, `stop`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        ticking: tuple[tuple[str, Ticking], ...] = (
            ("intake", parts.inbox),
            ("learner", parts.learner),
            ("inference process", parts.inference),
            ("storage", parts.downlink),
            ("outbox", parts.uplink),
        )
        self._ticking = [(parts.problems.contained(name), part) for name, part in ticking]
        self._heartbeat = parts.heartbeat
        self._nothing_new: tuple[object, ...] | None = None  # of this the fleet knows already
        self._silence = Silence(
            device=parts.identity.device, task=parts.identity.task, fleet=parts.topics.fleet
        )
        self._reasons: set[str] = set()  # of this outage, so that each is logged once
        self._written: dict[int, str] = {}  # publications under way -> their topics
        self._vitals: Vitals | None = None
        self._vitals_at = 0.0
        self._looks = 0  # for announcements, since the last connection
        self._look_at = 0.0
        self._noted: tuple[object, ...] = ()  # what the local status was made of
        self._noted_matters: tuple[object, ...] = ()
        self._noted_at = 0.0
        self.summary = "starting"  # one sentence: what the agent does, or what is wrong

    @property
    def _connected(self) -> bool:
        return self._silence.is_connected

    def start(self, now: float) -> None:
        self._parts.problems.now = now
        self._silence.started(now)
        self._noted_at = now - NOTED_APART_S
        for sentence in self._parts.slots.damaged:
            self._parts.problems.say("storage", sentence)
        self._parts.link.start()

    def stop(self) -> None:
        """Say good-bye and end all children; whatever they had not finished is begun anew."""
        parts = self._parts
        for part in (parts.inbox, parts.learner, parts.inference, parts.downlink):
            part.stop()
        if self._connected and self._parts.link.window() > 0:
            status = Status(online=False, task=self._parts.identity.task)
            self._parts.link.publish(
                self._parts.topics.status(self._parts.identity.device),
                encode_message(status),
                retain=True,
            )
        self._parts.link.close()

    def is_alive(self) -> bool:
        """Whether the network side still makes progress: a live connection is never silent."""
        return not self._connected or self._parts.link.silence_s() < SILENCE_S

    def say(self, part: str, mistake: str) -> None:
        """``part``, which is none of ours, has this problem now; none if it is empty."""
        if mistake:
            self._parts.problems.say(part, mistake)
        else:
            self._parts.problems.clear(part)

    # -- events

    def handle(self, event: Event, now: float) -> None:
        """Take one event of the link. Nothing that arrives and no full disk ends the agent."""
        self._parts.problems.now = now
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
                with self._parts.problems.contained("outbox"):
                    self._parts.uplink.on_published(token, refused, now)
            case Received():
                # What a full disk kept from being stored is asked for again; a message that
                # were held back would only block those behind it.
                with self._parts.problems.contained("message"):
                    self._on_message(event, now)
                self._parts.link.acknowledge(event)

    def _on_connected(self, limits: Limits, now: float) -> None:
        log.log(logging.DEBUG if self._silence.is_unsteady else logging.INFO, "connected")
        self._silence.connected(now)
        self._reasons.clear()
        self._parts.requests.clear()
        self._heartbeat.forget()
        self._nothing_new = None
        self._parts.link.subscribe([self._parts.topics.server_status])
        self._looks, self._look_at = 0, now + LOOK_AGAIN_S
        self._parts.downlink.on_connected(now)
        with self._parts.problems.contained("outbox"):
            self._parts.uplink.on_connected(now, limits)

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        is_news = event.reason not in self._reasons and not self._silence.is_unsteady
        log.log(logging.INFO if is_news else logging.DEBUG, "disconnected reason=%s", event.reason)
        self._reasons.add(event.reason)
        self._silence.disconnected(event, now)
        self._parts.downlink.on_disconnected()
        self._parts.uplink.on_disconnected()

    def _named(self, topic: str) -> str:
        """Return ``topic`` as people read it: below the fleet's, a chunk for all chunks."""
        name = topic.removeprefix(self._parts.topics.prefix)
        return "blob/#" if name.startswith("blob/") else name

    def _on_message(self, message: Received, now: float) -> None:
        topic = self._parts.topics.parse(message.topic)
        if not isinstance(topic, ServerTopic) and not message.retained:
            self._silence.heard(now)
        match topic:
            case BlobChunk():
                self._parts.downlink.on_chunk(topic, message.payload, now)
            case DeviceTopic(device, "receipt") if device == self._parts.identity.device:
                receipts = decode_message(message.payload, Receipts)
                self._parts.uplink.on_receipts(receipts, now)
            case ServerTopic("status"):
                status = decode_message(message.payload, ServerStatus) if message.payload else None
                if self._silence.server_said(status, now):
                    self._parts.uplink.on_server_back(now)
                if status is not None and status.online and not message.retained:
                    self._silence.heard(now)
            case str() if topic == self._parts.identity.task:
                if message.payload:
                    self._silence.manifest_came()
                self._parts.downlink.on_manifest(message.payload, now)
            case _:
                log.debug("message ignored topic=%s", message.topic[:200])

    # -- time passes

    def tick(self, now: float) -> float:
        """Let every part do what is due; return when to call again at the latest."""
        parts = self._parts
        parts.problems.now = now
        parts.downlink.pinned = parts.learner.pinned()
        moments = [now + LONGEST_SLEEP_S]
        for contained, part in self._ticking:
            with contained:
                moments.append(part.tick(now))
        moments += [self._listen(now), self._look(now)]
        self._watch_outbox()
        self._ask(now)
        if (due := self._tell(now)) is not None:
            moments.append(due)
        if (due := self._note(now)) is not None:
            moments.append(due)
        due = self._heartbeat.still_here_at
        if self._connected and due is not None and due > now:
            moments.append(due)
        return max(min(moments), now + SHORTEST_SLEEP_S)

    def _watch_outbox(self) -> None:
        """End the process if the outbox is damaged: the next start puts it aside."""
        try:
            self._parts.outbox.file.check()
        except DamagedError as error:
            raise RuntimeError(str(error)) from None
        except TransientError:
            return

    def _listen(self, now: float) -> float:
        """Say what is silent around us; return when that may change by itself."""
        sentences = self._silence.sentences(now)
        for part in PARTS:
            if sentence := sentences.get(part):
                self._parts.problems.say(part, sentence)
            else:
                self._parts.problems.clear(part)
        return self._silence.next_at(now)

    def _look(self, now: float) -> float:
        """Ask for the announcements again while there are none; return when to do so next.

        A broker whose ACL hides them in silence sends them when it is asked, not when it is mended.
        """
        if not self._connected or self._silence.has_manifest:
            return now + LONGEST_SLEEP_S
        if now >= self._look_at:
            topics = self._parts.topics
            release = topics.release(self._parts.identity.task)
            self._parts.link.subscribe([topics.server_status, release])
            self._looks += 1
            self._look_at = now + doubled(LOOK_AGAIN_S, self._looks, LONGEST_LOOK_S)
        return self._look_at

    def _ask(self, now: float) -> None:
        requests, link = self._parts.requests, self._parts.link
        due_at = self._heartbeat.still_here_at
        if self._connected and not requests and due_at is not None and now >= due_at:
            requests.append(Request())  # of nothing: we are still here
        while self._connected and requests and link.window() > 0:
            topic = self._parts.topics.request(self._parts.identity.device)
            with self._parts.problems.contained("requests"):  # it may be too large for the broker
                self._publish(topic, encode_message(requests.popleft()))
            self._heartbeat.spoke(now)

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        token = self._parts.link.publish(topic, payload, retain=retain)
        self._written[token] = self._named(topic)

    def _tell(self, now: float) -> float | None:
        if self._vitals is None or now >= self._vitals_at + VITALS_EVERY_S:
            self._vitals, self._vitals_at = self._parts.vitals(), now
        if not self._connected:  # with the next connection everything is told
            return None
        with self._parts.problems.contained("outbox"):
            facts = self._worth_telling()
            if facts == self._nothing_new:
                return None
            status = self.status()
            if self._heartbeat.due(status, now):
                if self._parts.link.window() == 0:
                    return None
                topic = self._parts.topics.status(self._parts.identity.device)
                self._publish(topic, encode_message(status), retain=True)
                self._heartbeat.told(status, now)
            due_at = self._heartbeat.next_at(status)
            self._nothing_new = facts if due_at is None else None
            return due_at
        return None

    def _note(self, now: float) -> float | None:
        """Leave what the agent says of itself in its directory, if it matters; return when due."""
        parts, silence = self._parts, self._silence
        verdict, problems = parts.learner.verdict, tuple(parts.problems.all())
        facts: tuple[object, ...] = (
            *(silence.is_connected, silence.last_error, silence.is_unsteady),
            *(problems, "" if verdict.do != "wait" else verdict.reason),
        )
        with contextlib.suppress(TransientError, OSError):  # outbox, samples: said elsewhere
            facts = (*facts, *self._worth_telling())
            if facts == self._noted:
                return None
            status = self.status()
            waiting = waits_for(status, "" if verdict.do != "wait" else verdict.reason)
            self.summary = summary(
                status, problems, connected=silence.is_connected, waits_for=waiting
            )
            found = LocalStatus(
                status=status,
                summary=self.summary,
                connected=silence.is_connected,
                since=silence.since,
                last_error=silence.last_error,
                error_at=silence.error_at,
                heard_at=silence.heard_at,
                waits_for=waiting,
                problems=problems,
                is_unsteady=silence.is_unsteady,
            )
            if (matters := found.what_matters()) != self._noted_matters:
                if now < self._noted_at + NOTED_APART_S:
                    return self._noted_at + NOTED_APART_S
                self._noted_at = now
                try:
                    parts.on_status(found)
                except OSError:  # a full disk: said by those who need it
                    self._noted_at = now + NOTED_AGAIN_S - NOTED_APART_S
                    return now + NOTED_AGAIN_S
                self._noted_matters = matters
            self._noted = facts
        return None

    def _worth_telling(self) -> tuple[object, ...]:
        """Return what decides whether a status is due: while it stays, none is, as before."""
        parts = self._parts
        return (
            self.state,
            parts.slots.release,
            parts.samples.counts().ever,
            parts.outbox.changes,
            parts.problems.most_urgent,
        )

    @property
    def state(self) -> str:
        """What the agent is doing, in one word."""
        parts = self._parts
        doing = parts.learner.state or parts.downlink.state or parts.uplink.state
        return doing or parts.learner.rest or "waiting"

    def status(self) -> Status:
        """Return what this device says of itself now."""
        parts = self._parts
        facts = parts.outbox.facts.read()
        vitals, traffic = self._vitals, parts.link.traffic()
        return Status(
            online=True,
            task=parts.identity.task,
            state=self.state,
            boot=parts.identity.boot,
            run=parts.identity.run,
            installation=parts.identity.installation,
            release=parts.slots.release,
            samples=parts.samples.counts().train,
            samples_ever=parts.samples.counts().ever,
            updates_made=facts.made,
            updates_folded=facts.folded,
            updates_refused=facts.refused,
            updates_waiting=len(parts.outbox.waiting()),
            accuracy_first=facts.accuracy_first,
            accuracy=facts.accuracy,
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            rss_mb=round(vitals.rss_mb, 1) if vitals else 0.0,
            peak_rss_mb=round(vitals.peak_rss_mb, 1) if vitals else 0.0,
            trainer_peak_rss_mb=round(facts.trainer_peak_rss_mb or 0.0, 1),
            problem=parts.problems.most_urgent,
            version=parts.identity.version,
        )


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
