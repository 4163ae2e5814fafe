"""What a device says of itself, and when: only if something that matters has changed. Pure."""

from operator import attrgetter

from models.payload.messages import Status

__all__ = ["Heartbeat"]

LEAST_APART_S = 3.0  # a burst of changes becomes one message
# They change all the time; they ride along when something else is worth a message.
RIDES_ALONG = ("bytes_up", "bytes_down", "rss_mb", "peak_rss_mb", "samples")
SAMPLES_STEP = 1.1  # the sample count is worth a message when it grew by a tenth
_WHAT_MATTERS = attrgetter(*(name for name in Status.__struct_fields__ if name not in RIDES_ALONG))


class Heartbeat:
    """Decides when the retained status is published again."""

    def __init__(self) -> None:
        self._told: Status | None = None
        self._at = 0.0

    def forget(self) -> None:
        """The broker may have lost our status, or published our will: tell it again."""
        self._told = None

    def due(self, status: Status, now: float) -> bool:
        """Whether ``status`` should be published at ``now``, in monotonic seconds."""
        if self._told is None:
            return True
        return self._differs(status) and now >= self._at + LEAST_APART_S

    def next_at(self, status: Status) -> float | None:
        """Return when ``status`` will be due, or None if it says nothing new."""
        if self._told is None or not self._differs(status):
            return None
        return self._at + LEAST_APART_S

    def told(self, status: Status, now: float) -> None:
        """Note that ``status`` was published."""
        self._told, self._at = status, now

    def _differs(self, status: Status) -> bool:
        assert self._told is not None
        if status.samples > self._told.samples * SAMPLES_STEP:
            return True
        return bool(_WHAT_MATTERS(status) != _WHAT_MATTERS(self._told))
