"""``edgefold bench peers``: the same job in edgefold, Flower and NVFLARE, on this machine.

The peers are no dependencies of ours: they run in virtual environments of their own, which are
named, or made when that is asked for. A peer that is not there is left out, and that is said.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import UsageError
from tools.given_file import file_to_write
from tools.progress import Tell, bar

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.bench.peers.course import ArmRun
    from tools.bench.peers.peer_figures import ArmFigures
    from tools.bench.peers.peer_job import PreparedJob
    from tools.bench.peers.side_by_side import Goal
    from tools.cli import Subparsers

    Arm = Callable[[Path, float], ArmRun]

__all__ = ["register", "run"]

PEERS = ("flower", "nvflare")
RATE = 0.03
EXAMPLES = """\
examples:
  edgefold bench peers --peers none --data digits --net mlp --rounds 2 --bytes 2000
  edgefold bench peers --venv-flower DIR --venv-nvflare DIR --report peers.json
  edgefold bench peers --install --rounds 2       makes both environments, 700 MB, and tries them
"""


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``edgefold bench peers``."""
    parser = subparsers.add_parser(
        "peers",
        help="the same job in edgefold, Flower and NVFLARE",
        description="Plays one job in each framework, interleaved: accuracy by round, wall and "
        "CPU time, bytes both ways, memory at work and idle. Exit code 1 if a goal of bytes, "
        "memory or accuracy is missed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--peers",
        default="flower,nvflare",
        metavar="NAMES",
        help="flower, nvflare or none (default: flower,nvflare; one that is not there is left out)",
    )
    add("--venv-flower", type=Path, metavar="DIR", help="where flwr is installed")
    add("--venv-nvflare", type=Path, metavar="DIR", help="where nvflare is installed")
    add("--install", action="store_true", help="make what is missing, in the user's cache")
    add(
        "--data",
        default="fashion-mnist",
        help="or digits, or an npz of uint8 (default: %(default)s)",
    )
    add("--samples", type=int, default=4000, help="to train on, of all together (default: 4000)")
    add("--net", default="cnn", help="default: cnn; others without peers only")
    for name, value in (("devices", 4), ("rounds", 10), ("epochs", 1), ("batch", 16), ("seed", 0)):
        add(f"--{name}", type=int, default=value, metavar="N", help=f"default: {value}")
    add("--learning-rate", type=float, default=RATE, metavar="X", help=f"default: {RATE}")
    add("--bytes", default="26352,5000", metavar="N,N", help="of an update (default: 26352,5000)")
    add("--repeats", type=int, default=2, metavar="N", help="default: 2")
    add(
        "--idle-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="to watch what idles, in the first repeat only (default: 60)",
    )
    add("--keep", type=Path, metavar="DIR", help="leave all files of all runs in DIR")
    add("--report", type=file_to_write, metavar="FILE.json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Play all arms; return 1 if a goal is missed."""
    names, sizes = _checked(options)
    venvs = _environments(options, names)
    with tempfile.TemporaryDirectory(prefix="edgefold-peers-") as temporary:
        directory = options.keep or Path(temporary)
        with bar(what="bench peers") as tell:
            job = _prepared(options, directory)
            runs = _play(options, job, _arms(job, sizes, venvs), directory, tell)
    from tools.bench.peers.side_by_side import goals, table

    ours = [runs[_name(size)] for size in sizes]
    theirs = [runs[name] for name in venvs]
    verdicts = goals(ours, theirs, update_bytes=sizes, rounds=options.rounds)
    _print(table([*ours, *theirs]), verdicts)
    if options.report:
        options.report.write_text(
            json.dumps(_report(options, job, runs, verdicts), indent=1) + "\n"
        )
    return 0 if all(goal.reached for goal in verdicts) else 1


def _checked(options: argparse.Namespace) -> tuple[list[str], list[int]]:
    names = [] if options.peers == "none" else options.peers.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise UsageError(f"--peers {unknown[0]}: take {', '.join(PEERS)}, or none")
    for name, most in (("devices", 64), ("rounds", 1000), ("epochs", 100), ("batch", 1024)):
        if not 1 <= getattr(options, name) <= most:
            raise UsageError(f"--{name} {getattr(options, name)}: take 1 to {most}")
    if not 1 <= options.repeats <= 100:
        raise UsageError(f"--repeats {options.repeats}: take 1 to 100")
    if not 0 < options.learning_rate <= 10:
        raise UsageError(f"--learning-rate {options.learning_rate:g}: take more than 0, at most 10")
    if not 0 <= options.idle_seconds <= 3600:
        raise UsageError(f"--idle-seconds {options.idle_seconds:g}: take 0 to 3600")
    try:
        sizes = [int(text) for text in options.bytes.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 200 or len(set(sizes)) < len(sizes):
        raise UsageError(f"--bytes {options.bytes}: take numbers of at least 200, each once")
    if options.keep is not None and options.keep.exists() and any(options.keep.iterdir()):
        raise UsageError(f"--keep {options.keep}: is not empty; name a new directory")
    from tools.bench.peers.peer_job import PEERS_NETS

    if names and options.net not in PEERS_NETS:
        raise UsageError(
            f"--net {options.net}: the peers' job has {', '.join(PEERS_NETS)}; or --peers none"
        )
    return names, sizes


def _environments(options: argparse.Namespace, names: list[str]) -> dict[str, Path]:
    """Return the peers that take part; say which do not."""
    from tools.bench.peers.peer_environment import install, require

    found = {}
    for name in names:
        if given := getattr(options, f"venv_{name}"):
            found[name] = require(name, given)
        elif options.install:
            found[name] = install(name)
        else:
            print(
                f"{name} is left out: name its environment with --venv-{name} DIR, or let "
                "--install make one",
                file=sys.stderr,
            )
    return found


def _prepared(options: argparse.Namespace, directory: Path) -> "PreparedJob":
    from tools.bench.peers.peer_job import JobPlan, prepare

    plan = JobPlan(
        data=options.data,
        net=options.net,
        devices=options.devices,
        rounds=options.rounds,
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        samples=options.samples,
        test_samples=max(1, options.samples // 2),
        seed=options.seed,
    )
    return prepare(plan, directory.resolve() / "job")


def _name(size: int) -> str:
    return f"edgefold {size}"


def _arms(job: "PreparedJob", sizes: list[int], venvs: dict[str, Path]) -> "dict[str, Arm]":
    """Return what plays each arm, in an order in which our arms stand between the peers'."""
    from tools.bench.peers.edgefold_arm import run_edgefold
    from tools.bench.peers.flower_arm import run_flower
    from tools.bench.peers.nvflare_arm import run_nvflare

    def ours(size: int) -> "Arm":
        return lambda directory, idle_s: run_edgefold(
            _name(size), job, directory, update_bytes=size, idle_s=idle_s
        )

    def theirs(name: str, venv: Path) -> "Arm":
        play = {"flower": run_flower, "nvflare": run_nvflare}[name]
        return lambda directory, idle_s: play(name, job, directory, venv=venv, idle_s=idle_s)

    arms = {_name(sizes[0]): ours(sizes[0])}
    arms |= {name: theirs(name, venv) for name, venv in venvs.items()}
    return arms | {_name(size): ours(size) for size in sizes[1:]}


def _play(
    options: argparse.Namespace,
    job: "PreparedJob",
    arms: "dict[str, Arm]",
    directory: Path,
    tell: Tell,
) -> "dict[str, list[ArmFigures]]":
    from tools.bench.peers.peer_figures import figures

    found: dict[str, list[ArmFigures]] = {name: [] for name in arms}
    for repeat in range(options.repeats):
        for place, (name, play) in enumerate(arms.items()):
            share = (repeat * len(arms) + place) / (options.repeats * len(arms))
            tell(share, f"{name}, repeat {repeat + 1} of {options.repeats}")
            where = directory.resolve() / f"{name.replace(' ', '-')}-{repeat + 1}"
            found[name].append(figures(play(where, options.idle_seconds if not repeat else 0.0)))
    return found


def _print(rows: list[list[str]], verdicts: "list[Goal]") -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first, *others]).rstrip())
    print()
    for goal in verdicts:
        mark = "reached" if goal.reached else "MISSED"
        print(f"{mark:8} {goal.name}: {goal.measured} (goal: {goal.wanted})")


def _report(
    options: argparse.Namespace,
    job: "PreparedJob",
    runs: "dict[str, list[ArmFigures]]",
    verdicts: "list[Goal]",
) -> dict[str, object]:
    def plain(value: object) -> object:
        if hasattr(value, "_asdict"):
            return {name: plain(part) for name, part in value._asdict().items()}
        return [plain(part) for part in value] if isinstance(value, tuple) else value

    return {
        "job": job.plan._asdict()
        | {"samples_by_client": job.sizes, "dense_bytes": job.dense_bytes},
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        "bytes": options.bytes,
        "arms": {name: [plain(one) for one in several] for name, several in runs.items()},
        "goals": [goal._asdict() for goal in verdicts],
    }
