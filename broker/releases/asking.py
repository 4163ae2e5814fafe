"""Whom the next release of a task asks to train: the registry's figures for `patience.py`."""

import math
from typing import NamedTuple

from broker.config import FoldPolicy
from broker.records.device_records import DeviceRecords
from broker.records.release_records import ReleaseRecords, ReleaseRow
from broker.records.update_records import UpdateRecords
from broker.releases.patience import LOOK_BACK, Measured, next_round_at, score_of
from models.task.spec import Role, TaskSpec

__all__ = ["Ask", "Asking"]

LocalScores = dict[int, tuple[float | None, float]]


class Ask(NamedTuple):
    """Whom a release asks."""

    everybody: bool  # else who has new samples
    samples: int  # that the fleet has reported by now


class Asking:
    """The question for one task. It keeps nothing: all it needs stands in the registry."""

    def __init__(
        self,
        spec: TaskSpec,
        policy: FoldPolicy,
        devices: DeviceRecords,
        updates: UpdateRecords,
        releases: ReleaseRecords,
        *,
        has_evaluation: bool,
    ) -> None:
        self._spec = spec
        self._policy = policy
        self._devices = devices
        self._updates = updates
        self._releases = releases
        # A model with personal tensors is what its device makes of it; here are only the initial.
        is_whole = all(tensor.role is not Role.PERSONAL for tensor in spec.tensors)
        self._measures_here = has_evaluation and is_whole

    def next_release(
        self, metric: float | None, wall: float, *, is_folded: bool, is_average: bool = False
    ) -> Ask:
        """Return whom a release that is made now asks.

        ``metric``: of its parameters on the server's hold-out data, whatever devices run, since an
        average goes on gaining for days after them; None: not measured. ``is_average``: whether
        devices run (and measure) an average. ``wall`` is compared with when releases were made,
        which the registry knows in Unix seconds.
        """
        samples = self._devices.samples_reported(self._spec.task)
        if not self._policy.patience:
            return Ask(True, samples)
        recent = self._releases.recent(self._spec.task, LOOK_BACK)
        local: LocalScores = {}
        if not self._measures_here and recent:
            local = self._updates.headers.local_scores(self._spec.task, since=recent[0][0].number)
        before = [
            Measured(
                score=self._score(row, local),
                is_folded=row.updates > 0,
                asks_everybody=row.manifest.training.repeat,
                samples=reported,
                # By a clock that was wrong: nobody waits for it, that could take years.
                created=row.created if row.created <= wall else -math.inf,
                is_average=row.manifest.averaged > 0 and not self._measures_here,
            )
            for row, reported in recent
        ]
        is_average = is_average and not self._measures_here
        new = Measured(self._score_here(metric), is_folded, True, samples, wall, is_average)
        at = next_round_at(
            [*before, new],
            patience=self._policy.patience,
            min_gain=self._policy.min_gain,
            pause_s=self._policy.min_seconds,
        )
        return Ask(at <= wall, samples)

    def _score_here(self, metric: float | None) -> float | None:
        if not self._measures_here or metric is None:
            return None
        return score_of(self._spec.metric, metric)

    def _score(self, row: ReleaseRow, local: LocalScores) -> float | None:
        """Return how good a release is: by the hold-out here, else by what devices measured.

        Devices measure a release when they train on it, so that of the newest is not known yet.
        """
        if self._measures_here:
            trained = row.metric_trained
            return self._score_here(row.metric if trained is None else trained)
        if row.number not in local:
            return None
        accuracy, loss = local[row.number]
        if any(accuracy is not None for accuracy, _ in local.values()):
            return accuracy
        return score_of("loss", loss)
