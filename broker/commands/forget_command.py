"""``edgefold-broker forget``: chooses the devices, asks, and leaves the rest to the server.

The server owns the registry; what is asked for here it does within seconds, or at its next start
(`broker.devices.forgetting`).
"""

import difflib
import re
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from broker.records.device_records import DeviceRecords
from broker.records.registry import DATABASE, Registry, open_to_read
from broker.reports.device_report import DeviceReport
from broker.reports.fleet_report import FleetReport, read_report
from models.errors import CommandLineError, TransientError
from models.host.sentences import unusable

__all__ = ["age_s", "chosen", "forget"]

PATIENCE_S = 30.0  # for a server that runs
UNITS = {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}
NAMED = 20  # devices that are listed by name
PATTERN = re.compile(r"[*?\\[]")


def age_s(text: str) -> float:
    """Return the seconds of ``text``, such as 12h, 30d or 8w.

    Raises:
        CommandLineError: it is no such age.
    """
    found = re.fullmatch(r"([0-9]{1,4})([hdw])", text)
    if not found or not int(found[1]):
        raise CommandLineError(
            f"--older-than wants hours, days or weeks, such as 12h or 30d, not {text[:40]!r}"
        )
    return int(found[1]) * UNITS[found[2]]


def chosen(
    report: FleetReport, names: Sequence[str], older_than_s: float | None, now: float
) -> list[DeviceReport]:
    """Return the devices that are to be forgotten: those named, or not heard for so long, or both.

    A name may be a pattern with ``*`` and ``?``.

    Raises:
        CommandLineError: a name is that of no device; then none is forgotten.
    """
    known = [device.device for device in report.devices]
    wanted = set() if names else set(known)
    for name in names:
        matching = [device for device in known if fnmatchcase(device, name)]
        if not matching:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise CommandLineError(f"no device {name!r} here{hint}; nothing was forgotten")
        wanted.update(matching)
    return [
        device
        for device in report.devices
        if device.device in wanted
        and (older_than_s is None or _is_older(device, older_than_s, now))
    ]


def _is_older(device: DeviceReport, age_s: float, now: float) -> bool:
    """Whether the last sign of ``device`` is that old; of one never heard live, its status."""
    return device.presence != "online" and now - (device.heard or device.seen) > age_s


def forget(
    directory: Path,
    names: Sequence[str],
    *,
    older_than_s: float | None,
    is_confirmed: bool,
    ask: Callable[[str], bool] | None,
    now: float,
) -> None:
    """Have the server in ``directory`` forget devices; say on stdout what became of it.

    ``ask`` puts a question on a terminal; None: there is nobody to ask.

    Raises:
        UsageError: a device is not known, or nobody confirmed a choice of many.
        TransientError: the disk is full or failing; nothing was forgotten.
    """
    report = read_report(directory, now)
    devices = chosen(report, names, older_than_s, now)
    if not devices:
        print("no device is that old: nothing was forgotten")
        return
    listed = _listed(devices)
    if older_than_s is not None or any(PATTERN.search(name) for name in names):
        if not is_confirmed and ask is None:
            raise CommandLineError(f"this would forget {listed}: add --yes")
        if not is_confirmed and ask and not ask(f"Forget {listed}? [y/N] "):
            print("nothing was forgotten")
            return
    if online := [device for device in devices if device.online]:
        back = "is online: it will be" if len(online) == 1 else "are online: they will be"
        print(f"{_listed(online)} {back} back with the next word", file=sys.stderr)
    path = directory / DATABASE
    try:
        with open(path, "r+b"):
            pass
    except OSError as error:
        raise unusable(path, error) from None
    registry = Registry(path, report.fleet)
    try:
        DeviceRecords(registry).ask_to_forget([device.device for device in devices], now)
    finally:
        registry.close()
    if report.server.running:
        _wait(directory, {device.device for device in devices}, listed)
    else:
        print(f"the server is not running: it will forget {listed} when it is started")


def _listed(devices: Sequence[DeviceReport]) -> str:
    """Return their names, as many as people read."""
    names = [device.device for device in devices]
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{len(names)} devices ({', '.join(names[:NAMED])} and {len(names) - NAMED} more)"


def _wait(directory: Path, asked: set[str], listed: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        registry = open_to_read(directory)
        try:
            if asked.isdisjoint(DeviceRecords(registry).to_be_forgotten()):
                print(f"forgot {listed}")
                return
        except TransientError:
            pass
        finally:
            registry.close()
        time.sleep(0.2)
    print(f"the server is busy, or does not serve now: it will forget {listed} as soon as it can")
