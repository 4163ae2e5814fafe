"""How much a training does: never more than the plan, never beyond the board's limits."""

import math
from decimal import Decimal, localcontext

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.spending.allowance import DailyLimits
from edge_agent.training.local_steps import (
    SHARE,
    Cost,
    best_steps,
    chosen_steps,
    costs_of,
    effective_steps,
    scarcest,
    smoothness,
    steps_by_fade,
    within_budget,
)
from edge_agent.updates.outbox_facts import OutboxFacts
from models.protocol.learning import StepsPlan
from models.protocol.manifest import TrainingPlan


@settings(max_examples=50, deadline=None)
@given(
    epochs=st.floats(0.1, 50),
    batch=st.integers(1, 256),
    samples=st.integers(1, 5000),
    max_batch=st.integers(1, 256),
    seconds=st.floats(1, 4000),
    ms=st.floats(0, 5000),
)
def test_batch_and_steps_stay_within_every_limit(
    epochs: float, batch: int, samples: int, max_batch: int, seconds: float, ms: float
) -> None:
    plan = TrainingPlan(open=True, epochs=epochs, batch=batch, learning_rate=0.1, max_steps=500)
    cut = within_budget(
        plan, samples=samples, max_batch=max_batch, max_seconds=seconds, ms_per_step=ms
    )
    assert 1 <= cut.batch <= min(batch, max_batch, samples)
    assert 1 <= cut.max_steps <= 500
    assert cut.max_steps == 1 or cut.max_steps * ms <= SHARE * seconds * 1000
    assert (cut.epochs, cut.learning_rate) == (plan.epochs, plan.learning_rate)


def test_a_plan_that_fits_keeps_its_number_of_steps() -> None:
    plan = TrainingPlan(open=True, epochs=2, batch=16, learning_rate=0.1)
    cut = within_budget(plan, samples=100, max_batch=64, max_seconds=1800, ms_per_step=10)
    assert cut.max_steps == 2 * math.ceil(100 / 16)


PLAN = StepsPlan(rho=0.7, beta=15.0, delta=0.8, phi=0.025, reference=5.0)
SECONDS = Cost("seconds", 0.013, 0.13, 15.0)


def published(plan: StepsPlan, costs: list[Cost], eta: float, tau: int) -> float:
    """G(tau), as written in the paper, in 50 digits."""
    with localcontext() as context:
        context.prec = 50
        rho, beta, delta, phi = (Decimal(v) for v in (plan.rho, plan.beta, plan.delta, plan.phi))
        step = Decimal(eta)
        h = delta / beta * ((step * beta + 1) ** tau - 1) - step * delta * tau
        total = min(
            (Decimal(c.budget) - Decimal(c.step) - Decimal(c.round))
            * tau
            / (Decimal(c.step) * tau + Decimal(c.round))
            for c in costs
        )
        a = 1 / (2 * step * phi * total)
        return float(a + (a * a + rho * h / (step * phi * tau)).sqrt() + rho * h)


@settings(max_examples=60, deadline=None)
@given(
    rho=st.floats(1e-3, 10),
    beta=st.floats(1e-3, 100),
    delta=st.floats(1e-3, 10),
    phi=st.floats(1e-4, 10),
    eta=st.floats(1e-4, 0.1),
    rounds=st.floats(0, 5),
    joules=st.floats(5, 500),
)
def test_the_choice_is_the_least_of_the_published_bound(
    rho: float, beta: float, delta: float, phi: float, eta: float, rounds: float, joules: float
) -> None:
    plan = StepsPlan(rho=rho, beta=beta, delta=delta, phi=phi, reference=1.0)
    costs = [Cost("seconds", 0.01, rounds, 60.0), Cost("joules", 0.1, 0.5, joules)]
    found = best_steps(plan, costs, eta, previous=5)
    bounds = {tau: published(plan, costs, eta, tau) for tau in range(1, 51)}
    assert 1 <= found <= 50, "ten times the training before"
    assert bounds[found] <= min(bounds.values()) * (1 + 1e-9)


def test_dear_rounds_and_like_devices_want_more_local_steps() -> None:
    usual = best_steps(PLAN, [SECONDS], 0.01, 0)
    dear = best_steps(PLAN, [SECONDS._replace(round=1.3)], 0.01, 0)
    alike = best_steps(msgspec.structs.replace(PLAN, delta=0.01), [SECONDS], 0.01, 0)
    assert 1 < usual < dear
    assert usual < alike


def test_the_scarcest_resource_decides() -> None:
    rich = Cost("seconds", 0.01, 1.0, 1e6)
    poor = Cost("bytes", 0.0, 5000.0, 40_000.0)
    assert best_steps(PLAN, [rich, poor], 0.01, 0) == best_steps(PLAN, [poor, rich], 0.01, 0)
    assert scarcest([rich, poor], 10) == "bytes"
    assert scarcest([rich._replace(budget=math.inf), poor], 10) == "bytes"
    assert scarcest([rich._replace(budget=math.inf)], 10) == ""
    assert best_steps(PLAN, [rich, poor], 0.01, 0) > best_steps(PLAN, [rich], 0.01, 0)


def test_without_any_limit_a_round_still_has_its_price() -> None:
    cheap, dear = (Cost("seconds", 0.01, price) for price in (0.01, 1.0))
    assert best_steps(PLAN, [cheap], 0.01, 0) < best_steps(PLAN, [dear], 0.01, 0) <= PLAN.most


@pytest.mark.parametrize(
    ("changes", "costs", "eta"),
    [
        ({"phi": 0.0}, [SECONDS], 0.01),
        ({}, [SECONDS], 0.0),
        ({}, [SECONDS._replace(budget=0.1)], 0.01),
        ({}, [SECONDS._replace(budget=0.0)], 0.01),
        ({"beta": 1e30, "delta": 1e30, "rho": 1e30}, [SECONDS], 100.0),
        ({"rho": 1e30, "delta": 1e30}, [SECONDS], 0.01),
    ],
)
def test_where_nothing_can_be_said_it_is_one_step(
    changes: dict[str, float], costs: list[Cost], eta: float
) -> None:
    assert best_steps(msgspec.structs.replace(PLAN, **changes), costs, eta, 0) == 1


@pytest.mark.parametrize("costs", [[], [Cost("seconds", 0.0, 0.0)], [Cost("bytes", 0.0, 0.0, 9)]])
def test_what_costs_nothing_is_bounded_all_the_same(costs: list[Cost]) -> None:
    assert 1 <= best_steps(PLAN, costs, 0.01, 0) <= PLAN.most
    assert best_steps(PLAN, costs, 0.01, 3) <= 30
    assert 1 <= steps_by_fade(0.5, costs, 0) <= 100


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("tau", [1, 2, 17, 400])
def test_effective_steps_are_the_weights_that_momentum_gives_to_gradients(
    mu: float, tau: int
) -> None:
    velocity, moved = 0.0, 0.0
    for _ in range(tau):  # every gradient is 1
        velocity = mu * velocity + 1
        moved += velocity
    assert effective_steps(tau, mu) == pytest.approx(moved, rel=1e-9)


@pytest.mark.parametrize("mu", [1.0, -0.1, math.nan])
def test_a_momentum_of_one_has_no_effective_steps(mu: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        effective_steps(3, mu)


@pytest.mark.parametrize("distance", [0.0, 1e-10, math.nan, math.inf])
def test_who_hardly_moved_says_nothing_of_smoothness(distance: float) -> None:
    assert smoothness(1.0, 1.0, distance) == (None, None)


def test_smoothness_is_change_over_distance_with_a_floor() -> None:
    assert smoothness(-2.0, 3.0, 0.5) == (4.0, 6.0)
    assert smoothness(0.0, 0.0, 0.5) == (0.0, 1e-5)
    assert smoothness(math.nan, math.inf, 0.5) == (None, None)


@pytest.mark.parametrize("fade", [0.0, 1e-6, 0.05, 0.7, 5.0, 1e30])
def test_steps_by_fade_buy_the_most_progress(fade: float) -> None:
    def progress(tau: int) -> float:
        worth = sum(1 / (1 + fade * (s + x / 50)) for s in range(tau) for x in range(50)) / 50
        return worth / (0.013 * tau + 0.13)

    found = steps_by_fade(fade, [SECONDS], 0, most=60)
    assert progress(found) >= max(progress(tau) for tau in range(1, 61)) * 0.999
    assert steps_by_fade(fade, [SECONDS], 2, most=60) <= 20


def test_a_choice_replaces_the_epochs_within_the_plans_steps() -> None:
    training = TrainingPlan(open=True, epochs=2, batch=16, learning_rate=0.01, max_steps=500)
    tau = best_steps(PLAN, [SECONDS], 0.01, 40)
    found = chosen_steps(training, PLAN, [SECONDS], previous=40)
    cut = within_budget(found, samples=20, max_batch=8, max_seconds=1800, ms_per_step=1)
    assert cut.max_steps == tau
    few = msgspec.structs.replace(training, max_steps=3)
    assert chosen_steps(few, PLAN, [SECONDS], previous=40).max_steps == 3


@pytest.mark.parametrize(
    ("steps", "previous"), [(None, 5), (msgspec.structs.replace(PLAN, phi=0.0), 5), (PLAN, 0)]
)
def test_without_a_reason_to_choose_the_plan_stays(steps: StepsPlan | None, previous: int) -> None:
    training = TrainingPlan(open=True, epochs=2, batch=16, learning_rate=0.01)
    assert chosen_steps(training, steps, [SECONDS], previous=previous) == training


def test_costs_are_those_measured_last_against_a_week_of_budgets() -> None:
    facts = OutboxFacts(ms_per_step=20.0, round_seconds=3.0, round_bytes=5000.0)
    limits = DailyLimits(bytes=2e6, joules=100.0, watts=2.0, joules_per_byte=1e-3)
    seconds, moved, joules = costs_of(facts, limits)
    assert seconds == Cost("seconds", 0.02, 3.0, math.inf)
    assert moved == Cost("bytes", 0.0, 5000.0, 14e6)
    assert joules == Cost("joules", pytest.approx(0.04), pytest.approx(11.0), 700.0)
