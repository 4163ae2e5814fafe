"""The section ``[task.learning]``: what a fleet carries from update to update, and runs."""

from typing import Annotated, Literal

import msgspec

from models.protocol.learning import Feedback, LearningPlan, StepsPlan

__all__ = ["AVERAGE", "LearningPolicy"]

AVERAGE = 0.9  # decay of the average that ``auto`` stands for: over about ten releases

Steps = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class LearningPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``[task.learning]``; see `LearningPlan` and `models.codec.feedback`."""

    feedback: Feedback = "residual"
    steps: Literal["epochs", "auto"] | Steps = "epochs"  # local ones, of one training
    serve: Literal["auto", "released"] = "auto"  # what devices run
    average: Literal["auto"] | Annotated[float, msgspec.Meta(ge=0, lt=1)] = "auto"  # its decay
    gradient: bool = False  # gd-sec: one plain gradient for each release
    beta: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1  # gd-sec: share that is remembered
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0  # gd-sec: kappa
    forget_after: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 64  # releases
    max_memory_mb: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 4096  # of all devices

    @property
    def has_memory(self) -> bool:
        """Whether the server remembers each device."""
        return self.feedback != "residual"

    def decay(self, *, auto: float) -> float:
        """Return the decay of the average; 0: there is none. ``auto``: what that stands for."""
        return auto if self.average == "auto" else self.average

    def plan(
        self,
        *,
        average: float,
        threshold: float,
        steps: StepsPlan | None = None,
        alone: bool = False,
    ) -> LearningPlan | None:
        """Return what a manifest tells the devices; None: nothing but defaults.

        ``average``: the decay that ``auto`` stands for; ``threshold``: of gd-sec, now; ``steps``:
        what is known for choosing them.
        """
        is_gd_sec = self.feedback == "gd-sec"
        plan = LearningPlan(
            feedback=self.feedback,
            beta=self.beta if is_gd_sec else LearningPlan().beta,
            threshold=threshold if is_gd_sec else 0.0,
            gradient=self.gradient and is_gd_sec,
            steps=steps if self.steps == "auto" else None,
            average=self.decay(auto=average),
            serve="released" if self.serve == "released" else None,
            alone=alone,
        )
        return None if plan == LearningPlan() else plan
