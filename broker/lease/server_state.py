"""How the server itself is, in a file beside the registry: for whoever looks while it runs, or does
not run any more. Written when it changes and every ten minutes; nothing rests on it.

Whether it runs says the lock of the directory, which ends with the process however it ends.
"""

import logging
import math
from pathlib import Path
from typing import NamedTuple

import msgspec

from models.host.directory_lock import is_locked
from models.host.durable import atomic_write

__all__ = ["LOCK", "Connection", "ServerState", "StateFile", "is_running", "read_state"]

log = logging.getLogger(__name__)

STATE = "server.json"
LOCK = "lock"
APART_S = 1.0  # between two writes
SAID_S = 600.0  # it is written so often where nothing changes


class Connection(NamedTuple):
    """Whether the server hears the MQTT broker."""

    is_up: bool = False
    since: float = 0.0  # Unix seconds
    listening_since: float = 0.0  # Unix seconds: it is up, or was the last time; 0: never was
    reason: str = "the MQTT broker has not answered yet"  # where it is down

    def made(self, now: float) -> "Connection":
        """Return what is so from ``now`` on, as it is up."""
        return Connection(True, now, now)

    def lost(self, reason: str, now: float) -> "Connection":
        """Return what is so from ``now`` on; a failed attempt to connect only tells why."""
        since = now if self.is_up or not self.since else self.since
        return Connection(False, since, self.listening_since, reason)


class ServerState(msgspec.Struct, frozen=True):
    """What the server says of itself. Unknown fields are ignored."""

    version: str
    started: float  # Unix seconds, as all times here
    seen: float  # when it said all this
    is_connected: bool
    since: float  # it is connected, or is not
    listening_since: float = 0.0  # it is connected, or was the last time; 0: it never was
    reason: str = ""  # why it is not
    stands_by: str = ""  # which other server serves the fleet instead
    problem: str = ""  # of its disk, its settings, or of who uses its name
    tasks: tuple[str, ...] = ()  # that it serves


class StateFile:
    """Writes a `ServerState`; a disk that takes nothing is the registry's business to tell."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / STATE
        self._written: ServerState | None = None
        self._written_at = self._tried_at = -math.inf  # seconds that nobody sets

    def tell(self, state: ServerState, now: float) -> None:
        """Write ``state`` if it says anything new, or it is time to."""
        if now - self._tried_at < APART_S:
            return
        if (told := self._written) is not None:
            is_same = msgspec.structs.replace(told, seen=state.seen) == state
            if is_same and now - self._written_at < SAID_S:
                return
        self._tried_at = now
        if self.write(state):
            self._written_at = now

    def write(self, state: ServerState) -> bool:
        """Write ``state``, as `tell` does not at once; return whether the disk took it."""
        try:
            atomic_write(self._path, msgspec.json.encode(state))
        except OSError as error:
            log.debug("cannot write %s: %s", self._path, error)
            return False
        self._written = state
        return True


def read_state(directory: Path) -> ServerState | None:
    """Return what the server of ``directory`` said last; None: nothing that could be read."""
    try:
        return msgspec.json.decode((directory / STATE).read_bytes(), type=ServerState)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def is_running(directory: Path) -> bool:
    """Whether a server works in ``directory``.

    Raises:
        OSError: no permission to look.
    """
    return is_locked(directory / LOCK)
