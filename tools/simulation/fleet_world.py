"""A whole simulated fleet: machines, network, weather; runs, heals, and must come to rest.

``simulate`` plays one seed. First the fleet lives for some hours with the faults of a plan. Then
everything is repaired, training is closed, and within `PATIENCE_S` every update must have been
answered for and every device must run the newest release: what does not come to rest is stuck.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

import broker.server
import broker.update_records
import edge_agent.agent
import edge_agent.config
import edge_agent.installation
import edge_agent.learner
import edge_agent.sample_inbox
from broker.aggregator import FoldPolicy
from broker.assembly import ServedTask
from broker.config import Config, FleetConfig, StorageConfig, TaskConfig
from broker.update_records import UpdateRecords, WaitingUpdate
from tools.simulation import light_learning
from tools.simulation.fault_plan import FaultPlan
from tools.simulation.ledger import Ledger, Violation
from tools.simulation.light_learning import bundle, light_codec, sample_file, substituted, target_of
from tools.simulation.machines import EPOCH, DeviceMachine, Machine, ServerMachine
from tools.simulation.timeline import Timeline
from tools.simulation.virtual_disk import VirtualDisk, mounted, untouched
from tools.simulation.virtual_network import BrokerFaults, Line, VirtualBroker
from tools.simulation.weather import Weather

__all__ = ["Outcome", "Settings", "World", "prepared", "simulate"]

FLEET, TASK = "sim", "light"
PATIENCE_S = 12 * 3600.0
LOOK_S = 600.0  # between two looks at whether all is at rest
SAMPLES = 16  # in a file


class Settings(NamedTuple):
    """What a simulated fleet is like."""

    devices: int = 3
    hours: float = 1.5
    online: float = 1.0  # share of the time that a device has a network
    plan: FaultPlan = FaultPlan()
    size: int = 4096  # parameters
    fold_updates: int = 2
    fold_seconds: float = 1800.0
    sample_every_s: float = 600.0  # mean, per device
    session_s: float = 1800.0  # mean time that a device stays online, if ``online`` < 1
    max_waiting: int = 4
    max_staleness: int = 6  # releases
    look_s: float = 60.0  # between an idle agent's looks at its inbox and at whether to train
    traced: bool = False


class Outcome(NamedTuple):
    """What came of one seed."""

    seed: int
    violations: tuple[Violation, ...]
    digest: str  # of everything that happened
    trace: tuple[str, ...]
    wall_s: float
    virtual_s: float
    settled_after_s: float  # from the repair; -1: never
    releases: int
    trainings: int
    updates: int
    folded: int
    refused: int
    crashes: int
    messages: int
    bytes_up: int
    bytes_down: int
    imbalance: float  # the worst relative one of any device at any moment
    accuracy: float  # 1 / (1 + mean squared distance to the fleet's optimum)
    events: int


class World:
    """The fleet of one seed, on the disks below ``root``."""

    def __init__(self, seed: int, settings: Settings, root: Path) -> None:
        self.settings = settings
        self.timeline = Timeline(seed)
        self.plan = settings.plan
        self.network = VirtualBroker(self.timeline)
        task = bundle(TASK, settings.size)
        self.ledger = Ledger(self.timeline, task.spec, FLEET, traced=settings.traced)
        self.healed = False
        self._rng = self.timeline.generator("world")
        self._samples = sample_file(SAMPLES)
        self._sample_number = 0
        self._task = task
        self._targets = [target_of(seed, n, settings.size) for n in range(settings.devices)]
        self.server = self._make_server(root)
        self.devices = [self._make_device(n, root) for n in range(settings.devices)]
        self.ledger.watch_server(self.server)

    # -- its machines

    def _make_server(self, root: Path) -> ServerMachine:
        settings = self.settings
        section = TaskConfig(
            bundle="",
            aggregation=FoldPolicy(
                updates=settings.fold_updates,
                seconds=settings.fold_seconds,
                max_staleness=settings.max_staleness,
            ),
        )
        disk = VirtualDisk(root / "server")
        config = Config(
            fleet=FleetConfig(FLEET, "mqtt://virtual", chunk_kib=4),
            storage=StorageConfig(
                str(disk.at), keep_releases=5, max_waiting_mb=1, max_partial_mb=1, max_update_mb=1
            ),
            task=(section,),
        )
        return ServerMachine(
            "server",
            self.timeline,
            disk,
            Line(delay_s=0.001),
            self.ledger,
            network=self.network,
            config=config,
            tasks=[ServedTask(section, self._task, None)],
            mean_down_s=self.plan.down_s,
        )

    def _make_device(self, number: int, root: Path) -> DeviceMachine:
        name = f"device-{number}"

        def settings(directory: Path) -> edge_agent.config.Config:
            return edge_agent.config.Config(
                device=edge_agent.config.Device(name, TASK),
                fleet=edge_agent.config.Fleet(FLEET, "mqtt://virtual"),
                storage=edge_agent.config.Storage(directory, max_mb=2),
                samples=edge_agent.config.Samples(max_count=400),
                training=edge_agent.config.Training(
                    max_waiting=self.settings.max_waiting,
                    check_seconds=self.settings.look_s,
                    max_minutes=5,
                ),
                inference=edge_agent.config.Inference(enabled=False),
                limits=edge_agent.config.Limits(chunk_kib=1),
            )

        return DeviceMachine(
            name,
            self.timeline,
            VirtualDisk(root / name),
            Line(delay_s=self.plan.delay_s, bits_per_s=self.plan.bits_per_s),
            self.ledger,
            network=self.network,
            fleet=FLEET,
            task=TASK,
            target=self._targets[number],
            settings=settings,
            on_learned=self.ledger.on_learned,
            trainer_kills=self.plan.trainer_kills,
            mean_down_s=self.plan.down_s,
        )

    @property
    def machines(self) -> list[Machine]:
        return [self.server, *self.devices]

    # -- life

    def live(self) -> None:
        """Let the fleet live with its faults for the time that is set."""
        self.timeline.at(0, self.server.boot)
        for device in self.devices:
            self.timeline.at(self._rng.uniform(0, 60), device.boot)
            self.repeat(self.settings.sample_every_s, lambda d=device: self._sense(d))  # type: ignore[misc]
            if self.settings.online < 1:
                device.line.up = False
                self._go_online(device)
        Weather(self, self.plan).begin()
        self._look()
        self.timeline.run(self.settings.hours * 3600)

    def repeat(self, mean_s: float, action: Callable[[], None]) -> None:
        """Do ``action`` again and again until the repair, with exponential gaps."""
        if mean_s <= 0:
            return

        def once() -> None:
            if self.healed:
                return
            action()
            self.timeline.after(self._rng.expovariate(1 / mean_s), once)

        self.timeline.after(self._rng.expovariate(1 / mean_s), once)

    def _sense(self, device: DeviceMachine) -> None:
        """An application hands over some samples, whatever the agent is doing."""
        if device.disk.dead or not device.disk_is_fine:
            return
        self._sample_number += 1
        with untouched():
            inbox = device.config.inbox
            inbox.mkdir(parents=True, exist_ok=True)
            path = inbox / f"{self._sample_number:06d}.npz"
            path.write_bytes(self._samples)
            moment = EPOCH + self.timeline.now
            os.utime(path, (moment, moment))

    def _go_online(self, device: DeviceMachine) -> None:
        share, stays_s = self.settings.online, self.settings.session_s

        def offline() -> None:
            if not self.healed:
                self.set_line(device, up=False)
                gap_s = stays_s * (1 - share) / max(share, 1e-6)
                self.timeline.after(self._rng.expovariate(1 / gap_s), online)

        def online() -> None:
            if not self.healed:
                self.set_line(device, up=True)
                self.timeline.after(self._rng.expovariate(1 / stays_s), offline)

        (online if self._rng.random() < share else offline)()

    def set_line(self, device: Machine, *, up: bool) -> None:
        device.line.up = up
        self.ledger.say(device.name, "line up" if up else "line down")
        if not up and device.link is not None:
            device.link.cut()

    # -- looking

    def _look(self) -> None:
        for device in self.devices:
            self.ledger.check_disk(device, device.config.max_bytes)
        self.timeline.after(10 * self.settings.look_s, self._look)

    # -- the end

    def heal(self) -> float:
        """Repair everything, close training; return after how long all is at rest, or -1."""
        if self.timeline.is_over:
            return -1.0
        self.healed = True
        self.ledger.say("world", "everything is repaired")
        began = self.timeline.now
        self.network.faults = BrokerFaults()
        self.network.start()
        for machine in self.machines:
            disk = machine.disk
            if not machine.disk_is_fine:
                machine.disk_bad_until = began
            disk.full = disk.read_only = False
            disk.failing = 0.0
            machine.skew_s = 0.0
            machine.line.up, machine.line.black_hole = True, False
            machine.line.bits_per_s = 0.0
            machine.is_down_until = 0.0
        self._close_training()
        while self.timeline.now < began + PATIENCE_S:
            self.timeline.run(self.timeline.now + LOOK_S)
            if self.timeline.is_over:
                return -1.0
            if not self._restless():
                return self.timeline.now - began
        for reason in self._restless():
            self.ledger.broken("world", f"stuck: {reason}")
        return -1.0

    def close_books(self) -> None:
        """Look at everything once more."""
        if not self.timeline.is_over:
            self.ledger.check_promises()
            for device in self.devices:
                self.ledger.looked_at(device)

    def _close_training(self) -> None:
        """The operator closes training with a new setting and a restart of the server."""
        self.server.crash_soon(power_cut=False)
        closed = msgspec.structs.replace(self.server.config.task[0], releases=1)
        self.server.set_task(ServedTask(closed, self._task, None))
        self.timeline.after(30, self.server.boot)
        for device in self.devices:
            self.timeline.after(30, device.boot)

    def _restless(self) -> list[str]:
        """Return what is not yet done."""
        reasons = []
        if not self.server.is_running or self.server.server is None:
            return ["the server is down"]
        newest = next(iter(self.server.server._lines.values())).newest
        for device in self.devices:
            if not device.is_running or device.agent is None:
                reasons.append(f"{device.name} is down")
                continue
            parts = device.agent._parts
            if waiting := parts.outbox.waiting():
                reasons.append(f"{device.name} has {[(e.seq, e.state) for e in waiting]} waiting")
            if parts.slots.release != newest:
                reasons.append(f"{device.name} runs {parts.slots.release}, newest is {newest}")
        return reasons

    def accuracy(self) -> float:
        """Return how near the newest release is to the fleet's optimum, 0 to 1."""
        if self.server.server is None:
            return 0.0
        line = next(iter(self.server.server._lines.values()))
        if line._parameters is None:
            return 0.0
        distance = line._parameters - light_learning.mean(self._targets)
        return float(1 / (1 + np.mean(distance**2)))


@contextlib.contextmanager
def _reproducible(
    world_seed: int, look_s: float, ledger_of: Callable[[], Ledger]
) -> Iterator[None]:
    """Replace what would make two runs differ, and stretch the product's idle looks at nothing."""
    rng = Timeline(world_seed).generator("identities")

    class Secrets:
        @staticmethod
        def token_hex(count: int) -> str:
            return rng.randbytes(count).hex()

    settle = UpdateRecords.settle

    def watched(
        self: UpdateRecords,
        update: WaitingUpdate,
        state: Any,
        *,
        release: int = 0,
        reason: str = "",
    ) -> None:
        settle(self, update, state, release=release, reason=reason)
        ledger_of().on_settle(update, state, release)

    with substituted(
        (edge_agent.installation, "secrets", Secrets),
        (UpdateRecords, "settle", watched),
        (broker.update_records, "HEADERS_KEPT", 5),
        (edge_agent.sample_inbox, "LOOK_EVERY_S", look_s),
        (edge_agent.learner, "POLL_S", 20.0),
        (edge_agent.agent, "LONGEST_SLEEP_S", 5 * look_s),
        (broker.server, "IDLE_S", 5 * look_s),
    ):
        yield


@contextlib.contextmanager
def prepared(seed: int, settings: Settings) -> Iterator[World]:
    """Yield the world of ``seed`` before its first moment; its disks are deleted afterwards."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="edgefold-sim-", dir=parent))
    logging.disable(logging.CRITICAL)
    try:
        worlds: list[World] = []
        with (
            mounted(root),
            light_codec(),
            _reproducible(seed, settings.look_s, lambda: worlds[0].ledger),
        ):
            worlds.append(World(seed, settings, root))
            yield worlds[0]
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(root, ignore_errors=True)


def simulate(seed: int, settings: Settings) -> Outcome:
    """Play one seed and return what came of it."""
    began = time.perf_counter()
    with prepared(seed, settings) as world:
        settled_after_s = -1.0
        try:
            world.live()
            settled_after_s = world.heal()
            world.close_books()
        except Exception as error:
            if not world.ledger.violations:
                raise
            world.ledger.say("world", f"ends early: {error}")
        return _outcome(seed, world, settled_after_s, time.perf_counter() - began)


def _outcome(seed: int, world: World, settled_after_s: float, wall_s: float) -> Outcome:
    ledger, links = world.ledger, [machine.link for machine in world.devices]
    line = next(iter(world.server.server._lines.values())) if world.server.server else None
    return Outcome(
        seed=seed,
        violations=tuple(ledger.violations),
        digest=ledger.digest(),
        trace=tuple(ledger.trace),
        wall_s=wall_s,
        virtual_s=world.timeline.now,
        settled_after_s=settled_after_s,
        releases=line.newest if line else 0,
        trainings=ledger.counts["trainings"],
        updates=ledger.jobs(),
        folded=ledger.counts["folded"],
        refused=ledger.counts["refused"],
        crashes=sum(machine.crashes for machine in world.machines),
        messages=world.network.messages,
        bytes_up=sum(link.traffic().bytes_up for link in links if link),
        bytes_down=sum(link.traffic().bytes_down for link in links if link),
        imbalance=ledger.worst_imbalance(),
        accuracy=world.accuracy(),
        events=world.timeline.events,
    )
