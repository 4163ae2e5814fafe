"""What the server knows of one device, and what it says of itself."""

import re
from typing import NamedTuple

import msgspec

from broker.devices.presence import Presence, presence
from broker.devices.remarks import Task, remarks
from broker.records.device_records import DeviceRow
from models.protocol.messages import Status

__all__ = ["DeviceReport", "View", "device_report", "in_counting_order"]

DAY_S = 86_400.0  # an identity seen double is reported for so long


class DeviceReport(msgspec.Struct, frozen=True):
    """One device: what it says of itself, and what the server counted."""

    device: str
    presence: Presence  # at `FleetReport.as_of`
    online: bool  # presence is "online"
    heard: float  # Unix seconds of its last live word, or of its will; 0: never
    seen: float  # Unix seconds of its last status, retained ones too; 0: none yet
    status: Status | None
    is_newest: bool  # it runs the current release of its task
    problems: tuple[str, ...]  # what the server has to say of it, then what it says itself
    updates_stored: int  # whole and safe, not folded yet
    updates_folded: int
    updates_refused: int
    updates_missing: int  # made, but neither here nor waiting at the device (its last status)
    last_update: float  # Unix seconds when its last one was whole; 0: none, or long ago
    bytes_received: int  # of update messages, repeats included
    duplicates: int  # chunks that came again
    garbage: int  # messages that were none of ours
    is_double: bool  # two boards speak by this name, such as after an SD card was cloned
    is_being_forgotten: bool  # asked for, and not done yet

    @property
    def is_there(self) -> bool:
        """Whether it is on line as far as is known."""
        return self.presence in ("online", "unconfirmed")

    def is_quiet(self, now: float) -> bool:
        """Whether nothing was heard of it for a day."""
        return self.presence != "online" and not 0 <= now - self.heard < DAY_S


def in_counting_order(name: str) -> tuple[tuple[str, int], ...]:
    """Return a key that sorts names as people count: device-2 before device-10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return tuple((text, int(digits or -1)) for text, digits in parts)


class View(NamedTuple):
    """What the report of a device is made of, beside its row."""

    as_of: float
    listening_since: float | None
    served: tuple[str, ...]
    tasks: dict[str, Task]
    settled: dict[str, tuple[int, int]]
    stored: dict[str, int]
    last: dict[str, float]
    leaving: frozenset[str]


def device_report(row: DeviceRow, view: View) -> DeviceReport:
    folded, refused = view.settled.get(row.device, (0, 0))
    stored = view.stored.get(row.device, 0)
    status = row.status
    missing = 0
    if status is not None:
        arrived = folded + refused + stored
        missing = max(0, status.updates_made - status.updates_waiting - arrived)
    task = view.tasks.get(status.task) if status else None
    there = presence(
        says_online=row.online if row.seen else None,
        heard=row.heard,
        listening_since=view.listening_since,
        now=view.as_of,
    )
    is_double = row.doubled > 0 and row.seen < row.doubled + DAY_S
    return DeviceReport(
        device=row.device,
        presence=there,
        online=there == "online",
        heard=row.heard,
        seen=row.seen,
        status=status,
        is_newest=bool(status and task and status.release == task.newest),
        problems=_problems(row, view, is_there=there == "online", is_double=is_double),
        updates_stored=stored,
        updates_folded=folded,
        updates_refused=refused,
        updates_missing=missing,
        last_update=view.last.get(row.device, 0.0),
        bytes_received=row.bytes_received,
        duplicates=row.duplicates,
        garbage=row.garbage,
        is_double=is_double,
        is_being_forgotten=row.device in view.leaving,
    )


def _problems(row: DeviceRow, view: View, *, is_there: bool, is_double: bool) -> tuple[str, ...]:
    found = ["two boards have this identity: was an SD card cloned?"] if is_double else []
    found += remarks(
        row.status,
        is_there=is_there,
        said_s=view.as_of - row.seen,
        tasks=view.tasks,
        served=view.served,
    )
    own = row.status.problem if row.status else ""
    return (*found, own) if own else tuple(found)
