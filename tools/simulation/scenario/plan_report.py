"""What a simulated fleet costs and how fast it learns, for who plans a real one. Pure."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from broker.reports.personal_report import Column, columns_of
from tools.simulation.scenario.energy import Board, joules
from tools.simulation.scenario.fleet_settings import Milestone, Outcome, Settings, Usage

__all__ = ["Reached", "comparison", "milestone_at", "plan_report", "sentences"]

DAY = 86400.0
CURVE = 200  # points of the learning curve in a report, at most


class Reached(NamedTuple):
    """When a released model was first as good as wanted, and what all devices had sent by then."""

    hours: float
    release: int
    bytes_up: int
    bytes_down: int


def milestone_at(
    milestones: Sequence[Milestone], target: float, *, lower_is_better: bool
) -> Reached | None:
    """Return the first of ``milestones`` that reaches ``target``; None: none does."""
    sign = -1 if lower_is_better else 1
    for found in milestones:
        if found.metric is not None and sign * found.metric >= sign * target:
            return Reached(found.at_s / 3600, found.release, found.bytes_up, found.bytes_down)
    return None


def plan_report(
    outcome: Outcome, settings: Settings, *, target: float | None, lower_is_better: bool = False
) -> dict[str, Any]:
    """Return the figures of a plan; bytes and joules are per device and day."""
    usage, days = outcome.usage, settings.hours / 24
    report: dict[str, Any] = {
        "policy": dict(settings.policy),
        "seed": outcome.seed,
        "devices": len(usage),
        "days": round(days, 3),
        "releases": outcome.releases,
        "updates_folded": outcome.folded,
        "updates_refused": outcome.refused,
        "trainings_per_device_day": round(outcome.trainings / max(len(usage), 1) / days, 3),
        "metric": round(outcome.accuracy, 5),
        "bytes_up": spread([use.bytes_up / days for use in usage]),
        "bytes_down": spread([use.bytes_down / days for use in usage]),
        "joules": _energy(usage, settings.board, days),
        "board": settings.board.name,
        "personal": msgspec.to_builtins(_personal(usage, lower_is_better=lower_is_better)),
        "tuned": sum(use.facts.serves_tuned for use in usage),
        "curve": [
            {
                "hours": round(point.at_s / 3600, 3),
                "release": point.release,
                "metric": point.metric,
                "bytes_up": point.bytes_up,
                "bytes_down": point.bytes_down,
            }
            for point in _thinned(outcome.milestones)
        ],
    }
    if target is not None:
        reached = milestone_at(outcome.milestones, target, lower_is_better=lower_is_better)
        report["target"] = {"metric": target} | (reached._asdict() if reached else {"hours": None})
    return report


def _personal(usage: Sequence[Usage], *, lower_is_better: bool) -> dict[str, Column | None]:
    """Return how good the models of the devices are, each on its own hold-out."""
    said = {f"device-{number}": use.facts for number, use in enumerate(usage, 1)}
    return columns_of(said, lower_is_better=lower_is_better)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean and 95th percentile (nearest rank)."""
    if not values:
        return {"mean": 0.0, "p95": 0.0}
    ranked = sorted(values)
    rank = max(0, -(-95 * len(ranked) // 100) - 1)
    return {"mean": round(statistics.fmean(ranked), 1), "p95": round(ranked[rank], 1)}


def _energy(usage: Sequence[Usage], board: Board, days: float) -> dict[str, Any]:
    parts = [
        joules(
            board,
            seconds=days * DAY,
            training_s=use.training_s,
            online_s=use.online_s,
            bytes_up=use.bytes_up,
            bytes_down=use.bytes_down,
        )
        for use in usage
    ]
    added = [(part["training"] + part["radio"]) / days for part in parts]
    mean = {
        name: round(statistics.fmean(part[name] / days for part in parts), 1)
        for name in ("idle", "training", "radio")
        if parts
    }
    return mean | {"added": spread(added)}


def _thinned(points: Sequence[Milestone]) -> list[Milestone]:
    step = -(-len(points) // CURVE) or 1
    kept = list(points[::step])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def sentences(report: dict[str, Any]) -> str:
    """Return a report of `plan_report` for people."""
    up, down, power = report["bytes_up"], report["bytes_down"], report["joules"]
    lines = [
        f"{report['devices']} devices for {report['days']:g} days: {report['releases']} releases, "
        f"{report['updates_folded']} updates folded, {report['updates_refused']} refused, "
        f"metric {report['metric']:.4f}",
        f"per device and day: {_kb(up['mean'])} up (p95 {_kb(up['p95'])}), "
        f"{_kb(down['mean'])} down (p95 {_kb(down['p95'])}), "
        f"{report['trainings_per_device_day']:.2f} trainings",
        f"energy per device and day ({report['board']}): training {power.get('training', 0):.0f} J"
        f" + radio {power.get('radio', 0):.0f} J on top of {power.get('idle', 0):.0f} J idle",
    ]
    if runs := report["personal"]["runs"]:
        lines.append(
            f"on the devices' own hold-outs: what they run {runs['mean']:.4f}, worst tenth "
            f"{runs['worst_decile']:.4f}; {report['tuned']} run what they tuned"
        )
    if "target" in report:
        lines.append(_target(report["target"], report["devices"]))
    return "\n".join(lines)


def _target(target: dict[str, Any], devices: int) -> str:
    if target["hours"] is None:
        return f"no release reached metric {target['metric']:g}"
    return (
        f"metric {target['metric']:g} reached by release {target['release']} after "
        f"{target['hours']:.1f} h, and per device {_kb(target['bytes_up'] / devices)} up and "
        f"{_kb(target['bytes_down'] / devices)} down"
    )


def comparison(reports: Sequence[dict[str, Any]], key: str) -> list[dict[str, str]]:
    """Return one row per report, for a table: the policy's ``key`` and what it costs."""
    rows = []
    for report in reports:
        target = report.get("target", {})
        row = {
            key: str(report["policy"][key]),
            "B up/day": f"{report['bytes_up']['mean']:.0f}",
            "B down/day": f"{report['bytes_down']['mean']:.0f}",
            "J/day": f"{report['joules']['added']['mean']:.1f}",
            "trainings/day": f"{report['trainings_per_device_day']:.2f}",
            "releases": str(report["releases"]),
            "metric": f"{report['metric']:.4f}",
        }
        if target:
            hours = target["hours"]
            row["h to target"] = "-" if hours is None else f"{hours:.1f}"
            row["B up to target"] = (
                "-" if hours is None else f"{target['bytes_up'] / report['devices']:.0f}"
            )
        rows.append(row)
    return rows


def _kb(count: float) -> str:
    return f"{count / 1000:.1f} kB"
