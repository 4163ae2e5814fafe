"""Virtual time: what happens when, in one fixed order, and nothing else. Pure."""

import heapq
import random
from collections.abc import Callable

__all__ = ["Timeline"]


class Timeline:
    """A clock that jumps from one event to the next.

    ``now`` is in seconds since the start. Events of one moment happen in the order in which they
    were planned, so that a run depends on nothing but its seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self.is_over = False  # nothing more shall happen
        self._order = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    def generator(self, purpose: str) -> random.Random:
        """Return the random generator of ``purpose``: adding one disturbs no other."""
        return random.Random(f"{self.seed}/{purpose}")

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Plan ``action``; a moment that is past means now."""
        self._order += 1
        heapq.heappush(self._queue, (max(moment, self.now), self._order, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay_s, action)

    def run(self, until: float) -> None:
        """Let time pass until ``until``, its events included, or until it ``is_over``."""
        queue = self._queue
        while queue and queue[0][0] <= until and not self.is_over:
            self.now, _, action = heapq.heappop(queue)
            self.events += 1
            action()
        if not self.is_over:
            self.now = until

    def wait(self, longest_s: float, is_enough: Callable[[], bool]) -> None:
        """Let time pass until ``is_enough`` says so, for ``longest_s`` at most."""
        until = self.now + longest_s
        while not is_enough() and self.now < until:
            self.run(min(self._queue[0][0], until) if self._queue else until)
