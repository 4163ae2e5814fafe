"""Where a server stands among those of its fleet, in words for people."""

import functools
import time
from typing import NamedTuple

from broker.lease.lease import State
from models.protocol.messages import ServerStatus

__all__ = ["Standing", "named", "stranger"]


class Standing(NamedTuple):
    """Where this server stands since ``since`` (Unix seconds); ``other`` serves instead of it."""

    fleet: str
    state: State
    since: float
    other: ServerStatus | None
    is_up: bool  # the link in use is connected
    reason: str  # why it is not
    stranger: str  # who seems to use our client id

    @property
    def text(self) -> str:
        if not self.is_up:
            return f"not connected to the MQTT broker{self.reason and ': '}{self.reason}"
        if self.state == "serving":
            return f"serves fleet {self.fleet}{self.stranger and '; '}{self.stranger}"
        if self.state == "standing by" and self.other is not None:
            return (
                f"another server ({named(self.other)}) serves fleet {self.fleet}; this one "
                f"stands by and takes over when that one goes"
            )
        return f"looking whether another server serves fleet {self.fleet}"


def stranger(client_id: str) -> str:
    """Return what is to be said of whoever takes our ``client_id`` and serves nothing."""
    return (
        "another client of the MQTT broker, no server of this fleet, seems to use client id "
        f"{client_id} too: give each fleet its own [fleet] client_id"
    )


@functools.lru_cache(maxsize=4)
def named(other: ServerStatus | None) -> str:
    """Return a server as people know it; it says so itself, so nothing of it is believed."""
    if other is None:
        return "unknown"
    host = "".join(c if c.isprintable() and c not in "\"'" else "?" for c in other.host)
    try:
        since = time.strftime("%-d %b %H:%M", time.localtime(other.since))
    except (OverflowError, ValueError, OSError):
        since = "?"
    return f"host {host or '?'}, since {since}"
