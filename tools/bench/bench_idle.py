"""``edgefold bench idle``: what an agent costs that has nothing to do, and its trainer at work.

A real agent, connected to a real broker, with a release installed and its inference process up.
The line to the broker runs through a TCP relay that counts the payload of TCP in both directions.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from edge_agent.inference.inference_process import INFERENCE
from models.errors import UsageError
from tools.given_file import file_to_write
from tools.progress import Tell, bar

if TYPE_CHECKING:
    from tools.author.data.labeled_data import Dataset
    from tools.cli import Subparsers
    from tools.local_fleet.fleet_processes import Device, Server
    from tools.local_fleet.fleet_watch import Watch

__all__ = ["GOALS", "Footprint", "measure", "register"]

SETTLED_S = 45.0  # the last heartbeat is out, the allocators are quiet
PATIENCE_S = 180.0  # until the release is trained and its successor installed
LOOK_S = 5.0  # this process hardly runs while it measures
BATCH = 16  # of the trainer
GOALS = {  # what is too much
    "agent_rss_mb": 45.0,
    "inference_rss_mb": 80.0,
    "trainer_peak_rss_mb": 110.0,
    "idle_bytes_per_minute": 10.0,
}


BrokerKind = Literal["auto", "mosquitto", "embedded"]


class Footprint(NamedTuple):
    """The result. RSS counts shared libraries in full, PSS their share of them."""

    net: str
    parameters: int
    broker: str
    minutes: float
    agent_rss_mb: float
    agent_pss_mb: float
    agent_peak_rss_mb: float
    inference_rss_mb: float
    inference_pss_mb: float
    trainer_peak_rss_mb: float
    idle_bytes_per_minute: float
    cpu_s_per_minute: float  # of agent and inference process together
    bytes_written_per_minute: float  # likewise, to the disk


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``edgefold bench idle``."""
    parser = subparsers.add_parser("idle", help="memory, traffic and writes of an idle agent")
    add = parser.add_argument
    add("--net", default="cnn", help="a net of the zoo (default: cnn, on images of 28x28)")
    add("--minutes", type=float, default=5.0, help="to watch the idle agent (default: 5)")
    add("--broker", default="auto", choices=["auto", "mosquitto", "embedded"])
    add("--report", type=file_to_write, metavar="FILE.json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print; return 1 if a goal is missed."""
    if not 0 < options.minutes <= 24 * 60:
        raise UsageError(f"--minutes {options.minutes}: take more than 0, at most a day")
    with bar(what="bench idle") as tell:
        footprint = measure(options.net, minutes=options.minutes, kind=options.broker, tell=tell)
    missed = [name for name, most in GOALS.items() if getattr(footprint, name) > most]
    for name, value in footprint._asdict().items():
        text = f"{value:,.2f}" if isinstance(value, float) else str(value)
        goal = f"  (goal: at most {GOALS[name]:g})" if name in GOALS else ""
        print(f"{name:26} {text:>12}{goal}{'  MISSED' if name in missed else ''}")
    if options.report:
        options.report.write_text(json.dumps(footprint._asdict(), indent=1) + "\n")
    return 1 if missed else 0


def _wait_for_release_two(watch: "Watch", device: "Device", server: "Server") -> None:
    from tools.local_fleet.process import check_alive

    deadline = time.monotonic() + PATIENCE_S
    while watch.look().devices[0].release < 2:
        device.measure()
        check_alive([server, device])
        if time.monotonic() > deadline:
            raise UsageError(
                f"release 2 did not arrive within {PATIENCE_S:.0f} s; the agent said:\n"
                f"{device.last_words()}"
            )
        time.sleep(0.05)


def measure(
    net: str,
    *,
    minutes: float,
    kind: BrokerKind = "auto",
    tell: Tell = lambda share, words: None,
) -> Footprint:
    """Start broker, server and one agent, let it train once, and watch it do nothing.

    Raises:
        UsageError: they cannot be started, or the release does not arrive.
    """
    import psutil

    from tools.author.bundle.bundle_directory import write_bundle
    from tools.author.bundle.create_bundle import create_task
    from tools.author.bundle.task_options import TaskOptions
    from tools.local_fleet.fleet_processes import Access, Device, Server
    from tools.local_fleet.fleet_watch import Watch
    from tools.local_fleet.local_broker import LocalBroker
    from tools.local_fleet.process import check_alive, stop_all

    data = _digits_of_28()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgefold-idle-")))
        bundle = create_task("idle", data, TaskOptions(net=net))
        write_bundle(bundle, directory / "bundle")
        broker = stack.enter_context(LocalBroker(kind, directory=directory))
        access = Access("idle", broker.host, broker.port, broker.username, broker.password)
        server = Server(
            directory,
            access,
            {
                "bundle": str(directory / "bundle"),
                "releases": 2,
                "aggregation": {"updates": 1, "min_seconds": 0},
                "training": {"epochs": 1.0, "batch": BATCH, "learning_rate": 0.01},
            },
        )
        rows = data.train_rows
        device = Device(
            "device-1", directory, access, "idle", (data.x[rows], data.y[rows]), parts=1
        )
        stack.callback(stop_all, [device, server])
        stack.enter_context(device)
        device.deliver()
        server.start()
        device.start()
        holdout = {device.id: (data.x[data.test_rows], data.y[data.test_rows])}
        watch = Watch(server, [device], parameters=bundle.spec.shared_size, holdout=holdout)
        tell(0.0, "until a release is trained and the next one installed")
        _wait_for_release_two(watch, device, server)
        whole_s = SETTLED_S + 60 * minutes
        _wait(SETTLED_S, lambda s: tell(s / whole_s, "until it has come to rest"))
        agent = psutil.Process(device.pid)
        (inference,) = (child for child in agent.children() if INFERENCE in child.cmdline())
        before = _spent(agent, inference), device.relay.bytes_up + device.relay.bytes_down
        _wait(60 * minutes, lambda s: tell((SETTLED_S + s) / whole_s, "watching it do nothing"))
        check_alive([server, device])
        after = _spent(agent, inference), device.relay.bytes_up + device.relay.bytes_down
        device.measure()
        return Footprint(
            net=net,
            parameters=bundle.spec.shared_size,
            broker=broker.kind,
            minutes=minutes,
            agent_rss_mb=agent.memory_info().rss / 1e6,
            agent_pss_mb=agent.memory_full_info().pss / 1e6,
            agent_peak_rss_mb=device.peak_rss_mb["agent"],
            inference_rss_mb=inference.memory_info().rss / 1e6,
            inference_pss_mb=inference.memory_full_info().pss / 1e6,
            trainer_peak_rss_mb=max(
                device.peak_rss_mb["trainer"], watch.facts(device).trainer_peak_rss_mb or 0.0
            ),
            idle_bytes_per_minute=(after[1] - before[1]) / minutes,
            cpu_s_per_minute=(after[0][0] - before[0][0]) / minutes,
            bytes_written_per_minute=(after[0][1] - before[0][1]) / minutes,
        )


def _wait(seconds: float, look: Callable[[float], None]) -> None:
    """Sleep, and tell ``look`` every few seconds how long it has been."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        look(seconds - left)
        time.sleep(min(LOOK_S, left))


def _spent(*processes: object) -> tuple[float, int]:
    """Return CPU seconds and bytes sent to the disk so far."""
    import psutil

    cpu_s, written = 0.0, 0
    for process in processes:
        assert isinstance(process, psutil.Process)
        times = process.cpu_times()
        cpu_s += times.user + times.system
        written += process.io_counters().write_bytes
    return cpu_s, written


def _digits_of_28() -> "Dataset":
    """scikit-learn's digits in the size of MNIST: each pixel three times, in a frame of two."""
    import numpy as np

    from tools.author.data.datasets import load_dataset

    digits = load_dataset("digits")
    large = digits.x.repeat(3, axis=1).repeat(3, axis=2)
    return digits._replace(x=np.pad(large, ((0, 0), (2, 2), (2, 2))))
