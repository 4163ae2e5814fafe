"""Rests that double."""

from random import Random

from models.host.backoff import Backoff, doubled


def test_a_rest_doubles_up_to_its_limit() -> None:
    assert [doubled(30.0, failures, 3600.0) for failures in range(4)] == [30.0, 60.0, 120.0, 240.0]
    assert doubled(1.0, 9, 300.0) == 300.0


def test_any_number_of_failures_is_bearable() -> None:
    """A disk that stays full for a month has failed more often than a float has doublings."""
    assert doubled(1.0, 1024, 300.0) == 300.0
    assert doubled(0.001, 10**9, 3600.0) == 3600.0


def test_it_is_due_again_after_ever_longer_rests_until_it_works() -> None:
    backoff = Backoff(5.0, 30.0)
    assert backoff.due(0.0)
    assert [backoff.failed(100.0) for _ in range(4)] == [5.0, 10.0, 20.0, 30.0]
    assert not backoff.due(129.0)
    assert backoff.due(130.0)
    backoff.worked()
    assert backoff.due(0.0)
    assert backoff.failed(200.0, longest_s=2.0) == 2.0


def test_a_fleet_does_not_come_back_at_once() -> None:
    rests = {Backoff(60.0, 60.0, uniform=Random(seed).uniform).failed(0.0) for seed in range(50)}
    assert len(rests) == 50
    assert all(30.0 <= rest <= 90.0 for rest in rests)
