"""``edgefold bench``: measurements that anybody can repeat."""

import argparse
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.cli import CommandModule, Subparsers

__all__ = ["BENCHES", "register"]


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add ``bench`` with all measurements of `BENCHES`."""
    bench = subparsers.add_parser("bench", help="measure speed, memory and traffic")
    kinds = bench.add_subparsers(title="measurements", metavar="WHAT", required=True)
    for name in BENCHES:
        module: CommandModule = importlib.import_module(name)
        module.register(kinds)


BENCHES = (
    "tools.bench.bench_train",
    "tools.bench.bench_idle",
    "tools.bench.bench_codec",
    "tools.bench.bench_compress",
    "tools.bench.bench_server",
    "tools.bench.bench_peers",
)
