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

import msgspec

from broker.assembly import MB, ServedTask
from broker.releases.release_line import Evaluate, ReleaseLine
from edge_agent.config import Training
from edge_agent.samples.sample_store import segment_name
from tools.simulation.learning.light_learning import Learning, LightLearning, sample_file
from tools.simulation.machines.machines import EPOCH, DeviceMachine, Machine, ServerMachine
from tools.simulation.machines.memory_broker import RECEIVE_MAXIMUM
from tools.simulation.machines.timeline import Timeline
from tools.simulation.machines.virtual_disk import VirtualDisk, mounted, untouched
from tools.simulation.machines.virtual_network import BrokerFaults, Line, VirtualBroker
from tools.simulation.promises.ledger import Ledger
from tools.simulation.promises.pace_law import PaceLaw
from tools.simulation.scenario.fleet_configs import (
    device_config,
    device_pace,
    most_bytes,
    served,
    server_config,
)
from tools.simulation.scenario.fleet_settings import Milestone, Outcome, Settings, Usage, varied
from tools.simulation.surroundings import REACHED, patient, reproducible, short_of_room
from tools.simulation.weather import Weather

__all__ = ["Outcome", "Progress", "Settings", "World", "prepared", "simulate"]

FLEET, TASK = "sim", "light"
SETTLED_S = 2.0  # the agent leaves a file alone that is still being written
PATIENCE_S = 12 * 3600.0
LOOK_S = 600.0  # between two looks at whether all is at rest
DAILY = (13, 3)  # samples that a planned device gets at a time, to train on and to measure with
WATCHED = 50  # devices of a large fleet whose books are kept
DISK_LOOKS_S = 6 * 3600.0  # likewise, between two looks at what they use
PAUSE_S = 5.0  # likewise: what a machine receives within it is handled together
Progress = Callable[[float, str], None]  # share of the time that has passed, and a few words


class World:
    """The fleet of one seed, on the disks below ``root``."""

    def __init__(self, seed: int, settings: Settings, root: Path, learning: Learning) -> None:
        self.settings = settings
        self.timeline = Timeline(seed)
        self.plan = settings.plan
        self.network = VirtualBroker(
            self.timeline,
            is_patient=settings.is_planning,
            receive_maximum=1000 if settings.is_planning else RECEIVE_MAXIMUM,
        )
        self.learning = learning
        self.task = learning.bundle.spec.task
        self.ledger = Ledger(
            self.timeline,
            learning,
            FLEET,
            traced=settings.traced,
            pace=PaceLaw(min_s=60 * settings.min_minutes, min_new=Training().min_new_samples),
            watched=WATCHED if settings.is_planning else None,
        )
        self.healed = False
        self.milestones: list[Milestone] = []
        self.usage: list[Usage] = []
        self._rng = self.timeline.generator("world")
        self._sample_numbers = [0] * settings.devices
        self._up_since: dict[str, float] = {}
        self._online_s: dict[str, float] = {}
        self._segments = self._light_segments(root) if settings.is_planning else None
        self.server = self._make_server(root)
        self._server_bytes = most_bytes(
            self.server.config, learning.bundle, MB if settings.is_planning else settings.server_mb
        )
        self.devices = [self._make_device(n, root) for n in range(settings.devices)]
        self.ledger.watch_server(self.server)

    def _light_segments(self, root: Path) -> tuple[Path, Path] | None:
        """Write the samples to train on and to measure with, once for all devices."""
        if not isinstance(self.learning, LightLearning):
            return None
        files = []
        for count in DAILY:
            files.append(root / f"{count}.npz")
            files[-1].write_bytes(sample_file(count))
        return files[0], files[1]

    # -- its machines

    def _make_server(self, root: Path) -> ServerMachine:
        disk = VirtualDisk(root / "server", is_watched=not self.settings.is_planning)
        section = served(self.settings)
        return ServerMachine(
            "server",
            self.timeline,
            disk,
            Line(delay_s=0.001),
            self.ledger,
            network=self.network,
            config=server_config(self.settings, FLEET, disk.at, section),
            tasks=[ServedTask(section, self.learning.bundle, self._evaluate)],
            mean_down_s=self.plan.down_s,
            pause_s=PAUSE_S if self.settings.is_planning else 0.0,
        )

    @property
    def _evaluate(self) -> Evaluate | None:
        return self.learning.evaluate if self.settings.is_planning else None

    def _make_device(self, number: int, root: Path) -> DeviceMachine:
        name = f"device-{number}"

        return DeviceMachine(
            name,
            self.timeline,
            VirtualDisk(root / name, is_watched=not self.settings.is_planning),
            Line(delay_s=self.plan.delay_s, bits_per_s=self.plan.bits_per_s),
            self.ledger,
            network=self.network,
            fleet=FLEET,
            task=self.task,
            number=number,
            learning=self.learning,
            settings=lambda at: device_config(self.settings, FLEET, name, self.task, at),
            on_learned=self.ledger.on_learned,
            trainer_kills=self.plan.trainer_kills,
            mean_down_s=self.plan.down_s,
            board=self.settings.board if self.settings.is_planning else None,
            pause_s=PAUSE_S if self.settings.is_planning else 0.0,
            pace=device_pace(self.settings),
        )

    @property
    def line(self) -> ReleaseLine | None:
        """The server's one line of releases, while it runs."""
        server = self.server.server
        return next(iter(server.lanes.values())).line if server is not None else None

    @property
    def machines(self) -> list[Machine]:
        return [self.server, *self.devices]

    # -- life

    def live(self, progress: Progress = lambda share, words: None) -> None:
        """Let the fleet live with its faults for the time that is set."""
        self.timeline.at(0, self.server.boot)
        self.server.after_step = self._note_release
        for device in self.devices:
            self.timeline.at(self._rng.uniform(0, 60), device.boot)
            self._up_since[device.name] = 0.0
            if self.settings.task:  # it has something to learn from at once
                self.timeline.at(self._rng.uniform(60, 120), lambda d=device: self._sense(d))  # type: ignore[misc]
            self.repeat(self.settings.sample_every_s, lambda d=device: self._sense(d))  # type: ignore[misc]
            if self.settings.online < 1:
                device.line.up = False
                self._go_online(device)
        Weather(self, self.plan).begin()
        self._look()
        end, steps = self.settings.hours * 3600, 200
        for step in range(1, steps + 1):
            self.timeline.run(end * step / steps)
            progress(step / steps, self._words())
        self.usage = [self._used(device) for device in self.devices]

    def _words(self) -> str:
        newest = self.milestones[-1] if self.milestones else None
        if newest is None:
            return "no release yet"
        metric = "" if newest.metric is None else f", metric {newest.metric:.3f}"
        return f"release {newest.release}{metric}, {self.ledger.counts['folded']} updates folded"

    def _note_release(self) -> None:
        """After each step of the server: is there a new release?"""
        line = self.line
        if line is None or not line.newest:
            return
        if self.milestones and self.milestones[-1].release == line.newest:
            return
        lines = [device.line for device in self.devices]
        self.milestones.append(
            Milestone(
                self.timeline.now,
                line.newest,
                line.current.metric,
                sum(line.bytes_up for line in lines),
                sum(line.bytes_down for line in lines),
                self.ledger.counts["folded"] + line.current.updates,
            )
        )

    def _used(self, device: DeviceMachine) -> Usage:
        online_s = self._online_s.get(device.name, 0.0)
        if device.line.up:
            online_s += self.timeline.now - self._up_since[device.name]
        line = device.line
        return Usage(line.bytes_up, line.bytes_down, online_s, device.trained_s, device.trainings)

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
        number = self._sample_numbers[device.number]
        data = self.learning.samples(device.number, number)
        if data is None:
            return
        self._sample_numbers[device.number] += 1
        if self._segments is not None:
            self._feed(device)
            return
        with untouched():
            inbox = device.config.inbox
            inbox.mkdir(parents=True, exist_ok=True)
            path = inbox / f"{number + 1:06d}.npz"
            path.write_bytes(data)
            moment = EPOCH + self.timeline.now
            os.utime(path, (moment, moment))
        if self.settings.is_planning and device.agent is not None:
            device.agent.parts.inbox.wake()
            self.timeline.after(SETTLED_S, device.wake)

    def _feed(self, device: DeviceMachine) -> None:
        """Let samples be where the intake would have put them."""
        assert self._segments is not None
        if device.agent is None:
            return
        samples = device.agent.parts.samples
        number = self._sample_numbers[device.number]
        for source, count, folder in zip(
            self._segments, DAILY, (samples.train, samples.holdout), strict=True
        ):
            name = segment_name(number * count, count, f"{number:016x}", 0)
            os.link(source, f"{folder}/{name}")
        samples.refresh()
        device.wake()

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
        now = self.timeline.now
        if up and not device.line.up:
            self._up_since[device.name] = now
        elif device.line.up and not up:
            passed_s = now - self._up_since.get(device.name, now)
            self._online_s[device.name] = self._online_s.get(device.name, 0.0) + passed_s
        device.line.up = up
        self.ledger.say(device.name, "line up" if up else "line down")
        if device.link is not None:
            device.link.line_is_up() if up else device.link.cut()

    # -- looking

    def _look(self) -> None:
        devices, pause_s = self.devices, 10 * self.settings.look_s
        if self.settings.is_planning:
            devices, pause_s = devices[:WATCHED], DISK_LOOKS_S
        for device in devices:
            self.ledger.check_disk(device, device.config.max_bytes)
        self.ledger.check_disk(self.server, self._server_bytes)
        self.timeline.after(pause_s, self._look)

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
            disk.failing, disk.tight = 0.0, 0
            machine.skew_s = 0.0
            machine.line.black_hole = False
            self.set_line(machine, up=True)
            machine.line.bits_per_s = 0.0
            machine.is_down_until = 0.0
        self._close_training()
        patience_s = PATIENCE_S + self.settings.fold_seconds
        while self.timeline.now < began + patience_s:
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
            if self.settings.is_planning:  # else they are looked at after every step
                self.ledger.looked_at(self.server)

    def _close_training(self) -> None:
        """The operator closes training with a new setting and a restart of the server."""
        if self.settings.is_planning:
            self.server.stop_now()
        else:
            self.server.crash_soon(power_cut=False)
        closed = msgspec.structs.replace(self.server.config.task[0], releases=1)
        self.server.set_task(ServedTask(closed, self.learning.bundle, self._evaluate))
        self.timeline.after(30, self.server.boot)
        for device in self.devices:
            self.timeline.after(30, device.boot)

    def _restless(self) -> list[str]:
        """Return what is not yet done."""
        reasons = []
        line = self.line
        if not self.server.is_running or line is None:
            return ["the server is down"]
        newest = line.current.manifest
        for device in self.devices:
            if not device.is_running or device.agent is None:
                reasons.append(f"{device.name} is down")
                continue
            parts = device.agent.parts
            if waiting := parts.outbox.waiting():
                reasons.append(f"{device.name} has {[(e.seq, e.state) for e in waiting]} waiting")
            if parts.slots.release != line.newest:
                reasons.append(f"{device.name} runs {parts.slots.release}, newest is {line.newest}")
            elif parts.slots.active != newest:
                reasons.append(f"{device.name} runs another release {line.newest} than the newest")
        if not self.settings.is_planning:
            reasons += self.ledger.forgetting({device.name for device in self.devices})
        return reasons

    def accuracy(self) -> float:
        """Return how good the newest release is for the fleet as a whole."""
        line = self.line
        if line is None or not line.newest:
            return 0.0
        return self.learning.evaluate(line.published).metric

    def made(self) -> int:
        """Return how many updates the devices have committed."""
        if not self.settings.is_planning:
            return self.ledger.jobs()
        bases = (base for device in self.devices for base in device.disk.databases.values())
        rows = (base.execute("SELECT value FROM facts WHERE name = 'made'") for base in bases)
        return sum(int(value) for found in rows for (value,) in found)


def learning_of(seed: int, settings: Settings) -> Learning:
    """Return what the fleet of ``seed`` learns."""
    if settings.task:
        from tools.simulation.learning.real_learning import RealLearning

        return RealLearning(settings, seed=seed)
    size, devices, is_light = settings.size, settings.devices, not settings.real_codec
    return LightLearning(TASK, size, seed=seed, devices=devices, has_codec=is_light)


@contextlib.contextmanager
def prepared(seed: int, settings: Settings) -> Iterator[World]:
    """Yield the world of ``seed`` before its first moment; its disks are deleted afterwards."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    learning = learning_of(seed, settings)
    root = Path(tempfile.mkdtemp(prefix="edgefold-sim-", dir=parent))
    logging.disable(logging.CRITICAL)
    try:
        worlds: list[World] = []
        with (
            mounted(root, is_watched=not settings.is_planning),
            learning.codec(),
            reproducible(settings.look_s, lambda: worlds[0].ledger),
            patient()
            if settings.is_planning
            else short_of_room(settings.server_mb, lambda: worlds[0].ledger),
        ):
            worlds.append(World(seed, settings, root, learning))
            yield worlds[0]
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(root, ignore_errors=True)


def simulate(
    seed: int, settings: Settings, progress: Progress = lambda share, words: None
) -> Outcome:
    """Play one seed and return what came of it."""
    began = time.perf_counter()
    if settings.is_varied:
        settings = varied(settings, seed)
    with prepared(seed, settings) as world:
        settled_after_s = -1.0
        try:
            world.live(progress)
            if settings.settles:
                settled_after_s = world.heal()
            world.close_books()
        except Exception as error:
            if not world.ledger.violations:
                raise
            world.ledger.say("world", f"ends early: {error}")
        return _outcome(seed, world, settled_after_s, time.perf_counter() - began)


def _outcome(seed: int, world: World, settled_after_s: float, wall_s: float) -> Outcome:
    ledger, devices, line = world.ledger, world.devices, world.line
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
        updates=world.made(),
        folded=ledger.counts["folded"],
        refused=ledger.counts["refused"],
        crashes=sum(machine.crashes for machine in world.machines),
        messages=world.network.messages,
        bytes_up=sum(device.line.bytes_up for device in devices),
        bytes_down=sum(device.line.bytes_down for device in devices),
        imbalance=ledger.worst_imbalance(),
        accuracy=world.accuracy(),
        events=world.timeline.events,
        patched=sum(device.patched for device in devices),
        with_context=ledger.counts["with context"],
        fold_error=ledger.worst_fold(),
        reached=tuple((name, ledger.counts[name]) for name in REACHED),
        usage=tuple(world.usage),
        milestones=tuple(world.milestones),
    )
