"""Rests that double."""

from models.host.backoff import doubled


def test_a_rest_doubles_up_to_its_limit() -> None:
    assert [doubled(30.0, failures, 3600.0) for failures in range(4)] == [30.0, 60.0, 120.0, 240.0]
    assert doubled(1.0, 9, 300.0) == 300.0


def test_any_number_of_failures_is_bearable() -> None:
    """A disk that stays full for a month has failed more often than a float has doublings."""
    assert doubled(1.0, 1024, 300.0) == 300.0
    assert doubled(0.001, 10**9, 3600.0) == 3600.0
