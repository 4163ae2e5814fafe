"""The course of a demo: what is started, what goes wrong on purpose, when it is over."""

import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from models.errors import UsageError
from tools.bundle import TaskOptions, create_task, write_bundle
from tools.datasets import Dataset, load_dataset, split_devices
from tools.demo_broker import find_broker
from tools.demo_fleet import PORTION, Access, Device, Server, check_alive, stop_all
from tools.demo_report import draw, make_report, verdict, write_report
from tools.demo_troubles import Killed, OffLine, Trouble
from tools.demo_view import FleetView, View, kilobytes, percent
from tools.demo_watch import Watch

__all__ = ["DemoPlan", "play"]

TICK_S = 0.4  # between two looks
HOLDOUT = 0.15  # of a device's samples, kept from it, to measure with
FIRST_SHARE = 0.6  # of its samples, there from the start; the rest arrives while it runs
STALLED_S = 240.0  # without a new release, or without the end
SMALLEST_UPDATE = 200  # bytes
BATCH = 8  # of the devices: they have few samples
SERVER_RATE = 0.8  # below 1, because some updates come one release late
SETTLED_LOOKS = 3  # in a row, before it is over
FOLD_AFTER_S = 5.0  # the server waits so long for the slowest of the devices


class DemoPlan(NamedTuple):
    """What the command line asks for."""

    data: str
    net: str
    devices: int
    rounds: int
    broker: str
    report: Path
    picture: Path
    keep: Path | None
    seed: int
    samples: int | None
    epochs: float
    learning_rate: float
    compression: float
    quiet: bool
    json: bool


def play(plan: DemoPlan) -> int:
    """Run it all; return 0 if what it promises was so.

    Raises:
        UsageError: it cannot be run as asked, or a process of the fleet died by itself.
    """
    console = Console(stderr=plan.json, highlight=False)
    view = View(console, quiet=plan.quiet or plan.json)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that we tidy up
    try:
        with contextlib.ExitStack() as stack:
            return _Play(plan, console, view, stack).run()
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Play:
    def __init__(
        self, plan: DemoPlan, console: Console, view: View, stack: contextlib.ExitStack
    ) -> None:
        self._plan = plan
        self._console = console
        self._view = view
        self._stack = stack
        self._begin = time.monotonic()
        self._directory = _directory(plan.keep, stack)
        self._troubles: Sequence[Trouble] = ()
        self._holdout: dict[str, tuple[Any, Any]] = {}

    def run(self) -> int:
        plan, view = self._plan, self._view
        data = load_dataset(plan.data)
        if not data.classes:
            raise UsageError(f"{plan.data}: the demo needs labels; y holds numbers")
        view.tell(
            f"{data.name}: {len(data.train_rows)} samples for {plan.devices} devices, "
            f"{len(data.test_rows)} held out"
        )
        access, broker = self._connect()
        task, parameters = self._make_task(data)
        server = self._start_server(access, data, parameters)
        devices = self._start_devices(access, task, data)
        watch = Watch(
            server,
            devices,
            parameters=parameters,
            holdout=self._holdout,
        )
        self._troubles = [
            trouble(
                devices[number % len(devices)],
                watch,
                view,
                at=_moment(plan.rounds, share),
                last=plan.rounds + 1,
            )
            for trouble, number, share in ((OffLine, 1, 0.25), (Killed, 2, 0.5))
        ]
        with view.running():
            fleet = self._until_over(server, devices, watch)
            for trouble in self._troubles:
                trouble.conclude()
        account = watch.account()
        stop_all(devices)
        stop_all([server])
        wall_s = time.monotonic() - self._begin
        report = make_report(
            fleet,
            devices,
            account,
            broker=broker,
            net=plan.net,
            parameters=parameters,
            wall_s=wall_s,
        )
        write_report(report, plan.report)
        draw(fleet, plan.picture, title=f"{plan.net} on {data.name}, {plan.devices} devices")
        complaints = verdict(fleet, account)
        view.summary(fleet)
        self._conclude(fleet, report, complaints, wall_s)
        if plan.json:
            print(json.dumps(report))
        for complaint in complaints:
            print(f"edgefold demo: {complaint}", file=sys.stderr)
        return 1 if complaints else 0

    # -- the parts of the fleet

    def _make_task(self, data: Dataset) -> tuple[str, int]:
        options = TaskOptions(net=self._plan.net, seed=self._plan.seed)
        bundle = create_task("demo", data, options)
        write_bundle(bundle, self._directory / "bundle")
        self._view.tell(
            f"{self._plan.net}: {bundle.spec.shared_size:,} parameters; the training graph is a "
            f"file of {kilobytes(len(bundle.train))}"
        )
        return bundle.spec.task, bundle.spec.shared_size

    def _connect(self) -> tuple[Access, str]:
        found = find_broker(self._plan.broker, self._directory, self._stack)
        if found.remark:
            self._view.tell(found.remark, "yellow")
        where = f"{found.name} on port {found.access.port}" if found.local else found.name
        self._view.tell(f"MQTT broker: {where}")
        return found.access, found.name

    def _start_server(self, access: Access, data: Dataset, parameters: int) -> Server:
        plan = self._plan
        holdout = self._directory / "held-out.npz"
        np.savez(holdout, x=data.x[data.test_rows], y=data.y[data.test_rows])
        server = Server(
            self._directory,
            access,
            {
                "bundle": str(self._directory / "bundle"),
                "releases": plan.rounds + 1,  # the first one is what they start from
                "aggregation": {
                    "updates": plan.devices,
                    "seconds": FOLD_AFTER_S,
                    "learning_rate": SERVER_RATE,
                },
                "training": {
                    "epochs": plan.epochs,
                    "batch": BATCH,
                    "learning_rate": plan.learning_rate,
                },
                "codec": {"bytes": max(SMALLEST_UPDATE, int(4 * parameters / plan.compression))},
                "evaluation": {"data": str(holdout)},
            },
        )
        self._stack.callback(stop_all, [server])
        server.start()
        self._view.tell(f"aggregator: process {server.pid}")
        return server

    def _start_devices(self, access: Access, task: str, data: Dataset) -> list[Device]:
        plan = self._plan
        parts = split_devices(
            data, plan.devices, seed=plan.seed, holdout_share=HOLDOUT, limit=plan.samples
        )
        prefix = "device" if access.fleet == "demo" else access.fleet
        random = np.random.default_rng(plan.seed)
        devices: list[Device] = []
        self._stack.callback(stop_all, devices)
        for number, part in enumerate(parts, 1):
            rows = random.permutation(part.train)
            device = Device(
                f"{prefix}-{number}",
                self._directory,
                access,
                task,
                (data.x[rows], data.y[rows]),
                parts=plan.rounds + 4 * PORTION,
                first_share=FIRST_SHARE,
            )
            self._stack.enter_context(device)
            self._holdout[device.id] = (data.x[part.holdout], data.y[part.holdout])
            devices.append(device)
        for device in devices:
            device.deliver()
            device.start()
        numbers = ", ".join(str(device.pid) for device in devices)
        how = "by user" if data.user is not None else "by class, from Dirichlet(0.3)"
        self._view.tell(f"{len(devices)} agents: processes {numbers}; data dealt {how}")
        return devices

    # -- the course

    def _until_over(self, server: Server, devices: list[Device], watch: Watch) -> FleetView:
        """Let them learn, make trouble, and return when everything has settled."""
        releases = {device.id: 0 for device in devices}
        progress_at, progress = time.monotonic(), (0, 0)
        settled_looks = 0
        while True:
            for device in devices:
                device.measure()
            fleet = watch.look()
            self._view.show(fleet)
            newest = fleet.releases[-1].number if fleet.releases else 0
            for device, seen in zip(devices, fleet.devices, strict=True):
                if seen.release > releases[device.id]:  # life goes on: new samples arrive
                    releases[device.id] = seen.release
                    device.deliver()
            for trouble in self._troubles:
                trouble.tick(newest)
            check_alive([server, *(d for d in devices if d.what_we_did != "killed")])
            missing = self._missing(fleet, devices, watch)
            settled_looks = 0 if missing else settled_looks + 1
            if settled_looks == SETTLED_LOOKS:
                return fleet
            now = time.monotonic()
            settled = sum(device.folded + device.release for device in fleet.devices)
            if (newest, settled) != progress:
                progress_at, progress = now, (newest, settled)
            if now - progress_at > STALLED_S:
                raise UsageError(
                    f"nothing new for {STALLED_S:.0f} s at release {newest}, still missing: "
                    f"{missing}; run it with --keep DIR and see the logs there"
                )
            time.sleep(TICK_S)

    def _missing(self, fleet: FleetView, devices: list[Device], watch: Watch) -> str:
        """Return what keeps the demo from being over, "" if nothing does."""
        newest = fleet.releases[-1].number if fleet.releases else 0
        if newest <= self._plan.rounds:
            return f"release {self._plan.rounds + 1}"
        if trouble := next((trouble for trouble in self._troubles if not trouble.over), None):
            return f"the trouble of {trouble.device.id}"
        for device, seen in zip(devices, fleet.devices, strict=True):
            if seen.release != newest:
                return f"{seen.id} on release {newest}, it runs {seen.release}"
            if seen.waiting:
                return f"receipts for {seen.waiting} updates of {seen.id}"
            if device.trainer():  # what it makes of an older release shall be counted too
                return f"the end of the training on {seen.id}"
        waiting = watch.account().waiting
        return f"a release with {waiting} updates that wait at the server" if waiting else ""

    def _conclude(
        self, fleet: FleetView, report: dict[str, object], complaints: list[str], wall_s: float
    ) -> None:
        if self._plan.quiet or self._plan.json or not fleet.releases:
            return
        up, dense = (
            sum(release.payload_bytes for release in fleet.releases),
            sum(release.dense_bytes for release in fleet.releases),
        )
        first, last = fleet.releases[0], fleet.releases[-1]
        say = partial(self._console.print, soft_wrap=True)
        say()
        say(
            f"Accuracy on held-out data: {percent(first.accuracy)} -> {percent(last.accuracy)}; "
            f"{len(fleet.releases)} releases in {wall_s:.0f} s."
        )
        say(
            f"Updates: {kilobytes(up)} of payload instead of {kilobytes(dense)} of dense float32"
            f" ({dense / max(1, up):.0f} times less); all that the devices sent, MQTT included: "
            f"{kilobytes(sum(device.bytes_up for device in fleet.devices))}."
        )
        say(
            f"Updates lost: {report['updates_lost']}. "
            f"Folded twice: {report['updates_folded_twice']}."
        )
        if not complaints:
            say(f"All {len(fleet.devices)} devices run release {last.number}.", style="bold green")
        kept = f"; everything else in {self._plan.keep}" if self._plan.keep else ""
        say(f"Report: {self._plan.report}, picture: {self._plan.picture}{kept}")


def _moment(rounds: int, share: float) -> int:
    """Return the release at which something shall happen: there is one before and one after."""
    return max(1, min(rounds, 1 + round(rounds * share)))


def _directory(keep: Path | None, stack: contextlib.ExitStack) -> Path:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        return keep.resolve()
    directory = Path(tempfile.mkdtemp(prefix="edgefold-demo-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    return directory
