"""What a server serves with: the link of the fleet's client id, and the server that works on it."""

from collections.abc import Callable
from typing import Protocol

from broker.lease.server_state import ServerState
from models.errors import TransientError, UsageError
from models.protocol.topics import Topics
from models.transport.link import Event, Link

__all__ = ["MainLink", "Served", "Tenure"]


class MainLink(Link, Protocol):
    """A link that, once its connection has ended, waits for `resume`."""

    def resume(self) -> None:
        """Connect again; what was not confirmed goes out again."""


class Served(Protocol):
    """What there is to serve: `broker.server.Server`."""

    @property
    def status(self) -> str:
        """One line for ``systemctl status``."""

    def handle(self, event: Event, now: float, wall: float) -> None:
        """Take one event of the link."""

    def tick(self, now: float, wall: float) -> float:
        """Do what can be done; return when to be called again at the latest."""

    def state(self, started: float, wall: float) -> ServerState:
        """Return what people are told of it."""

    def drop_suspect(self) -> None:
        """Let go of the message during which `tick` raised something unexpected."""

    def close(self) -> None:
        """Let go of everything: another one is made when we serve again."""


class Tenure:
    """Ours until another server served: then all that it did is found as after a restart."""

    def __init__(
        self, make_link: Callable[[], MainLink], make_server: Callable[[Link], Served]
    ) -> None:
        self._make_link = make_link
        self._make_server = make_server
        self.link = make_link()
        self.server = make_server(self.link)
        self.was_started = False  # the link
        self._was_used = False  # the server: it was connected
        self._is_subscribed = False

    def serve(self) -> None:
        """Connect under the fleet's client id."""
        if self.was_started:
            self.link.resume()
        else:
            self.link.start()
            self.was_started = True

    def connected(self, topics: Topics, *, session_present: bool) -> None:
        """The broker answers us: hear other servers too."""
        self._was_used = True
        if not (session_present and self._is_subscribed):
            self.link.subscribe([topics.server_status, topics.server_ask])
            self._is_subscribed = True

    def renewed(self) -> "Tenure":
        """Return what to serve with after another server served; this one is over.

        Raises:
            UsageError: the disk does not let us; a restart may do better.
        """
        if not self._was_used:
            return self
        self.link.close()
        self.server.close()
        try:
            return Tenure(self._make_link, self._make_server)
        except (TransientError, OSError) as error:
            raise UsageError(f"cannot begin to serve again: {error}") from None
