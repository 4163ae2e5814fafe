"""How much a training does: never more than the plan, never beyond the board's limits."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.training.local_steps import SHARE, within_budget
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
