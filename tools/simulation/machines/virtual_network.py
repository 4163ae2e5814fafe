"""An MQTT broker and links on virtual time: slow, far, cut, doubled, reordered, forgetful. Pure.

The contract is that of `models.transport.link`: QoS 1 and persistent sessions. A connection keeps
its order and loses nothing, as TCP does; what is under way when it breaks is gone, and sent again
with the next one. What the broker itself may do wrong (and real ones do, docs/protocol.md): accept
a message and drop it, deliver one twice or late, lose all that it holds.
"""

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from models.transport.disconnection import Client, unreachable
from models.transport.link import Disconnected, Event, Published, Received
from tools.simulation.machines.memory_broker import RECEIVE_MAXIMUM, MemoryBroker, Message, Session
from tools.simulation.machines.memory_link import MemoryLink, Wire
from tools.simulation.machines.timeline import Timeline

__all__ = ["BrokerFaults", "Damaged", "Line", "VirtualBroker", "VirtualLink"]

TCP = 40  # bytes of headers per packet, for the time that it takes
MAX_QUEUED = 1000  # messages per session, then the newest is dropped: Mosquitto's default
KEEPALIVE_S = 60.0


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


class VirtualBroker(MemoryBroker):
    """One broker at the other end of many lines, with faults of its own.

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
        super().__init__(lambda: timeline.now, receive_maximum=receive_maximum)
        self.is_patient = is_patient
        self.timeline = timeline
        self.faults = faults or BrokerFaults()
        self.messages = 0
        self._rng = timeline.generator("broker")

    def _pass_on(self, message: Message, readers: Iterable[Session]) -> None:
        self.messages += 1
        faults, rng = self.faults, self._rng
        if faults.drop and rng.random() < faults.drop:
            return
        for session in readers:
            copy = message
            if faults.damage and message.payload and rng.random() < faults.damage:
                damaged = _damaged(message.payload, is_cut=rng.random() < 0.5)
                copy = Message(message.topic, damaged)
            for _ in range(2 if faults.double and rng.random() < faults.double else 1):
                if faults.late and rng.random() < faults.late:
                    wait_s = rng.uniform(0, 60)
                    self.timeline.after(wait_s, lambda s=session, m=copy: self._queue(s, m))  # type: ignore[misc]
                else:
                    self._queue(session, copy)

    def _queue(self, session: Session, message: Message) -> None:
        if self.sessions.get(session.client_id) is not session:
            return  # wiped meanwhile
        if len(session.waiting) < MAX_QUEUED:
            super()._queue(session, message)
        elif session.link is not None:
            self.send(session.link)


def _damaged(payload: bytes, *, is_cut: bool) -> Damaged:
    return Damaged(payload[: len(payload) // 2] if is_cut else payload[:-1] + b"\xff")


class _LineWire(Wire):
    """The way over a `Line`, on virtual time."""

    def __init__(self, broker: VirtualBroker, line: Line) -> None:
        super().__init__(broker)
        self.line = line
        self._timeline = broker.timeline
        self._is_patient = broker.is_patient
        self._connection = 0  # what belongs to an older one is lost
        self._planned = 0  # attempts to connect; the last one counts
        self._plan: tuple[float, Callable[[], None]] | None = None  # the next attempt
        self._free = {True: 0.0, False: 0.0}  # when the line is free, up and down

    def obstacle(self, client_id: str) -> str:
        """See `Wire.obstacle`; in the words of a real agent."""
        obstacle: OSError
        if not self.line.up:
            obstacle = OSError(errno.ENETUNREACH, "no way there")
        elif self.line.black_hole:
            obstacle = TimeoutError()
        elif not self._broker.is_reachable(client_id):
            obstacle = ConnectionRefusedError()
        else:
            return ""
        return unreachable(obstacle, Client("broker", 1883, client_id, False, False)).text

    def open(self) -> None:
        super().open()
        self._free = {True: self._timeline.now, False: self._timeline.now}

    def close(self) -> None:
        super().close()
        self._connection += 1

    def carry(self, size: int, arrive: Callable[[], None], *, upward: bool) -> None:
        if not self.is_up:
            return
        connection, line = self._connection, self.line
        start = max(self._timeline.now, self._free[upward])
        takes_s = (size + TCP) * 8 / line.bits_per_s if line.bits_per_s else 0.0
        self._free[upward] = start + takes_s

        def land() -> None:
            if connection == self._connection and line.up and not line.black_hole:
                if not upward:
                    self.heard_s = self._timeline.now
                arrive()

        self._timeline.at(start + takes_s + line.delay_s, land)

    def count(self, size: int, *, upward: bool) -> None:
        if upward:
            self.bytes_up += size
            self.line.bytes_up += size
        else:
            self.bytes_down += size
            self.line.bytes_down += size

    def after(self, pause_s: float, attempt: Callable[[], None]) -> None:
        self._plan = (pause_s, attempt)
        self._planned += 1
        number = self._planned
        if pause_s and self._is_patient and not self.line.up:
            return  # `line_is_up` goes on
        wait_s = pause_s + 2 * self.line.delay_s
        self._timeline.after(wait_s, lambda: attempt() if number == self._planned else None)

    def line_is_up(self) -> None:
        """The network is back: a patient client is somewhere between two tries."""
        if self._is_patient and self._plan is not None and not self.is_up:
            self.after(*self._plan)

    def wait(self, longest_s: float, is_enough: Callable[[], bool]) -> None:
        if longest_s > 0:
            self._timeline.wait(longest_s, is_enough)


class VirtualLink(MemoryLink):
    """`Link` of one process to a `VirtualBroker` over a `Line`; `poll` waits in virtual time.

    ``wake`` is called when there is something to poll, ``wake_published`` (by default the same)
    when that is an acknowledgment; ``before_io`` may raise a crash.
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
        self._line_wire = _LineWire(broker, line)
        timeline = broker.timeline
        super().__init__(
            broker,
            client_id=client_id,
            will=will,
            is_passing=is_passing,
            waits=waits,
            wire=self._line_wire,
            uniform=timeline.generator(f"link/{client_id}/{timeline.now}").uniform,
        )
        self.line = line
        self._is_patient = broker.is_patient
        self._wake = wake
        self._wake_published = wake_published or wake
        self._before_io = before_io

    # -- `Link`: as in memory, but that the process may die just before

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        if self.window() > 0:
            self._before_io(f"publish {topic}")
        return super().publish(topic, payload, retain=retain)

    def subscribe(self, topics: Sequence[str]) -> None:
        self._before_io(f"subscribe {topics[:1]}")
        super().subscribe(topics)

    def unsubscribe(self, topics: Sequence[str]) -> None:
        self._before_io(f"unsubscribe {topics[:1]}")
        super().unsubscribe(topics)

    def acknowledge(self, message: Received) -> None:
        self._before_io(f"acknowledge {message.topic}")
        super().acknowledge(message)

    def silence_s(self) -> float:
        """See `Link.silence_s`: pings are answered while the line passes anything."""
        is_alive = self._wire.is_up and not self.line.black_hole
        return min(super().silence_s(), KEEPALIVE_S) if is_alive else super().silence_s()

    # -- what the world calls

    def cut(self, reason: str = "connection lost") -> None:
        """Break the connection on the way; both ends notice at once."""
        if self._wire.is_up:
            self._broker.drop_link(self.client_id, reason)

    def line_is_up(self) -> None:
        """The network is back."""
        if self._state == "open":
            self._line_wire.line_is_up()

    def vanish(self) -> None:
        """The process died: the broker notices the closed connection."""
        self._state, self._is_told = "closed", False
        self._events.clear()
        self._broker.disconnect(self, will=True)
        self._wire.close()

    # -- details

    def _report(self, event: Event) -> None:
        super()._report(event)
        if isinstance(event, Published):
            self._wake_published()
        elif not (self._is_patient and isinstance(event, Disconnected)):
            self._wake()  # else it hears of it with whatever comes next
