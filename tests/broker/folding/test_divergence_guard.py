"""The threshold of gd-sec by losses alone."""

import math

from broker.folding.divergence_guard import GOOD_FOLDS, Guard, guarded


def test_a_loss_that_grows_halves_the_threshold_and_good_ones_bring_it_back() -> None:
    guard = Guard(1.0)
    for loss in (10.0, 9.0, 9.4):
        guard = guarded(guard, loss, most=1.0)
        assert guard.threshold == 1.0
    guard = guarded(guard, 9.9, most=1.0)
    assert (guard.threshold, guard.loss, guard.good) == (0.5, 9.9, 0)
    guard = guarded(guard, math.nan, most=1.0)
    assert guard.threshold == 0.25
    guard = guard._replace(loss=9.0)
    for _ in range(GOOD_FOLDS - 1):
        guard = guarded(guard, 9.0, most=1.0)
        assert guard.threshold == 0.25
    guard = guarded(guard, 9.0, most=1.0)
    assert (guard.threshold, guard.good) == (0.5, 0)
    for _ in range(3 * GOOD_FOLDS):
        guard = guarded(guard, 9.0, most=1.0)
    assert guard.threshold == 1.0


def test_what_nobody_measured_changes_nothing_and_the_operator_is_the_limit() -> None:
    guard = Guard(1.0, 5.0, 7)
    assert guarded(guard, None, most=2.0) == guard
    assert guarded(guard, None, most=0.5) == Guard(0.5, 5.0, 7)
    assert guarded(Guard(0.5, 5.0, 7), 5.0, most=0.25).threshold == 0.25
