"""Links to a broker in memory: the contract of `MqttLink`, without a network. Pure.

Everything happens inside the call that causes it, and the owner's `poll` reports it. What may take
time is done by a `Wire`: another one makes another network of it, with the same promises. One
suite of tests runs against these links and against `MqttLink` on real brokers.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from models.errors import TransientError, UsageError
from models.transport.link import (
    Connected,
    Disconnected,
    Event,
    Published,
    Received,
    Subscribed,
    Traffic,
)
from models.transport.reconnection import Ending, Reconnection, Uniform, Waiting
from models.transport.unconfirmed import Publication, Unconfirmed
from tools.simulation.machines.memory_broker import MemoryBroker

__all__ = ["MemoryLink", "Wire"]

HEADERS = 9  # bytes; a PUBLISH and its PUBACK without topic and payload


class Wire:
    """What is between a link and its broker: here nothing, so that packets arrive at once."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.is_up = False  # the broker sees us
        self.up_at_s: float | None = None  # we see the broker, since then
        self.heard_s = broker.clock()  # when it last answered
        self.bytes_up = self.bytes_down = 0
        self._broker = broker
        self._due: Callable[[], None] | None = None

    def obstacle(self, client_id: str) -> str:
        """Return what an attempt to connect meets now, "" if it succeeds."""
        return "" if self._broker.is_reachable(client_id) else "cannot reach the broker"

    def open(self) -> None:
        self.is_up = True

    def close(self) -> None:
        """End the connection; what was under way with it is lost."""
        self.is_up, self.up_at_s = False, None

    def carry(self, size: int, arrive: Callable[[], None], *, upward: bool) -> None:
        """Let a packet travel, if there is a connection and unless it ends before."""
        if self.is_up:
            if not upward:
                self.heard_s = self._broker.clock()
            arrive()

    def count(self, size: int, *, upward: bool) -> None:
        """Count bytes that travel."""
        if upward:
            self.bytes_up += size
        else:
            self.bytes_down += size

    def after(self, pause_s: float, attempt: Callable[[], None]) -> None:
        """Let ``attempt`` to connect be made after a pause: here, when somebody waits."""
        self._due = attempt

    def wait(self, longest_s: float, is_enough: Callable[[], bool]) -> None:
        """Let time pass until ``is_enough`` says so: here, none does."""
        due, self._due = self._due, None
        if due is not None:
            due()


class MemoryLink:
    """`Link` to a `MemoryBroker`. It connects again in `poll`, as soon as it can.

    Bytes are counted about as MQTT has them: topic, payload and a few for headers. ``is_passing``
    and ``waits`` are those of `MqttLink`; ``is_told`` False: like MQTT 3.1.1, it cannot tell a
    take-over from a lost connection. ``uniform`` draws the pauses between attempts to connect.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        *,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        is_passing: bool = False,
        waits: bool = False,
        is_told: bool = True,
        wire: Wire | None = None,
        uniform: Uniform = lambda low, high: low,
    ) -> None:
        self.client_id = client_id
        self.will = will
        self.is_passing = is_passing
        self._waits = waits
        self._is_told_why = is_told
        self._broker = broker
        self._wire = wire or Wire(broker)
        self._reconnection = Reconnection(uniform, is_auto=False)
        self._state: Literal["new", "open", "waiting", "closed"] = "new"
        self._is_told = False  # the owner knows of the connection
        self._events: deque[Event] = deque()
        self._in_flight: dict[int, Publication] = {}
        self._unconfirmed = Unconfirmed()  # topics that the broker was asked for
        self._last_number = 0  # of a publication or of a request about a topic

    # -- `Link`

    def start(self) -> None:
        if self._state != "new":
            raise ValueError("the link was started before")
        self._state = "open"
        self._wire.heard_s = self._broker.clock()
        self._wire.after(0.0, self._attempt)

    def resume(self) -> None:
        """See `MqttLink.resume`."""
        if self._state == "waiting":
            self._state = "open"
            self._wire.after(0.0, self._attempt)

    def poll(self, timeout_s: float) -> list[Event]:
        """See `Link.poll`; in memory it never waits."""
        self._wire.wait(timeout_s, lambda: bool(self._events))
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
        return self._broker.limits.window - len(self._in_flight) if self._is_told else 0

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        if self.window() <= 0:
            raise TransientError("no room for another publication now")
        if HEADERS + len(topic) + len(payload) > self._broker.limits.max_packet:
            raise UsageError(f"packets have at most {self._broker.limits.max_packet} bytes here")
        self._last_number += 1
        self._in_flight[self._last_number] = Publication(self._last_number, topic, payload, retain)
        self._publish(self._in_flight[self._last_number])
        return self._last_number

    def subscribe(self, topics: Sequence[str]) -> None:
        self._ask(topics, subscribe=True)

    def unsubscribe(self, topics: Sequence[str]) -> None:
        self._ask(topics, subscribe=False)

    def acknowledge(self, message: Received) -> None:
        self._wire.carry(4, lambda: self._broker.acknowledge(self, message.handle), upward=True)

    def traffic(self) -> Traffic:
        return Traffic(bytes_up=self._wire.bytes_up, bytes_down=self._wire.bytes_down)

    def silence_s(self) -> float:
        return self._broker.clock() - self._wire.heard_s

    def close(self) -> None:
        """See `Link.close`: the good-bye travels behind what is under way."""

        def arrive() -> None:
            self._broker.disconnect(self, will=False)
            self._wire.close()

        self._state, self._is_told = "closed", False
        self._events.clear()
        self._wire.carry(2, arrive, upward=True)

    # -- what the broker calls

    def deliver(self, message: Received) -> None:
        """Let one message travel to us."""
        size = HEADERS + len(message.topic) + len(message.payload)

        def arrive() -> None:
            self._wire.count(size, upward=False)
            self._report(message)

        self._wire.carry(size, arrive, upward=False)

    def break_up(self, reason: str, *, is_taken_over: bool = False) -> None:
        """The connection is gone: what was under way with it and what was not polled, too."""
        kept = [event for event in self._events if isinstance(event, Connected | Disconnected)]
        self._events = deque(kept)
        self._failed(reason, is_taken_over=is_taken_over and self._is_told_why)

    # -- details

    def _attempt(self) -> None:
        if self._state != "open" or self._wire.is_up:
            return
        if obstacle := self._wire.obstacle(self.client_id):
            self._failed(obstacle)
            return
        present = self._broker.connect(self)
        self._wire.open()
        self._wire.carry(4, lambda: self._connected(present), upward=False)

    def _connected(self, session_present: bool) -> None:
        self._wire.up_at_s = self._broker.clock()
        self._report(Connected(session_present, self._broker.limits))
        if self._state == "closed":
            return
        for publication in self._in_flight.values():
            self._publish(publication)
        for subscribe in (True, False):
            self._ask(self._unconfirmed.wished(subscribe=subscribe), subscribe=subscribe)
        self._broker.send(self)

    def _failed(self, reason: str, *, is_taken_over: bool = False) -> None:
        """A connection has ended, or did not come to stand: go on as `MqttLink` does."""
        up_at_s = self._wire.up_at_s
        self._wire.close()
        if self._state == "closed":
            return
        oldest = next(iter(self._in_flight.values()), None)
        ending = Ending(
            reason,
            held_s=None if up_at_s is None else self._broker.clock() - up_at_s,
            is_taken_over=is_taken_over,
            waiting=oldest and Waiting(oldest.token, oldest.topic, len(oldest.payload)),
        )
        decision = self._reconnection.decide(ending, speaks_five=True)
        if decision.tell_owner:
            self._report(ending.event(decision))
        if self._waits and ending.held_s is not None:
            self._state = "waiting"
        else:
            self._wire.after(decision.delay_s, self._attempt)

    def _publish(self, publication: Publication) -> None:
        token, topic, payload, retain = publication
        if not self._wire.is_up:
            return  # it goes with the next connection
        size = HEADERS + len(topic) + len(payload)

        def arrive() -> None:
            refused = self._broker.refuses(topic, len(payload))
            if not refused:
                self._broker.accept(topic, payload, retain=retain)
            published = Published(token, refused)
            self._wire.carry(4, lambda: self._report(published), upward=False)

        self._wire.count(size, upward=True)
        self._wire.carry(size, arrive, upward=True)

    def _ask(self, topics: Sequence[str], *, subscribe: bool) -> None:
        broker, wire = self._broker, self._wire
        act = broker.subscribe if subscribe else broker.unsubscribe
        for topic in topics:
            self._last_number += 1
            self._unconfirmed.asked([topic], subscribe=subscribe, mid=self._last_number)

            def arrive(topic: str = topic, number: int = self._last_number) -> None:
                denied = broker.denies(topic) if subscribe else ""
                if not denied:
                    act(self, topic)

                def confirmed() -> None:
                    if self._unconfirmed.answered(number) and denied:
                        self._report(Subscribed((topic,), denied))

                wire.carry(4, confirmed, upward=False)

            if wire.is_up:
                wire.count(8 + len(topic), upward=True)
                wire.carry(8 + len(topic), arrive, upward=True)

    def _report(self, event: Event) -> None:
        """Let the next `poll` return ``event``."""
        if self._state != "closed":
            self._events.append(event)
