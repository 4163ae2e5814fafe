"""Machines of a simulated fleet: boot, run, crash at any operation, come back; devices and server.

What runs on them is the product: `edge_agent.agent.Agent` and `broker.server.Server`, put together
by their own ``assemble``.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import broker.assembly
import edge_agent.build
import edge_agent.config
import edge_agent.releases.apply_patches
from broker.config import Config as ServerConfig
from broker.server import Server
from edge_agent.agent import Agent
from edge_agent.board.installation import open_installation
from edge_agent.board.pace import Pace
from edge_agent.releases.patching import PATCHER
from edge_agent.reports.status_file import LocalStatus, write_local_status
from edge_agent.training.governor import Vitals
from edge_agent.training.training_job import TRAINER, Job, decode_job
from models.errors import EdgefoldError, TransientError
from models.protocol.messages import Status, encode_message
from models.protocol.topics import Topics
from models.task.params import Vector
from models.transport.link import Event, Received
from tools.simulation.learning.light_learning import Learning, plan_steps
from tools.simulation.machines.timeline import Timeline
from tools.simulation.machines.virtual_disk import Crash, VirtualDisk, untouched
from tools.simulation.machines.virtual_network import Line, VirtualBroker, VirtualLink
from tools.simulation.promises.pace_law import Beginning
from tools.simulation.scenario.energy import Board

__all__ = ["DeviceMachine", "Machine", "Observer", "ServerMachine"]

EPOCH = 2_000_000_000.0  # Unix seconds at the start, by a right clock: May 2033
RESTART_S = 10.0  # systemd's pause before it starts a service again
TRAINING_S = (30.0, 280.0)
JOBS_KEPT = 8  # one may be found finished after a crash
NEVER_S = 20 * 86400.0  # who sleeps for so long waits for an event
VITALS = Vitals(celsius=50.0, throttled=False, free_mb=300.0, load=0.5, rss_mb=30, peak_rss_mb=31)


class Observer(Protocol):
    """Whoever watches a fleet for broken promises."""

    def say(self, machine: str, what: str) -> None:
        """Note an event for the trace."""

    def broken(self, machine: str, what: str) -> None:
        """Note a broken invariant."""

    def looked_at(self, machine: "Machine") -> None:
        """A machine has made a step, or has started."""


class Machine(ABC):
    """A board or server with its disk, clock and line; one process of ours runs on it."""

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        disk: VirtualDisk,
        line: Line,
        observer: Observer,
        *,
        pause_s: float = 0.0,
    ) -> None:
        self.pause_s = pause_s  # what comes within it is handled together
        self.name = name
        self.timeline = timeline
        self.disk = disk
        self.line = line
        self.observer = observer
        self.rng = timeline.generator(f"machine/{name}")
        self.skew_s = 0.0  # of the wall clock
        self.is_running = False
        self.is_down_until = 0.0
        self.disk_bad_until = -1000.0
        self.crashes = 0
        self.link: VirtualLink | None = None
        self._booted_at = 0.0
        self._fuse: tuple[int, bool] | None = None  # operations left, power cut
        self._wake_at = -1.0
        self._life = 0
        disk.before_io = self._before_io
        disk.fault_rng = timeline.generator(f"disk/{name}")

    # -- what the world does to it

    def boot(self) -> None:
        """Start the process; if that fails for a disk in trouble, try again, as systemd does."""
        if self.is_running or self.timeline.now < self.is_down_until:
            return
        self._life += 1
        self._booted_at = self.timeline.now - self.rng.uniform(5, 60)
        try:
            self._build()
        except Crash:
            self._come_back()
            return
        except (OSError, TransientError) as error:
            if self.disk_is_fine and not self.disk_was_bad:
                self.observer.broken(self.name, f"does not start: {error}")
            self._abandon()
            self.timeline.after(RESTART_S, self.boot)
            return
        except Exception as error:
            self.observer.broken(self.name, f"does not start: {error}")
            raise
        self.is_running = True
        self.observer.say(self.name, "boots")
        self.observer.looked_at(self)
        self.wake()

    def crash_soon(self, *, power_cut: bool) -> None:
        """Crash at one of the next operations on disk or network."""
        if self.is_running and self._fuse is None:
            self._fuse = (self.rng.randrange(1, 60), power_cut)

    def stop_now(self) -> None:
        """Kill the process; it stays down until `boot`."""
        self._fuse = None
        self.disk.reboot(self.rng, power_cut=False)
        self._abandon()

    def stay_down_until(self, moment: float) -> None:
        self.is_down_until = max(self.is_down_until, moment)

    @property
    def disk_is_fine(self) -> bool:
        disk = self.disk
        in_trouble = disk.full or disk.read_only or disk.failing or disk.tight
        return not (in_trouble or disk.capacity is not None)

    @property
    def disk_was_bad(self) -> bool:
        """Whether the process may still believe that its disk is in trouble."""
        return self.timeline.now < self.disk_bad_until + 60.0

    def inside(self, what: str) -> str:
        """Return ``what`` without the directory that the simulation lies in."""
        return what.replace(f"{self.disk.at}/", "")

    def monotonic(self) -> float:
        return self.timeline.now - self._booted_at

    def wall(self) -> float:
        return EPOCH + self.timeline.now + self.skew_s

    def wake(self) -> None:
        """There is something to do."""
        self._wake_by(self.timeline.now + self.pause_s)

    def wake_now(self) -> None:
        """There is something to do that others wait for."""
        self._wake_by(self.timeline.now)

    # -- how it runs

    def _wake_by(self, moment: float) -> None:
        if not self.is_running:  # `boot` does it
            return
        if self._wake_at >= 0 and self._wake_at <= moment:
            return
        self._wake_at = moment
        if moment - self.timeline.now > NEVER_S:
            return
        life = self._life
        self.timeline.at(moment, lambda: self._step(moment, life))

    def _step(self, moment: float, life: int) -> None:
        if life != self._life or not self.is_running or moment != self._wake_at:
            return
        self._wake_at = -1.0
        try:
            delay_s = self._run_once()
        except Crash:
            self._come_back()
            return
        except Exception as error:  # whatever it is, the real process would have died of it
            self.observer.broken(self.name, f"{type(error).__name__}: {error}")
            raise
        self.observer.looked_at(self)
        self._wake_by(self.timeline.now + max(delay_s, 0.001))

    def _come_back(self) -> None:
        """After a crash: reboot the disk, and start again some time later."""
        power_cut = self._fuse is not None and self._fuse[1]
        self._fuse = None
        self.crashes += 1
        self.disk.reboot(self.rng, power_cut=power_cut)
        self._abandon()
        self.observer.looked_at(self)
        down_s = self.rng.expovariate(1 / self._mean_down_s)
        start = max(self.timeline.now + down_s, self.is_down_until)
        self.timeline.at(start, self.boot)

    _mean_down_s = 60.0

    def _abandon(self) -> None:
        self.is_running = False
        self._life += 1
        self._wake_at = -1.0
        if self.link is not None:
            self.link.vanish()
            self.link = None

    def _before_io(self, what: str) -> None:
        if self._fuse is None:
            return
        left, power_cut = self._fuse
        if left > 0:
            self._fuse = (left - 1, power_cut)
            return
        self.disk.dead = True
        self.observer.say(
            self.name, f"{'power cut' if power_cut else 'killed'} before: {self.inside(what)}"
        )
        raise Crash

    @abstractmethod
    def _build(self) -> None:
        """Start the process: put the parts together, connect."""

    @abstractmethod
    def _run_once(self) -> float:
        """Pass on what has come, let the time pass; return the seconds until the next time."""


class _LightChild:
    """A training child: computes when its time has come, in one go, and may die on the way."""

    def __init__(self, machine: "DeviceMachine", module: str, arguments: Sequence[str]) -> None:
        self._machine = machine
        self._arguments = arguments
        self._path = Path(arguments[0])
        self._module = module
        takes_s = machine.child_s(module, self._path)
        self._done_at = machine.timeline.now + takes_s
        if machine.board is not None:  # else whoever waits for us looks every few seconds
            machine.timeline.at(self._done_at, machine.wake)
        self._code: int | None = None
        self._dies_after = machine.child_dies_after(module)

    def poll(self) -> int | None:
        if self._code is None and self._machine.timeline.now >= self._done_at:
            self._code = self._work()
        return self._code

    def kill(self) -> None:
        self._code = -9 if self._code is None else self._code

    def _work(self) -> int:
        machine, disk = self._machine, self._machine.disk
        own = disk.before_io
        left = [self._dies_after]

        def before_io(what: str) -> None:
            own(what)
            left[0] -= 1
            if left[0] == 0:
                machine.observer.say(machine.name, f"child dies before: {machine.inside(what)}")
                raise _ChildDied

        disk.before_io = before_io
        try:
            if self._module == TRAINER:
                machine.learning.train(machine.number, self._path, machine.learned)
            elif self._module == PATCHER:
                edge_agent.releases.apply_patches.apply_patches(self._arguments)
                machine.patched += 1
            else:
                machine.take_in(self._path)
        except _ChildDied:
            return -9
        except (OSError, EdgefoldError):
            return 1
        finally:
            disk.before_io = own
        return 0


def _untouched(path: Path) -> bytes:
    """Read a file as nobody on the machine would: it costs no operation and cannot fail."""
    with untouched():
        return path.read_bytes()


def _write_nothing(path: Path, status: LocalStatus) -> None:
    """Where nobody looks at a device's directory."""


class _ChildDied(BaseException):
    """The child process is gone; the agent is not."""


class DeviceMachine(Machine):
    """One board with the agent."""

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        disk: VirtualDisk,
        line: Line,
        observer: Observer,
        *,
        network: VirtualBroker,
        fleet: str,
        task: str,
        number: int,
        learning: Learning,
        settings: Callable[[Path], edge_agent.config.Config],
        on_learned: Callable[["DeviceMachine", Job, Vector], None],
        trainer_kills: float,
        mean_down_s: float,
        board: Board | None = None,
        pause_s: float = 0.0,
        pace: Pace,
    ) -> None:
        super().__init__(name, timeline, disk, line, observer, pause_s=pause_s)
        self.pace = pace
        self.network = network
        self.topics = Topics(fleet)
        self.task = task
        self.number = number
        self.learning = learning
        self.board = board  # says how long a training takes; None: any time, as faults like it
        self.trained_s = 0.0
        self.trainings = 0
        self.beginnings: dict[int, Beginning] = {}  # of trainings, by job
        self.patched = 0  # releases made out of patches
        self.config = settings(disk.at)
        self.agent: Agent | None = None
        self._identities = timeline.generator(f"identities/{name}")
        self._on_learned = on_learned
        self._trainer_kills = trainer_kills
        self._mean_down_s = mean_down_s

    def _digits(self) -> str:
        return self._identities.randbytes(4).hex()

    def learned(self, job: Job, delta: Vector) -> None:
        self.trainings += 1
        self._on_learned(self, job, delta)

    def child_s(self, module: str, path: Path) -> float:
        """Return how long a child takes for the job in ``path``."""
        if not module.endswith("trainer"):
            return 1.0
        job = decode_job(_untouched(path))
        self.beginnings = {
            job.number: Beginning(self.timeline.now, self.skew_s, self.crashes),
            **{n: at for n, at in self.beginnings.items() if n > job.number - JOBS_KEPT},
        }
        if self.board is None:
            return self.rng.uniform(*TRAINING_S)
        steps = 0
        if job.do == "train":
            assert self.agent is not None  # it waits for us
            steps = plan_steps(job.plan, max(1, self.agent.parts.samples.counts().train))
        takes_s = self.board.start_s + steps * self.board.step_ms / 1000
        self.trained_s += takes_s
        return takes_s

    def child_dies_after(self, module: str) -> int:
        """Return after how many operations a child dies; 0: it does not."""
        return self.rng.randrange(1, 30) if self.rng.random() < self._trainer_kills else 0

    def take_in(self, path: Path) -> None:
        import msgspec

        import edge_agent.inbox.intake as intake
        from edge_agent.inbox.intake_job import IntakeJob

        job = msgspec.json.decode(path.read_bytes(), type=IntakeJob)
        result = intake.take_in(job)
        (path.parent / "result.json").write_bytes(msgspec.json.encode(result))

    def _wake_published(self) -> None:
        """An acknowledgment: when planning, only that of a chunk is waited for."""
        if self.board is None or self.agent is None or self.agent.parts.uplink.chunks_under_way:
            self.wake()

    def _build(self) -> None:
        device = self.config.device
        self.config.storage.directory.mkdir(parents=True, exist_ok=True)
        installation = open_installation(
            self.config.storage.directory, device=device.id, task=device.task, digits=self._digits
        )
        will = encode_message(Status(online=False, task=device.task))
        self.link = VirtualLink(
            self.network,
            client_id=device.id,
            line=self.line,
            will=(self.topics.status(device.id), will),
            wake=self.wake,
            wake_published=self._wake_published,
            before_io=self._before_io,
        )
        world = edge_agent.build.Surroundings(
            launch=lambda module, arguments, *, log: _LightChild(self, module, arguments),
            vitals=lambda: VITALS,
            wall_clock=self.wall,
            rng=random.Random(self.rng.getrandbits(64)),
            pace=self.pace,
            digits=self._digits,
            write_status=write_local_status if self.board is None else _write_nothing,
        )
        self.agent = edge_agent.build.assemble(self.config, installation, self.link, world)
        self.agent.start(self.monotonic())

    def _run_once(self) -> float:
        assert self.agent is not None
        assert self.link is not None
        now = self.monotonic()
        for event in self.link.poll(0):
            self.agent.handle(event, now)
        slots = self.agent.parts.slots
        release = slots.release
        delay_s = self.agent.tick(now) - now
        if self.board is not None and slots.release != release:
            return min(delay_s, self.pause_s)  # the learner, who may sleep for long, looked before
        return delay_s


class _WatchedLink(VirtualLink):
    """The server's link: what it promises and acknowledges is noted."""

    def __init__(self, watch: "ServerMachine", network: VirtualBroker) -> None:
        super().__init__(
            network,
            client_id="edgefold-broker",
            line=watch.line,
            wake=watch.wake,
            wake_published=watch.wake_published,
            before_io=watch._before_io,
        )
        self._watch = watch

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        token = super().publish(topic, payload, retain=retain)
        self._watch.on_publish(topic, payload)
        return token

    def acknowledge(self, message: Received) -> None:
        super().acknowledge(message)
        self._watch.on_acknowledge(message)


class ServerMachine(Machine):
    """The machine with the aggregator."""

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        disk: VirtualDisk,
        line: Line,
        observer: Observer,
        *,
        network: VirtualBroker,
        config: ServerConfig,
        tasks: Sequence[broker.assembly.ServedTask],
        mean_down_s: float,
        pause_s: float = 0.0,
    ) -> None:
        super().__init__(name, timeline, disk, line, observer, pause_s=pause_s)
        self.after_step: Callable[[], None] = lambda: None
        self.network = network
        self.config = config
        self.server: Server | None = None
        self.on_publish: Callable[[str, bytes], None] = lambda topic, payload: None
        self.on_acknowledge: Callable[[Received], None] = lambda message: None
        self._tasks = tasks
        self._mean_down_s = mean_down_s

    def wake_published(self) -> None:
        """An acknowledgment: devices may wait for what follows it, if anything does."""
        server = self.server
        if server is None or server.publisher.backlog or len(server.reception.receipts):
            self.wake_now()
        else:
            self.wake()

    def set_task(self, task: broker.assembly.ServedTask) -> None:
        """Change the configuration of the one task, for the next start."""
        self._tasks = [task]

    def _build(self) -> None:
        self.link = _WatchedLink(self, self.network)
        self.server = broker.assembly.assemble(
            self.config, self._tasks, self.link, self.monotonic(), self.wall()
        )
        self.link.start()

    def _run_once(self) -> float:
        assert self.server is not None
        assert self.link is not None
        events: list[Event] = self.link.poll(0)
        now, wall = self.monotonic(), self.wall()
        for event in events:
            self.server.handle(event, now, wall)
        wake_at = self.server.tick(now, wall)
        self.after_step()
        return wake_at - now
