"""What a demo says at its end: the report, what was promised and not so, what needs a look."""

import json
from pathlib import Path
from typing import NamedTuple

import msgspec

from broker.reports.personal_report import column
from models.host.durable import atomic_write
from tools.demo.demo_dense import HOW, DenseRun
from tools.demo.demo_picture import TroubleMark
from tools.demo.same_accuracy import same_accuracy
from tools.local_fleet.both_memories import BothMemories
from tools.local_fleet.fleet_facts import FleetView, percent
from tools.local_fleet.fleet_processes import Device
from tools.local_fleet.fleet_watch import Account, Probe

__all__ = ["Report", "Timeline", "make_report", "verdict", "warnings", "write_report"]

MUCH_WORSE = 0.15  # of accuracy: beyond what chance does on the samples of one device,
FEW = 4  # where these are more samples than so many
ENOUGH_ROUNDS = 12

Report = dict[str, object]


class Timeline(NamedTuple):
    """What happened when; Unix seconds."""

    began: float
    probes: tuple[Probe, ...]
    troubles: tuple[TroubleMark, ...]


def make_report(
    fleet: FleetView,
    devices: list[Device],
    account: Account,
    *,
    broker: str,
    net: str,
    parameters: int,
    wall_s: float,
    timeline: Timeline | None = None,
    dense: DenseRun | None = None,
    memories: BothMemories | None = None,
) -> Report:
    """Return the report; every number in it was counted or measured in this run."""
    processes = {device.id: device for device in devices}
    same = same_accuracy(fleet.releases, dense)
    report: Report = {
        "broker": broker,
        "net": net,
        "parameters": parameters,
        "wall_s": round(wall_s, 1),
        "releases": [
            {
                "number": release.number,
                "accuracy": release.accuracy,
                "updates": release.updates,
                "bytes_down": release.bytes_down,
            }
            for release in fleet.releases
        ],
        "devices": [
            {
                "id": device.id,
                "samples": device.samples,
                "accuracy_first": device.accuracy_first,
                "accuracy_last": device.accuracy,
                "release": device.release,
                "accuracy_shared": device.accuracy_shared,
                "accuracy_runs": device.accuracy_runs,
                "accuracy_after": device.accuracy_after,
                "serves": device.serves,
                "updates_sent": device.made,
                "updates_folded": device.folded,
                "bytes_up": device.bytes_up,
                "bytes_down": device.bytes_down,
                "peak_rss_mb_agent": round(processes[device.id].peak_rss_mb["agent"], 1),
                "peak_rss_mb_trainer": round(processes[device.id].peak_rss_mb["trainer"], 1),
            }
            for device in fleet.devices
        ],
        "bytes_up": sum(device.bytes_up for device in fleet.devices),
        "bytes_up_dense_float32": sum(device.made for device in fleet.devices) * 4 * parameters,
        "updates_lost": account.lost,
        "updates_folded_twice": account.folded_twice,
        "updates_made": account.made,
        "updates_waiting": account.waiting,
        "personal": _personal(fleet),
        "warnings": warnings(fleet),
    }
    if dense is not None:
        report["dense_float32"] = {
            "how": HOW,
            "complete": dense.complete,
            "wall_s": round(dense.seconds, 1),
            "releases": [release._asdict() for release in dense.releases],
        }
    if same is not None:
        report["same_accuracy"] = same._asdict() | {"factor": round(same.factor, 1)}
    if memories is not None:
        report["memories"] = memories.report
    if timeline is not None:
        report["timeline"] = _timeline(fleet, timeline)
    return report


def _personal(fleet: FleetView) -> dict[str, object]:
    """Return how good the models are on the devices' own hold-outs."""
    columns = {
        "shared": {device.id: device.accuracy_shared for device in fleet.devices},
        "runs": {device.id: device.accuracy_runs for device in fleet.devices},
        "after": {device.id: device.accuracy_after for device in fleet.devices},
    }
    return {
        name: msgspec.to_builtins(column({d: v for d, v in values.items() if v is not None}))
        for name, values in columns.items()
    }


def _timeline(fleet: FleetView, timeline: Timeline) -> dict[str, object]:
    """Return what happened, in seconds since the beginning."""

    def after(at: float) -> float:
        return round(at - timeline.began, 2)

    return {
        "releases": [{"at_s": after(r.created), "number": r.number} for r in fleet.releases],
        "devices": [
            {
                "at_s": after(probe.at),
                "device": probe.device,
                "release": probe.release,
                "accuracy": probe.accuracy,
            }
            for probe in timeline.probes
        ],
        "troubles": [
            {
                "device": trouble.device,
                "what": trouble.what,
                "from_s": after(trouble.since),
                "to_s": after(trouble.until) if trouble.until else None,
            }
            for trouble in timeline.troubles
        ],
    }


def verdict(fleet: FleetView, account: Account, memories: BothMemories | None = None) -> list[str]:
    """Return what the demo promises and was not so; empty when all is well."""
    if not fleet.releases:
        return ["the server made no release"]
    first, last = fleet.releases[0], fleet.releases[-1]
    complaints = [
        f"{device.id} runs release {device.release}, the last one is {last.number}"
        for device in fleet.devices
        if device.release != last.number
    ]
    if first.accuracy is None or last.accuracy is None or last.accuracy <= first.accuracy:
        rounds = max(ENOUGH_ROUNDS, 3 * (last.number - 1))
        complaints.append(
            f"the last release is not better than the first one ({percent(first.accuracy)} -> "
            f"{percent(last.accuracy)}): give it more rounds, for example --rounds {rounds}"
        )
    if account.lost:
        complaints.append(f"{account.lost} updates were lost")
    if account.folded_twice:
        complaints.append(f"{account.folded_twice} updates were folded twice")
    return complaints + (memories.complaints if memories else [])


def warnings(fleet: FleetView) -> list[str]:
    """Return what broke no promise and still needs a look, with what helps."""
    found = [
        f"{device.id} got much worse on its own data: {percent(device.accuracy_first)} -> "
        f"{percent(device.accuracy)}. Its data differ from the others'; what helps: a personal "
        "part of the model (edgefold task create --personal PATTERN), a lower --learning-rate, "
        "more --rounds, or more devices that see such data"
        for device in fleet.devices
        if device.accuracy_first is not None
        and device.accuracy is not None
        and device.accuracy <= device.accuracy_first - MUCH_WORSE
        and not 0 < device.heldout * (device.accuracy_first - device.accuracy) < FEW
    ]
    known = [release for release in fleet.releases if release.accuracy is not None]
    if known:
        best = max(known, key=lambda release: release.accuracy or 0.0)
        if (best.accuracy or 0.0) - (known[-1].accuracy or 0.0) >= MUCH_WORSE:
            found.append(
                f"the last release is much worse than release {best.number}: "
                f"{percent(best.accuracy)} -> {percent(known[-1].accuracy)}; what helps: a lower "
                "--learning-rate or fewer --epochs; on a real server also max_drop in "
                "[task.evaluation]"
            )
    return found


def write_report(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(report, indent=1).encode() + b"\n")
