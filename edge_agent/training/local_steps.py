"""How much one training does: the server's plan within this board's limits. Pure."""

import math

import msgspec

from models.protocol.manifest import TrainingPlan

__all__ = ["within_budget"]

SHARE = 0.5  # of the allowed time: the estimate is of another day's load and temperature


def within_budget(
    plan: TrainingPlan, *, samples: int, max_batch: int, max_seconds: float, ms_per_step: float
) -> TrainingPlan:
    """Return ``plan`` with its batch and steps cut to what this board may spend.

    ``ms_per_step`` was measured in the last training with a batch of the plan's size, 0 if there
    was none. The number of samples seen stays the plan's where only the batch shrinks.
    """
    batch = max(1, min(plan.batch, max_batch, samples))
    steps = max(1, math.ceil(plan.epochs * math.ceil(samples / batch)))
    steps = min(steps, plan.max_steps)
    affordable = SHARE * max_seconds * 1000
    if steps * ms_per_step > affordable:
        steps = max(1, int(affordable / ms_per_step))
    return msgspec.structs.replace(plan, batch=batch, max_steps=steps)
