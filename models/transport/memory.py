"""A broker and links in memory, for tests and simulations. Pure: no thread, no socket, no clock.

It keeps the same contract as `MqttLink` on a real broker; one suite of tests runs against both.
Everything happens inside the call that causes it, and the owner's `poll` reports it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.errors import TransientError, UsageError
from models.transport.link import (
    Connected,
    Disconnected,
    Event,
    Limits,
    Published,
    Received,
    Subscribed,
    Traffic,
)

__all__ = ["MemoryBroker", "MemoryLink", "Message", "matches"]

RECEIVE_MAXIMUM = 8  # messages a session sends ahead of acknowledgements
HEADERS = 9  # bytes; a PUBLISH and its PUBACK without topic and payload


class Message(NamedTuple):
    """What a broker passes on."""

    topic: str
    payload: bytes
    retained: bool = False


class _Session:
    """What a broker keeps for a client over its absence."""

    def __init__(self) -> None:
        self.filters: list[str] = []
        self.waiting: deque[Message] = deque()
        self.unacknowledged: dict[int, Message] = {}
        self.link: MemoryLink | None = None


class MemoryBroker:
    """Retained messages, persistent sessions, QoS 1, wills; and the faults of a real one.

    ``clock`` returns the seconds that `MemoryLink.silence_s` counts in. What it takes of each link
    are its ``limits``; ``refuses`` says why it takes no message of this topic and size, and
    ``denies`` why nobody may subscribe to that topic, "" where it does.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.retained: dict[str, bytes] = {}
        self.limits = Limits()
        self.refuses: Callable[[str, int], str] = lambda topic, size: ""
        self.denies: Callable[[str], str] = lambda pattern: ""
        self._sessions: dict[str, _Session] = {}
        self._unreachable: set[str] = set()
        self._last_handle = 0

    # Faults.

    def drop_link(
        self, client_id: str, reason: str = "connection lost", *, is_taken_over: bool = False
    ) -> None:
        """Break a client's connection without a goodbye: its will is published.

        Acknowledgements that it has not polled are lost, so it publishes those messages again.
        """
        session = self._sessions.get(client_id)
        if session is None or session.link is None:
            return
        link, session.link = session.link, None
        session.waiting.extendleft(reversed(session.unacknowledged.values()))
        session.unacknowledged.clear()
        if link.is_passing:
            del self._sessions[client_id]
        link.on_lost(reason, is_taken_over=is_taken_over)
        if link.will is not None:
            topic, payload = link.will
            self.accept(topic, payload, retain=True)

    def set_reachable(self, client_id: str, reachable: bool) -> None:
        """Let a client reach us, or not; an existing connection breaks."""
        if reachable:
            self._unreachable.discard(client_id)
        else:
            self._unreachable.add(client_id)
            self.drop_link(client_id)

    def lose_all_state(self) -> None:
        """Crash, and come back without sessions and retained messages."""
        for client_id, session in list(self._sessions.items()):
            if session.link is not None:
                session.link.on_lost("the broker crashed")
            del self._sessions[client_id]
        self.retained.clear()

    # What links call.

    def connect(self, link: "MemoryLink") -> bool | None:
        """Attach ``link``; return whether its session was still here, None when unreachable."""
        if link.client_id in self._unreachable:
            return None
        self.drop_link(link.client_id, "session taken over", is_taken_over=True)
        if link.is_passing:
            self._sessions.pop(link.client_id, None)
        present = link.client_id in self._sessions
        self._sessions.setdefault(link.client_id, _Session()).link = link
        return present

    def leave(self, link: "MemoryLink") -> None:
        """Detach ``link`` in good order; its session stays."""
        if (session := self._session(link)) is not None:
            session.link = None
            session.waiting.extendleft(reversed(session.unacknowledged.values()))
            session.unacknowledged.clear()
            if link.is_passing:
                del self._sessions[link.client_id]

    def deliver_waiting(self, link: "MemoryLink") -> None:
        """Hand ``link`` what its session may send now."""
        session = self._session(link)
        while session and session.waiting and len(session.unacknowledged) < RECEIVE_MAXIMUM:
            message = session.waiting.popleft()
            self._last_handle += 1
            session.unacknowledged[self._last_handle] = message
            link.on_message(Received(*message, handle=self._last_handle))

    def accept(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Take one publication and pass it on."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for session in self._sessions.values():
            if any(matches(pattern, topic) for pattern in session.filters):
                session.waiting.append(Message(topic, payload))
                if session.link is not None:
                    self.deliver_waiting(session.link)

    def subscribe(self, link: "MemoryLink", pattern: str) -> None:
        """Add a subscription and send the retained messages that match."""
        session = self._session(link)
        if session is None:
            return
        if pattern not in session.filters:
            session.filters.append(pattern)
        for topic, payload in self.retained.items():
            if matches(pattern, topic):
                session.waiting.append(Message(topic, payload, retained=True))
        self.deliver_waiting(link)

    def unsubscribe(self, link: "MemoryLink", pattern: str) -> None:
        """Remove a subscription, if it is there."""
        session = self._session(link)
        if session is not None and pattern in session.filters:
            session.filters.remove(pattern)

    def acknowledge(self, link: "MemoryLink", handle: int) -> None:
        """Forget a message that the client has."""
        session = self._session(link)
        if session is not None and session.unacknowledged.pop(handle, None) is not None:
            self.deliver_waiting(link)

    def _session(self, link: "MemoryLink") -> _Session | None:
        session = self._sessions.get(link.client_id)
        return session if session is not None and session.link is link else None


class MemoryLink:
    """`Link` to a `MemoryBroker`. It connects again in `poll`, as soon as it can.

    Bytes are counted about as MQTT has them: topic, payload and a few for headers. ``is_passing``
    and ``waits`` are those of `MqttLink`; ``is_told`` False: like MQTT 3.1.1, it cannot tell a
    take-over from a lost connection.
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
    ) -> None:
        self.client_id = client_id
        self.will = will
        self.is_passing = is_passing
        self._waits = waits
        self._may_connect = True
        self._is_told_why = is_told
        self._broker = broker
        self._events: deque[Event] = deque()
        self._in_flight: dict[int, tuple[str, bytes, bool]] = {}
        self._asks: list[tuple[bool, str]] = []
        self._last_token = 0
        self._is_started = False
        self._is_connected = False  # to the broker
        self._is_told = False  # the owner knows
        self._has_complained = False
        self._bytes_up = 0
        self._bytes_down = 0
        self._heard_s = broker.clock()

    def start(self) -> None:
        if self._is_started:
            raise ValueError("the link was started before")
        self._is_started = True
        self._heard_s = self._broker.clock()

    def poll(self, timeout_s: float) -> list[Event]:
        """See `Link.poll`; never waits."""
        if self._is_started and not self._is_connected and self._may_connect:
            self._connect()
        events = list(self._events)
        self._events.clear()
        for event in events:
            match event:
                case Connected():
                    self._is_told = True
                case Disconnected():
                    self._is_told = False
                case Published(token=token):
                    del self._in_flight[token]
                case _:
                    pass
        return events

    def resume(self) -> None:
        """See `MqttLink.resume`."""
        self._may_connect = True

    def window(self) -> int:
        return self._broker.limits.window - len(self._in_flight) if self._is_told else 0

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        if self.window() <= 0:
            raise TransientError("no room for another publication now")
        if HEADERS + len(topic.encode()) + len(payload) > self._broker.limits.max_packet:
            raise UsageError(f"packets have at most {self._broker.limits.max_packet} bytes here")
        self._last_token += 1
        self._in_flight[self._last_token] = (topic, payload, retain)
        self._send(self._last_token)
        return self._last_token

    def subscribe(self, topics: Sequence[str]) -> None:
        self._ask(subscribe=True, topics=topics)

    def unsubscribe(self, topics: Sequence[str]) -> None:
        self._ask(subscribe=False, topics=topics)

    def acknowledge(self, message: Received) -> None:
        self._broker.acknowledge(self, message.handle)

    def traffic(self) -> Traffic:
        return Traffic(bytes_up=self._bytes_up, bytes_down=self._bytes_down)

    def silence_s(self) -> float:
        return self._broker.clock() - self._heard_s

    def close(self) -> None:
        self._broker.leave(self)
        self._is_started = self._is_connected = self._is_told = False

    # What the broker calls.

    def on_lost(self, reason: str, *, is_taken_over: bool = False) -> None:
        """The connection broke; unpolled acknowledgements and messages went with it."""
        self._is_connected = False
        self._may_connect = not self._waits
        is_taken_over = is_taken_over and self._is_told_why
        kept = [event for event in self._events if isinstance(event, Connected | Disconnected)]
        self._events = deque([*kept, Disconnected(reason, is_taken_over=is_taken_over)])

    def on_message(self, message: Received) -> None:
        self._events.append(message)
        self._bytes_down += HEADERS + len(message.topic.encode()) + len(message.payload)
        self._heard_s = self._broker.clock()

    def _connect(self) -> None:
        present = self._broker.connect(self)
        if present is None:
            if not self._has_complained:
                self._events.append(Disconnected("cannot reach the broker"))
            self._has_complained = True
            return
        self._is_connected = True
        self._has_complained = False
        self._heard_s = self._broker.clock()
        self._events.append(Connected(present, self._broker.limits))
        for token in list(self._in_flight):
            self._send(token)
        asks, self._asks = self._asks, []
        for subscribe, topic in asks:
            self._ask(subscribe=subscribe, topics=[topic])
        self._broker.deliver_waiting(self)

    def _send(self, token: int) -> None:
        if not self._is_connected:
            return  # it goes with the next connection
        topic, payload, retain = self._in_flight[token]
        self._bytes_up += HEADERS + len(topic.encode()) + len(payload)
        self._heard_s = self._broker.clock()
        refused = self._broker.refuses(topic, len(payload))
        if not refused:
            self._broker.accept(topic, payload, retain=retain)
        self._events.append(Published(token, refused))

    def _ask(self, *, subscribe: bool, topics: Sequence[str]) -> None:
        for topic in topics:
            if not self._is_connected:
                self._asks.append((subscribe, topic))
            elif subscribe and (denied := self._broker.denies(topic)):
                self._events.append(Subscribed((topic,), denied))
            elif subscribe:
                self._broker.subscribe(self, topic)
            else:
                self._broker.unsubscribe(self, topic)


def matches(pattern: str, topic: str) -> bool:
    """Whether ``pattern`` with its wildcards + and # covers ``topic`` (MQTT 5, section 4.7)."""
    levels, parts = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and levels[0] in ("+", "#"):
        return False
    for index, level in enumerate(levels):
        if level == "#":
            return True
        if index >= len(parts) or level not in ("+", parts[index]):
            return False
    return len(levels) == len(parts)
