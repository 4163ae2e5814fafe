"""``edgefold demo``: a whole fleet on this machine, with trouble in the middle, as a command."""

import argparse
from pathlib import Path

from models.errors import UsageError
from tools.demo.demo_plan import BATCH, FIRST_SHARE, HOLDOUT, SERVER_RATE, DemoPlan

__all__ = ["register", "run"]

DEVICES, ROUNDS = 4, 12  # with digits under two minutes on two cores
RATE, DEEP_RATE = 0.03, 0.005
DEEP = frozenset({"ds_cnn", "mobilenet_small", "resnet18"})  # with frozen batch norms
OUT = Path("demo-out")
LARGEST_BATCH = 1024
EXAMPLES = """\
examples:
  edgefold demo                                  4 devices learn digits, about a minute
  edgefold demo --data fashion-mnist --net cnn --devices 6      pictures of clothes, 4 minutes
  edgefold demo --data birds.npz --net mobilenet_small          your own x and y
  edgefold demo --batch 16 --holdout 0 --all-samples --no-troubles --server-rate 1   plain FedAvg
  edgefold demo --keep fleet --json > report.json               for machines; all files stay
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parser of ``edgefold demo``."""
    parser = subparsers.add_parser(
        "demo",
        help="a whole fleet on this machine: broker, server and devices",
        description="Starts an MQTT broker, the aggregator and some agents as separate processes, "
        "lets them learn from data that differ between them, takes one device off line, kills "
        "another, and counts what arrived. Exit code 0 only if every device runs the last release "
        "and that is better than the first one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="digits", help="digits, fashion-mnist or an npz file (default: digits)")
    add("--net", default="mlp", help="of the zoo: edgefold task create --help (default: mlp)")
    add("--devices", type=int, default=DEVICES, metavar="N", help=f"default: {DEVICES}")
    add(
        "--rounds",
        type=int,
        default=ROUNDS,
        metavar="R",
        help=f"releases after the first one, default: {ROUNDS}",
    )
    add(
        "--broker",
        default="auto",
        metavar="auto|embedded|mosquitto|mqtt://HOST:PORT",
        help="auto: mosquitto when it is installed, else one in Python",
    )
    add("--report", type=Path, metavar="FILE.json", help=f"default: {OUT}/report.json")
    add(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help=f"and FILE.svg beside it, default: {OUT}/accuracy.png",
    )
    add(
        "--no-dense",
        action="store_true",
        help="do not learn it all again with dense float32 updates, to compare with",
    )
    add("--keep", type=Path, metavar="DIR", help="leave all files of the fleet in DIR")
    add("--seed", type=int, default=0, help="of the split and of the net")
    _add_learning(parser)
    add("--quiet", action="store_true", help="print nothing; report, picture and exit code remain")
    add("--json", action="store_true", help="print the report, and nothing else, to stdout")
    parser.set_defaults(run=run)


def _add_learning(parser: argparse.ArgumentParser) -> None:
    """Add the options by which the fleet learns."""
    add = parser.add_argument
    add("--samples", type=int, metavar="N", help="at most so many for each device")
    add("--epochs", type=float, default=2.0, help="of one training (default: 2)")
    add(
        "--learning-rate",
        type=float,
        help=f"of the devices (default: {RATE}, with a deep net of the zoo {DEEP_RATE})",
    )
    add("--batch", type=int, default=BATCH, metavar="N", help=f"of a device (default: {BATCH})")
    add(
        "--server-rate",
        type=float,
        default=SERVER_RATE,
        metavar="X",
        help=f"how far the server goes along the devices' mean (default: {SERVER_RATE}; 1: FedAvg)",
    )
    add(
        "--holdout",
        type=float,
        metavar="SHARE",
        help=f"of a device's samples, kept from it to measure it with (default: {HOLDOUT}); it "
        "keeps as many again for itself (by itself: a fifth), so 0 lets it learn from all",
    )
    add(
        "--all-samples",
        action="store_true",
        help=f"all samples are there from the start, not only {100 * FIRST_SHARE:.0f} %% of them",
    )
    add(
        "--no-troubles",
        action="store_true",
        help="cut no line and kill no process; the server then waits for all devices each round",
    )
    add(
        "--compression",
        type=float,
        metavar="N",
        help="an update has 1/N of the bytes of float32 (default: by the net's size; 66 for the "
        "mlp on digits, 325 for cnn on images of 28x28)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the demo; return 0 if everything that it promises was seen to be so, else 1."""
    for name, least, most in (("devices", 1, 64), ("rounds", 1, 1000)):
        if not least <= getattr(options, name) <= most:
            raise UsageError(f"--{name} {getattr(options, name)}: take {least} to {most}")
    if options.compression is not None and not 1 <= options.compression <= 10_000:
        raise UsageError(f"--compression {options.compression:g}: take 1 to 10000")
    if not 1 <= options.batch <= LARGEST_BATCH:
        raise UsageError(f"--batch {options.batch}: take 1 to {LARGEST_BATCH}")
    if not 0 < options.server_rate <= 1:
        raise UsageError(f"--server-rate {options.server_rate:g}: take more than 0, at most 1")
    if options.holdout is not None and not 0 <= options.holdout <= 0.5:
        raise UsageError(f"--holdout {options.holdout:g}: take 0 to 0.5")
    if options.keep is not None and options.keep.exists() and any(options.keep.iterdir()):
        raise UsageError(f"--keep {options.keep}: is not empty; name a new directory")
    from tools.demo.demo_story import play

    return play(
        DemoPlan(
            data=options.data,
            net=options.net,
            devices=options.devices,
            rounds=options.rounds,
            broker=options.broker,
            report=options.report or OUT / "report.json",
            picture=options.picture or OUT / "accuracy.png",
            keep=options.keep,
            seed=options.seed,
            samples=options.samples,
            epochs=options.epochs,
            learning_rate=options.learning_rate or (DEEP_RATE if options.net in DEEP else RATE),
            compression=options.compression,
            dense=not options.no_dense,
            quiet=options.quiet,
            json=options.json,
            batch=options.batch,
            server_rate=options.server_rate,
            holdout=options.holdout,
            first_share=1.0 if options.all_samples else FIRST_SHARE,
            troubles=not options.no_troubles,
        )
    )
