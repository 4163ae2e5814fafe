"""What a demo says last, on the console."""

from functools import partial

from rich.console import Console

from tools.demo.demo_plan import DemoPlan
from tools.demo.demo_report import Report
from tools.demo.same_accuracy import SameAccuracy
from tools.local_fleet.fleet_facts import FleetView, counted, kilobytes, percent
from tools.local_fleet.fleet_watch import Account

__all__ = ["conclude"]


def conclude(
    console: Console,
    plan: DemoPlan,
    fleet: FleetView,
    account: Account,
    report: Report,
    complaints: list[str],
    wall_s: float,
    memories: str = "",
) -> None:
    """Say on the console what came of a demo; ``memories``: a sentence on what both sides share."""
    if plan.quiet or plan.json or not fleet.releases:
        return
    up, dense = (
        sum(release.payload_bytes for release in fleet.releases),
        sum(release.dense_bytes for release in fleet.releases),
    )
    first, last = fleet.releases[0], fleet.releases[-1]
    say = partial(console.print, soft_wrap=not console.is_terminal)
    say()
    say(
        f"Accuracy on held-out data: {percent(first.accuracy)} -> {percent(last.accuracy)} in "
        f"{counted(last.number - 1, 'round')}, {wall_s:.0f} s."
    )
    say(
        f"Updates: {kilobytes(up)} of payload instead of {kilobytes(dense)} of dense float32"
        f" ({dense / max(1, up):.0f} times less); all that the devices sent, MQTT included: "
        f"{kilobytes(sum(device.bytes_up for device in fleet.devices))}."
    )
    match report.get("same_accuracy"):
        case {
            "accuracy": float(reached),
            "bytes_up": int(ours),
            "bytes_up_dense_float32": int(theirs),
        }:
            same = SameAccuracy(reached, ours, theirs)  # the report's factor is rounded
            say(
                f"For the same accuracy of {100 * reached:.0f} %: {same.factor:.0f} times fewer "
                "bytes than the same updates as dense float32, measured."
            )
    early = (
        f" {counted(account.merged, 'update')} never left: newer ones say what they said."
        if account.merged
        else ""
    )
    late = (
        f" {counted(account.waiting, 'update')} came after the last round, safe for the next."
        if account.waiting
        else ""
    )
    say(
        f"Updates made: {account.made}, folded: {account.folded}, lost: {account.lost}, "
        f"folded twice: {account.folded_twice}.{early}{late}"
    )
    match report.get("personal"):
        case {"runs": {"mean": float(mean), "worst_decile": float(worst)}}:
            tuned = sum(device.serves == "tuned" for device in fleet.devices)
            say(
                f"On the devices' own hold-outs, of what they run: {percent(mean)}, worst tenth "
                f"{percent(worst)}; {tuned} of {len(fleet.devices)} run what they tuned "
                "themselves."
            )
    if memories:
        say(memories)
    warned = report["warnings"]
    assert isinstance(warned, list)
    for warning in warned:
        say(f"Warning: {warning}.", style="yellow")
    if not complaints:
        count = len(fleet.devices)
        who = "The device runs" if count == 1 else f"All {count} devices run"
        say(f"{who} release {last.number}.", style="bold green")
    kept = f"; everything else in {plan.keep}" if plan.keep else ""
    pictures = f"{plan.picture.with_suffix('.png')} and .svg"
    say(f"Report: {plan.report}, picture: {pictures}{kept}")
