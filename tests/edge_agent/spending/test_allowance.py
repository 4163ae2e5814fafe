"""Buckets for a day: what is allowed, by arithmetic of its own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.spending.allowance import (
    DAY_S,
    Allowance,
    DailyLimits,
    Spent,
    left,
    opened,
    refilled,
    short_of,
    spent,
    wait_s,
)

NEW = {"seconds": None, "bytes": None, "joules": None}


@settings(max_examples=100, deadline=None)
@given(
    daily=st.floats(1, 1000),
    events=st.lists(st.tuples(st.floats(0, DAY_S), st.floats(0, 2000)), max_size=40),
)
def test_no_more_is_spent_than_the_time_allows_and_one_training(
    daily: float, events: list[tuple[float, float]]
) -> None:
    allowance = Allowance(0.0, daily)
    passed = total = largest = 0.0
    for pause_s, amount in events:
        passed += pause_s
        allowance = refilled(allowance, pause_s)
        if not wait_s(allowance):
            total += amount
            largest = max(largest, amount)
            allowance = spent(allowance, amount)
        assert total <= daily * passed / DAY_S + largest + 1e-6 * (1 + total)


def test_a_bucket_keeps_a_day_and_a_debt_is_waited_for() -> None:
    allowance = Allowance(0.0, 100.0)
    assert refilled(allowance, 5 * DAY_S).level == 100
    assert refilled(allowance, -5.0).level == 0, "a clock that went back takes nothing"
    debt = spent(allowance, 50)
    assert wait_s(debt) == pytest.approx(DAY_S / 2)
    assert wait_s(refilled(debt, DAY_S / 2)) == pytest.approx(0, abs=1e-6)


def test_only_what_is_limited_has_a_bucket() -> None:
    assert opened(DailyLimits(), NEW) == {}
    found = opened(DailyLimits(bytes=2e6), {**NEW, "bytes": -5.0, "seconds": 7.0})
    assert found == {"bytes": Allowance(-5.0, 2e6)}
    assert opened(DailyLimits(bytes=10), {**NEW, "bytes": 99.0})["bytes"].level == 10


def test_energy_is_power_times_time_and_what_bytes_take() -> None:
    limits = DailyLimits(joules=1, watts=2.5, joules_per_byte=1e-3)
    assert Spent(seconds=10, bytes=500).of("joules", limits) == pytest.approx(25.5)
    assert Spent(seconds=10, bytes=500).of("bytes", limits) == 500


@pytest.mark.parametrize(
    ("resource", "capacity", "level", "sentence"),
    [
        ("bytes", 2e6, -0.25e6, "today's 2.0 MB are used up; about 3 h until the next training"),
        ("seconds", 600.0, -5.0, "today's 10 minutes are used up; about 12 min until"),
        ("joules", 500.0, -500.0, "today's 500 J are used up; about 24 h until"),
    ],
)
def test_what_is_used_up_is_a_sentence(
    resource: str, capacity: float, level: float, sentence: str
) -> None:
    found, seconds = short_of({resource: Allowance(level, capacity)})  # type: ignore[dict-item]
    assert found.startswith(sentence)
    assert seconds == pytest.approx(-level / capacity * DAY_S)


def test_what_is_left_is_said_of_each() -> None:
    assert left({}) == ""
    found = left({"seconds": Allowance(90.0, 600.0), "bytes": Allowance(-5.0, 2e6)})
    assert found == "1.5 of 10 minutes, 0.0 of 2.0 MB"


def test_of_several_the_one_that_takes_longest_is_named() -> None:
    found, _ = short_of({"seconds": Allowance(-1, 100), "bytes": Allowance(-9, 100)})
    assert "MB" in found
    assert short_of({"seconds": Allowance(0, 100), "bytes": Allowance(3, 100)}) == ("", 0.0)
    assert short_of({}) == ("", 0.0)
