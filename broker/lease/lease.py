"""Who of several servers serves a fleet: one at a time. Facts and time in, decision out. Pure.

What makes it one at a time is the MQTT broker: it has one connection of a client id, and the
server that has the fleet's serves. The lease keeps the others from taking it. A server looks under
another name first, and stands by while one that serves answers. Whoever loses the connection looks
again before he takes it back: if another one has it now, he hears so.

Two servers with different client ids (a setting) hear each other on ``server/status``: the one
that began later yields. docs/decisions/0010 has the reasons, tests/broker/test_lease.py tries
every order of events. Times in seconds of a monotonic clock, but ``since`` of a status.
"""

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
        # Looking and standing by:
        self._last: ServerStatus | None = None  # what the topic says
        self._asked_at: float | None = None  # last
        self._confirmed_at: float | None = None  # the first question of this look is at the broker
        self._is_deaf = False  # the broker does not let us look
        self._take_at = 0.0
        # How we came to look:
        self._was_lost = False  # we served, and the connection ended
        self._was_pushed = False  # and another client took it
        self._short = 0  # connections in a row that did not hold
        # Serving:
        self._connected_at: float | None = None
        self._is_echoed = False  # what we hear now is later than our own word
        self._owes_word = False
        self._owes_answer = False
        self._said_at: float | None = None
        self._yields_to: ServerStatus | None = None

    # Looking

    def begin(self, now: float) -> None:
        """The broker answers us under the other name; nothing was heard yet."""
        self._last = self._asked_at = self._confirmed_at = None
        self._is_deaf = False
        if self.state == "standing by":
            self._take_at = now + RETURN_S

    def confirm(self, now: float) -> None:
        """The broker took over our question, so what it retains has come."""
        if self._confirmed_at is None:
            self._confirmed_at = now

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
                self._last = status
        elif is_live and status is not None and status.online:  # we do not serve: of another
            self.state = "standing by"
            self.other = self._last = status
            self.is_succession = True
            self._take_at = now + SILENT_S
        elif self.state == "looking":
            if status is None or not self._is_of_another(status):
                self._last = status
        elif is_live and status is not None and not self._is_of_another(status):
            away_s = AWAY_S + int(self.own.instance or "0", 16) % 11
            self._take_at = min(self._take_at, now + away_s)

    def _is_of_another(self, goodbye: ServerStatus) -> bool:
        """Whether somebody else says goodbye than the one who serves, for all that we know."""
        last = self._last
        return (
            not goodbye.online
            and last is not None
            and last.online
            and last.instance != goodbye.instance
        )

    def _hear_serving(self, status: ServerStatus | None) -> None:
        if status is not None and status.online and status.instance == self.own.instance:
            self._is_echoed = True
        elif not self._is_echoed:
            return  # from before we began: the broker kept it for us
        elif status is not None and status.online and _age(status) < _age(self.own):
            self._yields_to = status
        else:
            self._owes_word = True

    def hear_question(self) -> None:
        """Another server asks who serves."""
        self._owes_answer = self.state == "serving"

    # Serving

    @property
    def is_pushed(self) -> bool:
        """Whether somebody took our name while we served, for sure or for all that we know."""
        return self._was_pushed or self._short >= SUSPICIOUS

    def connected(self, now: float) -> None:
        """The broker answers us under the fleet's name: we serve, and say so."""
        self._connected_at = now
        self._is_echoed = False
        self._owes_word = True

    def lost(self, now: float, *, was_pushed: bool, is_stuck: bool = False) -> None:
        """That connection has ended; ``was_pushed``: for sure because another client took it.

        ``is_stuck``: it ended over a publication, as others before it, so nobody took them.
        """
        is_short = _is_within(STEADY_S, self._connected_at, now) and not is_stuck
        self._short = self._short + 1 if is_short else 0
        self._connected_at = None
        self._was_lost = True
        self._was_pushed = was_pushed
        self._yields_to = None
        self._last = self._asked_at = self._confirmed_at = None
        self.state = "looking"

    # Deciding

    def move(self, now: float, *, can_speak: bool) -> Move:
        """Return what to do now, "" for nothing; it counts as done, so do it, and ask again.

        ``can_speak``: a message can be handed over to the link that we use now.
        """
        if self.state == "serving":
            is_up = self._connected_at is not None and can_speak
            return self._move_serving(now) if is_up else ""
        if self._may_serve(now, can_speak=can_speak):
            self._serve()
            return "serve"
        pause_s = ASK_S if self.state == "looking" else ASK_AGAIN_S
        if can_speak and not _is_within(pause_s, self._asked_at, now):
            self._asked_at = now
            return "ask"
        return ""

    def _may_serve(self, now: float, *, can_speak: bool) -> bool:
        if self.state == "standing by":
            return can_speak and now >= self._take_at
        if self._is_deaf or not can_speak:
            return self._is_deaf
        last = self._last
        if self.is_pushed or (last and last.online and not self._is_own(last)):
            quiet_s = ANSWER_S
        elif self._was_lost or last is None or last.online:
            quiet_s = NOBODY_S
        else:
            return True
        return self._confirmed_at is not None and now - self._confirmed_at >= quiet_s

    def _is_own(self, status: ServerStatus) -> bool:
        return status.instance == self.own.instance

    def _serve(self) -> None:
        last = self._last
        self.is_succession |= last is not None and not self._is_own(last)
        self.state = "serving"
        self._connected_at = None
        self._owes_word = self._owes_answer = False
        self._said_at = None

    def began(self, wall: float) -> None:
        """Serving is prepared; ``wall`` is what the clock on the wall says, in Unix seconds."""
        if self.is_succession or not self.own.since:
            self.own = msgspec.structs.replace(self.own, since=float(int(wall)))
        self.is_succession = False
        self.other = None

    def _move_serving(self, now: float) -> Move:
        if self._yields_to is not None:
            self.other = self._yields_to
            self.lost(now, was_pushed=True)
            self.is_succession = True
            return "yield"
        if self._owes_word and not _is_within(ANNOUNCE_S, self._said_at, now):
            self._owes_word = False
            self._said_at = now
            return "announce"
        if self._owes_answer:
            self._owes_answer = False
            return "answer"
        return ""


def _age(status: ServerStatus) -> tuple[float, str]:
    return status.since, status.instance


def _is_within(seconds: float, since: float | None, now: float) -> bool:
    return since is not None and now - since < seconds
