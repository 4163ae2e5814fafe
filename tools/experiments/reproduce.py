"""``edgefold reproduce``: published experiments, made again; figures beside what was published."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from models.errors import UsageError
from models.host.durable import atomic_write
from models.host.sentences import unusable
from tools.experiments.figures import Experiment, Figure, Outcome, found_in
from tools.given_file import file_to_write
from tools.progress import bar

if TYPE_CHECKING:
    from tools.cli import Subparsers

__all__ = ["EXPERIMENTS", "chosen", "register", "run"]

EXAMPLES = """\
try it:
  edgefold reproduce gdsec                          a minute: bits that GD-SEC saves
  edgefold reproduce gdsec adaptive-steps --seeds 1
  edgefold reproduce all --report figures.json --pictures pictures

what was published and could be verified stands beside our figure; docs/papers.md says how each
experiment deviates. Exit code 1: a figure that must be reached is not.
"""


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``reproduce``."""
    rows = "\n".join(f"  {name:<16} {row.summary}" for name, row in EXPERIMENTS.items())
    parser = subparsers.add_parser(
        "reproduce",
        help="published experiments, made again",
        description=f"Published experiments, with the product's own functions.\n\n{rows}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", choices=[*EXPERIMENTS, "all"], help="or all"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="0 to N-1 (default: 3)")
    parser.add_argument("--small", action="store_true", help="shortened: to see that it runs")
    parser.add_argument("--report", metavar="FILE.json", help="write all figures there")
    parser.add_argument(
        "--pictures", metavar="DIR", help="write a PNG of each experiment that has curves there"
    )
    parser.add_argument("--json", action="store_true", help="the report on standard output")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run what was asked for; return 1 if a figure that must be reached is not."""
    if arguments.seeds < 1:
        raise UsageError(f"--seeds {arguments.seeds}: at least 1 is needed")
    names = chosen(arguments.names)
    if arguments.report:
        file_to_write(arguments.report)
    pictures = _directory(arguments.pictures)
    seeds = tuple(range(arguments.seeds))
    found: list[tuple[str, Outcome, float]] = []
    for name in names:
        began = time.monotonic()
        with bar(what=f"reproduce {name}") as told:
            outcome = EXPERIMENTS[name].run(seeds, arguments.small, told)
        found.append((name, outcome, time.monotonic() - began))
        if not arguments.json:
            print(table(name, outcome.figures, found[-1][2]), flush=True)
        if pictures is not None and outcome.courses:
            from tools.experiments.courses_picture import draw

            draw(name, outcome, pictures / f"{name}.png")
    report = {
        "small": arguments.small,
        "seeds": seeds,
        "experiments": [
            {"experiment": name, **msgspec.to_builtins(figure)}
            for name, outcome, _ in found
            for figure in outcome.figures
        ],
        "wall_seconds": {name: round(seconds, 1) for name, _, seconds in found},
    }
    text = json.dumps(report, indent=1, default=str)
    if arguments.report:
        atomic_write(arguments.report, text.encode() + b"\n")
    if arguments.json:
        print(text)
    failed = [f for _, outcome, _ in found for f in outcome.figures if f.reached is False]
    if failed and not arguments.small:
        print(
            f"not reached: {', '.join(f'{f.name} ({f.metric})' for f in failed)}", file=sys.stderr
        )
    return 1 if failed and not arguments.small else 0


def chosen(names: Sequence[str]) -> list[str]:
    """Return the experiments that ``names`` mean: "all" those that do not take hours."""
    known = [name for name in dict.fromkeys(names) if name != "all"]
    if "all" in names:
        known += [n for n, row in EXPERIMENTS.items() if not row.is_long and n not in known]
    return known


def table(name: str, figures: Sequence[Figure], seconds: float) -> str:
    """Return the figures of an experiment as text."""
    seeds = ", ".join(map(str, figures[0].seeds)) if figures else ""
    lines = [f"{name}  (seeds {seeds}; {seconds:.0f} s)"]
    head = ("figure", "published", "ours", "spread", "must reach", "", "moonshot", "")
    rows = [head]
    for one in figures:
        sign = ">=" if one.direction == "least" else "<="
        rows.append(
            (
                f"{one.name}: {one.metric}",
                _number(one.published),
                _number(one.ours),
                _number(one.spread),
                f"{sign} {_number(one.must_reach)}" if one.must_reach is not None else "",
                {True: "yes", False: "NO", None: ""}[one.reached],
                f"{sign} {_number(one.moonshot)}" if one.moonshot is not None else "",
                {True: "yes", False: "no", None: ""}[one.moonshot_reached],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    notes = dict.fromkeys(one.note for one in figures if one.note)
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)]) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}"


def _directory(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(path, error) from None
    return path


EXPERIMENTS: dict[str, Experiment] = {
    "gdsec": Experiment(
        "GD-SEC: bits that sparsified gradient differences save (Chen et al. 2022)",
        found_in("tools.experiments.gdsec"),
    ),
    "adaptive-steps": Experiment(
        "adaptive local steps against every fixed number (Wang et al. 2019)",
        found_in("tools.experiments.adaptive_steps"),
    ),
    "async": Experiment(
        "asynchronous, compressed, averaged against synchronous FedAvg (FedBuff, FedAsync, EF)",
        found_in("tools.experiments.async_fleet"),
    ),
    "local-norms": Experiment(
        "FedBN against FedAvg on devices with two classes each (Li et al. 2021)",
        found_in("tools.experiments.local_norms"),
    ),
    "serve": Experiment(
        "devices that run the better of the release and what they tuned themselves",
        found_in("tools.experiments.serving_gain"),
    ),
    "niid": Experiment(
        "Flower's niid_bench, Dirichlet(0.5), shortened",
        found_in("tools.experiments.niid", "run_short"),
    ),
    "niid-full": Experiment(
        "the same as long as published: 1.2 hours of CPU a seed",
        found_in("tools.experiments.niid", "run_full"),
        is_long=True,
    ),
    "niid-others": Experiment(
        "IID, and 1 to 3 labels a client, as long as published",
        found_in("tools.experiments.niid", "run_others"),
        is_long=True,
    ),
}
