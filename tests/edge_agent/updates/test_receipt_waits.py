"""Receipts are asked for ever more rarely, and soon where there may be news."""

import math

import pytest

from edge_agent.updates.receipt_waits import ReceiptWaits


def middle(low: float, high: float) -> float:
    return (low + high) / 2


@pytest.fixture
def waits() -> ReceiptWaits:
    return ReceiptWaits(middle)


def rests(waits: ReceiptWaits, count: int) -> list[float]:
    """How long it is from each question to the next, the first one from time 0."""
    found = []
    now = 0.0
    for _ in range(count):
        found.append(waits.next_at() - now)
        now = waits.next_at()
        assert waits.due(now - 0.1) == []
        assert waits.due(now) == [1]
    return found


def test_who_sent_asks_after_a_minute_or_two_and_then_ever_more_rarely(waits: ReceiptWaits) -> None:
    waits.sent(1, 0.0)
    assert rests(waits, 6) == [90, 180, 360, 720, 900, 900]


def test_who_asked_on_connecting_asks_again_soon(waits: ReceiptWaits) -> None:
    waits.asked(1, 0.0)
    assert rests(waits, 4) == [15, 60, 120, 240]


def test_what_the_server_holds_is_asked_for_about_once_an_hour(waits: ReceiptWaits) -> None:
    waits.stored(1, 0.0)
    assert rests(waits, 3) == [2700, 2700, 2700]


def test_a_server_that_came_back_is_asked_at_once(waits: ReceiptWaits) -> None:
    waits.sent(1, 0.0)
    waits.hurry(20.0)
    assert waits.next_at() == pytest.approx(31.25)
    waits.hurry(30.0)
    assert waits.next_at() == pytest.approx(31.25), "never later than before"


def test_nothing_is_waited_for_in_vain(waits: ReceiptWaits) -> None:
    waits.sent(1, 0.0)
    assert 1 in waits
    waits.forget(1)
    assert 1 not in waits
    assert waits.next_at() == math.inf
