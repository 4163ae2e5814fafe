"""What to do when a connection has ended: when to try again, and with which version. Pure."""

from collections.abc import Callable
from typing import NamedTuple, Self

from models.host.backoff import doubled
from models.transport.disconnection import Why, stuck
from models.transport.link import Disconnected

__all__ = ["Decision", "Ending", "Reconnection", "Waiting", "reconnect_delay"]

LONGEST_DELAY_S = 120.0
SHORTEST_DELAY_S = 0.2
REFUSED_DELAY_S = (10.0, 60.0)
STEADY_S = 60.0  # a connection that held this long was not pushed out by a duplicate of us
STUCK = 3  # connections in a row that ended over the same publication: the broker does not take it
CONNACK_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 6.0  # while we do not know the version, since amqtt ignores MQTT 5; doubles

Uniform = Callable[[float, float], float]  # draws between two numbers: `random.Random.uniform`


class Waiting(NamedTuple):
    """A publication that the broker has not acknowledged."""

    number: int  # of its packet
    topic: str
    size: int  # bytes of its payload


class Ending(NamedTuple):
    """What one connection came to."""

    reason: str
    held_s: float | None = None  # from CONNACK to its end; None: it never got there
    is_reached: bool = True  # TCP, and TLS if wanted, stood
    is_ignored: bool = False  # no answer to CONNECT for a long time
    is_refused: bool = False  # CONNACK says no
    is_old_broker: bool = False  # CONNACK says that it does not know our version
    is_taken_over: bool = False  # another client came with our name
    waiting: Waiting | None = None  # the oldest publication that was not acknowledged
    needs_help: bool = False  # only a person mends it

    @classmethod
    def of(cls, why: Why) -> Self:
        return cls(why.text, needs_help=why.needs_help, is_taken_over=why.is_taken_over)

    def event(self, decision: "Decision") -> Disconnected:
        """Return what the owner of the link polls."""
        reason = self.reason
        if decision.is_stuck and self.waiting is not None:
            reason = stuck(reason, self.waiting.topic, self.waiting.size).text
        return Disconnected(
            reason, self.needs_help, self.is_taken_over, self.is_refused, decision.is_stuck
        )


class Decision(NamedTuple):
    """What comes next."""

    delay_s: float
    switch_version: bool  # from MQTT 5 to 3.1.1 or back
    tell_owner: bool
    is_stuck: bool = False  # several connections ended over the same publication


def reconnect_delay(attempt: int, uniform: Uniform) -> float:
    """Return the seconds to wait before attempt ``attempt`` (0, 1, …): exponential, full jitter.

    Full jitter, so that a thousand devices do not come back in step (140 TLS connections per
    second were measured on two cores).
    """
    return max(SHORTEST_DELAY_S, uniform(0.0, doubled(1.0, attempt, LONGEST_DELAY_S)))


class Reconnection:
    """Remembers the endings so far and decides after each.

    ``is_auto``: begin with MQTT 5, and go over to 3.1.1 when the broker says that it has no 5, or
    when it ignored or twice hung up on us before it ever answered. Brokers without 5 do each of
    these. Once a broker has answered, only its word counts: a bad link looks like hanging up.

    A connection is a reason to try again at once, unless several ended without getting the oldest
    publication through: a broker that closes over it would be sent it twice a second.
    """

    def __init__(self, uniform: Uniform, *, is_auto: bool) -> None:
        self._uniform = uniform
        self._is_auto = is_auto
        self._attempt = 0
        self._hung_up = 0
        self._switches = 0
        self._pushed_out = 0
        self._waiting: Waiting | None = None
        self._stuck = 0
        self._last_reason = ""
        self.is_undecided = is_auto  # about the version

    @property
    def patience_s(self) -> float:
        """How long to wait for CONNACK: a broker whose devices all come back at once is slow."""
        if not self.is_undecided:
            return CONNACK_TIMEOUT_S
        return doubled(PROBE_TIMEOUT_S, self._switches // 2, CONNACK_TIMEOUT_S)

    def answered(self) -> None:
        """The broker accepted a connection in the version that we speak now."""
        self.is_undecided = False

    def decide(self, ending: Ending, *, speaks_five: bool) -> Decision:
        """Return what to do after ``ending``."""
        was_up = ending.held_s is not None
        if self._should_switch(ending, speaks_five=speaks_five):
            self._hung_up = 0
            self._switches += 1
            both, is_first = divmod(self._switches, 2)
            delay_s = 0.0 if is_first else reconnect_delay(both, self._uniform)
            # With one version this is no news: with the next one the broker may well answer.
            tell_owner = not is_first and ending.reason != self._last_reason
            if tell_owner:
                self._last_reason = ending.reason
            return Decision(delay_s, switch_version=True, tell_owner=tell_owner)
        is_same = ending.waiting is not None and ending.waiting == self._waiting
        is_stuck = was_up and is_same and (ending.held_s or 0.0) < STEADY_S
        self._stuck = self._stuck + 1 if is_stuck else self._stuck if is_same else 0
        self._waiting = ending.waiting
        self._attempt = 0 if was_up and self._stuck < STUCK else self._attempt + 1
        if ending.is_taken_over:
            self._pushed_out = 1 if (ending.held_s or 0.0) > STEADY_S else self._pushed_out + 1
            self._attempt = 2 + self._pushed_out
        delay_s = (
            self._uniform(*REFUSED_DELAY_S)
            if ending.is_refused
            else reconnect_delay(self._attempt, self._uniform)
        )
        tell_owner = was_up or ending.reason != self._last_reason
        self._last_reason = ending.reason
        has_stuck = is_stuck and self._stuck >= STUCK
        return Decision(delay_s, switch_version=False, tell_owner=tell_owner, is_stuck=has_stuck)

    def _should_switch(self, ending: Ending, *, speaks_five: bool) -> bool:
        if self._is_auto and speaks_five and ending.is_old_broker:
            self.is_undecided = False
            return True
        if not self.is_undecided:
            return False
        if ending.is_refused:  # for another reason, so it understood us
            self.is_undecided = False
            return False
        self._hung_up += ending.is_reached and ending.held_s is None
        return ending.is_ignored or self._hung_up >= 2
