"""``edgefold bench server``: updates per second that one server folds, and how fast it is back.

Side by side in one run, on this machine: a server process behind a real broker, which only stores,
and which folds; the same server without MQTT (a link in memory, in a process of its own, its disk
is real); and what one would write in an afternoon, `plain_aggregator.py`, which keeps nothing.
The updates are learned by a few devices and sent by many, over a few connections. CPU times are
the server's alone (without MQTT: the load's, too), so they say more on a busy machine than updates
per second.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import TransientError, UsageError
from tools.bench.server_figures import Back, Taken, cpu_seconds, taken_by
from tools.given_file import file_to_write

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from models.task.bundle import Bundle
    from models.transport.mqtt import MqttLink
    from tools.bench.server_load import Load
    from tools.cli import Subparsers
    from tools.local_fleet.local_broker import LocalBroker
    from tools.local_fleet.process import Process

__all__ = ["register"]

FLEET, TASK = "load", "load"
LINKS = 4
LEARNERS = 8  # devices that really train; the others send what one of these learned
PATIENCE_S = 300.0
LARGE_PACKETS = "max_packet_size 16000000"  # for whole models in one message


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``edgefold bench server``."""
    parser = subparsers.add_parser("server", help="updates per second, and time to restart")
    add = parser.add_argument
    add("--data", default="fashion-mnist", help="a data set (default: fashion-mnist)")
    add("--net", default="cnn", help="a net of the zoo that fits it (default: cnn)")
    add("--updates", type=int, default=1000, help="to send (default: 1000)")
    add("--plain-updates", type=int, default=200, help="to the plain script (default: 200)")
    add("--fold", type=int, default=100, help="updates in a release (default: 100)")
    add("--rule", default="mean", help="of broker.toml (default: mean)")
    add("--devices", type=int, default=200, help="that send at the same time (default: 200)")
    add("--known", type=int, default=100_000, help="devices at the restart (default: 100000)")
    add("--past", type=int, default=1_000_000, help="their updates (default: 1000000)")
    add("--report", type=file_to_write, metavar="FILE.json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    from broker.folding.aggregation_rules import RULES
    from tools.progress import bar

    for name in ("updates", "plain_updates", "fold", "devices", "known", "past"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    if options.rule not in RULES:
        raise UsageError(f"--rule {options.rule}: take one of {', '.join(RULES)}")
    if options.updates < options.fold:
        raise UsageError(f"--updates {options.updates}: at least --fold {options.fold}")
    if options.plain_updates % options.fold:
        raise UsageError(f"--plain-updates: a multiple of --fold {options.fold}")
    if options.past < 2 * options.known:
        raise UsageError(f"--past {options.past}: at least two for each of --known devices")
    with tempfile.TemporaryDirectory(prefix="edgefold-server-") as name:
        work = Path(name)
        with bar(what="bench server") as tell:
            tell(0.0, "training the updates")
            bundle, deltas = _learned(options.data, options.net, work)
            tell(0.1, "storing over MQTT")
            taken = [_over_mqtt(work, options, folds=False)]
            tell(0.3, "folding over MQTT")
            taken.append(_over_mqtt(work, options))
            tell(0.5, "folding in memory")
            taken.append(_in_memory(work, options))
            tell(0.6, "a plain script")
            taken.append(_by_plain_script(work, deltas, options))
            tell(0.8, "a restart")
            back = _restart(work, options.known, options.past)
    print(f"{bundle.spec.shared_size:,} parameters, a release of every {options.fold} updates")
    print(f"{'':16} {'updates/s':>10} {'CPU ms each':>12} {'bytes each':>11} {'peak RSS MB':>12}")
    for side in taken:
        print(
            f"{side.side:16} {side.updates_per_second:10.1f} {side.cpu_ms_per_update:12.2f} "
            f"{side.bytes_per_update:11,} {side.peak_rss_mb:12.1f}"
        )
    print(
        f"{back.devices:,} devices with {back.past_updates:,} past updates: answers "
        f"{back.seconds:.1f} s after its start, {back.rss_mb:.1f} MB resident"
    )
    if options.report:
        found = {
            "parameters": bundle.spec.shared_size,
            "fold": options.fold,
            "sides": [side._asdict() for side in taken],
            "restart": back._asdict(),
        }
        options.report.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _learned(source: str, net: str, work: Path) -> "tuple[Bundle, list[np.ndarray]]":
    """Write the bundle and the updates into ``work``."""
    import numpy as np

    from models.protocol.manifest import CodecPlan
    from tools.author.bundle.bundle_directory import write_bundle
    from tools.author.bundle.create_bundle import create_task
    from tools.author.bundle.task_options import TaskOptions
    from tools.author.data.datasets import load_dataset
    from tools.bench.server_load import learned_deltas, updates_of

    data = load_dataset(source)
    bundle = create_task(TASK, data, TaskOptions(net=net))
    write_bundle(bundle, work / "bundle")
    deltas = learned_deltas(bundle, data, LEARNERS)
    updates = updates_of(bundle, deltas, CodecPlan())
    np.savez(work / "updates.npz", *[np.frombuffer(update, np.uint8) for update in updates])
    return bundle, deltas


def _updates(work: Path) -> list[bytes]:
    import numpy as np

    with np.load(work / "updates.npz") as arrays:
        return [arrays[name].tobytes() for name in arrays.files]


def _task(work: Path, fold: int, rule: str) -> dict[str, object]:
    """Return the section ``[[task]]``."""
    return {
        "bundle": str(work / "bundle"),
        "aggregation": {
            "updates": fold,
            "seconds": 3600.0,
            "rule": rule,
            "min_seconds": 0,
            "patience": 0,
        },
    }


@contextlib.contextmanager
def _broker(place: Path) -> "Iterator[LocalBroker]":
    from tools.local_fleet.local_broker import LocalBroker

    place.mkdir(exist_ok=True)
    with LocalBroker("mosquitto", directory=place, settings=[LARGE_PACKETS]) as broker:
        yield broker


@contextlib.contextmanager
def _served(work: Path, name: str, task: dict[str, object]) -> "Iterator[tuple[Process, int]]":
    """Start a broker and a server; yield the server's process and the broker's port."""
    from tools.local_fleet.fleet_processes import Access, Server
    from tools.local_fleet.process import stop_all

    with _broker(work / name) as broker:
        access = Access(FLEET, broker.host, broker.port, broker.username, broker.password)
        server = Server(work / name, access, task)
        server.start()
        try:
            yield server, broker.port
        finally:
            stop_all([server])


@contextlib.contextmanager
def _links(port: int, count: int) -> "Iterator[list[MqttLink]]":
    from models.transport.mqtt import MqttLink

    with contextlib.ExitStack() as stack:
        links = []
        for number in range(count):
            name = f"load-{number}"
            link = MqttLink("127.0.0.1", port, client_id=name, will=None, seed=number)
            stack.callback(link.close)
            link.start()
            links.append(link)
        yield links


def _wait_for_an_answer(port: int) -> None:
    """Ask for the receipt of an update until the server gives one."""
    from models.protocol.messages import Request, encode_message
    from models.protocol.topics import Topics
    from models.transport.link import Connected, Received
    from tools.bench.server_load import INSTALLATION

    topics, device = Topics(FLEET), "device-0"
    request = encode_message(Request(receipts=(f"{INSTALLATION:08x}-1",)))
    deadline = time.monotonic() + PATIENCE_S
    with _links(port, 1) as (link,):
        while time.monotonic() < deadline:
            for event in link.poll(0.05):
                match event:
                    case Connected():
                        link.subscribe([topics.receipt(device)])
                    case Received():
                        link.acknowledge(event)
                        return
            if link.window() > 0:
                link.publish(topics.request(device), request)
    raise TransientError(f"the server does not answer within {PATIENCE_S:.0f} s")


def _over_mqtt(work: Path, options: argparse.Namespace, *, folds: bool = True) -> Taken:
    """``folds`` False: only to the durable commit and its receipt."""
    from models.protocol.topics import Topics
    from tools.bench.server_load import Load

    count, updates = options.updates, _updates(work)
    fold = options.fold if folds else count + 1
    name = "folded" if folds else "stored"
    with _served(work, name, _task(work, fold, options.rule)) as (server, port):
        _wait_for_an_answer(port)
        before_s = cpu_seconds(server.pid)
        with _links(port, LINKS) as links:
            load = Load(links, Topics(FLEET), updates, devices=options.devices, count=count)
            done = _folds(load, fold) if folds else lambda: load.stored == count
            seconds = _carried(load, done, lambda: time.sleep(0.001))
        number = load.folded if folds else count
        return taken_by(f"{name}, MQTT", updates, number, seconds, server.pid, before_s)


def _restart(work: Path, known: int, past: int) -> Back:
    """Start a server on the registry of a fleet that has ``known`` devices."""
    import psutil

    from broker.records.registry import DATABASE, Registry
    from tools.bench.server_load import fill_registry

    place = work / "restart" / "server"
    place.mkdir(parents=True)
    registry = Registry(place / DATABASE, FLEET)
    fill_registry(registry, devices=known, past=past)
    registry.close()
    with _served(work, "restart", _task(work, 100, "mean")) as (server, port):
        began = time.monotonic()
        _wait_for_an_answer(port)
        seconds = time.monotonic() - began
        rss_mb = psutil.Process(server.pid).memory_info().rss / 1e6
    return Back(known, past, seconds, rss_mb)


def _in_memory(work: Path, options: argparse.Namespace) -> Taken:
    from tools.bench.measured_child import run_child

    plan = [options.rule, str(options.fold), str(options.devices), str(options.updates)]
    figures = run_child(
        "tools.bench.bench_server",
        [str(work), *plan],
        environment={"OPENBLAS_NUM_THREADS": "1"},  # as `broker.__main__` has it
        what="bench server without MQTT",
    )
    return Taken(**figures)


def _serve_in_memory(work: Path, rule: str, fold: int, devices: int, count: int) -> Taken:
    """Run server and load in this process."""
    from broker.assembly import assemble, read_tasks
    from broker.config import load_config
    from models.protocol.topics import Topics
    from tools.bench.server_load import Load
    from tools.local_fleet.toml_text import to_toml
    from tools.simulation.machines.memory_broker import MemoryBroker
    from tools.simulation.machines.memory_link import MemoryLink

    place = work / "memory"
    place.mkdir()
    sections = {
        "fleet": {"name": FLEET, "broker": "mqtt://nowhere"},
        "storage": {"directory": str(place)},
        "task": [_task(work, fold, rule)],
    }
    (place / "broker.toml").write_text(to_toml(sections))
    config = load_config(place / "broker.toml")
    broker = MemoryBroker(time.monotonic)
    link = MemoryLink(broker, client_id="server")
    server = assemble(config, read_tasks(config), link, time.monotonic(), time.time())
    link.start()

    def serve() -> None:
        for event in link.poll(0.0):
            server.handle(event, time.monotonic(), time.time())
        server.tick(time.monotonic(), time.time())

    while link.window() == 0:
        serve()
    lanes = [MemoryLink(broker, client_id=f"load-{number}") for number in range(LINKS)]
    for lane in lanes:
        lane.start()
    updates = _updates(work)
    load = Load(lanes, Topics(FLEET), updates, devices=devices, count=count)
    before_s = cpu_seconds(os.getpid())
    seconds = _carried(load, _folds(load, fold), serve)
    return taken_by("folded, no MQTT", updates, load.folded, seconds, os.getpid(), before_s)


def _folds(load: "Load", fold: int) -> Callable[[], bool]:
    """Return whether too few are left for another release."""
    return lambda: load.unfolded < fold


def _carried(load: "Load", done: Callable[[], bool], between: Callable[[], None]) -> float:
    """Drive ``load`` until ``done``; return the seconds from its start."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        load.tick()
        between()
        if time.monotonic() > deadline:
            raise TransientError(
                f"in {PATIENCE_S:.0f} s only {load.stored} updates stored, {load.folded} folded"
            )
    return time.monotonic() - load.began_at


def _by_plain_script(work: Path, deltas: "list[np.ndarray]", options: argparse.Namespace) -> Taken:
    from tools.bench.plain_aggregator import READY, feed, packed
    from tools.local_fleet.process import Process, stop_all

    payloads = [packed(delta) for delta in deltas]
    place = work / "plain"
    with _broker(place) as broker:
        arguments = [broker.host, str(broker.port), str(options.fold)]
        script = Process(
            "script", ["tools.bench.plain_aggregator", *arguments], place / "script.log"
        )
        script.start()
        try:
            deadline = time.monotonic() + PATIENCE_S
            while READY not in script.last_words():
                if time.monotonic() > deadline:
                    raise TransientError(f"the plain script said: {script.last_words()}")
                time.sleep(0.05)
            before_s = cpu_seconds(script.pid)
            try:
                models, seconds = feed(
                    broker.host,
                    broker.port,
                    payloads,
                    devices=options.devices,
                    count=options.plain_updates,
                    every=options.fold,
                    patience_s=PATIENCE_S,
                )
            except TransientError as error:
                words = script.last_words()
                raise TransientError(f"the plain script: {error}; it said: {words}") from None
            count = models * options.fold
            return taken_by("plain script", payloads, count, seconds, script.pid, before_s)
        finally:
            stop_all([script])


if __name__ == "__main__":
    work, rule, *numbers = sys.argv[1:]
    print(json.dumps(_serve_in_memory(Path(work), rule, *map(int, numbers))._asdict()))
