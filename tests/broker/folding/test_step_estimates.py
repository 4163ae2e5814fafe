"""What the fleet knows for choosing steps, against the formulas written out in float64."""

import math

import numpy as np
import pytest

from broker.folding.step_estimates import (
    CAUTION,
    Fade,
    Report,
    Spread,
    StepEstimates,
    steps_plan,
    with_fold,
)

RANDOM = np.random.default_rng(4)


def test_spread_is_the_weighted_variance_of_the_mean_gradients() -> None:
    deltas = RANDOM.normal(size=(6, 50)).astype(np.float32)
    weights, steps, eta = RANDOM.uniform(1, 9, 6), RANDOM.uniform(1, 30, 6), 0.05
    spread = Spread()
    for delta, weight, tau in zip(deltas, weights, steps, strict=True):
        spread.add(delta, weight=weight, eta=eta, steps=tau)
    gradients = [-d.astype(float) / (eta * tau) for d, tau in zip(deltas, steps, strict=True)]
    shares = weights / weights.sum()
    mean = sum(s * g for s, g in zip(shares, gradients, strict=True))
    lengths = [float(np.linalg.norm(g - mean)) for g in gradients]
    expected = sum(s * x * x for s, x in zip(shares, lengths, strict=True))
    assert spread.delta2 == pytest.approx(expected, rel=1e-9)
    paper = sum(s * x for s, x in zip(shares, lengths, strict=True))
    assert math.sqrt(expected) >= paper, "Jensen: an upper bound of the paper's"


def test_the_spread_of_one_update_or_of_none_is_not_known() -> None:
    spread = Spread()
    assert spread.delta2 is None
    spread.add(np.ones(3, np.float32), weight=1, eta=0.1, steps=2)
    spread.add(np.ones(3, np.float32), weight=1, eta=0.1, steps=0)
    spread.add(np.ones(3, np.float32), weight=0, eta=0.1, steps=2)
    assert spread.delta2 is None
    spread.add(np.ones(3, np.float32), weight=5, eta=0.1, steps=2)
    assert spread.delta2 == pytest.approx(0, abs=1e-12)


def test_means_weigh_samples_within_a_fold_and_fade_over_folds() -> None:
    folds = [[Report(10, 1.0, 20.0, 5), Report(30, 2.0, 40.0, 9)], [Report(1, 4.0, 10.0, 7)]]
    known = StepEstimates()
    for fold, delta2 in zip(folds, (4.0, 1.0), strict=True):
        known = with_fold(known, fold, delta2)
    assert known.rho == pytest.approx((1.75 + 4) / 2), "the first folds count alike"
    assert known.beta == pytest.approx((35 + 10) / 2)
    assert known.delta2 == pytest.approx(2.5)
    assert known.reference == pytest.approx((8 + 7) / 2)
    for _ in range(40):
        known = with_fold(known, [Report(1, 4.0, 10.0, 7)], 1.0)
    before = known
    known = with_fold(known, [Report(1, 8.0, 30.0, 17)], 3.0)
    assert known.rho == pytest.approx(0.9 * before.rho + 0.1 * 8)
    assert known.beta == pytest.approx(0.9 * before.beta + 0.1 * 30)
    assert known.delta2 == pytest.approx(0.9 * before.delta2 + 0.1 * 3)
    assert known.reference == pytest.approx(0.9 * before.reference + 0.1 * 17)


def test_who_says_nothing_changes_nothing() -> None:
    known = with_fold(StepEstimates(), [Report(3, 1.0, 2.0, 5)], 1.0)
    assert with_fold(known, [Report(9), Report(0, 5.0, 5.0, 5)], None) == known
    assert with_fold(known, [], None) == known


def test_one_device_that_lies_moves_the_means_a_little() -> None:
    honest = [Report(10, 1.0, 20.0, 5)] * 4
    known = with_fold(StepEstimates(), honest, 1.0)
    after = with_fold(known, [*honest, Report(10, 1e30, 1e30, 1e30)], 1.0)
    assert after.rho < 2.5 * known.rho
    assert after.beta < 2.5 * known.beta
    assert after.reference < 2.5 * known.reference
    first = with_fold(StepEstimates(), [*honest, Report(10, 1e30, 1e30, 1e30)], 1.0)
    assert first.rho < 3


def test_a_plan_has_the_theorems_phi_with_caution_or_the_one_given() -> None:
    known = with_fold(StepEstimates(), [Report(1, 1.5, 20.0, 5)], 4.0)
    plan = steps_plan(known, eta=0.01, moved2=2.0)
    assert plan is not None
    assert (plan.rho, plan.beta, plan.delta, plan.reference) == (1.5, 20.0, 2.0, 5.0)
    assert plan.phi == pytest.approx(CAUTION * (1 - 0.01 * 20 / 2) / 2)
    given = steps_plan(known, eta=0.01, moved2=0.0, phi=0.025, most=40)
    assert given is not None
    assert (given.phi, given.most) == (0.025, 40)


@pytest.mark.parametrize(
    ("known", "moved2"),
    [
        (StepEstimates(), 1.0),
        (with_fold(StepEstimates(), [Report(1, 1.0, 2.0, 5)], None), 1.0),
        (with_fold(StepEstimates(), [Report(1, None, None, 5)], 1.0), 1.0),
        (with_fold(StepEstimates(), [Report(1, 1.0, 2.0)], 1.0), 1.0),
        (with_fold(StepEstimates(), [Report(1, 1.0, 2.0, 5)], 1.0), 0.0),
        (with_fold(StepEstimates(), [Report(1, 1.0, 2.0, 5)], 1.0), math.nan),
        (with_fold(StepEstimates(), [Report(1, 1.0, 1e6, 5)], 1.0), 1.0),
    ],
)
def test_without_estimates_there_is_no_plan(known: StepEstimates, moved2: float) -> None:
    assert steps_plan(known, eta=0.01, moved2=moved2) is None


def test_numbers_that_overflow_are_no_spread() -> None:
    spread = Spread()
    for _ in range(2):
        spread.add(np.full(4, 1e38, np.float32), weight=1.0, eta=1e-200, steps=1e-100)
    assert spread.delta2 is None


def test_fade_is_found_again_from_gradients_that_fade_by_it() -> None:
    for fade in (0.0, 0.2, 3.0):
        found = Fade()
        for tau in (1, 4, 9, 30):
            began = RANDOM.normal(size=40)
            found = found.seen(began / (1 + fade * tau), began, tau)
        assert found.value == pytest.approx(fade, abs=1e-9)
    assert Fade().value is None
    back = Fade().seen(-np.ones(3), np.ones(3), 5)
    assert back.value == 1e30
    assert Fade().seen(2 * np.ones(3), np.ones(3), 5).value == 0.0
    assert back.seen(np.full(3, np.nan), np.ones(3), 5) == back


def test_samples_that_a_device_says_it_has_do_not_make_it_the_fleet() -> None:
    honest = [Report(100, 1.0, 2.0, 10)] * 9
    known = with_fold(StepEstimates(), honest, 1.0)
    for _ in range(50):
        known = with_fold(known, [*honest, Report(1 << 53, 1e30, 1e30, 1e30)], 1.0)
    assert known.rho < 6
    assert known.beta < 12
    assert known.reference < 60


def test_a_training_of_less_than_a_step_is_taken_for_one() -> None:
    delta = np.ones(4, np.float32)
    honest, told = Spread(), Spread()
    for spread, steps in ((honest, 1.0), (told, 1e-30)):
        spread.add(delta, weight=1, eta=0.5, steps=5.0)
        spread.add(-delta, weight=1, eta=0.5, steps=steps)
    assert told.delta2 == honest.delta2
    known = with_fold(StepEstimates(), [], 1.0)
    assert with_fold(known, [], 1e60).delta2 < 10
