"""The threshold of gd-sec by losses alone."""

import math

from broker.folding.divergence_guard import GOOD_FOLDS, LEAST, Guard, guarded


def test_a_loss_that_grows_halves_the_threshold_and_good_ones_bring_it_back() -> None:
    guard = Guard()
    for loss in (10.0, 9.0, 9.4):
        guard = guarded(guard, loss)
        assert guard.share == 1.0
    guard = guarded(guard, 9.9)
    assert (guard.share, guard.loss, guard.good) == (0.5, 9.9, 0)
    guard = guarded(guard, math.nan)
    assert guard.share == 0.25
    guard = guard._replace(loss=9.0)
    for _ in range(GOOD_FOLDS - 1):
        guard = guarded(guard, 9.0)
        assert guard.share == 0.25
    guard = guarded(guard, 9.0)
    assert (guard.share, guard.good) == (0.5, 0)
    for _ in range(3 * GOOD_FOLDS):
        guard = guarded(guard, 9.0)
    assert guard.share == 1.0


def test_what_nobody_measured_changes_nothing() -> None:
    guard = Guard(0.5, 5.0, 7)
    assert guarded(guard, None) == guard


def test_however_often_it_is_halved_it_comes_back() -> None:
    """Half of a half, and so on, ends at 0, of which no double is anything."""
    guard = Guard()
    for power in range(1200):
        guard = guarded(guard, 1e-30 * 1.06**power)
    assert guard.share == LEAST
    for _ in range(10 * GOOD_FOLDS):
        guard = guarded(guard, 1.0)
    assert guard.share == 1.0
