"""GD-SEC as published: what it saves, what it costs, and what it needs its error correction for."""

import numpy as np
import pytest

from tools.experiments.gdsec import coded, descent, gd_sec, problem


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_the_gradients_are_those_of_the_objective(kind: str) -> None:
    task = problem(kind, 0)
    rng = np.random.default_rng(0)
    at, way = rng.standard_normal(task.size), rng.standard_normal(task.size)
    slope = sum(task.gradient(worker, at) for worker in range(5)) @ way
    step = 1e-6
    measured = (task.loss(at + step * way) - task.loss(at - step * way)) / (2 * step)
    assert slope == pytest.approx(measured, rel=1e-6)
    assert task.loss(at) > 0


def test_most_bits_are_saved_at_the_same_error_and_only_with_error_correction() -> None:
    task = problem("logistic", 0)
    plain = descent(task)
    ended = gd_sec(task, 3 * plain.steps)
    assert ended.is_there
    assert ended.bits < 0.05 * plain.bits
    assert ended.steps <= 1.05 * plain.steps
    assert ended.apart < 1e-9
    assert gd_sec(task, 3 * plain.steps, keeps_owed=False).error > 1e-3


def test_a_coded_value_is_within_a_quarter_octave() -> None:
    said = np.array([0.0, 3.0, -0.7, 0.0, 0.011])
    rounded, bits = coded(said, np.full(5, 0.01))
    assert (np.sign(rounded) == np.sign(said)).all()
    kept = said != 0
    assert (np.abs(np.log2(rounded[kept] / said[kept])) <= 0.2501).all()
    assert bits % 8 == 0
    assert coded(np.zeros(5), np.ones(5))[1] == 0
