"""Who of several servers serves a fleet: one at a time. Facts and time in, decision out. Pure.

What makes it one at a time is the MQTT broker: it has one connection of a client id, and the
server that has the fleet's serves. The lease keeps the others from taking it. A server looks under
another name first, and stands by while one that serves answers. Whoever loses the connection looks
again before he takes it back: if another one has it now, he hears so.

Two servers with different client ids (a setting) hear each other on ``server/status``: the one
that began later yields. docs/decisions/0010 has the reasons, tests/broker/lease/test_lease.py tries
every order of events. Times in seconds of a monotonic clock, but ``since`` of a status.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from models.protocol.messages import ServerStatus

__all__ = ["ANSWER_S", "AWAY_S", "SILENT_S", "Lease", "Move", "State"]

ANSWER_S = 10.0  # a server that is there answers at once, in the middle of long work within some
NOBODY_S = 1.0  # for a word of a server that began a moment ago, or whose words the broker lost
ASK_S = 2.0  # between two questions while we look
ASK_AGAIN_S = 10.0  # likewise while we stand by
AWAY_S = 20.0  # a server that said goodbye may be restarted; up to 10 more, by instance
SILENT_S = 40.0  # without an answer, standing by: it is gone, and its will is not out yet
RETURN_S = 150.0  # likewise after the broker was away: links wait up to 120 s between two tries
ANNOUNCE_S = 1.0  # between two of our own announcements
STEADY_S = 60.0  # a connection that held for so long was not pushed out by a stranger
SUSPICIOUS = 3  # connections in a row that did not: many brokers do not say why

State = Literal["looking", "standing by", "serving"]
Move = Literal["", "ask", "serve", "announce", "answer", "yield"]


@dataclass
class _Look:
    """What we know since we look or stand by."""

    last: ServerStatus | None = None  # what the topic says
    asked_at: float | None = None  # last
    confirmed_at: float | None = None  # the first question of this look is at the broker


@dataclass
class _Loss:
    """How we came to look."""

    was_serving: bool = False  # and the connection ended
    was_pushed: bool = False  # and another client took it
    short: int = 0  # connections in a row that did not hold


@dataclass
class _Service:
    """What is to be done while we serve."""

    connected_at: float | None = None
    is_echoed: bool = False  # what we hear now is later than our own word
    owes_word: bool = False
    owes_answer: bool = False
    said_at: float | None = None
    yields_to: ServerStatus | None = None


class Lease:
    """One server's view. It hears, and `move` says what to do next.

    ``own`` is what it says of itself while it serves, ``other`` what the one said that we stand by
    for. ``is_succession``: another one served since we last did.
    """

    def __init__(self, own: ServerStatus) -> None:
        self.own = own
        self.state: State = "looking"
        self.other: ServerStatus | None = None
        self.is_succession = False
        self._is_deaf = False  # the broker does not let us look
        self._take_at = 0.0  # standing by
        self._look = _Look()
        self._loss = _Loss()
        self._service = _Service()

    # Looking

    def begin(self, now: float) -> None:
        """The broker answers us under the other name; nothing was heard yet."""
        self._look = _Look()
        self._is_deaf = False
        if self.state == "standing by":
            self._take_at = now + RETURN_S

    def confirm(self, now: float) -> None:
        """The broker took over our question, so what it retains has come."""
        if self._look.confirmed_at is None:
            self._look.confirmed_at = now

    def cannot_look(self) -> None:
        """The broker refuses us the other name: go on as if nobody else was there."""
        self._is_deaf = True

    # Hearing

    def hear(self, status: ServerStatus | None, now: float, *, is_live: bool) -> None:
        """Take a word about who serves; None: the topic was cleared. Not ``is_live``: retained."""
        if self.state == "serving":
            self._hear_serving(status)
        elif status is not None and self._is_own(status):
            if self.state == "looking":  # a bridge between brokers says again what it kept of us
                self._look.last = status
        elif is_live and status is not None and status.online:  # we do not serve: of another
            self.state = "standing by"
            self.other = self._look.last = status
            self.is_succession = True
            self._take_at = now + SILENT_S
        elif self.state == "looking":
            if status is None or not self._is_of_another(status):
                self._look.last = status
        elif is_live and status is not None and not self._is_of_another(status):
            away_s = AWAY_S + int(self.own.instance or "0", 16) % 11
            self._take_at = min(self._take_at, now + away_s)

    def _is_of_another(self, goodbye: ServerStatus) -> bool:
        """Whether somebody else says goodbye than the one who serves, for all that we know."""
        last = self._look.last
        return (
            not goodbye.online
            and last is not None
            and last.online
            and last.instance != goodbye.instance
        )

    def _hear_serving(self, status: ServerStatus | None) -> None:
        if status is not None and status.online and status.instance == self.own.instance:
            self._service.is_echoed = True
        elif not self._service.is_echoed:
            return  # from before we began: the broker kept it for us
        elif status is not None and status.online and _age(status) < _age(self.own):
            self._service.yields_to = status
        else:
            self._service.owes_word = True

    def hear_question(self) -> None:
        """Another server asks who serves."""
        self._service.owes_answer = self.state == "serving"

    # Serving

    @property
    def is_pushed(self) -> bool:
        """Whether somebody took our name while we served, for sure or for all that we know."""
        return self._loss.was_pushed or self._loss.short >= SUSPICIOUS

    def connected(self, now: float) -> None:
        """The broker answers us under the fleet's name: we serve, and say so."""
        self._service.connected_at = now
        self._service.is_echoed = False
        self._service.owes_word = True

    def lost(self, now: float, *, was_pushed: bool, is_stuck: bool = False) -> None:
        """That connection has ended; ``was_pushed``: for sure because another client took it.

        ``is_stuck``: it ended over a publication, as others before it, so nobody took them.
        """
        is_short = _is_within(STEADY_S, self._service.connected_at, now) and not is_stuck
        self._loss = _Loss(True, was_pushed, self._loss.short + 1 if is_short else 0)
        self._look, self._service = _Look(), _Service()
        self.state = "looking"

    # Deciding

    def move(self, now: float, *, can_speak: bool) -> Move:
        """Return what to do now, "" for nothing; it counts as done, so do it, and ask again.

        ``can_speak``: a message can be handed over to the link that we use now.
        """
        if self.state == "serving":
            is_up = self._service.connected_at is not None and can_speak
            return self._move_serving(now) if is_up else ""
        if self._may_serve(now, can_speak=can_speak):
            self._serve()
            return "serve"
        pause_s = ASK_S if self.state == "looking" else ASK_AGAIN_S
        if can_speak and not _is_within(pause_s, self._look.asked_at, now):
            self._look.asked_at = now
            return "ask"
        return ""

    def _may_serve(self, now: float, *, can_speak: bool) -> bool:
        if self.state == "standing by":
            return can_speak and now >= self._take_at
        if self._is_deaf or not can_speak:
            return self._is_deaf
        last = self._look.last
        if self.is_pushed or (last and last.online and not self._is_own(last)):
            quiet_s = ANSWER_S
        elif self._loss.was_serving or last is None or last.online:
            quiet_s = NOBODY_S
        else:
            return True
        return self._look.confirmed_at is not None and now - self._look.confirmed_at >= quiet_s

    def _is_own(self, status: ServerStatus) -> bool:
        return status.instance == self.own.instance

    def _serve(self) -> None:
        last = self._look.last
        self.is_succession |= last is not None and not self._is_own(last)
        self.state = "serving"

    def began(self, wall: float) -> None:
        """Serving is prepared; ``wall`` is what the clock on the wall says, in Unix seconds."""
        if self.is_succession or not self.own.since:
            self.own = msgspec.structs.replace(self.own, since=float(int(wall)))
        self.is_succession = False
        self.other = None

    def _move_serving(self, now: float) -> Move:
        if self._service.yields_to is not None:
            self.other = self._service.yields_to
            self.lost(now, was_pushed=True)
            self.is_succession = True
            return "yield"
        if self._service.owes_word and not _is_within(ANNOUNCE_S, self._service.said_at, now):
            self._service.owes_word = False
            self._service.said_at = now
            return "announce"
        if self._service.owes_answer:
            self._service.owes_answer = False
            return "answer"
        return ""


def _age(status: ServerStatus) -> tuple[float, str]:
    return status.since, status.instance


def _is_within(seconds: float, since: float | None, now: float) -> bool:
    return since is not None and now - since < seconds
