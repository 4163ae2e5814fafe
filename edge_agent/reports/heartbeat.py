"""What a device says of itself, and when: only if something that matters has changed. Pure.

The server sees nothing of MQTT's keepalive, so a device at rest says now and then that it is there.
"""

from operator import attrgetter

from models.protocol.messages import STILL_HERE_S, Status

__all__ = ["LEAST_APART_S", "SETTLES_S", "Heartbeat", "settling_time"]

LEAST_APART_S = 3.0  # a burst of changes becomes one message
SETTLES_S = 30.0  # at the pace of a fleet: what a release or a training changes becomes one, too
# They change all the time; they ride along when something else is worth a message.
RIDES_ALONG = (
    *("bytes_up", "bytes_down", "rss_mb", "peak_rss_mb"),
    *("samples", "samples_ever", "holdout"),
)
SAMPLES_STEP = 1.1  # the sample count is worth a message when it grew by a tenth
_WHAT_MATTERS = attrgetter(*(name for name in Status.__struct_fields__ if name not in RIDES_ALONG))


def settling_time(seconds_between_trainings: float) -> float:
    """Return for how long a change waits for others: half a minute at a pace of an hour."""
    return min(SETTLES_S, max(LEAST_APART_S, seconds_between_trainings / 120))


class Heartbeat:
    """Decides when the retained status is published again.

    A problem is told at once. Everything else waits ``settles_s`` seconds for what else changes:
    a release is fetched, installed and measured within it, and a state that passes is not told.
    """

    def __init__(self, settles_s: float = LEAST_APART_S) -> None:
        self._settles_s = settles_s
        self._told: Status | None = None
        self._at = 0.0
        self._differs_since: float | None = None
        self._spoke_at = 0.0

    def forget(self) -> None:
        """The broker may have lost our status, or published our will: tell it again."""
        self._told = None

    def due(self, status: Status, now: float) -> bool:
        """Whether ``status`` should be published at ``now``, in monotonic seconds."""
        if self._told is None:
            return True
        if not self._differs(status):
            self._differs_since = None
            return False
        if self._differs_since is None:
            self._differs_since = now
        return now >= self._due_at(status)

    def next_at(self, status: Status) -> float | None:
        """Return when ``status``, of which `due` was asked, will be; None: it says nothing new."""
        if self._told is None or not self._differs(status):
            return None
        return self._due_at(status)

    def sent(self, status: Status, now: float) -> None:
        """Note that ``status`` was published."""
        self._told, self._at, self._differs_since = status, now, None
        self.spoke(now)

    def spoke(self, now: float) -> None:
        """Note that the server heard something of us, whatever it was."""
        self._spoke_at = now

    @property
    def still_here_at(self) -> float | None:
        """When to say that we are still here; None: the status is to be told before that."""
        return None if self._told is None else self._spoke_at + STILL_HERE_S

    def _due_at(self, status: Status) -> float:
        assert self._told is not None
        earliest = self._at + LEAST_APART_S
        if self._differs_since is None or status.problem != self._told.problem:
            return earliest
        return max(earliest, self._differs_since + self._settles_s - LEAST_APART_S)

    def _differs(self, status: Status) -> bool:
        assert self._told is not None
        if status.samples_ever > self._told.samples_ever * SAMPLES_STEP:
            return True
        return bool(_WHAT_MATTERS(status) != _WHAT_MATTERS(self._told))
