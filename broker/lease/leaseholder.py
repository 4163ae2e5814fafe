"""The server under its lease (`lease.py`): looks under another name, then serves or stands by.

Of two links to the MQTT broker one is in use: the ``scout``, which has a name of its own and only
talks with other servers, and the ``main`` one with the fleet's client id and session. While the
main one is connected its events go to `broker.server.Server`, but for those about the lease.
"""

import logging
from collections.abc import Callable

import msgspec

from broker.lease.lease import Lease
from broker.lease.server_state import ServerState
from broker.lease.standing import Standing, named, stranger
from broker.lease.tenure import MainLink, Served, Tenure
from models.errors import PayloadError
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

__all__ = ["Leaseholder", "farewell"]

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two ticks while we do not serve
BUSY_S = 1.0  # between two looks at the link in the middle of long work
STRANGER_S = 600.0  # so long people are told that a stranger took our name


class Leaseholder:
    """A server that serves while it has the lease, and waits while another one has it.

    ``make_main`` and ``make_server`` are called for each tenure: what another server did meanwhile
    is found as after a restart.
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
        wall: float,
    ) -> None:
        self._topics = topics
        self._client_id = client_id
        self._make_scout = make_scout
        self._lease = Lease(own)
        self._since = wall
        self._scout: Link | None = None
        self._tenure = Tenure(make_main, make_server)
        self._is_up = False  # the link in use is connected
        self._is_refused = False  # the broker does not let us look
        self._reason = ""  # why we are not connected
        self._was_serving = False  # until a connection ended
        self._stranger_at: float | None = None  # when somebody who serves nothing took our name
        self._early: list[Event] = []  # came in the middle of long work
        self._busy_at: float | None = None

    # What people and devices are told

    @property
    def standing(self) -> Standing:
        return Standing(
            self._topics.fleet,
            self._lease.state,
            self._since,
            self._lease.other,
            self._is_up,
            self._reason,
            stranger(self._client_id) if self._stranger_at is not None else "",
        )

    @property
    def status(self) -> str:
        """One line for ``systemctl status``."""
        standing = self.standing
        if standing.state != "serving":
            return standing.text
        return "; ".join(filter(None, (self._tenure.server.status, standing.stranger)))

    def state(self, started: float, wall: float) -> ServerState:
        """Return what people are told of this server, which was ``started`` then."""
        state, standing = self._tenure.server.state(started, wall), self.standing
        problem = "; ".join(filter(None, (state.problem, standing.stranger)))
        if standing.state == "serving" and standing.is_up:
            return msgspec.structs.replace(state, problem=problem)
        return msgspec.structs.replace(
            state,
            is_connected=False,
            since=standing.since,
            reason="" if standing.is_up else standing.reason or state.reason,
            stands_by=standing.text if standing.is_up and standing.state == "standing by" else "",
            problem=problem,
        )

    # Driven by `broker.serving.run`, like a server and its link

    def start(self, wall: float) -> None:
        """Begin to look."""
        self._look(wall)

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what happened on the link that is in use."""
        early, self._early = self._early, []
        return early + self._link.poll(0.0 if early else timeout_s)

    @property
    def _link(self) -> Link:
        return self._tenure.link if self._scout is None else self._scout

    def handle(self, event: Event, now: float, wall: float) -> None:
        """Take one event of `poll`."""
        about = self._topics.server_status, self._topics.server_ask
        if isinstance(event, Received) and event.topic in about:
            self._link.acknowledge(event)
            self._hear(event, now, wall)
        elif self._scout is not None:
            self._handle_scout(event, now)
        else:
            self._handle_main(event, now, wall)

    def _hear(self, message: Received, now: float, wall: float) -> None:
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
        self._lease.hear(status, now, is_live=not message.retained)
        if before == "looking" and self._lease.state == "standing by":
            self._since = wall
            over = "session taken over: " if self._was_serving else ""
            log.warning("%s%s", over, self.standing.text)

    def _handle_scout(self, event: Event, now: float) -> None:
        assert self._scout is not None
        match event:
            case Connected():
                self._is_up = True
                self._scout.subscribe([self._topics.server_status, self._topics.server_ask])
                self._lease.begin(now)
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
                self._lease.confirm(now)
            case Received():  # of no topic that we asked for
                self._scout.acknowledge(event)

    def _cannot_look(self, reason: str) -> None:
        self._is_refused = True
        log.info("cannot look for other servers reason=%s", reason)
        self._lease.cannot_look()

    def _handle_main(self, event: Event, now: float, wall: float) -> None:
        match event:
            case Connected(session_present):
                self._is_up = True
                self._tenure.connected(self._topics, session_present=session_present)
                self._lease.connected(now)
                _say_who_serves(self._topics.fleet, self._client_id, is_alone=self._is_refused)
            case Disconnected(reason, is_taken_over=was_pushed, is_stuck=is_stuck):
                self._reason = reason
                if self._is_up:  # else the link keeps trying by itself
                    self._tenure.server.handle(event, now, wall)
                    self._stop_serving(was_pushed=was_pushed, is_stuck=is_stuck)
                    self._lease.lost(now, was_pushed=was_pushed, is_stuck=is_stuck)
                    self._look(wall)
                    return
        self._tenure.server.handle(event, now, wall)

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

    def _look(self, wall: float) -> None:
        self._is_up = self._is_refused = False
        self._since = wall
        self._scout = self._make_scout()
        self._scout.start()

    # The work

    def tick(self, now: float, wall: float) -> float:
        """Do what can be done at ``now``; return when to be called again at the latest."""
        if self._stranger_at is not None and now - self._stranger_at > STRANGER_S:
            self._stranger_at = None
        self._make_moves(now, wall)
        if self._scout is None and self._is_up:
            return self._tenure.server.tick(now, wall)
        return now + LOOK_S

    def _make_moves(self, now: float, wall: float) -> None:
        topics = self._topics
        while True:
            can_speak = self._is_up and self._link.window() > 0
            match self._lease.move(now, can_speak=can_speak):
                case "ask":
                    self._link.publish(topics.server_ask, b"")
                case "announce":
                    status = encode_message(self._lease.own)
                    self._link.publish(topics.server_status, status, retain=True)
                case "answer":  # not to the topic that all devices read
                    self._link.publish(topics.server_ask, encode_message(self._lease.own))
                case "serve":
                    self._serve(now, wall)
                case "yield":
                    log.warning("yielding to another server (%s)", named(self._lease.other))
                    self._tenure.link.close()
                    self._look(wall)
                case "":
                    return

    def _serve(self, now: float, wall: float) -> None:
        """Take the main link, with a new server if another one served since ours did.

        Raises:
            UsageError: the disk does not let us make one.
        """
        assert self._scout is not None
        self._scout.close()
        self._scout = None
        self._is_up = False
        self._since = wall
        if self._lease.other is not None:
            log.warning("the other server is gone (%s); taking over", named(self._lease.other))
        elif self._was_serving and self._lease.is_pushed:
            self._stranger_at = now
            log.warning("serving again; %s", stranger(self._client_id))
        self._was_serving = False
        if self._lease.is_succession:
            self._tenure = self._tenure.renewed()
        self._lease.began(wall)
        self._tenure.serve()

    def stay_alive(self, now: float) -> None:
        """Answer other servers in the middle of long work, which else looks like our end."""
        if self._scout is not None or not self._is_up:
            return
        if self._busy_at is not None and now - self._busy_at < BUSY_S:
            return
        self._busy_at = now
        link, ask = self._tenure.link, self._topics.server_ask
        for event in link.poll(0.0):
            match event:
                case Received(topic, payload) if topic == ask and link.window() > 0:
                    link.acknowledge(event)  # also our own answer, for the next to come
                    if not payload:
                        link.publish(topic, encode_message(self._lease.own))
                case _:
                    self._early.append(event)

    def drop_suspect(self) -> None:
        self._tenure.server.drop_suspect()

    def close(self) -> None:
        """Say goodbye, if we serve, and disconnect."""
        if self._scout is not None:
            self._scout.close()
        elif self._is_up and self._tenure.link.window() > 0:
            goodbye = encode_message(farewell(self._lease.own))
            self._tenure.link.publish(self._topics.server_status, goodbye, retain=True)
        if self._tenure.was_started:
            self._tenure.link.close()


def farewell(own: ServerStatus) -> ServerStatus:
    """Return what a server says when it goes, and what its will says."""
    return msgspec.structs.replace(own, online=False, tasks=())


def _say_who_serves(fleet: str, client_id: str, *, is_alone: bool) -> None:
    if is_alone:
        log.warning(
            "serving fleet %s without having looked for other servers: the MQTT broker does "
            "not let client id %s-INSTANCE in; allow it, or make sure of one server only",
            fleet,
            client_id,
        )
    else:
        log.info("serving fleet %s client_id=%s", fleet, client_id)
