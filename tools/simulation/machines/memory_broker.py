"""An MQTT broker in memory: retained messages, persistent sessions, QoS 1, wills. Pure.

Everything happens inside the call that causes it: no thread, no socket, no clock. Links to it are
in `memory_link.py`; `virtual_network.py` puts time in between.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

from models.transport.link import BrokerLimits, Received

__all__ = ["RECEIVE_MAXIMUM", "Client", "MemoryBroker", "Message", "Session", "matches"]

RECEIVE_MAXIMUM = 8  # messages a session sends ahead of acknowledgments


class Message(NamedTuple):
    """What a broker passes on."""

    topic: str
    payload: bytes
    retained: bool = False


class Client(Protocol):
    """What a broker knows of a link; `deliver` and `break_up` are its news for it."""

    client_id: str
    will: tuple[str, bytes] | None
    is_passing: bool  # it keeps no session of it

    def deliver(self, message: Received) -> None:
        """Take one message."""

    def break_up(self, reason: str, *, is_taken_over: bool = False) -> None:
        """The connection is gone."""


class Session:
    """What a broker keeps for a client over its absence."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.exact: dict[str, None] = {}  # topics it subscribed to
        self.patterns: dict[str, None] = {}  # likewise, with wildcards
        self.waiting: deque[Message] = deque()
        self.unacknowledged: dict[int, Message] = {}
        self.link: Client | None = None


class MemoryBroker:
    """One broker, and the faults of a real one. ``up`` False: nobody reaches it.

    ``clock`` returns the seconds that links count in; ``receive_maximum`` are the
    messages that a session sends ahead of acknowledgments. What it takes of each link are its
    ``limits``; ``refuses`` says why it takes no message of this topic and size, and ``denies`` why
    nobody may subscribe to that topic, "" where it does.
    """

    def __init__(
        self, clock: Callable[[], float] = lambda: 0.0, *, receive_maximum: int = RECEIVE_MAXIMUM
    ) -> None:
        self.clock = clock
        self.receive_maximum = receive_maximum
        self.up = True
        self.retained: dict[str, bytes] = {}
        self.sessions: dict[str, Session] = {}
        self.limits = BrokerLimits()
        self.refuses: Callable[[str, int], str] = lambda topic, size: ""
        self.denies: Callable[[str], str] = lambda pattern: ""
        self._exact: dict[str, dict[str, Session]] = {}  # topic -> sessions by client
        self._with_patterns: dict[str, Session] = {}
        self._unreachable: set[str] = set()
        self._last_handle = 0

    # -- faults

    def stop(self, *, wiped: bool) -> None:
        """Crash; ``wiped``: sessions and retained messages are gone afterwards."""
        self.up = False
        for session in list(self.sessions.values()):
            if session.link is not None:
                session.link.break_up("the broker crashed")
            self._detach(session, will=False)
        if wiped:
            self.sessions.clear()
            self._exact.clear()
            self._with_patterns.clear()
            self.retained.clear()

    def start(self) -> None:
        self.up = True

    def lose_all_state(self) -> None:
        """Crash, and come back without sessions and retained messages."""
        self.stop(wiped=True)
        self.start()

    def drop_link(self, client_id: str, reason: str = "connection lost") -> None:
        """Break a client's connection without a good-bye: its will is published.

        Acknowledgments that it has not polled are lost, so it publishes those messages again.
        """
        session = self.sessions.get(client_id)
        if session is not None and (link := session.link) is not None:
            self._detach(session, will=True)
            link.break_up(reason)

    def set_reachable(self, client_id: str, reachable: bool) -> None:
        """Let a client reach us, or not; an existing connection breaks."""
        if reachable:
            self._unreachable.discard(client_id)
        else:
            self._unreachable.add(client_id)
            self.drop_link(client_id)

    def is_reachable(self, client_id: str) -> bool:
        return self.up and client_id not in self._unreachable

    # -- what links call, when their packets arrive

    def connect(self, link: Client) -> bool:
        """Attach ``link``; return whether there was a session."""
        session = self.sessions.get(link.client_id)
        if session is not None:
            if session.link is not None and session.link is not link:
                session.link.break_up("session taken over", is_taken_over=True)
            self._detach(session, will=True)
            if link.is_passing:
                self._forget(session)
        present = link.client_id in self.sessions
        if not present:
            self.sessions[link.client_id] = Session(link.client_id)
        self.sessions[link.client_id].link = link
        return present

    def disconnect(self, link: Client, *, will: bool) -> None:
        """Detach ``link``; its session stays, unless it is passing."""
        session = self._of(link)
        if session is not None:
            self._detach(session, will=will)

    def accept(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Take one publication and pass it on."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        readers = self._exact.get(topic, {}) | {
            client_id: session
            for client_id, session in self._with_patterns.items()
            if any(matches(pattern, topic) for pattern in session.patterns)
        }
        self._pass_on(Message(topic, payload), readers.values())

    def subscribe(self, link: Client, pattern: str) -> None:
        """Add a subscription and send the retained messages that match."""
        session = self._of(link)
        if session is None:
            return
        if "+" in pattern or "#" in pattern:
            session.patterns[pattern] = None
            self._with_patterns[session.client_id] = session
            found = [topic for topic in self.retained if matches(pattern, topic)]
        else:
            session.exact[pattern] = None
            self._exact.setdefault(pattern, {})[session.client_id] = session
            found = [pattern] if pattern in self.retained else []
        for topic in found:
            session.waiting.append(Message(topic, self.retained[topic], retained=True))
        self.send(link)

    def unsubscribe(self, link: Client, pattern: str) -> None:
        """Remove a subscription, if it is there."""
        session = self._of(link)
        if session is not None:
            session.exact.pop(pattern, None)
            session.patterns.pop(pattern, None)
            if pattern in self._exact:
                self._exact[pattern].pop(session.client_id, None)

    def acknowledge(self, link: Client, handle: int) -> None:
        """Forget a message that the client has."""
        session = self._of(link)
        if session is not None and session.unacknowledged.pop(handle, None) is not None:
            self.send(link)

    def send(self, link: Client) -> None:
        """Put what the session of ``link`` may send now on the line."""
        session = self._of(link)
        while session and session.waiting and len(session.unacknowledged) < self.receive_maximum:
            message = session.waiting.popleft()
            self._last_handle += 1
            session.unacknowledged[self._last_handle] = message
            link.deliver(Received(*message, handle=self._last_handle))

    # -- details

    def _pass_on(self, message: Message, readers: Iterable[Session]) -> None:
        for session in readers:
            self._queue(session, message)

    def _queue(self, session: Session, message: Message) -> None:
        session.waiting.append(message)
        if session.link is not None:
            self.send(session.link)

    def _detach(self, session: Session, *, will: bool) -> None:
        link, session.link = session.link, None
        session.waiting.extendleft(reversed(session.unacknowledged.values()))
        session.unacknowledged.clear()
        if link is not None and link.is_passing:
            self._forget(session)
        if will and link is not None and link.will is not None:
            topic, payload = link.will
            self.accept(topic, payload, retain=True)

    def _forget(self, session: Session) -> None:
        self.sessions.pop(session.client_id, None)
        self._with_patterns.pop(session.client_id, None)
        for topic in session.exact:
            self._exact[topic].pop(session.client_id, None)

    def _of(self, link: Client) -> Session | None:
        session = self.sessions.get(link.client_id)
        return session if session is not None and session.link is link else None


@lru_cache(1 << 17)  # the topics of a fleet come again and again
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
