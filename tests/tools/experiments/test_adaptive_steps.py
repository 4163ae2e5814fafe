"""The experiment in small, on data that are made here; the figures are `edgefold reproduce`'s."""

import numpy as np
import pytest

from tools.experiments.adaptive_steps import CASES, COLUMNS, Control, outcome, play
from tools.experiments.svm_nodes import Data, World, deal, loss_and_gradient


def made(count: int, seed: int) -> Data:
    random = np.random.default_rng(seed)
    classes = random.integers(0, 10, count)
    centers = np.random.default_rng(1).uniform(0, 255, (10, 12))
    x = (centers[classes] + random.normal(0, 30, (count, 12))).clip(0, 255).astype(np.uint8)
    return Data(x, np.where(classes % 2 == 0, 1.0, -1.0), classes)


WORLD = World(made(3000, 2), made(500, 3))


def test_the_gradient_is_that_of_the_loss() -> None:
    random = np.random.default_rng(0)
    w, rows = random.normal(size=12), np.arange(80)
    _, gradient = loss_and_gradient(w, WORLD.train, rows)
    for place in range(12):
        step = np.zeros(12)
        step[place] = 1e-6
        above, _ = loss_and_gradient(w + step, WORLD.train, rows)
        below, _ = loss_and_gradient(w - step, WORLD.train, rows)
        assert gradient[place] == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_the_four_ways_to_deal_are_those_of_the_paper(case: int) -> None:
    classes = WORLD.train.classes
    parts = deal(case, classes)
    together = np.concatenate(parts)
    seen = [set(classes[rows].tolist()) for rows in parts]
    if case == 3:
        assert all(len(rows) == len(classes) for rows in parts)
        return
    assert sorted(together.tolist()) == list(range(len(classes))), "each sample has one owner"
    if case == 1:
        assert all(len(classes_seen) == 10 for classes_seen in seen)
    if case == 2:
        assert seen == [{n, n + 5} for n in range(5)]
    if case == 4:
        assert seen[:3] == [set(range(5))] * 3
        assert seen[3:] == [{6, 8}, {5, 7, 9}]


@pytest.mark.parametrize("control", [Control(fixed=7), *COLUMNS.values()])
def test_a_run_ends_with_its_time_and_can_be_repeated(control: Control) -> None:
    first, again = (play(2, control, 5, WORLD) for _ in range(2))
    assert first == again
    assert 13.0 < first.seconds < 15.5
    assert all(1 <= tau <= 100 for tau in first.steps)
    assert first.loss < 0.5
    assert control.fixed == 0 or set(first.steps[:-2]) == {7}


def test_figures_are_ratios_to_the_best_fixed_number() -> None:
    shares: list[float] = []
    found = outcome(
        (0, 1),
        lambda share, words: shares.append(share),
        cases=(1, 4),
        fixed=(1, 10),
        data=WORLD,
    )
    assert len(found.figures) == 2 * len(COLUMNS)
    assert shares == sorted(shares)
    for case in (1, 4):
        runs = [[play(case, Control(fixed=tau), seed, WORLD) for seed in (0, 1)] for tau in (1, 10)]
        best = min(sum(course.loss for course in two) / 2 for two in runs)
        for name, control in COLUMNS.items():
            (one,) = [f for f in found.figures if f.name == f"case {case}, {name}"]
            ours = [play(case, control, seed, WORLD).loss / best for seed in (0, 1)]
            assert one.values == pytest.approx(ours)
            assert (one.must_reach is None) == (name == "phi of the theorem")
            assert one.direction == "most"
