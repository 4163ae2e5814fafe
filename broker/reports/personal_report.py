"""How good devices' models are on their own hold-outs: mean, worst tenth and worst device.

From what devices say of themselves (`models.protocol.messages.Status`): each accuracy was measured
on samples that nothing was trained on and no model was chosen by.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from broker.reports.device_report import DeviceReport
from broker.reports.fleet_report import FleetReport
from broker.reports.text_table import one_line, table_lines

__all__ = [
    "COLUMNS",
    "FEW",
    "Accuracies",
    "Column",
    "PersonalReport",
    "column",
    "columns_of",
    "personal_report",
    "show_personal",
]

HEARD_S = 30 * 86_400.0  # who was not heard of for longer does not count
FEW = 20  # hold-out samples: fewer say little
WORST_SHARE = 10  # one device in so many is in the worst tenth, but at least one


class Accuracies(Protocol):
    """What a device knows of its models, by what it measured on its own hold-out."""

    @property
    def accuracy(self) -> float | None: ...
    @property
    def accuracy_shared(self) -> float | None: ...
    @property
    def accuracy_after(self) -> float | None: ...
    @property
    def accuracy_alone(self) -> float | None: ...


COLUMNS: dict[str, tuple[str, Callable[[Accuracies], float | None]]] = {
    "shared": ("the release, without what is a device's own", lambda said: said.accuracy_shared),
    "runs": ("what the device runs", lambda said: said.accuracy),
    "after": ("what came of its last training", lambda said: said.accuracy_after),
    "alone": ("trained on its own data only", lambda said: said.accuracy_alone),
}


class Column(msgspec.Struct, frozen=True):
    """One model of each device; all numbers are of the task's metric."""

    devices: int  # that measured it
    mean: float
    worst_decile: float  # mean of the worst tenth of the devices
    worst: float
    worst_device: str


class PersonalReport(msgspec.Struct, frozen=True):
    """One task."""

    task: str
    metric: str
    as_of: float  # Unix seconds
    devices: int  # heard of within 30 days
    tuned: int  # of these run what they tuned
    few: int  # of these have fewer than `FEW` hold-out samples
    columns: dict[str, Column | None]  # by name, see `COLUMNS`; None: nobody measured it


def columns_of(
    said: Mapping[str, Accuracies], *, lower_is_better: bool = False
) -> dict[str, Column | None]:
    """Return all `COLUMNS` of what devices said, by device."""
    return {
        name: column(
            {device: value for device, one in said.items() if (value := read(one)) is not None},
            lower_is_better=lower_is_better,
        )
        for name, (_, read) in COLUMNS.items()
    }


def personal_report(report: FleetReport) -> tuple[PersonalReport, ...]:
    """Return what the devices of each task say."""
    heard = [one for one in report.devices if one.heard > report.as_of - HEARD_S]
    return tuple(_of_task(report.as_of, one.task, one.metric, heard) for one in report.tasks)


def _of_task(as_of: float, task: str, metric: str, heard: Sequence[DeviceReport]) -> PersonalReport:
    said = {one.device: one.status for one in heard if one.status and one.status.task == task}
    return PersonalReport(
        task=task,
        metric=metric,
        as_of=as_of,
        devices=len(said),
        tuned=sum(status.serves == "tuned" for status in said.values()),
        few=sum(status.holdout < FEW for status in said.values()),
        columns=columns_of(said, lower_is_better=metric == "mse"),
    )


def column(values: dict[str, float], *, lower_is_better: bool = False) -> Column | None:
    """Return what ``values``, by device, are together; None of none.

    The mean of the worst tenth is taken over at least one device.
    """
    known = {device: value for device, value in values.items() if math.isfinite(value)}
    if not known:
        return None
    worst_first = sorted(known, key=lambda device: known[device], reverse=lower_is_better)
    tenth = worst_first[: math.ceil(len(worst_first) / WORST_SHARE)]
    return Column(
        devices=len(known),
        mean=statistics.fmean(known.values()),
        worst_decile=statistics.fmean(known[device] for device in tenth),
        worst=known[worst_first[0]],
        worst_device=worst_first[0],
    )


def show_personal(reports: Sequence[PersonalReport]) -> None:
    """Print a table for each task."""
    for one in reports:
        print(
            f"{one.task}: {one.metric} on the devices' own hold-outs; {one.devices} devices heard "
            f"of within 30 days, {one.tuned} run what they tuned"
        )
        if one.few:
            print(f"{one.few} have fewer than {FEW} hold-out samples: their numbers are coarse")
        rows = [
            (
                name,
                str(found.devices),
                *_numbers(found),
                f"{one_line(found.worst_device)} · {words}",
            )
            if (found := one.columns[name])
            else (name, "0", "-", "-", "-", words)
            for name, (words, _) in COLUMNS.items()
        ]
        heads = ("model", "devices", "mean", "worst tenth", "worst", "device · what it is")
        print("\n".join(table_lines(heads, rows, left=("model",))))


def _numbers(found: Column) -> tuple[str, str, str]:
    return f"{found.mean:.4f}", f"{found.worst_decile:.4f}", f"{found.worst:.4f}"
