"""Says what is wrong with what devices send, and not too often: a log is finite, too."""

import logging

__all__ = ["Nonsense"]

log = logging.getLogger(__name__)

MOST_KEPT = 10_000  # devices


class Nonsense:
    """Counts what it is told of each device in this run."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def say(self, device: str, what: str) -> None:
        """Log it, but the second, fourth, eighth … time only; ``device`` is "" for nobody's."""
        count = self._counts[device] = self._counts.get(device, 0) + 1
        if len(self._counts) > MOST_KEPT:
            self._counts = {device: count}
        if count & (count - 1) == 0:
            log.warning("%s device=%s count=%d", what, device or "-", count)
