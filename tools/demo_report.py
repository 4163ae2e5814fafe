"""What a demo leaves behind: the report as JSON, and the picture of accuracy over bytes."""

import json
from itertools import accumulate
from pathlib import Path

from tools.demo_fleet import Device
from tools.demo_view import FleetView
from tools.demo_watch import Account

__all__ = ["Report", "draw", "make_report", "verdict", "write_report"]

Report = dict[str, object]


def make_report(
    fleet: FleetView,
    devices: list[Device],
    account: Account,
    *,
    broker: str,
    net: str,
    parameters: int,
    wall_s: float,
) -> Report:
    """Return the report; every number in it was counted or measured in this run."""
    processes = {device.id: device for device in devices}
    return {
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
    }


def verdict(fleet: FleetView, account: Account) -> list[str]:
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
        complaints.append("the last release is not better than the first one")
    if account.lost:
        complaints.append(f"{account.lost} updates were lost")
    if account.folded_twice:
        complaints.append(f"{account.folded_twice} updates were folded twice")
    return complaints


def write_report(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def draw(fleet: FleetView, path: Path, *, title: str) -> None:
    """Draw accuracy over the bytes that all devices sent: as they did, and as float32."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    known = [release for release in fleet.releases if release.accuracy is not None]
    accuracy = [100 * (release.accuracy or 0.0) for release in known]
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for label, style, sizes in (
        ("edgefold", "o-", [release.payload_bytes for release in known]),
        ("the same updates as dense float32", "s--", [release.dense_bytes for release in known]),
    ):
        total = [bytes_ / 1000 for bytes_ in accumulate(sizes)]
        axes.plot(total[1:], accuracy[1:], style, label=label, markersize=4)
    if accuracy:
        axes.axhline(accuracy[0], color="gray", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"release {known[0].number}: {accuracy[0]:.1f} %",
            (0.01, accuracy[0]),
            xycoords=("axes fraction", "data"),
            va="bottom",
            color="gray",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("update bytes from all devices so far, kB")
    axes.set_ylabel("accuracy on held-out data, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
