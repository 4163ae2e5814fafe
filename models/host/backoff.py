"""How long to rest after failures in a row. Pure."""

__all__ = ["doubled"]

_ENOUGH = 40  # doublings of a second make more than any limit; of 1024 Python makes an error


def doubled(first_s: float, failures: int, longest_s: float) -> float:
    """Return ``first_s`` after none, twice that after each more, but at most ``longest_s``."""
    return min(first_s * 2.0 ** min(failures, _ENOUGH), longest_s)
