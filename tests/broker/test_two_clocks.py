"""A time that was written down, on the clock that nobody sets."""

from broker.two_clocks import moment_of


def test_what_was_recorded_is_as_long_ago_on_both_clocks() -> None:
    assert moment_of(1_700_000_000.0, now=500.0, wall=1_700_000_060.0) == 440.0
    assert moment_of(1_700_000_000.0, now=5.0, wall=1_700_000_060.0) == -55.0, "before we began"


def test_a_time_that_is_to_come_is_not_believed() -> None:
    assert moment_of(1_700_000_061.0, now=500.0, wall=1_700_000_060.0) is None
