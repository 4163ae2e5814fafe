"""How long to rest after failures in a row. Pure."""

from collections.abc import Callable

__all__ = ["Backoff", "doubled"]

_ENOUGH = 40  # doublings of a second make more than any limit; of 1024 Python makes an error


def doubled(first_s: float, failures: int, longest_s: float) -> float:
    """Return ``first_s`` after none, twice that after each more, but at most ``longest_s``."""
    return min(first_s * 2.0 ** min(failures, _ENOUGH), longest_s)


class Backoff:
    """When to try again: rests ``first_s`` after a failure, twice that after each more in a row.

    Never more than ``longest_s``. With ``uniform`` (`random.Random.uniform`) a rest is after that
    half as long to one and a half times as long, so that a fleet does not come back at once. Times
    are seconds of a clock that never jumps.
    """

    def __init__(
        self,
        first_s: float,
        longest_s: float,
        *,
        uniform: Callable[[float, float], float] | None = None,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._uniform = uniform
        self.failures = 0  # in a row
        self.at = 0.0  # not before that

    def due(self, now: float) -> bool:
        """Return whether the rest is over."""
        return now >= self.at

    def failed(self, now: float, *, longest_s: float | None = None) -> float:
        """Note a failure; return how long to rest. ``longest_s`` in place of the usual one."""
        rest_s = doubled(self._first_s, self.failures, longest_s or self._longest_s)
        if self._uniform is not None:
            rest_s *= self._uniform(0.5, 1.5)
        self.failures += 1
        self.at = now + rest_s
        return rest_s

    def worked(self) -> None:
        """Note that it worked: the next failure is the first one, and nothing is waited for."""
        self.failures = 0
        self.at = 0.0
