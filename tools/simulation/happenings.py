"""What happens to a simulated fleet again and again, until everything is repaired. Pure."""

from collections.abc import Callable

from tools.simulation.machines.timeline import Timeline

__all__ = ["Happenings"]


class Happenings:
    """Repeats things at random moments of ``timeline``, until they ``are_over``."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.rng = timeline.generator("world")
        self.are_over = False

    def repeat(self, mean_s: float, action: Callable[[], None]) -> None:
        """Do ``action`` again and again, with exponential gaps; ``mean_s`` 0: never."""
        if mean_s <= 0:
            return

        def once() -> None:
            action()
            self.after(mean_s, once)

        self.after(mean_s, once)

    def after(self, mean_s: float, action: Callable[[], None]) -> None:
        """Do ``action`` once, after an exponential gap, if they are not over then."""
        gap_s = self.rng.expovariate(1 / mean_s)
        self.timeline.after(gap_s, lambda: None if self.are_over else action())
