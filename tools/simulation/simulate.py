"""``edgefold simulate``: a fleet in one process, on a virtual clock, network and disks.

The agent and the server are the real ones. One seed decides everything that happens, so that a
seed which breaks a promise breaks it again; use it also to see what a policy costs in bytes,
energy and time before a fleet is built.
"""

import argparse
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import UsageError

if TYPE_CHECKING:
    from tools.cli import Subparsers
    from tools.simulation.scenario.fleet_settings import Outcome, Settings

__all__ = ["play", "register"]

LONG_HOURS = 12.0  # beyond, a fleet is planned rather than tormented
MOST_SETTLED = 20_000  # device-hours: a larger fleet is not repaired at the end, to save time
LIGHT_PARAMETERS = 64  # of the stand-in for learning, when planning
EXAMPLES = """\
examples:
  edgefold simulate --faults harsh --seeds 100            a hundred bad days, different every time
  edgefold simulate --faults harsh --seed 17 --trace      one of them, event by event
  edgefold simulate --devices 10000 --hours 168 --online 0.1   what a fleet sends in a week
  edgefold simulate --devices 50 --hours 72 --task words --data words.npz --target 0.9
  edgefold simulate --devices 200 --hours 168 --target 0.9 --compare updates=20,50,200
policy keys: those of [[task]] in broker.toml (aggregation.updates) and the short ones updates,
seconds, min_seconds, patience, min_gain, payload_bytes, payload_nmse, local_steps, epochs, batch,
learning_rate, downlink, downlink_nmse
exit code 1 also where a promise was broken
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
    add = parser.add_argument
    add("--devices", type=int, metavar="N", help="default: 3")
    add("--hours", type=float, metavar="H", help="of virtual time; default: 1.5")
    add("--online", type=float, metavar="SHARE", help="of the time a device has a network; 1")
    add("--faults", default="none", metavar="none|mild|harsh|FILE.toml", help="default: none")
    add("--seed", type=int, default=1, metavar="S", help="the first one; default: 1")
    add("--seeds", type=int, default=1, metavar="COUNT", help="how many; default: 1")
    add("--vary", action="store_true", help="settings by the seed: codec, contexts, refusals")
    add("--jobs", type=int, metavar="N", help="processes; default: one per core")
    add("--trace", action="store_true", help="print what happened, event by event")
    add("--report", type=Path, metavar="FILE.json", help="write the figures there")
    add("--json", action="store_true", help="print the figures as JSON instead")
    add("--quiet", action="store_true", help="do not say on stderr how far it is")
    plan = parser.add_argument_group("planning")
    plan.add_argument("--task", metavar="DIR", help="a bundle to learn for real")
    plan.add_argument("--data", metavar="NPZ", help="its data: a file, digits or fashion-mnist")
    plan.add_argument(
        "--split", default="user", metavar="user|dirichlet:A", help="how data are dealt; user"
    )
    plan.add_argument("--target", type=float, metavar="METRIC", help="of a release: when is it met")
    plan.add_argument(
        "--session", type=float, metavar="HOURS", help="mean, that a device stays online; 2"
    )
    plan.add_argument(
        "--samples-every", type=float, metavar="HOURS", help="mean, between new samples; 24"
    )
    plan.add_argument(
        "--policy", action="append", default=[], metavar="KEY=VALUE", help="may be repeated"
    )
    plan.add_argument("--compare", metavar="KEY=A,B,C", help="the same seed with each of them")
    plan.add_argument(
        "--energy", metavar="BOARD|FILE.toml", help="pi-zero-2 (the default), pi-4, or your own"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Play the seeds and print what came of them."""
    if options.seeds < 1:
        raise UsageError("--seeds must be at least 1")
    from tools.progress import bar
    from tools.simulation.players import play_all

    settings = _settings(options)
    if options.compare:
        return _compare(settings, options)
    outcomes: list[Outcome] = []
    seeds = range(options.seed, options.seed + options.seeds)
    with bar(shown=not (options.json or options.quiet), what="simulate") as tell:
        for outcome in play_all([(seed, settings) for seed in seeds], options.jobs, tell):
            _complain(outcome, options)
            if options.trace:
                print("\n".join(outcome.trace))
            outcomes.append(outcome._replace(trace=()))
    summary = _summary(outcomes)
    report = {"settings": vars_of(settings), **summary, "seeds": [_row(o) for o in outcomes]}
    words = _sentences(summary)
    if settings.is_planning:
        report["plan"] = [_plan(outcome, settings, options.target) for outcome in outcomes]
        words += "\n" + "\n".join(_words(found) for found in report["plan"])
    _tell(report, words, options)
    return 1 if summary["broken_seeds"] else 0


def play(seeds: range, settings: "Settings", jobs: int | None = None) -> "Iterator[Outcome]":
    """Yield the outcome of every seed, in order; several at a time."""
    from tools.simulation.players import play_all

    yield from play_all([(seed, settings) for seed in seeds], jobs)


def _compare(settings: "Settings", options: argparse.Namespace) -> int:
    from tools.progress import bar
    from tools.simulation.players import play_all
    from tools.simulation.scenario.plan_report import comparison
    from tools.simulation.scenario.policy import parse_setting

    key, equals, values = options.compare.partition("=")
    if not equals or not values:
        raise UsageError(f"--compare {options.compare}: write it as KEY=A,B,C")
    settled = [parse_setting(f"{key}={value}") for value in values.split(",")]
    variants = [settings._replace(policy=(*settings.policy, one)) for one in settled]
    runs = [(options.seed, variant) for variant in variants]
    with bar(shown=not (options.json or options.quiet), what="simulate") as tell:
        outcomes = list(play_all(runs, options.jobs, tell, noun="setting"))
    for outcome in outcomes:
        _complain(outcome, options)
    plans = [
        _plan(outcome, variant, options.target)
        for outcome, variant in zip(outcomes, variants, strict=True)
    ]
    report = {"settings": vars_of(settings), "compared": settled[0][0], "plan": plans}
    _tell(report, _table(comparison(plans, settled[0][0])), options)
    return 1 if any(outcome.violations for outcome in outcomes) else 0


def _settings(options: argparse.Namespace) -> "Settings":
    from tools.simulation.scenario.fault_plan import PLANS, parse_plan
    from tools.simulation.scenario.fleet_settings import Settings
    from tools.simulation.scenario.policy import parse_setting

    plan = PLANS.get(options.faults)
    if plan is None:
        plan = parse_plan(_text(options.faults, "--faults", PLANS), options.faults)
    given = {
        name: value
        for name in ("devices", "hours", "online", "task", "data")
        if (value := getattr(options, name)) is not None
    }
    settings = Settings(
        **given,
        plan=plan,
        traced=options.trace,
        is_varied=options.vary,
        split=options.split,
        board=_board(options.energy),
        policy=tuple(parse_setting(text) for text in options.policy),
    )
    if settings.devices < 1 or settings.hours <= 0 or not 0 < settings.online <= 1:
        raise UsageError("--devices and --hours must be positive, --online between 0 and 1")
    wants_plan = any(
        (options.task, options.target, options.compare, options.energy, options.policy)
    )
    if settings.hours <= LONG_HOURS and not wants_plan:
        return settings
    if plan.full_disks or plan.read_only_disks or plan.failing_disks:
        if wants_plan:
            raise UsageError(
                "with --task, --target, --policy, --compare or --energy, disks do not fail: "
                "choose --faults none or mild, or a plan without disk faults"
            )
        return settings._replace(look_s=3600.0, sample_every_s=6 * 3600.0, fold_seconds=7200.0)
    return _planning(settings, options)


def _planning(settings: "Settings", options: argparse.Namespace) -> "Settings":
    """Return settings like those of a real fleet: days, not minutes, and the product's defaults."""
    from broker.config import FoldPolicy
    from edge_agent.config import Training

    for name in ("session", "samples_every"):
        if (value := getattr(options, name)) is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be positive")
    product, device = FoldPolicy(), Training()
    return settings._replace(
        is_planning=True,
        size=LIGHT_PARAMETERS,
        fold_updates=100_000,
        fold_seconds=24 * 3600.0,
        fold_min_s=product.min_seconds,
        patience=product.patience,
        min_minutes=device.min_minutes,
        max_staleness=0,
        max_samples=5000,
        session_s=3600.0 * (options.session or 2.0),
        sample_every_s=3600.0 * (options.samples_every or 24.0),
        settles=settings.devices * settings.hours <= MOST_SETTLED,
    )


def _board(name: str | None) -> Any:
    from tools.simulation.scenario.energy import BOARDS, PI_ZERO_2, parse_board

    if name is None:
        return PI_ZERO_2
    return BOARDS.get(name) or parse_board(_text(name, "--energy", BOARDS), name)


def _text(name: str, option: str, known: Any) -> str:
    try:
        return Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UsageError(
            f"{option} {name}: {reason}; name a file or one of {', '.join(known)}"
        ) from None


def _complain(outcome: "Outcome", options: argparse.Namespace) -> None:
    """Say which promises were broken, and how to see it again."""
    if not outcome.violations:
        return
    for violation in outcome.violations[:5]:
        print(f"seed {outcome.seed}: {violation.machine}: {violation.what}", file=sys.stderr)
    replay = ["edgefold", "simulate", "--faults", options.faults, "--seed", str(outcome.seed)]
    for name in ("devices", "hours", "online", "task", "data", "session", "samples_every"):
        if (value := getattr(options, name)) is not None:
            replay += [f"--{name.replace('_', '-')}", str(value)]
    replay += [word for text in options.policy for word in ("--policy", text)]
    replay += ["--vary"] if options.vary else []
    print(f"  again: {' '.join(replay)} --trace", file=sys.stderr)


def _tell(report: dict[str, Any], words: str, options: argparse.Namespace) -> None:
    report["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if options.report:
        options.report.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(json.dumps(report) if options.json else words)


def _plan(outcome: "Outcome", settings: "Settings", target: float | None) -> dict[str, Any]:
    from tools.simulation.scenario.plan_report import plan_report

    lower = False
    if settings.task:
        from models.task.bundle import read_bundle

        lower = read_bundle(Path(settings.task)).spec.metric == "mse"
    found = plan_report(outcome, settings, target=target, lower_is_better=lower)
    return found | {"wall_s": round(outcome.wall_s, 1)}


def _words(plan: dict[str, Any]) -> str:
    from tools.simulation.scenario.plan_report import sentences

    return sentences(plan)


def _table(rows: list[dict[str, str]]) -> str:
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = ["  ".join(name.rjust(width) for name, width in widths.items())]
    lines += ["  ".join(row[name].rjust(width) for name, width in widths.items()) for row in rows]
    return "\n".join(lines)


def _summary(outcomes: "list[Outcome]") -> dict[str, Any]:
    def total(field: str) -> int:
        return sum(getattr(outcome, field) for outcome in outcomes)

    counted = (
        "crashes messages trainings updates folded refused releases patched with_context "
        "bytes_up bytes_down"
    )
    return {
        "count": len(outcomes),
        "broken_seeds": [outcome.seed for outcome in outcomes if outcome.violations],
        "virtual_hours": round(total("virtual_s") / 3600, 1),
        "summed_wall_s": round(total("wall_s"), 1),
        **{name: total(name) for name in counted.split()},
        "reached": {
            name: sum(dict(outcome.reached)[name] for outcome in outcomes)
            for name, _ in outcomes[0].reached
        },
        "worst_imbalance": max(outcome.imbalance for outcome in outcomes),
        "worst_fold_error": max(outcome.fold_error for outcome in outcomes),
        "settled_after_s": max(outcome.settled_after_s for outcome in outcomes),
        "accuracy": sum(outcome.accuracy for outcome in outcomes) / len(outcomes),
    }


def _sentences(summary: dict[str, Any]) -> str:
    broken = summary["broken_seeds"]
    verdict = f"{len(broken)} BROKE A PROMISE: {broken[:10]}" if broken else "no promise broken"
    rest_s = summary["settled_after_s"]
    rest = f"all at rest {rest_s / 60:.0f} min after the repair at the latest"
    return (
        f"{summary['count']} seeds, {summary['virtual_hours']} virtual hours in "
        f"{summary['summed_wall_s']} s: {verdict}\n"
        f"{summary['crashes']} crashes, {summary['trainings']} trainings, "
        f"{summary['updates']} updates committed, {summary['folded']} folded, "
        f"{summary['refused']} refused, {summary['releases']} releases\n"
        f"{summary['patched']} releases made out of patches, {summary['with_context']} updates "
        f"with a context\n"
        f"{summary['bytes_up'] / 1e6:.2f} MB up, {summary['bytes_down'] / 1e6:.2f} MB down, "
        f"metric {summary['accuracy']:.3f}\n"
        f"residual + in flight + folded = learned to {summary['worst_imbalance']:.1e}, "
        f"weights = what was folded to {summary['worst_fold_error']:.1e}; "
        f"{rest if rest_s >= 0 else 'not asked to come to rest'}"
    )


def vars_of(settings: "Settings") -> dict[str, Any]:
    """Return the settings as JSON has them."""
    import msgspec

    values = settings._asdict()
    return values | {
        "plan": msgspec.to_builtins(settings.plan),
        "board": msgspec.to_builtins(settings.board),
        "policy": dict(settings.policy),
    }


def _row(outcome: "Outcome") -> dict[str, Any]:
    values = outcome._asdict()
    for name in ("trace", "usage", "milestones"):
        values.pop(name)
    return values | {"violations": [violation._asdict() for violation in outcome.violations]}
