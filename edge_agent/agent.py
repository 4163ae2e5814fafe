"""The agent's loop: passes events and the time to its parts, and tells the fleet how it is.

`Agent` does no I/O of its own and never reads a clock, so that it runs unchanged in a simulation;
`run` is the loop around it in a real process.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from edge_agent.downlink import Downlink
from edge_agent.governor import Vitals
from edge_agent.heartbeat import Heartbeat
from edge_agent.inference_process import InferenceProcess, NoInference
from edge_agent.learner import Learner
from edge_agent.model_slots import Slots
from edge_agent.outbox import DamagedError, Outbox
from edge_agent.problems import Problems
from edge_agent.sample_inbox import Inbox
from edge_agent.samples import Samples
from edge_agent.uplink import Uplink
from models.errors import TransientError
from models.payload.messages import Receipts, Request, Status, decode_message, encode_message
from models.service import Cleaner, Notifier
from models.transport.link import Connected, Disconnected, Event, Link, Published, Received
from models.transport.topics import BlobChunk, DeviceTopic, Topics

__all__ = ["Agent", "Identity", "Parts", "run"]

log = logging.getLogger("edge_agent")

VITALS_EVERY_S = 60.0
TAKEOVERS = 3  # within the window: somebody else uses our name
TAKEOVER_WINDOW_S = 600.0
OFFLINE_SAID_S = 60.0  # without a broker, before it is a problem
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
    takeovers: Callable[[], int]
    on_status: Callable[[Status], None]  # for whoever looks at the state directory


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
        self._connected = False
        self._offline_since: float | None = None
        self._vitals: Vitals | None = None
        self._vitals_at = 0.0
        self._takeovers: deque[float] = deque()
        self._takeovers_seen = 0
        self._offline_reason = "the broker has not answered yet"

    def start(self, now: float) -> None:
        self._offline_since = now
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

    # -- events

    def handle(self, event: Event, now: float) -> None:
        """Take one event of the link. Nothing that arrives and no full disk ends the agent."""
        match event:
            case Connected():
                self._on_connected(now)
            case Disconnected(reason):
                self._on_disconnected(reason, now)
            case Published(token, refused):
                with self._parts.problems.contained("outbox"):
                    self._parts.uplink.on_published(token, refused, now)
            case Received():
                # What a full disk kept from being stored is asked for again; a message that
                # were held back would only block those behind it.
                with self._parts.problems.contained("message"):
                    self._on_message(event, now)
                self._parts.link.acknowledge(event)

    def _on_connected(self, now: float) -> None:
        log.info("connected")
        self._connected, self._offline_since = True, None
        self._parts.problems.clear("broker")
        self._parts.requests.clear()
        self._heartbeat.forget()
        self._nothing_new = None
        self._parts.downlink.on_connected(now)
        with self._parts.problems.contained("outbox"):
            self._parts.uplink.on_connected(now)

    def _on_disconnected(self, reason: str, now: float) -> None:
        log.info("disconnected reason=%s", reason)
        if self._connected:
            self._offline_since = now
        self._connected = False
        self._parts.downlink.on_disconnected()
        self._parts.uplink.on_disconnected()
        self._offline_reason = reason

    def _on_message(self, message: Received, now: float) -> None:
        topic = self._parts.topics.parse(message.topic)
        match topic:
            case BlobChunk():
                self._parts.downlink.on_chunk(topic, message.payload, now)
            case DeviceTopic(device, "receipt") if device == self._parts.identity.device:
                receipts = decode_message(message.payload, Receipts)
                self._parts.uplink.on_receipts(receipts, now)
            case str() if topic == self._parts.identity.task:
                self._parts.downlink.on_manifest(message.payload, now)
            case _:
                log.debug("message ignored topic=%s", message.topic[:200])

    # -- time passes

    def tick(self, now: float) -> float:
        """Let every part do what is due; return when to call again at the latest."""
        parts = self._parts
        parts.downlink.pinned = parts.learner.pinned()
        moments = [now + LONGEST_SLEEP_S]
        for contained, part in self._ticking:
            with contained:
                moments.append(part.tick(now))
        self._watch_broker(now)
        self._watch_outbox()
        self._ask()
        if (due := self._tell(now)) is not None:
            moments.append(due)
        return max(min(moments), now + SHORTEST_SLEEP_S)

    def _watch_outbox(self) -> None:
        """End the process if the outbox is damaged: the next start puts it aside."""
        try:
            self._parts.outbox.check()
        except DamagedError as error:
            raise RuntimeError(str(error)) from None
        except TransientError:
            return

    def _watch_broker(self, now: float) -> None:
        offline_since = self._offline_since
        if offline_since is not None and now - offline_since > OFFLINE_SAID_S:
            self._parts.problems.say("broker", f"no connection: {self._offline_reason}")
        taken = self._parts.takeovers()
        self._takeovers.extend([now] * (taken - self._takeovers_seen))
        self._takeovers_seen = taken
        while self._takeovers and self._takeovers[0] < now - TAKEOVER_WINDOW_S:
            self._takeovers.popleft()
        if len(self._takeovers) >= TAKEOVERS:
            self._parts.problems.say(
                "identity",
                f"another client connects as {self._parts.identity.device}: was an SD card "
                "cloned? give every board its own device.id",
            )
        elif not self._takeovers:
            self._parts.problems.clear("identity")

    def _ask(self) -> None:
        while self._connected and self._parts.requests and self._parts.link.window() > 0:
            topic = self._parts.topics.request(self._parts.identity.device)
            self._parts.link.publish(topic, encode_message(self._parts.requests.popleft()))

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
                self._parts.link.publish(
                    self._parts.topics.status(self._parts.identity.device),
                    encode_message(status),
                    retain=True,
                )
                self._heartbeat.told(status, now)
                self._parts.on_status(status)
            due_at = self._heartbeat.next_at(status)
            self._nothing_new = facts if due_at is None else None
            return due_at
        return None

    def _worth_telling(self) -> tuple[object, ...]:
        """Return what decides whether a status is due: while it stays, none is, as before."""
        parts = self._parts
        return (
            self.state,
            parts.slots.release,
            parts.samples.counts().ever,
            parts.outbox.changes,
            parts.problems.newest,
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
        facts = parts.outbox.facts()
        vitals, traffic = self._vitals, parts.link.traffic()

        def count(name: str) -> int:
            return int(facts.get(name, 0))

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
            updates_made=count("made"),
            updates_folded=count("folded"),
            updates_refused=count("refused"),
            updates_waiting=len(parts.outbox.waiting()),
            accuracy_first=facts.get("accuracy_first"),
            accuracy=facts.get("accuracy"),
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            rss_mb=round(vitals.rss_mb, 1) if vitals else 0.0,
            peak_rss_mb=round(vitals.peak_rss_mb, 1) if vitals else 0.0,
            trainer_peak_rss_mb=round(facts.get("trainer_peak_rss_mb", 0.0), 1),
            problem=parts.problems.newest,
            version=parts.identity.version,
        )


def run(agent: Agent, link: Link, stop: threading.Event, notifier: Notifier) -> None:
    """Run ``agent`` until ``stop`` is set. The only clock and the only sleep of the agent."""
    agent.start(time.monotonic())
    notifier.ready("started")
    cleaner = Cleaner()
    wake_at = 0.0
    while not stop.is_set():
        for event in link.poll(max(0.0, wake_at - time.monotonic())):
            agent.handle(event, time.monotonic())
        wake_at = agent.tick(time.monotonic())
        cleaner.tick()
        if agent.is_alive():
            notifier.alive(agent.state)
    notifier.stopping()
    agent.stop()
