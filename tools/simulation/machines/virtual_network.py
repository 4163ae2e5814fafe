"""An MQTT broker and links on virtual time: slow, far, cut, doubled, reordered, forgetful. Pure.

The contract is that of `models.transport.link`: QoS 1 and persistent sessions. A connection keeps
its order and loses nothing, as TCP does; what is under way when it breaks is gone, and sent again
with the next one. What the broker itself may do wrong (and real ones do, docs/protocol.md): accept
a message and drop it, deliver one twice or late, lose all that it holds.
"""

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from models.errors import TransientError
from models.transport.disconnection import Client, unreachable
from models.transport.link import (
    WINDOW,
    Connected,
    Disconnected,
    Event,
    Published,
    Received,
    Traffic,
)
from models.transport.memory import matches
from models.transport.reconnection import Ending, Reconnection, Waiting
from models.transport.unconfirmed import Publication, Unconfirmed
from tools.simulation.machines.timeline import Timeline

__all__ = ["BrokerFaults", "Damaged", "Line", "VirtualBroker", "VirtualLink"]

RECEIVE_MAXIMUM = 8
HEADERS = 9  # bytes of a PUBLISH and its PUBACK without topic and payload
TCP = 40  # bytes of headers per packet, for the time that it takes
MAX_QUEUED = 1000  # messages per session, then the newest is dropped: Mosquitto's default
KEEPALIVE_S = 60.0

_covers = lru_cache(1 << 17)(matches)  # the topics of a fleet come again and again


@dataclass
class Line:
    """How a client is connected; may change at any time."""

    delay_s: float = 0.05  # one way
    bits_per_s: float = 0.0  # for each direction; 0: no limit
    up: bool = True
    black_hole: bool = False  # nothing passes, and nobody is told
    bytes_up: int = 0  # so far, by all processes
    bytes_down: int = 0


@dataclass
class BrokerFaults:
    """Shares of the messages that the broker treats badly."""

    drop: float = 0.0  # accepted, and not passed on
    double: float = 0.0
    late: float = 0.0  # passed on up to a minute later, so after its successors
    damage: float = 0.0  # cut in half, or its last byte is another


class Damaged(bytes):
    """A payload that is not what was sent."""


class _Message(NamedTuple):
    topic: str
    payload: bytes
    retained: bool = False


class _Session:
    """What the broker keeps for a client over its absence."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.exact: dict[str, None] = {}
        self.patterns: dict[str, None] = {}
        self.waiting: deque[_Message] = deque()
        self.flying: dict[int, _Message] = {}
        self.link: VirtualLink | None = None


class VirtualBroker:
    """One broker. ``up`` False: nobody reaches it.

    ``is_patient``: a client whose line is down tries again when it is up, not on and on.
    """

    def __init__(
        self,
        timeline: Timeline,
        faults: BrokerFaults | None = None,
        *,
        is_patient: bool = False,
        receive_maximum: int = RECEIVE_MAXIMUM,
    ) -> None:
        self.is_patient = is_patient
        self.receive_maximum = receive_maximum
        self.timeline = timeline
        self.faults = faults or BrokerFaults()
        self.up = True
        self.retained: dict[str, bytes] = {}
        self.messages = 0
        self._rng = timeline.generator("broker")
        self._sessions: dict[str, _Session] = {}
        self._exact: dict[str, dict[str, _Session]] = {}  # topic -> sessions by client
        self._with_patterns: dict[str, _Session] = {}
        self._last_handle = 0

    # -- faults

    def stop(self, *, wiped: bool) -> None:
        """Crash; ``wiped``: sessions and retained messages are gone afterwards."""
        self.up = False
        for session in list(self._sessions.values()):
            if session.link is not None:
                session.link.break_up("the broker crashed")
            self._detach(session, will=False)
        if wiped:
            self._sessions.clear()
            self._exact.clear()
            self._with_patterns.clear()
            self.retained.clear()

    def start(self) -> None:
        self.up = True

    # -- what links call, when their packets arrive

    def connect(self, link: "VirtualLink") -> bool:
        """Attach ``link``; return whether there was a session."""
        session = self._sessions.get(link.client_id)
        present = session is not None
        if session is not None:
            if session.link is not None and session.link is not link:
                why = "closed by the broker: session taken over"
                session.link.break_up(why, is_taken_over=True)
            self._detach(session, will=True)
            if link.is_passing:
                self._forget(session)
        session = self._sessions.setdefault(link.client_id, _Session(link.client_id))
        session.link = link
        return present and not link.is_passing

    def disconnect(self, link: "VirtualLink", *, will: bool) -> None:
        session = self._of(link)
        if session is not None:
            self._detach(session, will=will)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        self.messages += 1
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        faults, rng = self.faults, self._rng
        if faults.drop and rng.random() < faults.drop:
            return
        message = _Message(topic, payload)
        targets = self._exact.get(topic, {}) | {
            client_id: session
            for client_id, session in self._with_patterns.items()
            if any(_covers(pattern, topic) for pattern in session.patterns)
        }
        for session in targets.values():
            copy = message
            if faults.damage and payload and rng.random() < faults.damage:
                copy = _Message(topic, _damaged(payload, is_cut=rng.random() < 0.5))
            for _ in range(2 if faults.double and rng.random() < faults.double else 1):
                if faults.late and rng.random() < faults.late:
                    wait_s = rng.uniform(0, 60)
                    self.timeline.after(wait_s, lambda s=session, m=copy: self._queue(s, m))  # type: ignore[misc]
                else:
                    self._queue(session, copy)

    def subscribe(self, link: "VirtualLink", pattern: str) -> None:
        session = self._of(link)
        if session is None:
            return
        if "+" in pattern or "#" in pattern:
            session.patterns[pattern] = None
            self._with_patterns[session.client_id] = session
            found = [topic for topic in self.retained if _covers(pattern, topic)]
        else:
            session.exact[pattern] = None
            self._exact.setdefault(pattern, {})[session.client_id] = session
            found = [pattern] if pattern in self.retained else []
        for topic in found:
            session.waiting.append(_Message(topic, self.retained[topic], retained=True))
        self.send(link)

    def unsubscribe(self, link: "VirtualLink", pattern: str) -> None:
        session = self._of(link)
        if session is not None:
            session.exact.pop(pattern, None)
            session.patterns.pop(pattern, None)
            if pattern in self._exact:
                self._exact[pattern].pop(session.client_id, None)

    def acknowledge(self, link: "VirtualLink", handle: int) -> None:
        session = self._of(link)
        if session is not None and session.flying.pop(handle, None) is not None:
            self.send(link)

    def send(self, link: "VirtualLink") -> None:
        """Put what the session of ``link`` may send now on the line."""
        session = self._of(link)
        while session and session.waiting and len(session.flying) < self.receive_maximum:
            message = session.waiting.popleft()
            self._last_handle += 1
            session.flying[self._last_handle] = message
            link.carry_down(Received(*message, handle=self._last_handle))

    def _queue(self, session: _Session, message: _Message) -> None:
        if self._sessions.get(session.client_id) is not session:
            return  # wiped meanwhile
        if len(session.waiting) < MAX_QUEUED:
            session.waiting.append(message)
        if session.link is not None:
            self.send(session.link)

    def _detach(self, session: _Session, *, will: bool) -> None:
        link, session.link = session.link, None
        session.waiting.extendleft(reversed(session.flying.values()))
        session.flying.clear()
        if link is not None and link.is_passing:
            self._forget(session)
        if will and link is not None and link.will is not None:
            topic, payload = link.will
            self.publish(topic, payload, retain=True)

    def _forget(self, session: _Session) -> None:
        del self._sessions[session.client_id]
        self._with_patterns.pop(session.client_id, None)
        for topic in session.exact:
            del self._exact[topic][session.client_id]

    def _of(self, link: "VirtualLink") -> _Session | None:
        session = self._sessions.get(link.client_id)
        return session if session is not None and session.link is link else None


def _damaged(payload: bytes, *, is_cut: bool) -> Damaged:
    return Damaged(payload[: len(payload) // 2] if is_cut else payload[:-1] + b"\xff")


class VirtualLink:
    """`Link` of one process to a `VirtualBroker` over a `Line`.

    ``wake`` is called when there is something to poll, ``wake_published`` (by default the same)
    when that is an acknowledgment; ``before_io`` may raise a crash. ``is_passing`` and ``waits``
    are those of `MqttLink`, and so is the way in which it tries again.
    """

    def __init__(
        self,
        broker: VirtualBroker,
        *,
        client_id: str,
        line: Line,
        will: tuple[str, bytes] | None = None,
        wake: Callable[[], None] = lambda: None,
        wake_published: Callable[[], None] | None = None,
        before_io: Callable[[str], None] = lambda what: None,
        is_passing: bool = False,
        waits: bool = False,
    ) -> None:
        self.client_id = client_id
        self.will = will
        self.is_passing = is_passing
        self.line = line
        self._broker = broker
        self._timeline = broker.timeline
        rng = broker.timeline.generator(f"link/{client_id}/{broker.timeline.now}")
        self._reconnection = Reconnection(rng.uniform, is_auto=False)
        self._waits = waits
        self._may_connect = True
        self._wake = wake
        self._wake_published = wake_published or wake
        self._before_io = before_io
        self._events: deque[Event] = deque()
        self._in_flight: dict[int, Publication] = {}
        self._unconfirmed = Unconfirmed()  # topics that the broker was asked for
        self._token = 0
        self._mid = 0  # of the last request about a topic
        self._generation = 0  # of the connection: what belongs to an older one is lost
        self._pause_s = 0.0  # before the next attempt to connect
        self._is_started = False
        self._is_closed = True
        self._is_up = False  # the broker sees us
        self._up_at: float | None = None  # we see the broker since then
        self._is_told = False  # the owner knows
        self._free = {True: 0.0, False: 0.0}  # when the line is free, up and down
        self._up = self._down = 0
        self._heard = broker.timeline.now

    # -- `Link`

    def start(self) -> None:
        if self._is_started:
            raise ValueError("the link was started before")
        self._is_started, self._is_closed = True, False
        self._heard = self._timeline.now
        self._try()

    def resume(self) -> None:
        """See `MqttLink.resume`."""
        if not self._may_connect:
            self._may_connect = True
            self._try()

    def poll(self, timeout_s: float) -> list[Event]:
        """See `Link.poll`; it waits in virtual time."""
        if timeout_s > 0:
            self._timeline.wait(timeout_s, lambda: bool(self._events))
        events = list(self._events)
        self._events.clear()
        for event in events:
            if isinstance(event, Connected):
                self._is_told = True
            elif isinstance(event, Disconnected):
                self._is_told = False
            elif isinstance(event, Published):
                del self._in_flight[event.token]
        return events

    def window(self) -> int:
        return WINDOW - len(self._in_flight) if self._is_told else 0

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        if self.window() <= 0:
            raise TransientError("no room for another publication now")
        self._before_io(f"publish {topic}")
        self._token += 1
        self._in_flight[self._token] = Publication(self._token, topic, payload, retain)
        self._publish(self._in_flight[self._token])
        return self._token

    def subscribe(self, topics: Sequence[str]) -> None:
        self._before_io(f"subscribe {topics[:1]}")
        self._ask(topics, subscribe=True)

    def unsubscribe(self, topics: Sequence[str]) -> None:
        self._before_io(f"unsubscribe {topics[:1]}")
        self._ask(topics, subscribe=False)

    def acknowledge(self, message: Received) -> None:
        self._before_io(f"acknowledge {message.topic}")
        self._carry_up(4, lambda: self._broker.acknowledge(self, message.handle))

    def traffic(self) -> Traffic:
        return Traffic(bytes_up=self._up, bytes_down=self._down)

    def silence_s(self) -> float:
        passed = self._timeline.now - self._heard
        alive = self._is_up and not self.line.black_hole
        return min(passed, KEEPALIVE_S) if alive else passed

    def close(self) -> None:
        """See `Link.close`: the good-bye travels behind what is on the line."""
        self._is_closed, self._is_told = True, False
        self._events.clear()
        self._carry_up(2, lambda: self._leave(will=False))

    # -- what the world calls

    def break_up(self, reason: str, *, is_taken_over: bool = False) -> None:
        """The connection is gone: what was under way with it, too."""
        self._is_up = False
        kept = [event for event in self._events if isinstance(event, Connected | Disconnected)]
        self._events = deque(kept)
        self._failed(reason, is_taken_over=is_taken_over)

    def cut(self, reason: str = "connection lost") -> None:
        """Break the connection on the way; both ends notice at once."""
        if self._is_up:
            self._broker.disconnect(self, will=True)
            self.break_up(reason)

    def vanish(self) -> None:
        """The process died: the broker notices the closed connection."""
        self._is_closed = True
        self._leave(will=True)

    def carry_down(self, message: Received) -> None:
        size = HEADERS + len(message.topic) + len(message.payload)

        def arrive() -> None:
            self._down += size
            self.line.bytes_down += size
            self._tell(message)

        self._carry(size, arrive, upward=False)

    # -- details

    def _leave(self, *, will: bool) -> None:
        if self._is_up:
            self._broker.disconnect(self, will=will)
        self._generation += 1
        self._is_up = self._is_told = False
        self._events.clear()

    def _try(self) -> None:
        """Connect after the pause that the last failure asks for."""
        self._generation += 1
        generation = self._generation

        def attempt() -> None:
            if self._is_closed or self._is_up or generation != self._generation:
                return
            if obstacle := self._obstacle():
                why = unreachable(obstacle, Client("broker", 1883, self.client_id, False, False))
                self._failed(why.text)
                return
            present = self._broker.connect(self)
            self._is_up = True
            self._free = {True: self._timeline.now, False: self._timeline.now}
            self._carry(4, lambda: self._connected(present), upward=False)

        self._timeline.after(self._pause_s + 2 * self.line.delay_s, attempt)

    def _connected(self, session_present: bool) -> None:
        self._up_at = self._timeline.now
        self._tell(Connected(session_present))
        if self._is_closed:
            return
        for publication in self._in_flight.values():
            self._publish(publication)
        for subscribe in (True, False):
            self._ask(self._unconfirmed.wished(subscribe=subscribe), subscribe=subscribe)
        self._broker.send(self)

    def _failed(self, reason: str, *, is_taken_over: bool = False) -> None:
        """A connection has ended, or did not come to stand: go on as `MqttLink` does."""
        self._generation += 1
        up_at, self._up_at = self._up_at, None
        if self._is_closed:
            return
        oldest = next(iter(self._in_flight.values()), None)
        ending = Ending(
            reason,
            held_s=None if up_at is None else self._timeline.now - up_at,
            is_taken_over=is_taken_over,
            waiting=oldest and Waiting(oldest.token, oldest.topic, len(oldest.payload)),
        )
        decision = self._reconnection.decide(ending, speaks_five=True)
        self._may_connect = not self._waits or ending.held_s is None
        self._pause_s = decision.delay_s
        if decision.tell_owner:
            self._events.append(ending.told(decision))
            if not self._broker.is_patient:  # else it hears of it with whatever comes next
                self._wake()
        if self._may_connect and (self.line.up or not self._broker.is_patient):
            self._try()

    def line_is_up(self) -> None:
        """The network is back: a patient client is somewhere between two tries."""
        if self._broker.is_patient and not self._is_up and not self._is_closed:
            self._try()

    def _obstacle(self) -> OSError | None:
        """Return what an attempt to connect meets now, if anything."""
        if not self.line.up:
            return OSError(errno.ENETUNREACH, "no way there")
        if self.line.black_hole:
            return TimeoutError()
        return None if self._broker.up else ConnectionRefusedError()

    def _publish(self, publication: Publication) -> None:
        token, topic, payload, retain = publication
        size = HEADERS + len(topic) + len(payload)
        self._count_up(size if self._is_up else 0)

        def arrive() -> None:
            self._broker.publish(topic, payload, retain=retain)
            self._carry(4, lambda: self._tell(Published(token)), upward=False)

        self._carry_up(size, arrive)

    def _ask(self, topics: Sequence[str], *, subscribe: bool) -> None:
        act = self._broker.subscribe if subscribe else self._broker.unsubscribe
        for topic in topics:
            self._mid += 1
            self._unconfirmed.asked([topic], subscribe=subscribe, mid=self._mid)

            def arrive(topic: str = topic, mid: int = self._mid) -> None:
                act(self, topic)
                self._carry(4, lambda: self._confirmed(mid), upward=False)

            self._count_up(8 + len(topic) if self._is_up else 0)
            self._carry_up(8 + len(topic), arrive)

    def _confirmed(self, mid: int) -> None:
        self._heard = self._timeline.now
        self._unconfirmed.answered(mid)

    def _count_up(self, size: int) -> None:
        self._up += size
        self.line.bytes_up += size

    def _tell(self, event: Event) -> None:
        self._heard = self._timeline.now
        if self._is_closed:
            return
        self._events.append(event)
        self._wake_published() if isinstance(event, Published) else self._wake()

    def _carry_up(self, size: int, arrive: Callable[[], None]) -> None:
        self._carry(size, arrive, upward=True)

    def _carry(self, size: int, arrive: Callable[[], None], *, upward: bool) -> None:
        """Let a packet travel; it arrives unless the connection breaks before."""
        if not self._is_up:
            return
        generation = self._generation
        now = self._timeline.now
        start = max(now, self._free[upward])
        line = self.line
        takes_s = (size + TCP) * 8 / line.bits_per_s if line.bits_per_s else 0.0
        self._free[upward] = start + takes_s

        def land() -> None:
            if generation != self._generation or not self._is_up:
                return
            if line.black_hole or not line.up:
                if not line.up:
                    self.cut()
                return
            arrive()

        self._timeline.at(start + takes_s + line.delay_s, land)
