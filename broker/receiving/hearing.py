"""Which devices were heard just now, and what the broker had only kept for us. Pure.

Not heard now is what is retained, which the broker repeats after each subscription; and what it
queued while we were away, which may be days old. The queue of a session comes before what is asked
for now, and both before anything new: so on every connection to a session we ask for something
retained again (a release of our own), and listen from its arrival on. Where nothing is retained,
`CATCH_UP_S` has to do.

What was heard is written in the registry with what is committed anyway, or `NOTE_S` later: words
that change nothing else cost no write each. So a crash forgets half a minute of hearing.
"""

from typing import NamedTuple

from broker.receiving.incoming import Announcement, ArrivedChunk, Asked, Incoming, SaidStatus
from models.protocol.messages import Status

__all__ = ["CATCH_UP_S", "NOTE_S", "Heard", "Hearing"]

CATCH_UP_S = 60.0
NOTE_S = 30.0
MOST_UNNOTED = 100_000  # devices, while the disk takes nothing


class Heard(NamedTuple):
    """The last live word of a device, or its will."""

    at: float  # Unix seconds
    is_here: bool  # not with its will or goodbye


class Hearing:
    """What was heard and is not noted yet."""

    def __init__(self) -> None:
        self._connected_at: float | None = None
        self._is_caught_up = False
        self._heard: dict[str, Heard] = {}
        self._since = 0.0  # the first of them was heard

    def connected(self, now: float, *, session_present: bool) -> None:
        self._connected_at, self._is_caught_up = now, not session_present

    def disconnected(self) -> None:
        self._connected_at = None

    def is_listening(self, now: float) -> bool:
        """Whether what comes now was said now."""
        if self._connected_at is None:
            return False
        waited_s = now - self._connected_at
        return self._is_caught_up or waited_s >= CATCH_UP_S

    def take(self, incoming: Incoming, now: float, wall: float) -> None:
        """Take note of whom it comes from, in the order of arrival."""
        if incoming.message.retained:
            self._is_caught_up = self._is_caught_up or isinstance(incoming.says, Announcement)
        elif self.is_listening(now):
            self._since = self._since if self._heard else now
            match incoming.says:
                case SaidStatus(device, Status() as status):
                    self._hear(device, Heard(wall, status.online))
                case ArrivedChunk(device) | Asked(device):
                    self._hear(device, Heard(wall, is_here=True))

    def _hear(self, device: str, heard: Heard) -> None:
        if device in self._heard or len(self._heard) < MOST_UNNOTED:
            self._heard[device] = heard

    def due(self, now: float) -> bool:
        """Whether what was heard is to be noted, even if nothing else is."""
        return bool(self._heard) and now - self._since >= NOTE_S

    def unnoted(self) -> dict[str, Heard]:
        """Return the last word of each device that is not noted yet."""
        return self._heard

    def noted(self) -> None:
        """What `unnoted` returned is durable."""
        self._heard = {}
