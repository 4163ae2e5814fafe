"""A whole simulated fleet: machines, network, weather; runs, heals, and must come to rest.

``simulate`` plays one seed. First the fleet lives for some hours with the faults of a plan. Then
everything is repaired, training is closed, and in time every update must have been answered for and
every device must run the newest release (`repair.py`): what does not come to rest is stuck.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.config import Training
from tools.simulation.connectivity import Connectivity
from tools.simulation.fleet import FLEET, Fleet
from tools.simulation.happenings import Happenings
from tools.simulation.learning.light_learning import Learning, LightLearning
from tools.simulation.learning_events import LEARNING_EVENTS, learning_counted
from tools.simulation.machines.device_machine import DeviceMachine
from tools.simulation.machines.disk_watch import mounted
from tools.simulation.machines.timeline import Timeline
from tools.simulation.promises.ledger import Ledger
from tools.simulation.promises.pace_law import PaceLaw
from tools.simulation.repair import Repair
from tools.simulation.sample_supply import SampleSupply
from tools.simulation.scenario.fleet_configs import served, server_idle_s
from tools.simulation.scenario.fleet_settings import Milestone, Outcome, Settings, Usage, varied
from tools.simulation.surroundings import REACHED, quick, short_of_room, witnessed
from tools.simulation.weather import Weather

__all__ = ["FleetWorld", "Outcome", "Progress", "Settings", "prepared", "simulate"]

TASK = "light"
WATCHED = 50  # devices of a large fleet whose books are kept
DISK_LOOKS_S = 6 * 3600.0  # likewise, between two looks at what they use
STEPS = 200  # in which a life is told
Progress = Callable[[float, str], None]  # share of the time that has passed, and a few words


class FleetWorld:
    """The fleet of one seed, on the disks below ``root``, and all that happens to it."""

    def __init__(self, seed: int, settings: Settings, root: Path, learning: Learning) -> None:
        self.settings = settings
        self.learning = learning
        self.timeline = Timeline(seed)
        self.ledger = Ledger(
            self.timeline,
            learning,
            FLEET,
            traced=settings.traced,
            pace=PaceLaw(min_s=60 * settings.min_minutes, min_new=Training().min_new_samples),
            watched=WATCHED if settings.is_planning else None,
            feedback=served(settings).learning.feedback,
        )
        self.happenings = Happenings(self.timeline)
        self.connectivity = Connectivity(self.happenings, self.ledger, settings)
        self.supply = SampleSupply(learning, root, is_planning=settings.is_planning)
        self.fleet = Fleet(settings, root, learning, self.timeline, self.ledger)
        self.milestones: list[Milestone] = []
        self.usage: list[Usage] = []

    # -- life

    def live(self, progress: Progress = lambda share, words: None) -> None:
        """Let the fleet live with its faults for the time that is set."""
        fleet, timeline = self.fleet, self.timeline
        timeline.at(0, fleet.server.boot)
        fleet.server.after_step = self._note_release
        for device in fleet.devices:
            self._begin(device)
        Weather(self.settings.plan, fleet, self.happenings, self.connectivity, self.ledger).begin()
        self._look()
        end = self.settings.hours * 3600
        for step in range(1, STEPS + 1):
            timeline.run(end * step / STEPS)
            progress(step / STEPS, self._words())
        self.usage = [self._used(device) for device in fleet.devices]

    def _begin(self, device: DeviceMachine) -> None:
        def sense() -> None:
            self.supply.bring(device)

        uniform = self.happenings.rng.uniform
        self.timeline.at(uniform(0, 60), device.boot)
        if self.settings.task:  # it has something to learn from at once
            self.timeline.at(uniform(60, 120), sense)
        self.happenings.repeat(self.settings.sample_every_s, sense)
        self.connectivity.begin(device)

    def _words(self) -> str:
        newest = self.milestones[-1] if self.milestones else None
        if newest is None:
            return "no release yet"
        metric = "" if newest.metric is None else f", metric {newest.metric:.3f}"
        return f"release {newest.release}{metric}, {self.ledger.counts['folded']} updates folded"

    # -- looking

    def _note_release(self) -> None:
        """After each step of the server: is there a new release?"""
        line = self.fleet.release_line
        if line is None or not line.newest:
            return
        if self.milestones and self.milestones[-1].release == line.newest:
            return
        lines = [device.line for device in self.fleet.devices]
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
        line, online_s = device.line, self.connectivity.online_s(device)
        used = Usage(line.bytes_up, line.bytes_down, online_s, device.trained_s, device.trainings)
        if device.agent is None:
            return used
        return used._replace(facts=device.agent.parts.outbox.facts.read())

    def _look(self) -> None:
        fleet, devices, pause_s = self.fleet, self.fleet.devices, 10 * self.settings.look_s
        if self.settings.is_planning:
            devices, pause_s = devices[:WATCHED], DISK_LOOKS_S
        for device in devices:
            self.ledger.check_disk(device, device.config.max_bytes)
        self.ledger.check_disk(fleet.server, fleet.most_server_bytes)
        self.timeline.after(pause_s, self._look)

    # -- the end

    def heal(self) -> float:
        """Repair everything, close training; return after how long all is at rest, or -1."""
        return Repair(
            self.settings, self.fleet, self.happenings, self.connectivity, self.ledger
        ).come_to_rest()

    def close_books(self) -> None:
        """Look at everything once more."""
        if not self.timeline.is_over:
            self.ledger.server.check_promises()
            for device in self.fleet.devices:
                self.ledger.looked_at(device)
            if self.settings.is_planning:  # else they are looked at after every step
                self.ledger.looked_at(self.fleet.server)

    def accuracy(self) -> float:
        """Return how good the newest release is for the fleet as a whole."""
        line = self.fleet.release_line
        if line is None or not line.newest:
            return 0.0
        return self.learning.evaluate(line.published).metric

    def made(self) -> int:
        """Return how many updates the devices have committed."""
        if not self.settings.is_planning:
            return self.ledger.devices.jobs()
        bases = (base for device in self.fleet.devices for base in device.disk.databases.values())
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
def prepared(seed: int, settings: Settings) -> Iterator[FleetWorld]:
    """Yield the world of ``seed`` before its first moment; its disks are deleted afterwards."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    learning = learning_of(seed, settings)
    root = Path(tempfile.mkdtemp(prefix="edgefold-sim-", dir=parent))
    logging.disable(logging.CRITICAL)
    try:
        worlds: list[FleetWorld] = []
        with (
            mounted(root, is_watched=not settings.is_planning),
            learning.codec(),
            witnessed(server_idle_s(settings), lambda: worlds[0].ledger),
            quick()
            if settings.is_planning
            else short_of_room(settings.server_mb, lambda: worlds[0].ledger),
            learning_counted(lambda: worlds[0].ledger),
        ):
            worlds.append(FleetWorld(seed, settings, root, learning))
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


def _outcome(seed: int, world: FleetWorld, settled_after_s: float, wall_s: float) -> Outcome:
    ledger, fleet = world.ledger, world.fleet
    devices, line = fleet.devices, fleet.release_line
    return Outcome(
        seed=seed,
        violations=tuple(ledger.violations),
        digest=ledger.trace.digest(),
        trace=tuple(ledger.trace.lines),
        wall_s=wall_s,
        virtual_s=world.timeline.now,
        settled_after_s=settled_after_s,
        releases=line.newest if line else 0,
        trainings=ledger.counts["trainings"],
        updates=world.made(),
        folded=ledger.counts["folded"],
        refused=ledger.counts["refused"],
        crashes=sum(machine.crashes for machine in fleet.machines),
        messages=fleet.network.messages,
        bytes_up=sum(device.line.bytes_up for device in devices),
        bytes_down=sum(device.line.bytes_down for device in devices),
        imbalance=ledger.devices.worst_imbalance(),
        accuracy=world.accuracy(),
        events=world.timeline.events,
        patched=sum(device.patched for device in devices),
        with_context=ledger.counts["with context"],
        fold_error=ledger.server.worst_fold(),
        reached=tuple((name, ledger.counts[name]) for name in (*REACHED, *LEARNING_EVENTS)),
        usage=tuple(world.usage),
        milestones=tuple(world.milestones),
    )
