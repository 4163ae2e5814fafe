"""What a job of the trainer child tells of a device's models on its hold-out. Numpy-free."""

import msgspec

from edge_agent.personal.model_choice import Comparison

__all__ = ["Scores"]


class Scores(msgspec.Struct, frozen=True, omit_defaults=True):
    """Means of the task's metric; each is of the samples that no model was chosen by."""

    samples: int = 0  # that these are of: half of the hold-out where the other half decides
    shared: float | None = None  # of the release with the bundle's own personal values
    released: float | None = None  # with this device's
    tuned: float | None = None  # of what came of the last training
    alone: float | None = None  # of a model that was trained on this device's data alone
    comparison: Comparison | None = None  # of tuned with released, on those that decide
