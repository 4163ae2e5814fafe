"""The command ``edgefold``: finds the subcommand, turns expected errors into one line."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from models.errors import PayloadError, UsageError
from models.host.command_line import exit_codes, run_command
from models.version import VERSION

__all__ = ["COMMANDS", "Subparsers", "main"]

EXAMPLES = """\
try it:
  edgefold demo                                            a whole fleet here, about a minute
  edgefold task create digits --net mlp --data digits --out digits
  edgefold task train digits --data digits --epochs 5      by onnxruntime, as a device would

your own model and data:
  edgefold task create birds --onnx birds.onnx --data birds.npz --trainable 'head.*' --out birds
"""

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


class CommandModule(Protocol):
    """What a module in `COMMANDS` offers. It imports heavy libraries when it runs, not before."""

    def register(self, subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
        """Add the parser of the command, with ``run``: (arguments) -> exit code as default."""


class Command(NamedTuple):
    """A row of `COMMANDS`."""

    module: str
    summary: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (`ExitCode`)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> int:
        parsed = _parser(arguments).parse_args(arguments)
        return int(parsed.run(parsed))

    # All that it is given, models and data too, is named on its command line.
    return run_command("edgefold", command, wrong_usage=(UsageError, PayloadError))


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; of the commands, only the one that is asked for is loaded."""
    parser = argparse.ArgumentParser(
        prog="edgefold",
        description="Models that learn where they run: tasks, training, fleets.",
        epilog=f"{EXAMPLES}\n{exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgefold {VERSION}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        if name == asked:
            module: CommandModule = importlib.import_module(command.module)
            module.register(subparsers)
        else:
            subparsers.add_parser(name, help=command.summary)
    return parser


COMMANDS = {
    "demo": Command("tools.demo.demo", "a whole fleet on this machine: broker, server and devices"),
    "task": Command(
        "tools.author.task", "make a task from a model and data, train it here, export it"
    ),
    "simulate": Command(
        "tools.simulation.simulate", "a fleet on a virtual clock, network and disks"
    ),
    "reproduce": Command("tools.experiments.reproduce", "published experiments, made again"),
    "bench": Command("tools.bench.bench", "measure: training against torch, the idle agent"),
    "inspect": Command("tools.codec_lab.inspect_payload", "what a payload holds, tensor by tensor"),
    "compress": Command("tools.compress.compress", "a whole ONNX model in few bytes"),
}

if __name__ == "__main__":
    sys.exit(main())
