"""``edgefold simulate``: a fleet in one process, on a virtual clock, network and disks.

The agent and the server are the real ones. One seed decides everything that happens, so that a
seed which breaks a promise breaks it again; use it also to see what a policy costs in bytes and
time before a fleet is built.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import UsageError

if TYPE_CHECKING:
    from tools.cli import Subparsers
    from tools.simulation.fleet_world import Outcome, Settings

__all__ = ["play", "register"]

LONG_HOURS = 12.0  # beyond, devices look for work once an hour and sense four times a day
EXAMPLES = """\
examples:
  edgefold simulate --faults harsh --seeds 100            a hundred bad days, different every time
  edgefold simulate --faults harsh --seed 17 --trace      one of them, event by event
  edgefold simulate --devices 50 --hours 48 --online 0.1  what a fleet would send and learn
exit code: 0 all promises held, 1 a promise was broken
"""


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command to the ``edgefold`` parser."""
    parser = subparsers.add_parser(
        "simulate",
        help="a fleet on a virtual clock, network and disks, with faults from a seed",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, metavar="N", help="default: 3")
    parser.add_argument("--hours", type=float, metavar="H", help="of virtual time; default: 1.5")
    parser.add_argument(
        "--online", type=float, metavar="SHARE", help="of the time a device has a network; 1"
    )
    parser.add_argument(
        "--faults", default="none", metavar="none|mild|harsh|FILE.toml", help="default: none"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="the first one; default: 1"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="COUNT", help="how many; default: 1"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes; default: one per core")
    parser.add_argument("--trace", action="store_true", help="print what happened, event by event")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write the figures there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Play the seeds and print what came of them."""
    settings = _settings(options)
    if options.seeds < 1:
        raise UsageError("--seeds must be at least 1")
    outcomes: list[Outcome] = []
    broken: list[Outcome] = []
    for outcome in play(range(options.seed, options.seed + options.seeds), settings, options.jobs):
        if outcome.violations:
            broken.append(outcome)
            _complain(outcome, options)
        if options.trace:
            print("\n".join(outcome.trace))
        outcomes.append(outcome._replace(trace=()))
    summary = _summary(outcomes)
    print(_sentences(summary))
    if options.report:
        report = {"settings": vars_of(settings), **summary, "seeds": [_row(o) for o in outcomes]}
        options.report.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 1 if broken else 0


def play(seeds: range, settings: "Settings", jobs: int | None = None) -> "Iterator[Outcome]":
    """Yield the outcome of every seed, in order; several at a time."""
    from tools.simulation.fleet_world import simulate

    jobs = min(jobs or os.cpu_count() or 1, len(seeds))
    if jobs <= 1:
        for seed in seeds:
            yield simulate(seed, settings)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(simulate, seeds, [settings] * len(seeds), chunksize=1)


def _settings(options: argparse.Namespace) -> "Settings":
    from tools.simulation.fault_plan import PLANS, parse_plan
    from tools.simulation.fleet_world import Settings

    plan = PLANS.get(options.faults)
    if plan is None:
        path = Path(options.faults)
        try:
            plan = parse_plan(path.read_text("utf-8"), str(path))
        except OSError as error:
            raise UsageError(
                f"--faults {path}: {error.strerror}; name a file or one of {', '.join(PLANS)}"
            ) from None
    given = {
        name: value
        for name in ("devices", "hours", "online")
        if (value := getattr(options, name)) is not None
    }
    settings = Settings(**given, plan=plan, traced=options.trace)
    if settings.hours > LONG_HOURS:
        settings = settings._replace(look_s=3600.0, sample_every_s=6 * 3600.0, fold_seconds=7200.0)
    if settings.devices < 1 or settings.hours <= 0 or not 0 < settings.online <= 1:
        raise UsageError("--devices and --hours must be positive, --online between 0 and 1")
    return settings


def _complain(outcome: "Outcome", options: argparse.Namespace) -> None:
    for violation in outcome.violations[:5]:
        print(f"seed {outcome.seed}: {violation.machine}: {violation.what}", file=sys.stderr)
    replay = ["edgefold", "simulate", "--faults", options.faults, "--seed", str(outcome.seed)]
    for name in ("devices", "hours", "online"):
        if (value := getattr(options, name)) is not None:
            replay += [f"--{name}", str(value)]
    print(f"  again: {' '.join(replay)} --trace", file=sys.stderr)


def _summary(outcomes: "list[Outcome]") -> dict[str, Any]:
    def total(field: str) -> int:
        return sum(getattr(outcome, field) for outcome in outcomes)

    return {
        "count": len(outcomes),
        "broken_seeds": [outcome.seed for outcome in outcomes if outcome.violations],
        "virtual_hours": round(total("virtual_s") / 3600, 1),
        "cpu_seconds": round(total("wall_s"), 1),
        "crashes": total("crashes"),
        "messages": total("messages"),
        "trainings": total("trainings"),
        "updates": total("updates"),
        "folded": total("folded"),
        "refused": total("refused"),
        "releases": total("releases"),
        "bytes_up": total("bytes_up"),
        "bytes_down": total("bytes_down"),
        "worst_imbalance": max(outcome.imbalance for outcome in outcomes),
        "settled_after_s": max(outcome.settled_after_s for outcome in outcomes),
        "accuracy": sum(outcome.accuracy for outcome in outcomes) / len(outcomes),
    }


def _sentences(summary: dict[str, Any]) -> str:
    broken = summary["broken_seeds"]
    verdict = f"{len(broken)} BROKE A PROMISE: {broken[:10]}" if broken else "no promise broken"
    return (
        f"{summary['count']} seeds, {summary['virtual_hours']} virtual hours in "
        f"{summary['cpu_seconds']} s: {verdict}\n"
        f"{summary['crashes']} crashes, {summary['trainings']} trainings, "
        f"{summary['updates']} updates committed, {summary['folded']} folded, "
        f"{summary['refused']} refused, {summary['releases']} releases\n"
        f"{summary['bytes_up'] / 1e6:.2f} MB up, {summary['bytes_down'] / 1e6:.2f} MB down, "
        f"fit to the fleet's optimum {summary['accuracy']:.3f}\n"
        f"residual + in flight + folded = learned to {summary['worst_imbalance']:.1e}; "
        f"all at rest {summary['settled_after_s'] / 60:.0f} min after the repair at the latest"
    )


def vars_of(settings: "Settings") -> dict[str, Any]:
    """Return the settings as JSON has them."""
    import msgspec

    values = settings._asdict()
    return values | {"plan": msgspec.to_builtins(settings.plan)}


def _row(outcome: "Outcome") -> dict[str, Any]:
    values = outcome._asdict()
    values.pop("trace")
    return values | {"violations": [violation._asdict() for violation in outcome.violations]}
