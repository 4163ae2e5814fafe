"""The server's two clocks: ``now`` for pauses, ``wall`` for what is recorded. Pure.

``now`` counts seconds that nobody sets; where it began means nothing. ``wall`` is Unix seconds,
which an operator, a battery or the network may set forward or back at any time: it is written down
and shown to people. What waits for something that was written down before, maybe by another
process, asks `moment_of` once and then waits by ``now``: when the first waiting update came, when
the last fold was made. Of the wall stay the pauses between rounds that brought no gain, which are
counted from release to release over any restart (`releases/asking.py`), and how long ago a device
was heard, which another process tells (`devices/presence.py`); both have their own guard.
"""

__all__ = ["moment_of"]


def moment_of(recorded: float, *, now: float, wall: float) -> float | None:
    """Return when ``recorded`` (a time of the wall) was, in the seconds of ``now``.

    None: it lies in the future, so the clock was wrong, then or now. Nobody waits for such a time,
    that could take years.
    """
    return None if recorded > wall else now - (wall - recorded)
