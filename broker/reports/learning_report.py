"""How a task learns: what its newest release says, and what the server carries for it."""

import msgspec

from broker.records.memory_records import MemoryRecords
from broker.records.registry import Registry
from broker.records.release_records import ReleaseRow
from broker.records.state_records import StateRecords
from broker.records.update_headers import UpdateHeaders
from broker.reports.text_table import bytes_text
from models.protocol.learning import Feedback

__all__ = ["LearningReport", "learning_line", "learning_report"]

DAY_S = 86_400.0


class LearningReport(msgspec.Struct, frozen=True):
    """One task."""

    feedback: Feedback
    optimizer: str  # of the server
    average: float  # the decay of what devices run; 0: they run the parameters
    averaged: int  # how often it was moved
    gain: float | None  # of the metric, what runs minus p, on hold-out data; None: not measured
    steps: str  # "epochs", or "auto"
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
    gain = None
    if newest.metric is not None and newest.metric_trained is not None:
        gain = newest.metric - newest.metric_trained
    return LearningReport(
        feedback=plan.feedback,
        optimizer=row.optimizer if row else "sgd",
        average=plan.average,
        averaged=newest.manifest.averaged,
        gain=gain,
        steps="epochs" if plan.steps is None else "auto",
        threshold=plan.threshold if plan.feedback == "gd-sec" else None,
        remembered=total.devices,
        memory_bytes=total.size,
        memory_room=row.memory_room if row else 0,
        resets_day=UpdateHeaders(registry).resets(task, now - DAY_S),
    )


def learning_line(report: LearningReport, *, is_share: bool) -> str:
    """Return one line for people; "" where nothing is but what always was.

    ``is_share``: of what was measured, such as an accuracy.
    """
    if report.feedback == "residual" and not report.average and report.optimizer == "sgd":
        return ""
    average = f"average {report.average:g}" if report.average else "no average"
    if report.gain is not None and is_share:
        average += f" (a {100 * report.gain:+.1f} points over p on hold-out)"
    elif report.gain is not None:
        average += f" (a {report.gain:+.3g} over p on hold-out)"
    parts = [f"learning: {report.feedback}"]
    if report.threshold is not None:
        parts.append(f"threshold {report.threshold:g}")
    parts += [average, f"optimizer {report.optimizer}", f"steps {report.steps}"]
    if report.feedback != "residual":
        noun = "device" if report.remembered == 1 else "devices"
        room = f" of {bytes_text(report.memory_room)}" if report.memory_room else ""
        parts.append(f"memory {report.remembered} {noun}, {bytes_text(report.memory_bytes)}{room}")
        parts.append(f"resets {report.resets_day} in a day")
    return ", ".join(parts)
