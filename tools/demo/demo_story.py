"""The course of a demo: what is started, what goes wrong on purpose, when it is over."""

import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from broker.config import TaskConfig
from broker.contradictions import contradictions
from broker.releases.hold_out import HoldOut
from models.errors import UsageError
from models.host.command_line import ExitCode
from models.task.bundle import Bundle
from models.task.spec import TaskSpec
from tools.author.bundle.bundle_directory import write_bundle
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.author.data.device_split import split_devices
from tools.author.data.labeled_data import Dataset
from tools.author.data.targets import fitted_to
from tools.demo.demo_broker import Found, find_broker
from tools.demo.demo_conclusion import conclude
from tools.demo.demo_dense import (
    DenseRun,
    averages_plainly,
    folded_updates,
    learn_densely,
    samples_on_disk,
)
from tools.demo.demo_picture import Course, draw
from tools.demo.demo_plan import HOLDOUT, DemoPlan
from tools.demo.demo_report import Timeline, make_report, verdict, write_report
from tools.demo.demo_troubles import Killed, OffLine, Trouble
from tools.demo.demo_view import View
from tools.demo.same_accuracy import same_accuracy
from tools.local_fleet.both_memories import compare_memories
from tools.local_fleet.fleet_facts import FleetView, counted, kilobytes, percent
from tools.local_fleet.fleet_processes import PORTION, STORAGE_MB, Access, Device, Server
from tools.local_fleet.fleet_watch import Watch
from tools.local_fleet.onlooker import Onlooker
from tools.local_fleet.process import check_alive, stop_all
from tools.progress import bar

__all__ = ["play"]

TICK_S = 0.4  # between two looks
STALLED_S = 240.0  # without a new release, or without the end
DENSE_LEAST_S = 45.0  # for the run to compare with; else as long as the fleet had


def play(plan: DemoPlan, onlooker: Onlooker | None = None) -> int:
    """Run it all; return 0 if what it promises was so.

    Raises:
        UsageError: it cannot be run as asked, or a process of the fleet died by itself.
    """
    console = Console(stderr=plan.json, highlight=False)
    view = View(console, quiet=plan.quiet or plan.json, last=plan.rounds + 1)
    previous = signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED)
    )  # so that we tidy up
    try:
        with contextlib.ExitStack() as stack:
            return _Play(plan, console, view, stack, onlooker or Onlooker()).run()
    except KeyboardInterrupt:
        view.last_words("Stopped by Ctrl-C")
        raise
    except SystemExit:
        view.last_words("Ended by SIGTERM")
        raise
    except UsageError:
        view.last_words("Given up")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Play:
    def __init__(
        self,
        plan: DemoPlan,
        console: Console,
        view: View,
        stack: contextlib.ExitStack,
        onlooker: Onlooker,
    ) -> None:
        self._onlooker = onlooker
        self._plan = plan
        self._console = console
        self._view = view
        self._stack = stack
        self._begin = time.monotonic()
        self._began = time.time()
        self._directory = _directory(plan.keep, stack)
        self._troubles: Sequence[Trouble] = ()
        self._holdout: dict[str, tuple[Any, Any]] = {}

    def run(self) -> int:
        plan, view = self._plan, self._view
        data = load_dataset(plan.data)
        if not data.classes:
            raise UsageError(f"{plan.data}: the demo needs labels; y holds numbers")
        view.tell(
            f"{data.name}: {len(data.train_rows)} samples for "
            f"{counted(plan.devices, 'device')}, {len(data.test_rows)} held out"
        )
        found, broker = self._connect()
        access = found.access
        bundle = self._make_task(data)
        settings = self._settings(bundle.spec)
        data = fitted_to(data, bundle.spec)
        parameters = bundle.spec.shared_size
        devices = self._start_devices(access, bundle, data)
        process = found.local.process if found.local else None
        self._onlooker.devices_started(process.pid if process else 0, devices)
        server = self._start_server(access, data, settings)
        self._onlooker.server_started(server)
        watch = Watch(
            server,
            devices,
            parameters=parameters,
            holdout=self._holdout,
        )
        self._troubles = self._plan_troubles(devices, watch)
        with view.running():
            last_seen = self._until_over(server, devices, watch)
            self._onlooker.came_to_rest()
        stop_all(devices)
        stop_all([server])
        wall_s = time.monotonic() - self._begin
        fleet, account = _as_it_was(watch.look(), last_seen), watch.account()
        view.show(fleet)
        for trouble in self._troubles:
            trouble.conclude()
        memories = compare_memories(server.directory, devices, bundle.spec.task)
        dense = self._learn_densely(bundle, data, server, devices, settings, wall_s)
        marks = tuple(trouble.mark for trouble in self._troubles if trouble.mark)
        timeline = Timeline(self._began, tuple(watch.probes), marks)
        report = make_report(
            fleet,
            devices,
            account,
            broker=broker,
            net=plan.net,
            parameters=parameters,
            wall_s=wall_s,
            timeline=timeline,
            dense=dense,
            memories=memories,
        )
        write_report(report, plan.report)
        draw(
            Course(
                title=f"{plan.net} on {data.name}, {counted(plan.devices, 'device')}, "
                f"{counted(plan.rounds, 'round')}",
                began=self._began,
                releases=fleet.releases,
                probes=timeline.probes,
                troubles=marks,
                dense=dense,
                same=same_accuracy(fleet.releases, dense),
            ),
            plan.picture,
        )
        complaints = verdict(fleet, account, memories)
        view.summary(fleet)
        words = memories.words
        conclude(self._console, plan, fleet, account, report, complaints, wall_s, words)
        if plan.json:
            print(json.dumps(report))
        for complaint in complaints:
            print(f"edgefold demo: {complaint}", file=sys.stderr)
        return 1 if complaints else 0

    # -- the parts of the fleet

    def _make_task(self, data: Dataset) -> Bundle:
        options = TaskOptions(net=self._plan.net, seed=self._plan.seed)
        bundle = create_task("demo", data, options)
        write_bundle(bundle, self._directory / "bundle")
        self._view.tell(
            f"{self._plan.net}: {bundle.spec.shared_size:,} parameters; the training graph is a "
            f"file of {kilobytes(len(bundle.train))}"
        )
        return bundle

    def _connect(self) -> tuple[Found, str]:
        found = find_broker(self._plan.broker, self._directory, self._stack)
        if found.remark:
            self._view.tell(found.remark, "yellow")
        where = f"{found.name} on port {found.access.port}" if found.local else found.name
        self._view.tell(f"MQTT broker: {where}")
        return found, found.name

    def _settings(self, spec: TaskSpec) -> TaskConfig:
        settings = self._plan.task(spec.shared_size)
        for sentence in contradictions(settings, spec):
            raise UsageError(f"--policy: {sentence}")
        return settings

    def _start_server(self, access: Access, data: Dataset, settings: TaskConfig) -> Server:
        holdout = self._directory / "held-out.npz"
        np.savez(holdout, x=data.x[data.test_rows], y=data.y[data.test_rows])
        files = {"bundle": str(self._directory / "bundle"), "evaluation": {"data": str(holdout)}}
        server = Server(self._directory, access, msgspec.to_builtins(settings) | files)
        self._stack.callback(stop_all, [server])
        server.start()
        self._view.tell(f"aggregator: process {server.pid}")
        return server

    def _start_devices(self, access: Access, bundle: Bundle, data: Dataset) -> list[Device]:
        plan = self._plan
        # The graphs and the parameters again, six times (`edge_agent.config`), and some room.
        release = len(bundle.infer) + len(bundle.train) + 4 * bundle.spec.shared_size
        parts = split_devices(
            data,
            plan.devices,
            seed=plan.seed,
            holdout_share=HOLDOUT if plan.holdout is None else plan.holdout,
            limit=plan.samples,
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
                bundle.spec.task,
                (data.x[rows], data.y[rows]),
                parts=plan.rounds + 4 * PORTION,
                first_share=plan.first_share,
                max_mb=max(STORAGE_MB, 8 * release // 1_000_000),
                # Nobody else changes the releases of one that is alone: it lives on new samples.
                min_new_samples=1 if plan.devices == 1 else None,
                holdout_share=plan.holdout,
            )
            self._stack.enter_context(device)
            self._holdout[device.id] = (data.x[part.holdout], data.y[part.holdout])
            devices.append(device)
        for device in devices:
            device.deliver()
            device.start()
        numbers = ", ".join(str(device.pid) for device in devices)
        how = "by user" if data.user is not None else "by class, from Dirichlet(0.3)"
        processes = f"process{'' if len(devices) == 1 else 'es'} {numbers}"
        self._view.tell(f"{counted(len(devices), 'agent')}: {processes}; data dealt {how}")
        return devices

    # -- the course

    def _plan_troubles(self, devices: list[Device], watch: Watch) -> list[Trouble]:
        if not self._plan.troubles:
            return []
        return [
            trouble(
                devices[number % len(devices)],
                watch,
                self._view,
                at=_moment(self._plan.rounds, share),
                last=self._plan.rounds + 1,
            )
            for trouble, number, share in ((OffLine, 1, 0.25), (Killed, 2, 0.5))
        ]

    def _until_over(self, server: Server, devices: list[Device], watch: Watch) -> FleetView:
        """Let them learn, make trouble, and return when all run the last release."""
        releases = {device.id: 0 for device in devices}
        progress_at, progress = time.monotonic(), (0, 0)
        while True:
            for device in devices:
                device.measure()
            fleet = watch.look()
            self._view.show(fleet)
            newest = fleet.releases[-1].number if fleet.releases else 0
            is_last = newest > self._plan.rounds
            if is_last and server.pid and watch.is_published():
                # What comes later would make a release of its own: a round that nobody asked for.
                stop_all([server])
                self._view.tell("the last round is done: the aggregator has ended")
            runs = {seen.id: seen.release for seen in fleet.devices}
            for device in devices:
                if runs[device.id] > releases[device.id]:  # life goes on: new samples arrive
                    releases[device.id] = runs[device.id]
                    device.deliver()
            for trouble in self._troubles:
                trouble.tick(newest, runs[trouble.device.id])
            check_alive([d for d in devices if d.what_we_did != "killed"])
            if not is_last:
                check_alive([server])
            missing = self._missing(fleet)
            if not missing:
                return fleet
            now = time.monotonic()
            fetched = sum(done for seen in fleet.devices for done, _ in [seen.fetching or (0, 0)])
            settled = sum(device.folded + device.release for device in fleet.devices)
            settled += fetched >> 20  # MiB: an idle line moves some bytes, too
            if (newest, settled) != progress:
                progress_at, progress = now, (newest, settled)
            if now - progress_at > STALLED_S:
                raise UsageError(
                    f"nothing new for {STALLED_S:.0f} s at release {newest}, still missing: "
                    f"{missing}; run it with --keep DIR and see the logs there"
                )
            time.sleep(TICK_S)

    def _missing(self, fleet: FleetView) -> str:
        """Return what keeps the demo from being over, "" if nothing does.

        Not the updates that came too late for the last round: they are safe where they are.
        """
        newest = fleet.releases[-1].number if fleet.releases else 0
        if newest <= self._plan.rounds:
            return f"release {self._plan.rounds + 1}"
        if trouble := next((trouble for trouble in self._troubles if not trouble.over), None):
            return f"the trouble of {trouble.device.id}"
        for seen in fleet.devices:
            if seen.release != newest:
                return f"{seen.id} on release {newest}, it runs {seen.release}"
        return ""

    # -- afterwards

    def _learn_densely(
        self,
        bundle: Bundle,
        data: Dataset,
        server: Server,
        devices: list[Device],
        settings: TaskConfig,
        wall_s: float,
    ) -> DenseRun | None:
        """Learn the same once more with dense float32 updates, to compare with."""
        plan = self._plan
        if not plan.dense:
            return None
        if not averages_plainly(settings):
            self._view.tell("no dense float32 to compare with: that is for plain averaging")
            return None
        shown = not (plan.quiet or plan.json)
        self._view.tell("the same updates again, trained and sent as dense float32, to compare")
        test = data.test_rows
        with bar(shown=shown, what="dense float32") as tell:
            dense = learn_densely(
                bundle,
                folded_updates(server.directory, bundle.spec.task),
                {device.id: samples_on_disk(device.state) for device in devices},
                HoldOut(data.x[test], data.y[test]),
                plan=settings.training_plan(1, repeat=True),
                policy=settings.aggregation,
                seed=plan.seed,
                most_s=max(DENSE_LEAST_S, wall_s),
                on_progress=tell,
            )
        newest = dense.releases[-1]
        self._view.tell(
            f"dense float32: accuracy {percent(newest.accuracy)} after release {newest.number}, "
            f"{kilobytes(sum(release.bytes_up for release in dense.releases))} sent"
            + ("" if dense.complete else "; its time was up, the picture has it as far as it came")
        )
        return dense


def _as_it_was(stopped: FleetView, running: FleetView) -> FleetView:
    """Return the counts of a fleet that was stopped, with what its devices did before."""
    states = {device.id: device.state for device in running.devices}
    return stopped._replace(
        devices=tuple(
            device._replace(state=states[device.id], fetching=None) for device in stopped.devices
        )
    )


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
