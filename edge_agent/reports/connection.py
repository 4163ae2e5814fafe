"""Whether this device's connection holds: cut off, taken over, or never lasting. Pure."""

from collections import deque

from models.transport.link import Disconnected

__all__ = ["Connection"]

OFFLINE_SAID_S = 30.0  # without a connection, unless the reason needs help: then at once
SHORT_LIVED_S = 20.0  # a connection that ended sooner was not let live
SHORT_LIVED = 3  # of them in a row
MANY_ENDS = 6  # of connections, however long they held, within
MANY_WINDOW_S = 600.0  # this time: and until one has held for so long
UNSTEADY_OFFLINE_SAID_S = 180.0  # longer than the longest delay between two attempts
TAKEOVER_WINDOW_S = 600.0
STEADY_S = 60.0  # since then no attempt of our own can still be on its way to the broker

_SINCE = (SHORT_LIVED_S, OFFLINE_SAID_S, UNSTEADY_OFFLINE_SAID_S, MANY_WINDOW_S)


class Connection:
    """Watches the connection of one device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.is_up = False
        self.since = 0.0  # monotonic seconds: up, or not up, since then
        self.last_error = ""  # why the last one ended, or none came to stand
        self.error_at: float | None = None
        self._needs_help = False
        self._short_lived = 0
        self._ends: deque[float] = deque(maxlen=MANY_ENDS)
        self._is_flapping = False
        self._takeovers: deque[float] = deque()
        self._is_twin = False

    # -- what is seen

    def started(self, now: float) -> None:
        self.since = now
        self.last_error = "the broker has not answered yet"

    def connected(self, now: float) -> None:
        self.is_up, self.since = True, now
        self._needs_help = False

    def disconnected(self, event: Disconnected, now: float) -> None:
        if self.is_up:
            held_s = now - self.since
            self._short_lived = self._short_lived + 1 if held_s < SHORT_LIVED_S else 0
            self.since = now
            self._ends.append(now)
            is_often = len(self._ends) == MANY_ENDS and now - self._ends[0] <= MANY_WINDOW_S
            self._is_flapping = self._is_flapping or is_often
            if event.is_taken_over:
                # What came within a minute may be a late attempt of our own: once is no proof.
                self._is_twin = self._is_twin or held_s > STEADY_S or bool(self._takeovers)
                self._takeovers.append(now)
        self.is_up = False
        self.last_error, self.error_at = event.reason, now
        self._needs_help = event.needs_help

    def watch(self, now: float) -> None:
        """Let what was be over when it has been well for long enough."""
        while self._takeovers and self._takeovers[0] < now - TAKEOVER_WINDOW_S:
            self._takeovers.popleft()
        if not self._takeovers:
            self._is_twin = False
        if self.is_up and now - self.since >= SHORT_LIVED_S:
            self._short_lived = 0
        if self.is_up and now - self.since >= MANY_WINDOW_S:
            self._is_flapping = False

    # -- what it means

    @property
    def is_unsteady(self) -> bool:
        """Whether connections come and go: each is no news then."""
        return self._is_flapping or self._short_lived >= SHORT_LIVED

    def moments(self) -> list[float]:
        """Return when, without any further event, there may be another sentence."""
        moments = [self.since + s for s in _SINCE]
        if self._takeovers:
            moments.append(self._takeovers[0] + TAKEOVER_WINDOW_S + 1.0)
        return moments

    def identity(self) -> str:
        """Return the sentence of another client with our name."""
        if not self._is_twin:
            return ""
        return (
            f"another client connects as {self._device}: was an SD card cloned, or is a second "
            "agent running? give every board its own device.id"
        )

    def broker(self, now: float) -> str:
        """Return the sentence of a connection that does not come to stand, or never lasts."""
        said_s = UNSTEADY_OFFLINE_SAID_S if self.is_unsteady else OFFLINE_SAID_S
        if not self.is_up and (self._needs_help or now - self.since >= said_s):
            return f"not connected: {self.last_error}"
        if self.is_unsteady:
            return f"no connection lasts: {self.last_error}"
        return ""
