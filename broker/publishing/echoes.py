"""Whether the server's announcements come back to it: a broker may drop them without a word. Pure.

MQTT 3.1.1 has no word for a refused publication, and Mosquitto none for what an ACL hides from a
reader. The server reads its own announcements, so it sees both.
"""

from collections.abc import Iterable

from models.host.backoff import doubled

__all__ = ["Echoes"]

WAIT_S = 60.0  # after the last publication was taken, before it is asked for; doubles
LONGEST_WAIT_S = 600.0


class Echoes:
    """Waits, after each connection, for the announcement of every task."""

    def __init__(self) -> None:
        self._missing: set[str] = set()
        self._looks = 0
        self._look_at = 0.0
        self._said: set[str] = set()

    def connected(self, tasks: Iterable[str], now: float) -> None:
        self._missing = set(tasks)
        self._looks, self._look_at = 0, now + WAIT_S

    def disconnected(self) -> None:
        self._missing.clear()

    def came(self, task: str) -> bool:
        """Take note of an announcement of ``task``; return whether it was said to be missing."""
        self._missing.discard(task)
        was_said = task in self._said
        self._said.discard(task)
        return was_said

    def due(self, now: float, *, is_idle: bool) -> list[str]:
        """Return the tasks whose announcement should be asked for and published again now.

        ``is_idle``: everything that was to be published was taken by the broker.
        """
        if not self._looks and not is_idle:
            self._look_at = now + WAIT_S
        if not self._missing or now < self._look_at:
            return []
        if self._looks:  # once is no proof: a broker may drop what does not fit into its queue
            self._said |= self._missing
        self._look_at = now + doubled(WAIT_S, self._looks, LONGEST_WAIT_S)
        self._looks += 1
        return sorted(self._missing)

    def problem(self, prefix: str) -> str:
        """Return what is wrong, "" if nothing; ``prefix`` is that of the fleet's topics."""
        if not self._said & self._missing:
            return ""
        return (
            "what this server announces does not come back from the broker, which drops it or "
            f"hides it without a word: its ACL must let the server read and write {prefix}#, and "
            "nothing may be put in front of topics (in Mosquitto mount_point)"
        )
