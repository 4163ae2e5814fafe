"""How a task learns: what its newest release says, and what the server carries for it."""

import msgspec

from broker.config import is_fixed
from broker.records.memory_records import MemoryRecords
from broker.records.registry import Registry
from broker.records.release_records import ReleaseRow
from broker.records.state_records import StateRecords
from broker.records.update_headers import UpdateHeaders
from broker.reports.text_table import bytes_text
from models.protocol.learning import Feedback
from models.protocol.manifest import Manifest

__all__ = ["LearningReport", "learning_line", "learning_report"]

DAY_S = 86_400.0


class LearningReport(msgspec.Struct, frozen=True):
    """One task."""

    feedback: Feedback
    optimizer: str  # of the server
    average: float  # the decay of what devices run; 0: they run the parameters
    averaged: int  # how often it was moved
    gain: float | None  # of the metric, what runs minus p, on hold-out data; None: not measured
    steps: str  # "epochs", "auto", or how many
    steps_mean: float | None  # of the trainings behind the last fold; None: there was none
    steps_least: int | None  # likewise
    steps_most: int | None
    threshold: float | None  # of gd-sec, now
    remembered: int  # devices
    memory_bytes: int  # of these
    memory_room: int  # bytes that there may be
    resets_day: int  # devices that were told to begin anew, in 24 hours


def learning_report(
    registry: Registry, task: str, newest: ReleaseRow, now: float
) -> LearningReport:
    plan = newest.manifest.plan
    row = StateRecords(registry).get(task)
    total = MemoryRecords(registry).total(task)
    done = UpdateHeaders(registry).steps(task)
    gain = None
    if newest.metric is not None and newest.metric_trained is not None:
        gain = newest.metric - newest.metric_trained
    return LearningReport(
        feedback=plan.feedback,
        optimizer=row.optimizer if row else "sgd",
        average=plan.average,
        averaged=newest.manifest.averaged,
        gain=gain,
        steps=_steps(newest.manifest),
        steps_mean=done[0] if done else None,
        steps_least=done[1] if done else None,
        steps_most=done[2] if done else None,
        threshold=plan.threshold if plan.feedback == "gd-sec" else None,
        remembered=total.devices,
        memory_bytes=total.size,
        memory_room=row.memory_room if row else 0,
        resets_day=UpdateHeaders(registry).resets(task, now - DAY_S),
    )


def _steps(manifest: Manifest) -> str:
    if manifest.plan.steps is not None:
        return "auto"
    return str(manifest.training.max_steps) if is_fixed(manifest.training) else "epochs"


def learning_line(report: LearningReport, *, is_share: bool) -> str:
    """Return one line for people; "" where nothing is but what always was.

    ``is_share``: of what was measured, such as an accuracy.
    """
    is_usual = report.feedback == "residual" and report.optimizer == "sgd"
    if is_usual and report.steps == "epochs" and not report.average:
        return ""
    average = f"average {report.average:g}" if report.average else "no average"
    if report.gain is not None and is_share:
        where = "over" if report.gain >= 0 else "under"
        average += f" (a {100 * abs(report.gain):.1f} points {where} p on hold-out)"
    elif report.gain is not None:
        average += f" (a {report.gain:+.3g} over p on hold-out)"
    parts = [f"learning: {report.feedback}"]
    if report.threshold is not None:
        parts.append(f"threshold {report.threshold:g}")
    steps = f"steps {report.steps}"
    if report.steps == "auto" and report.steps_mean is not None:
        steps += f" (mean {report.steps_mean:.0f}, {report.steps_least}-{report.steps_most})"
    parts += [average, f"optimizer {report.optimizer}", steps]
    if report.feedback != "residual":
        noun = "device" if report.remembered == 1 else "devices"
        room = f" of {bytes_text(report.memory_room)}" if report.memory_room else ""
        parts.append(f"memory {report.remembered} {noun}, {bytes_text(report.memory_bytes)}{room}")
        parts.append(f"resets {report.resets_day} in a day")
    return ", ".join(parts)
