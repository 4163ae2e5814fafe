"""What is silent around this device: the broker, the server, the task. Says what it means. Pure.

An agent passes in what it sees and the time, and gets back one sentence for each part that has a
problem. Nothing is said of what passes by itself within half a minute: a bad link is no news.
"""

from collections.abc import Mapping
from typing import Final

from edge_agent.reports.connection import Connection
from models.protocol.messages import ServerStatus
from models.transport.link import Disconnected
from models.transport.refusals import Refusals, listed

__all__ = ["PARTS", "Silence"]

PARTS = ("identity", "broker", "server", "task", "permission")
NOBODY_SAID_S = 30.0  # after connecting, without a word of any server or task
AWAY_SAID_S = 45.0  # a server that is only started anew is back by then


class Silence:
    """Watches one device's connection and its server."""

    def __init__(self, *, device: str, task: str, fleet: str) -> None:
        self._device = device
        self._task = task
        self._fleet = fleet
        self.connection: Final = Connection(device)
        self.heard_at: float | None = None  # the last word of the server
        self._server: ServerStatus | None = None
        self._away_since: float | None = None
        self._serving_since: float | None = None  # our task, as far as we have heard
        self.has_manifest = False  # since the last connection
        self._has_server = False  # likewise, a word of its state
        self._is_unannounced = False  # none came for long, and none since
        self._refusals = Refusals()  # of topics of the fleet

    # -- what is seen

    def started(self, now: float) -> None:
        self.connection.started(now)

    def connected(self, now: float) -> None:
        self.connection.connected(now)
        self.has_manifest = self._has_server = False

    def disconnected(self, event: Disconnected, now: float) -> None:
        self.connection.disconnected(event, now)

    def server_said(self, status: ServerStatus | None, now: float) -> bool:
        """Take what `server/status` holds, None if it was cleared; return whether it came back.

        That is: it serves, and to our knowledge did not, or was another one, or we have only
        connected.
        """
        before = self._server if self._has_server else None
        was_there = before is not None and before.online
        is_back = status is not None and status.online and not (was_there and before == status)
        self._server, self._has_server = status, True
        if status is None or not status.online or self._task not in status.tasks:
            self._serving_since = None
        elif self._serving_since is None:
            self._serving_since = now
        if status is None or status.online:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        return is_back

    def manifest_came(self) -> None:
        self.has_manifest, self._is_unannounced = True, False

    def heard(self, now: float) -> None:
        """Take note that something came which only a server sends."""
        self.heard_at = now

    def may_read(self, topic: str, refused: str) -> None:
        self._refusals.may_read(topic, refused)

    def may_write(self, topic: str, refused: str) -> None:
        self._refusals.may_write(topic, refused)

    # -- what it means

    @property
    def is_connected(self) -> bool:
        return self.connection.is_up

    @property
    def is_unsteady(self) -> bool:
        """Whether connections come and go: each is no news then."""
        return self.connection.is_unsteady

    def sentences(self, now: float) -> Mapping[str, str]:
        """Return a sentence for each of `PARTS` that has a problem now."""
        connection = self.connection
        connection.watch(now)
        if connection.is_up and now - connection.since >= NOBODY_SAID_S:
            self._is_unannounced = self._is_unannounced or not self.has_manifest
            if not self._has_server:  # this broker knows of none: what was said of one is over
                self._server = self._away_since = self._serving_since = None
        found = {
            "identity": connection.identity(),
            "broker": connection.broker(now),
            "permission": self._refusals.sentence("this device", self._device),
            "server": self._absent(now),
            "task": self._unserved(now),
        }
        return {part: sentence for part, sentence in found.items() if sentence}

    def next_at(self, now: float) -> float:
        """Return when, without any further event, there may be another sentence."""
        moments = [*self.connection.moments(), self.connection.since + NOBODY_SAID_S]
        if self._away_since is not None:
            moments.append(self._away_since + AWAY_SAID_S)
        if self._serving_since is not None:
            moments.append(self._serving_since + NOBODY_SAID_S)
        return min((moment for moment in moments if moment > now), default=now + 3600.0)

    def _absent(self, now: float) -> str:
        if self._away_since is not None:
            if now - self._away_since < AWAY_SAID_S:
                return ""
            return f"the server of fleet {self._fleet} is away; what is for it waits here"
        if self._server is None and self._is_unannounced:
            return (
                f"nobody serves fleet {self._fleet} on this broker, and nobody publishes task "
                f"{self._task} in it: is the server running, are fleet.name, fleet.broker and "
                f"device.task right, and does the broker's ACL let {self._device} read them?"
            )
        return ""

    def _unserved(self, now: float) -> str:
        server = self._server
        if server is None or not server.tasks:
            return ""
        if self._task not in server.tasks:
            return (
                f"task {self._task} is not served in fleet {self._fleet}; it serves "
                f"{listed(server.tasks)}: correct device.task, or serve it"
            )
        # A server that has only come says that it serves before it announces what.
        serves = self._serving_since is not None and now - self._serving_since >= NOBODY_SAID_S
        if serves and self._is_unannounced:
            return (
                f"task {self._task} is served, but no release of it is announced to this device: "
                f"does the broker's ACL let it read task/{self._task}/release? If so, the server's "
                "status says why it cannot publish"
            )
        return ""
