"""Optimizers of the server against float64 loops of the formulas, and Adam against torch's."""

import numpy as np
import pytest

from broker.folding.server_step import OPTIMIZERS, OptimizerPlan, ServerState, moved, with_published
from models.task.params import Vector

SIZE, STEPS = 31, 12


def steps() -> list[Vector]:
    generator = np.random.default_rng(3)
    return [generator.normal(0, 0.1, SIZE).astype(np.float32) for _ in range(STEPS)]


def by_loops(plan: OptimizerPlan, damping: float) -> np.ndarray:
    """Algorithm 2 of arXiv:2003.00295, coordinate by coordinate."""
    x = [0.0] * SIZE
    m, v = [0.0] * SIZE, [0.0] * SIZE
    for step in steps():
        for i in range(SIZE):
            d = float(step[i])
            if plan.name == "sgd":
                x[i] += plan.learning_rate * d
            elif plan.name == "momentum":
                m[i] = plan.momentum * damping * m[i] + d
                x[i] += plan.learning_rate * m[i]
            else:
                m[i] = plan.beta1 * m[i] + (1 - plan.beta1) * d
                if plan.name == "adam":
                    v[i] = plan.beta2 * v[i] + (1 - plan.beta2) * d * d
                else:
                    v[i] = v[i] - (1 - plan.beta2) * d * d * np.sign(v[i] - d * d)
                x[i] += plan.learning_rate * m[i] / (v[i] ** 0.5 + plan.tau)
    return np.array(x)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_its_formula(name: str) -> None:
    plan = OptimizerPlan(name, 0.3)
    zeros = np.zeros(SIZE, np.float32)
    state = ServerState(zeros, zeros)
    for step in steps():
        state = moved(state, step, plan, damping=0.8)
    np.testing.assert_allclose(state.exact, by_loops(plan, 0.8), rtol=2e-5, atol=1e-6)
    assert state.exact.dtype == np.float32
    assert state.published is zeros
    kept = {"sgd": 0, "momentum": 1, "adam": 2, "yogi": 2}[name]
    assert sum(v is not None for v in (state.velocity, state.second)) == kept


def test_adam_is_that_of_torch_without_its_bias_correction() -> None:
    """torch divides m by 1 - b1^t, v by 1 - b2^t; undone by a rate and an epsilon for each step."""
    torch = pytest.importorskip("torch")
    plan = OptimizerPlan("adam", 0.05)
    weights = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], betas=(plan.beta1, plan.beta2))
    state = ServerState(np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32))
    for t, step in enumerate(steps(), start=1):
        first, second = 1 - plan.beta1**t, 1 - plan.beta2**t
        (group,) = optimizer.param_groups
        # lr m/first / (sqrt(v/second) + eps) = rate m / (sqrt(v) + tau)
        group["lr"] = plan.learning_rate * first / second**0.5
        group["eps"] = plan.tau / second**0.5
        weights.grad = -torch.tensor(step.astype(np.float64))  # torch goes down
        optimizer.step()
        state = moved(state, step, plan)
    np.testing.assert_allclose(state.exact, weights.detach().numpy(), rtol=1e-5, atol=1e-7)


def test_the_average_moves_when_devices_get_something_new_and_only_then() -> None:
    first, second = np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32)
    state = ServerState(first, first)
    begun = with_published(state, second, decay=0.9)
    assert begun.averaged == 1
    np.testing.assert_array_equal(begun.average, second)
    assert with_published(begun, second.copy(), decay=0.9).averaged == 1
    again = with_published(begun, first, decay=0.9)
    assert again.averaged == 2
    np.testing.assert_allclose(again.average, second + np.float32(0.9) * (first - second))
    without = with_published(again, second, decay=0.0)
    assert (without.average, without.averaged) == (None, 0)
