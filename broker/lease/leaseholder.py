"""The server under its lease (`lease.py`): looks under another name, then serves or stands by.

Of two links to the MQTT broker one is in use: the ``scout``, which has a name of its own and only
talks with other servers, and the ``main`` one with the fleet's client id and session. While the
main one is connected its events go to `broker.server.Server`, but for those about the lease.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from broker.lease.lease import Lease, State
from broker.lease.server_state import ServerState
from models.errors import PayloadError, TransientError, UsageError
from models.protocol.messages import ServerStatus, decode_message, encode_message
from models.protocol.topics import ServerTopic, Topics
from models.transport.link import (
    Connected,
    Disconnected,
    Event,
    Link,
    Published,
    Received,
    Subscribed,
)

__all__ = ["Leaseholder", "MainLink", "Served", "Standing", "farewell"]

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two ticks while we do not serve
BUSY_S = 1.0  # between two looks at the link in the middle of long work
STRANGER_S = 600.0  # so long people are told that a stranger took our name


class MainLink(Link, Protocol):
    """A link that, once its connection has ended, waits for `resume`."""

    def resume(self) -> None:
        """Connect again; what was not confirmed goes out again."""


class Served(Protocol):
    """What there is to serve: `broker.server.Server`."""

    @property
    def status(self) -> str:
        """One line for ``systemctl status``."""

    def handle(self, event: Event, now: float) -> None:
        """Take one event of the link."""

    def tick(self, now: float) -> float:
        """Do what can be done; return when to be called again at the latest."""

    def state(self, started: float, now: float) -> ServerState:
        """Return what people are told of it."""

    def drop_suspect(self) -> None:
        """Let go of the message during which `tick` raised something unexpected."""

    def close(self) -> None:
        """Let go of everything: another one is made when we serve again."""


class Standing(NamedTuple):
    """Where this server stands since ``since`` (Unix seconds); ``other`` serves instead of it."""

    state: State
    since: float
    other: ServerStatus | None
    text: str  # for people


class Leaseholder:
    """A server that serves while it has the lease, and waits while another one has it.

    ``make_main`` and ``make_server`` are called for each tenure: what another server did meanwhile
    is found as after a restart. ``monotonic`` counts seconds that nobody sets.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        own: ServerStatus,
        client_id: str,
        make_scout: Callable[[], Link],
        make_main: Callable[[], MainLink],
        make_server: Callable[[Link], Served],
        now: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._client_id = client_id
        self._make_scout = make_scout
        self._make_main = make_main
        self._make_server = make_server
        self._monotonic = monotonic
        self._lease = Lease(own)
        self._since = now
        self._scout: Link | None = None
        self._main = make_main()
        self._server = make_server(self._main)
        self._was_started = False  # the main link
        self._was_used = False  # the server: it was connected
        self._is_up = False  # the link in use is connected
        self._is_refused = False  # the broker does not let us look
        self._is_subscribed = False
        self._reason = ""  # why we are not connected
        self._was_serving = False  # until a connection ended
        self._stranger_at: float | None = None  # when somebody who serves nothing took our name
        self._early: list[Event] = []  # came in the middle of long work
        self._busy_at: float | None = None

    # What people and devices are told

    @property
    def standing(self) -> Standing:
        return Standing(self._lease.state, self._since, self._lease.other, self._text)

    @property
    def _text(self) -> str:
        fleet = self._topics.fleet
        if not self._is_up:
            return f"not connected to the MQTT broker{self._reason and ': '}{self._reason}"
        if self._lease.state == "serving":
            return f"serves fleet {fleet}{self._stranger}"
        if self._lease.state == "standing by" and self._lease.other is not None:
            return (
                f"another server ({_named(self._lease.other)}) serves fleet {fleet}; this one "
                f"stands by and takes over when that one goes"
            )
        return f"looking whether another server serves fleet {fleet}"

    @property
    def status(self) -> str:
        """One line for ``systemctl status``."""
        if self._lease.state == "serving":
            return f"{self._server.status}{self._stranger}"
        return self._text

    def state(self, started: float, now: float) -> ServerState:
        """Return what people are told of this server, which was ``started`` then."""
        state = self._server.state(started, now)
        stranger = self._stranger.removeprefix("; ")
        problem = "; ".join(filter(None, (state.problem, stranger)))
        if self._lease.state == "serving" and self._is_up:
            return msgspec.structs.replace(state, problem=problem)
        return msgspec.structs.replace(
            state,
            is_connected=False,
            since=self._since,
            reason="" if self._is_up else self._reason or state.reason,
            stands_by=self._text if self._is_up and self._lease.state == "standing by" else "",
            problem=problem,
        )

    @property
    def _stranger(self) -> str:
        if self._stranger_at is None or self._monotonic() - self._stranger_at > STRANGER_S:
            return ""
        return (
            "; another client of the MQTT broker, no server of this fleet, seems to use client id "
            f"{self._client_id} too: give each fleet its own [fleet] client_id"
        )

    # Driven by `broker.serving.run`, like a server and its link

    def start(self) -> None:
        """Begin to look."""
        self._look()

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what happened on the link that is in use."""
        early, self._early = self._early, []
        return early + self._link.poll(0.0 if early else timeout_s)

    @property
    def _link(self) -> Link:
        return self._main if self._scout is None else self._scout

    def handle(self, event: Event, now: float) -> None:
        """Take one event of `poll`."""
        if isinstance(event, Received) and self._is_about_lease(event):
            self._link.acknowledge(event)
            self._hear(event)
        elif self._scout is not None:
            self._handle_scout(event)
        else:
            self._handle_main(event, now)

    def _is_about_lease(self, message: Received) -> bool:
        topics = self._topics
        return message.topic in (topics.server_status, topics.server_ask)

    def _hear(self, message: Received) -> None:
        is_ask = self._topics.parse(message.topic) == ServerTopic("ask")
        if is_ask and not message.payload:
            self._lease.hear_question()
            return
        if is_ask and self._lease.state == "serving":
            return  # our own answer
        try:
            status = decode_message(message.payload, ServerStatus) if message.payload else None
        except PayloadError as error:
            log.warning("message dropped: %s", error)
            status = None
        before = self._lease.state
        self._lease.hear(status, self._monotonic(), is_live=not message.retained)
        if before == "looking" and self._lease.state == "standing by":
            self._since = time.time()
            log.warning("%s%s", "session taken over: " if self._was_serving else "", self._text)

    def _handle_scout(self, event: Event) -> None:
        assert self._scout is not None
        match event:
            case Connected():
                self._is_up = True
                self._scout.subscribe([self._topics.server_status, self._topics.server_ask])
                self._lease.begin(self._monotonic())
            case Disconnected(reason, is_refused=is_refused):
                self._is_up, self._reason = False, reason
                if is_refused:
                    self._cannot_look(reason)
                else:
                    log.warning("disconnected from the MQTT broker reason=%s", reason)
            case Subscribed(_, refused) if refused:
                self._cannot_look(refused)
            case Published(_, refused):
                if refused:
                    self._cannot_look(refused)
                self._lease.confirm(self._monotonic())
            case Received():  # of no topic that we asked for
                self._scout.acknowledge(event)

    def _cannot_look(self, reason: str) -> None:
        self._is_refused = True
        log.info("cannot look for other servers reason=%s", reason)
        self._lease.cannot_look()

    def _handle_main(self, event: Event, now: float) -> None:
        match event:
            case Connected(session_present):
                self._is_up = self._was_used = True
                if not (session_present and self._is_subscribed):
                    self._main.subscribe([self._topics.server_status, self._topics.server_ask])
                    self._is_subscribed = True
                self._lease.connected(self._monotonic())
                self._say_what_we_do()
            case Disconnected(reason, is_taken_over=was_pushed, is_stuck=is_stuck):
                self._reason = reason
                if self._is_up:  # else the link keeps trying by itself
                    self._server.handle(event, now)
                    self._stop_serving(was_pushed=was_pushed, is_stuck=is_stuck)
                    return
        self._server.handle(event, now)

    def _say_what_we_do(self) -> None:
        fleet, client_id = self._topics.fleet, self._client_id
        if self._is_refused:
            log.warning(
                "serving fleet %s without having looked for other servers: the MQTT broker does "
                "not let client id %s-INSTANCE in; allow it, or make sure of one server only",
                fleet,
                client_id,
            )
        else:
            log.info("serving fleet %s client_id=%s", fleet, client_id)

    def _stop_serving(self, *, was_pushed: bool, is_stuck: bool) -> None:
        if is_stuck:
            self._stranger_at = None  # it was no other client
        if was_pushed:
            log.warning(
                "session taken over: another client of the MQTT broker uses client id %s; this "
                "server stops serving and looks who it is: a second server of fleet %s, or one of "
                "another fleet with the same [fleet] client_id",
                self._client_id,
                self._topics.fleet,
            )
        self._was_serving = True
        self._lease.lost(self._monotonic(), was_pushed=was_pushed, is_stuck=is_stuck)
        self._look()

    def _look(self) -> None:
        self._is_up = self._is_refused = False
        self._since = time.time()
        self._scout = self._make_scout()
        self._scout.start()

    # The work

    def tick(self, now: float) -> float:
        """Do what can be done at ``now``; return when to be called again at the latest."""
        self._make_moves(now)
        if self._scout is None and self._is_up:
            return self._server.tick(now)
        return now + LOOK_S

    def _make_moves(self, now: float) -> None:
        topics = self._topics
        while True:
            can_speak = self._is_up and self._link.window() > 0
            match self._lease.move(self._monotonic(), can_speak=can_speak):
                case "ask":
                    self._link.publish(topics.server_ask, b"")
                case "announce":
                    status = encode_message(self._lease.own)
                    self._link.publish(topics.server_status, status, retain=True)
                case "answer":  # not to the topic that all devices read
                    self._link.publish(topics.server_ask, encode_message(self._lease.own))
                case "serve":
                    self._serve(now)
                case "yield":
                    log.warning("yielding to another server (%s)", _named(self._lease.other))
                    self._main.close()
                    self._look()
                case "":
                    return

    def _serve(self, now: float) -> None:
        """Take the main link, with a new server if another one served since ours did."""
        assert self._scout is not None
        self._scout.close()
        self._scout = None
        self._is_up = False
        self._since = time.time()
        if self._lease.other is not None:
            log.warning("the other server is gone (%s); taking over", _named(self._lease.other))
        elif self._was_serving and self._lease.is_pushed:
            self._stranger_at = self._monotonic()
            log.warning("serving again%s", self._stranger)
        self._was_serving = False
        if self._lease.is_succession and self._was_used:
            self._renew()
        self._lease.began(now)
        if self._was_started:
            self._main.resume()
        else:
            self._main.start()
            self._was_started = True

    def _renew(self) -> None:
        """Make link and server anew.

        Raises:
            UsageError: the disk does not let us; a restart may do better.
        """
        self._main.close()
        self._server.close()
        self._main = self._make_main()
        try:
            self._server = self._make_server(self._main)
        except (TransientError, OSError) as error:
            raise UsageError(f"cannot begin to serve again: {error}") from None
        self._was_started = self._was_used = self._is_subscribed = False

    def stay_alive(self) -> None:
        """Answer other servers in the middle of long work, which else looks like our end."""
        now = self._monotonic()
        if self._scout is not None or not self._is_up:
            return
        if self._busy_at is not None and now - self._busy_at < BUSY_S:
            return
        self._busy_at = now
        for event in self._main.poll(0.0):
            match event:
                case Received(topic, payload) if (
                    topic == self._topics.server_ask and self._main.window() > 0
                ):
                    self._main.acknowledge(event)  # also our own answer, for the next to come
                    if not payload:
                        self._main.publish(topic, encode_message(self._lease.own))
                case _:
                    self._early.append(event)

    def drop_suspect(self) -> None:
        self._server.drop_suspect()

    def close(self) -> None:
        """Say goodbye, if we serve, and disconnect."""
        if self._scout is not None:
            self._scout.close()
        elif self._is_up and self._main.window() > 0:
            goodbye = encode_message(farewell(self._lease.own))
            self._main.publish(self._topics.server_status, goodbye, retain=True)
        if self._was_started:
            self._main.close()


def farewell(own: ServerStatus) -> ServerStatus:
    """Return what a server says when it goes, and what its will says."""
    return msgspec.structs.replace(own, online=False, tasks=())


@functools.lru_cache(maxsize=4)
def _named(other: ServerStatus | None) -> str:
    """Return a server as people know it; it says so itself, so nothing of it is believed."""
    if other is None:
        return "unknown"
    host = "".join(c if c.isprintable() and c not in "\"'" else "?" for c in other.host)
    try:
        since = time.strftime("%-d %b %H:%M", time.localtime(other.since))
    except (OverflowError, ValueError, OSError):
        since = "?"
    return f"host {host or '?'}, since {since}"
