"""Devices that ask for a task which nobody serves here, such as for a typo: each is said once."""

import logging
from collections.abc import Collection

from models.protocol.messages import Status

__all__ = ["Unserved"]

log = logging.getLogger(__name__)

MOST_KEPT = 10_000  # devices


class Unserved:
    """What was said of whom in this run of the server."""

    def __init__(self, served: Collection[str]) -> None:
        self._served = served
        self._said: dict[str, str] = {}  # tasks, by device

    def look(self, device: str, status: Status) -> None:
        """Log it if ``device`` asks for a task that is not ``served``."""
        if not status.online or not status.task or status.task in self._served:
            self._said.pop(device, None)
            return
        if self._said.get(device) == status.task:
            return
        if len(self._said) >= MOST_KEPT:
            self._said.clear()
        self._said[device] = status.task
        log.warning(
            "device asks for a task that is not served here device=%s task=%s served=%s",
            *(device, status.task, ",".join(self._served)),
        )
