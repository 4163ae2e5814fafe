"""How often an agent looks where nobody wakes it."""

from typing import NamedTuple

__all__ = ["Pace"]


class Pace(NamedTuple):
    """Seconds from one look to the next; a simulation, which knows when to look, has more time."""

    training_s: float = 0.25  # at a child that trains
    child_s: float = 0.2  # at one that is soon done
    inbox_s: float = 2.0  # for new samples, at the least
    idle_s: float = 0.0  # at whether to train, while nothing changes; if more than the settings say
    sleep_s: float = 20.0  # of the whole agent, at the longest: the watchdog wants to hear from it
